//! Commands in containers: over the socket as Docker's clients ask for them, and by the real workerd.

use std::path::Path;
use std::time::Duration;

use cfc_sandbox::OciRuntime;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::Test;
use crate::client;
use crate::platform::{Platform, block_on, container, on_platform};
use crate::workerd::{CONFIG, project, start_workerd, toolchain};

pub const TESTS: &[Test] = &[
    ("exec_speaks_dockers_frames_and_raw_terminals", || on_platform(frames)),
    ("exec_holds_back_a_flood_and_ends_with_its_container", || on_platform(flood)),
    ("exec_refuses_by_name", || on_platform(refusals)),
    ("exec_plays_workerds_wrapper_and_helper", || on_platform(wrapper)),
    ("exec_by_a_durable_object_of_the_real_workerd", || durable_object(None)),
    ("exec_by_a_durable_object_in_what_an_oci_runtime_runs", each_runtime),
];

const PID_FILE: &str = "/tmp/.workerd-exec-6f2c1a52-93d3-4d0e-8a55-1f3ce2a0b7d4.pid";

/// Makes a command; its id.
async fn made(platform: &Platform, name: &str, body: Value) -> String {
    let (status, answer) = platform.request("POST", &format!("/containers/{name}/exec"), Some(body)).await;
    assert_eq!(status, 201, "{answer}");
    answer["Id"].as_str().expect("an id").to_string()
}

fn body(command: &[&str]) -> Value {
    json!({ "AttachStdin": true, "AttachStdout": true, "AttachStderr": true, "Tty": false, "Cmd": command })
}

/// Starts a command and takes its connection over.
async fn hijack(platform: &Platform, id: &str, start: Value) -> UnixStream {
    let mut stream = UnixStream::connect(&platform.socket).await.expect("the engine listens");
    let start = start.to_string();
    let head = format!(
        "POST /exec/{id}/start HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{start}",
        start.len()
    );
    stream.write_all(head.as_bytes()).await.expect("the engine reads");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("the engine answers"));
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    stream
}

/// What the frames on a connection hold, until it ends: stdout and stderr.
async fn both(mut stream: UnixStream) -> (String, String) {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.expect("the engine sends");
    let mut texts = [String::new(), String::new()];
    let mut rest = &bytes[..];
    while let [kind @ 1..=2, 0, 0, 0, a, b, c, d, content @ ..] = rest {
        let (text, further) = content.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
        texts[usize::from(*kind) - 1].push_str(&String::from_utf8_lossy(text));
        rest = further;
    }
    assert!(rest.is_empty(), "no frame: {rest:?}");
    texts.into()
}

