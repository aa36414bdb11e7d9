import express from "express";
import { userInfo } from "node:os";

const app = express();
app.get("/", (_request, response) => {
  const user: string = userInfo().username;
  response.json({ service: "api", user });
});
app.listen(8080, "0.0.0.0");
