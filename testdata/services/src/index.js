import { Container, getContainer } from "@cloudflare/containers";

class Service extends Container {
  defaultPort = 8080;
}
export class Web extends Service {}
export class Api extends Service {}
export class Worker extends Service {}
export class Native extends Service {}

// `/api` asks the container of that name.
export default {
  fetch(request, env) {
    const name = new URL(request.url).pathname.slice(1);
    return getContainer(env[name]).fetch("http://container/");
  },
};