async fn inspect(platform: &Platform, id: &str) -> Value {
    let (status, answer) = platform.request("GET", &format!("/exec/{id}/json"), None).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

/// Its exit code, once it has ended.
async fn code(platform: &Platform, id: &str) -> i64 {
    for _ in 0..400 {
        let answer = inspect(platform, id).await;
        if let (Some(false), Some(code)) = (answer["Running"].as_bool(), answer["ExitCode"].as_i64()) {
            return code;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("{id} does not end")
}

fn attached() -> Value {
    json!({ "Detach": false, "Tty": false })
}

async fn frames(platform: Platform) {
    platform.run_script("exec sleep 1000");
    let name = container("one");
    platform.run(&name).await;
    let id = made(&platform, &name, body(&["sh", "-c", "cat; echo complaint >&2; echo $GREETING; exit 3"])).await;
    assert_eq!((inspect(&platform, &id).await["Running"].as_bool(), true), (Some(false), true));
    let mut stream = hijack(&platform, &id, attached()).await;
    let running = inspect(&platform, &id).await;
    assert_eq!((&running["Running"], &running["ExitCode"]), (&json!(true), &Value::Null));
    assert!(running["Pid"].as_u64().is_some_and(|pid| (2..1_000).contains(&pid)), "a number of the inside: {running}");
    stream.write_all(b"typed\n").await.expect("writes");
    stream.shutdown().await.expect("half closes, which ends the input");
    assert_eq!(both(stream).await, ("typed\nhello\n".to_string(), "complaint\n".to_string()));
    assert_eq!(code(&platform, &id).await, 3);

    let asked = json!({ "AttachStdin": true, "Tty": true, "Cmd": ["sh", "-c", "busybox stty size; read line; busybox stty size; exit 4"],
        "Env": ["A=b"], "WorkingDir": "/www", "User": "ada" });
    let id = made(&platform, &name, asked).await;
    let mut stream = hijack(&platform, &id, json!({ "Detach": false, "Tty": true, "ConsoleSize": [30, 100] })).await;
    let mut shown = vec![0; "30 100\r\n".len()];
    stream.read_exact(&mut shown).await.expect("it shows its size");
    assert_eq!(shown, b"30 100\r\n");
    assert_eq!(platform.request("POST", &format!("/exec/{id}/resize?h=7&w=8"), None).await.0, 200);
    stream.write_all(b"go\r").await.expect("types");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.expect("shows");
    assert_eq!(rest, "go\r\n7 8\r\n");
    assert_eq!(code(&platform, &id).await, 4);

    // What a command says that ends at once is not lost.
    for _ in 0..100 {
        let id = made(&platform, &name, body(&["busybox", "echo", "-n", "x"])).await;
        assert_eq!(both(hijack(&platform, &id, attached()).await).await.0, "x");
    }

    let id = made(&platform, &name, body(&["touch", "/tmp/detached"])).await;
    let start = json!({ "Detach": true, "Tty": false });
    assert_eq!(platform.request("POST", &format!("/exec/{id}/start"), Some(start)).await.0, 200);
    assert_eq!(code(&platform, &id).await, 0);
    let id = made(&platform, &name, body(&["ls", "/tmp/detached"])).await;
    assert_eq!(both(hijack(&platform, &id, attached()).await).await.0, "/tmp/detached\n");
    platform.close().await;
}

async fn flood(platform: Platform) {
    platform.run_script("exec sleep 1000");
    let name = container("one");
    platform.run(&name).await;
    let id = made(
        &platform,
        &name,
        body(&["sh", "-c", "busybox dd if=/dev/zero bs=1k count=40000 2>/dev/null; echo end >&2"]),
    )
    .await;
    let stream = hijack(&platform, &id, attached()).await;
    // Nobody reads: the command must wait, and not the engine hold 40 MB.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(inspect(&platform, &id).await["Running"], json!(true));
    let (zeroes, end) = both(stream).await;
    assert_eq!((zeroes.len(), end.as_str()), (40_960_000, "end\n"));
    assert_eq!(code(&platform, &id).await, 0);

    let id = made(&platform, &name, body(&["sleep", "1000"])).await;
    let stream = hijack(&platform, &id, attached()).await;
    assert_eq!(platform.kill(&name, "SIGKILL").await, 204);
    assert_eq!(both(stream).await, (String::new(), String::new()));
    assert_eq!(code(&platform, &id).await, 137);
    assert_eq!(platform.wait(&name).await, 137);
    let (status, answer) = platform.request("POST", &format!("/containers/{name}/exec"), Some(body(&["true"]))).await;
    assert_eq!(status, 409, "{answer}");
    platform.close().await;
}

async fn refusals(platform: Platform) {
    platform.run_script("exec sleep 1000");
    let name = container("one");
    assert_eq!(platform.request("POST", "/containers/none/exec", Some(body(&["true"]))).await.0, 404);
    platform.run(&name).await;
    let make = async |body: Value| platform.request("POST", &format!("/containers/{name}/exec"), Some(body)).await;
    assert_eq!(make(json!({ "Cmd": [] })).await.0, 400);
    let (status, answer) = make(json!({ "Cmd": ["true"], "Privileged": true })).await;
    assert!(status == 501 && answer["message"].as_str().is_some_and(|text| text.contains("Privileged")), "{answer}");
    assert_eq!(platform.request("GET", "/exec/none/json", None).await.0, 404);
    assert_eq!(platform.request("POST", "/exec/none/start", Some(attached())).await.0, 404);
    assert_eq!(platform.request("POST", "/exec/none/resize?h=1&w=1", None).await.0, 404);

    let detached = || Some(json!({ "Detach": true }));
    for (asked, text) in [
        (body(&["/no/such/command"]), "not found"),
        (json!({ "Cmd": ["true"], "User": "nobody-here" }), "no user `nobody-here`"),
        (json!({ "Cmd": ["true"], "WorkingDir": "/nowhere" }), "/nowhere"),
        (json!({ "Cmd": ["true"], "Env": ["novalue"] }), "KEY=value"),
    ] {
        let id = made(&platform, &name, asked.clone()).await;
        let (status, answer) = platform.request("POST", &format!("/exec/{id}/start"), detached()).await;
        assert!(
            status == 400 && answer["message"].as_str().is_some_and(|said| said.contains(text)),
            "{asked}: {answer}"
        );
        assert_eq!(code(&platform, &id).await, 127);
    }
    let id = made(&platform, &name, body(&["true"])).await;
    assert_eq!(platform.request("POST", &format!("/exec/{id}/start"), detached()).await.0, 200);
    assert_eq!(platform.request("POST", &format!("/exec/{id}/start"), detached()).await.0, 409, "only once");
    platform.close().await;
}

/// As workerd asks for a command.
fn wrapped(command: &[&str]) -> Value {
    let script = format!("echo $$ > {PID_FILE}; exec \"$@\"");
    let words = ["/bin/sh", "-c", &script, "sh"];
    body(&words.iter().chain(command).copied().collect::<Vec<_>>())
}

async fn wrapper(platform: Platform) {
    platform.run_script("exec sleep 1000");
    let name = container("one");
    platform.run(&name).await;
    let helper = format!("[ -s {PID_FILE} ] || exit 3; kill -15 \"$(cat {PID_FILE})\"");
    let kill = async |expected: i64| {
        let id = made(&platform, &name, json!({ "Cmd": ["/bin/sh", "-c", helper] })).await;
        let start = Some(json!({ "Detach": true, "Tty": false }));
        assert_eq!(platform.request("POST", &format!("/exec/{id}/start"), start).await.0, 200);
        assert_eq!(code(&platform, &id).await, expected);
    };
    kill(3).await;
    // From here on there is no shell.
    let id = made(&platform, &name, body(&["/bin/busybox", "rm", "/bin/sh"])).await;
    both(hijack(&platform, &id, attached()).await).await;
    let id = made(&platform, &name, wrapped(&["sleep", "1000"])).await;
    kill(3).await;
    let stream = hijack(&platform, &id, attached()).await;
    kill(0).await;
    both(stream).await;
    assert_eq!(code(&platform, &id).await, 143);
    kill(1).await;
    let id = made(&platform, &name, wrapped(&["no-such-command"])).await;
    let (stdout, stderr) = both(hijack(&platform, &id, attached()).await).await;
    assert!(stdout.is_empty() && stderr.contains("`no-such-command` not found"), "{stdout}{stderr}");
    assert_eq!(code(&platform, &id).await, 127, "as a shell would have it");
    platform.close().await;
}

const WORKER: &str = r#"
import { DurableObject } from "cloudflare:workers";
const text = (bytes) => new TextDecoder().decode(bytes);
const told = async (process) => {
  const { stdout, stderr, exitCode } = await process.output();
  return { stdout: stdout && text(stdout), stderr: stderr && text(stderr), exitCode };
};
const read = async (stream, until) => {
  const reader = stream.getReader();
  let shown = "";
  while (!shown.includes(until)) {
    const { value, done } = await reader.read();
    if (done) break;
    shown += text(value);
  }
  reader.releaseLock();
  return shown;
};
const STEPS = {
  output: async (c) => told(await c.exec(["sh", "-c", "echo out; echo err >&2; exit 3"])),
  pid: async (c) => { const p = await c.exec(["sh", "-c", "echo $$"]); return [p.pid, Number((await told(p)).stdout)]; },
  stdin: async (c) => {
    const p = await c.exec(["cat"], { stdin: "pipe" });
    const writer = p.stdin.getWriter();
    await writer.write(new TextEncoder().encode("typed"));
    await writer.close();
    return told(p);
  },
  stream: async (c) => told(await c.exec(["cat"], { stdin: new Blob(["streamed"]).stream() })),
  kill: async (c) => {
    const p = await c.exec(["sleep", "1000"]);
    await p.kill(15);
    return p.exitCode;
  },
  options: async (c) => told(await c.exec(["sh", "-c", "pwd; id -u; echo $A $GREETING"],
    { cwd: "/www", user: "1815:1815", env: { A: "b" } })),
  combined: async (c) => told(await c.exec(["sh", "-c", "echo out; echo err >&2"], { stderr: "combined" })),
  ignored: async (c) => (await c.exec(["sh", "-c", "echo out; exit 5"], { stdout: "ignore", stderr: "ignore" })).exitCode,
  abort: async (c) => {
    const controller = new AbortController();
    const p = await c.exec(["sleep", "1000"], { signal: controller.signal });
    controller.abort();
    return p.exitCode.then((code) => `code ${code}`, (error) => `error ${error.name}`);
  },
  pty: async (c) => {
    // A kernel in between (runsc) hears of a new size by a signal, some time after it was set.
    const p = await c.exec(["sh", "-c", `busybox stty size; read line; for try in $(busybox seq 100); do
      [ "$(busybox stty size)" = "7 8" ] && break; busybox sleep 0.1; done; busybox stty size; exit 4`],
      { pty: { cols: 100, rows: 30 }, stdin: "pipe" });
    const before = await read(p.stdout, "30 100");
    await p.resize(8, 7);
    const writer = p.stdin.getWriter();
    await writer.write(new TextEncoder().encode("go\r"));
    const after = await read(p.stdout, "7 8");
    return [p.isPty, before, after, await p.exitCode];
  },
  flood: async (c) => {
    const p = await c.exec(["sh", "-c", "busybox dd if=/dev/zero bs=1k count=8000 2>/dev/null"]);
    return (await p.output()).stdout.byteLength;
  },
  missing: async (c) => told(await c.exec(["no-such-command"])),
  shellless: async (c) => {
    await (await c.exec(["/bin/busybox", "rm", "/bin/sh"])).exitCode;
    const p = await c.exec(["sleep", "1000"]);
    await p.kill(9);
    return [await p.exitCode, await told(await c.exec(["/bin/busybox", "echo", "hello"]))];
  },
};
export class MyContainer extends DurableObject {
  async run(step) {
    const container = this.ctx.container;
    if (!container.running) { container.start({ env: { GREETING: "hello" } }); container.monitor().catch(() => {}); }
    return STEPS[step](container);
  }
}
export default {
  async fetch(request, env) {
    const step = new URL(request.url).pathname.slice(1);
    try {
      return Response.json(await env.MY_CONTAINER.getByName("one").run(step));
    } catch (error) {
      return new Response(`${error}\n${error.stack}`, { status: 500 });
    }
  },
};
"#;

fn each_runtime() {
    for name in ["runc", "runsc"] {
        match OciRuntime::find(name, Path::new(name), &[], None) {
            Ok(runtime) => durable_object(Some(runtime)),
            Err(error) => eprintln!("skipped: {error}"),
        }
    }
}

fn durable_object(runtime: Option<OciRuntime>) {
    let Some(toolchain) = toolchain() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let project = project(directory.path(), CONFIG, WORKER);
    block_on(async {
        let platform = Platform::open(directory.path()).await;
        platform.run_script("exec sleep 1000");
        runtime.into_iter().for_each(|runtime| platform.run_by(runtime));
        let worker = start_workerd(&platform, &toolchain, &project).await;
        let told =
            |stdout: &str, stderr: &str, code: i32| json!({ "stdout": stdout, "stderr": stderr, "exitCode": code });
        let step = async |step: &str| {
            let path = format!("/{step}");
            let asked = client::request(&worker.socket, "GET", &path, None);
            let answer = tokio::time::timeout(Duration::from_secs(60), asked).await;
            let (status, answer) = answer.unwrap_or_else(|_| panic!("{step} hangs"));
            assert_eq!(status, 200, "{step}: {answer}");
            answer
        };
        assert_eq!(step("output").await, told("out\n", "err\n", 3));
        let pids = step("pid").await;
        assert_eq!(pids[0], pids[1], "the process id is the one inside");
        assert_eq!(step("stdin").await, told("typed", "", 0));
        assert_eq!(step("stream").await, told("streamed", "", 0));
        assert_eq!(step("kill").await, json!(143));
        assert_eq!(step("options").await, told("/www\n1815\nb hello\n", "", 0));
        let combined = step("combined").await;
        // Through two pipes, as with Docker: which of two lines written at once comes first, nobody knows.
        let mut lines: Vec<_> = combined["stdout"].as_str().unwrap_or_default().lines().collect();
        lines.sort_unstable();
        assert_eq!((lines, &combined["exitCode"]), (vec!["err", "out"], &json!(0)), "{combined}");
        assert_eq!(step("ignored").await, json!(5));
        assert_eq!(step("abort").await, json!("code 137"));
        let pty = step("pty").await;
        assert_eq!((&pty[0], &pty[3]), (&json!(true), &json!(4)), "{pty}");
        assert!(pty[1].as_str().is_some_and(|text| text.contains("30 100")), "{pty}");
        assert!(pty[2].as_str().is_some_and(|text| text.contains("7 8")), "{pty}");
        assert_eq!(step("flood").await, json!(8_192_000));
        let missing = step("missing").await;
        assert_eq!(missing["exitCode"], json!(127), "{missing}");
        assert_eq!(step("shellless").await, json!([137, told("hello\n", "", 0)]));
        worker.workerd.stop(Duration::from_secs(5)).await;
        platform.close().await;
    });
}
