//! What operators and Docker's own client ask of the socket: lists, output, processes, use, stops and restarts.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::{Value, json};

use crate::Test;
use crate::platform::{Platform, container, on_platform};

pub const TESTS: &[Test] = &[
    ("dockers_own_client_works_on_the_socket", || on_platform(clients)),
    ("lists_are_filtered_and_ids_may_be_cut_short", || on_platform(lists)),
    ("stop_restart_and_wait_are_dockers", || on_platform(stops)),
    ("logs_are_dockers_frames_chosen_by_stream_time_and_count", || on_platform(logs)),
    ("stats_top_and_events_have_dockers_shapes", || on_platform(looks)),
    ("another_workers_containers_are_out_of_reach", || on_platform(strangers)),
];

const SCRIPT: &str =
    "trap 'exit 3' TERM; echo out; echo err >&2; httpd -p 127.0.0.1:4000 -h /www; while true; do sleep 0.05; done";

/// Docker's clients of this machine: Debian's, and a newer one where there is one.
fn programs() -> Vec<&'static Path> {
    let all = ["/usr/bin/docker", "/usr/local/bin/docker"].map(Path::new);
    all.into_iter().filter(|path| path.exists()).collect()
}

async fn docker(platform: &Platform, program: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.env("DOCKER_CONFIG", &platform.directory).env_remove("DOCKER_CONTEXT").env_remove("DOCKER_API_VERSION");
    command.arg("-H").arg(format!("unix://{}", platform.socket.display())).args(arguments);
    let output = tokio::task::spawn_blocking(move || command.output()).await;
    output.expect("does not panic").expect("docker runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_string()
}

async fn clients(platform: Platform) {
    if programs().is_empty() {
        eprintln!("skipped: docker is not installed (Debian: docker.io)");
    }
    platform.run_script(SCRIPT);
    let name = container("0af3c1d2e4");
    for program in programs() {
        let say = async |arguments: &[&str]| {
            let output = docker(&platform, program, arguments).await;
            assert!(output.status.success(), "{} {arguments:?}: {}", program.display(), text(&output.stderr));
            text(&output.stdout)
        };
        platform.run(&name).await;
        platform.until_said(&name, "err").await;
        let id = say(&["ps", "-q", "--filter", &format!("ancestor={}", platform.image_name())]).await;
        assert_eq!(id.len(), 12);
        let row = say(&["ps", "--format", "{{.Names}}|{{.State}}|{{.Status}}|{{.Command}}"]).await;
        assert!(row.starts_with(&format!("{name}|running|Up ")) && row.contains("sh -c"), "{row}");
        assert_eq!(
            say(&["inspect", "-f", "{{.Name}} {{.State.Status}} {{.Config.Tty}}", &id]).await,
            format!("/{name} running false")
        );
        let logs = docker(&platform, program, &["logs", &name]).await;
        assert_eq!((text(&logs.stdout), text(&logs.stderr)), ("out".to_string(), "err".to_string()));
        assert_eq!(say(&["exec", &id, "sh", "-c", "echo from inside"]).await, "from inside");
        let ended = docker(&platform, program, &["exec", &name, "sh", "-c", "exit 5"]).await;
        assert_eq!(ended.status.code(), Some(5), "{}", text(&ended.stderr));
        assert!(say(&["top", &id]).await.contains("httpd"));
        let stats = say(&["stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}} {{.PIDs}}", &id]).await;
        assert!(stats.starts_with(&name) && stats.contains("/ 64MiB"), "{stats}");
        let all = say(&["stats", "--no-stream", "--format", "{{.Name}}"]).await;
        assert_eq!(all, name);
        let waiting = ["wait", name.as_str()];
        let (code, stopped) = tokio::join!(say(&waiting), async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            say(&["stop", "-t", "30", &id]).await
        });
        assert_eq!((code.as_str(), stopped), ("3", id.clone()));
        assert_eq!(say(&["ps", "-q"]).await, "");
        assert_eq!(say(&["ps", "-aq", "--filter", "exited=3", "--filter", "status=exited"]).await, id);
        say(&["restart", "-t", "30", &name]).await;
        platform.until_said(&name, "out\nerr\nout").await;
        assert_eq!(say(&["ps", "-q"]).await, id);
        say(&["kill", "-s", "USR1", &name]).await;
        assert_eq!(say(&["wait", &name]).await, (128 + 10).to_string());
        let refused = docker(&platform, program, &["pause", &name]).await;
        assert!(!refused.status.success() && text(&refused.stderr).contains("pausing"), "{}", text(&refused.stderr));
        let unknown = docker(&platform, program, &["stop", "nothing"]).await;
        assert!(text(&unknown.stderr).contains("No such container: nothing"), "{}", text(&unknown.stderr));
        // It was restarted from outside, so whoever removes it first has not asked for it.
        platform.runtime.remove(&name).await;
        assert_eq!(say(&["ps", "-aq"]).await, "");
        let _ = std::fs::remove_file(platform.directory.join("instances/.ended").join(format!("{name}.log")));
    }
    platform.close().await;
}

/// The names of a list.
async fn listed(platform: &Platform, query: &str) -> Vec<String> {
    let (status, list) = platform.request("GET", &format!("/v1.41/containers/json?{query}"), None).await;
    assert_eq!(status, 200, "{list}");
    let names = list.as_array().expect("a list").iter();
    names.map(|entry| entry["Names"][0].as_str().expect("a name").trim_start_matches('/').to_string()).collect()
}

fn encoded(filters: Value) -> String {
    let bytes = filters.to_string().into_bytes();
    let text: String = bytes.iter().map(|byte| format!("%{byte:02x}")).collect();
    format!("filters={text}")
}

async fn lists(platform: Platform) {
    platform.run_script("exec sleep 1000");
    let [runs, ended, cold] = ["0af3", "0b11", "c0"].map(container);
    platform.run(&runs).await;
    platform.run(&ended).await;
    assert_eq!(platform.create(&cold).await.0, 201);
    assert_eq!(platform.kill("0b", "KILL").await, 204, "the beginning of an id names it");
    platform.wait(&ended).await;
    assert_eq!(listed(&platform, "").await, std::slice::from_ref(&runs));
    assert_eq!(listed(&platform, "all=1").await, [&cold, &ended, &runs].map(Clone::clone), "the newest first");
    assert_eq!(listed(&platform, "limit=2").await, [&cold, &ended].map(Clone::clone));
    for (filters, expected) in [
        (json!({ "status": ["exited"] }), vec![&ended]),
        (json!({ "status": { "created": true } }), vec![&cold]),
        (json!({ "status": ["exited", "running"] }), vec![&ended, &runs]),
        (json!({ "name": ["0af"] }), vec![&runs]),
        (json!({ "id": ["0b"] }), vec![]),
        (json!({ "ancestor": [platform.image_name()] }), vec![&runs]),
        (json!({ "ancestor": ["registry.invalid/app"] }), vec![&runs]),
        (json!({ "ancestor": ["app"] }), vec![]),
        (json!({ "label": ["dev.cfc.image"] }), vec![&runs]),
        (json!({ "label": ["dev.cfc.image", "no"] }), vec![]),
        (json!({ "exited": ["137"], "status": ["exited"] }), vec![&ended]),
        (json!({ "before": [ended], "status": ["running", "created"] }), vec![&runs]),
    ] {
        let query = encoded(filters.clone());
        assert_eq!(listed(&platform, &query).await.iter().collect::<Vec<_>>(), expected, "{filters}");
    }
    for (filters, status) in [(json!({ "network": ["x"] }), 501), (json!([]), 400), (json!({ "exited": ["x"] }), 400)] {
        let (found, body) = platform.request("GET", &format!("/containers/json?{}", encoded(filters)), None).await;
        assert_eq!(found, status, "{body}");
    }
    let (status, body) = platform.request("GET", "/containers/0/json", None).await;
    assert_eq!(status, 400, "{body}");
    assert!(body["message"].as_str().is_some_and(|text| text.contains("0af3") && text.contains("0b11")), "{body}");
    // A name in full means itself, never one that only begins so.
    assert_eq!(platform.status(&container("0a")).await, "none");
    assert_eq!(platform.remove(&container("0a")).await, 404);
    let (_, sized) = platform.request("GET", "/containers/json?size=1", None).await;
    assert!(sized[0]["SizeRw"].is_u64() || !crate::limits::has_loop_devices(), "{sized}");
    platform.close().await;
}

async fn stops(platform: Platform) {
    platform.run_script(
        "trap 'exit 3' TERM; trap 'exit 4' USR1; trap '' USR2; echo ready; while true; do sleep 0.05; done",
    );
    let name = container("a1");
    let post = async |what: &str| platform.request("POST", &format!("/containers/{name}/{what}"), None).await;
    assert_eq!(post("stop").await.0, 404);
    platform.run(&name).await;
    platform.until_said(&name, "ready").await;
    let (waited, stopped) = tokio::join!(platform.wait(&name), post("stop?t=60"));
    assert_eq!((waited, stopped.0), (3, 204));
    assert_eq!(post("stop").await.0, 304, "it does not run");
    // What waits for the next end hears of it, however soon it comes.
    let (next, _) = tokio::join!(post("wait?condition=next-exit"), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(platform.start(&name).await, 204);
        platform.until_said(&name, "ready\nready").await;
        assert_eq!(post("stop?t=60&signal=SIGUSR1").await.0, 204);
    });
    assert_eq!((next.0, &next.1["StatusCode"]), (200, &json!(4)));
    assert_eq!(platform.start(&name).await, 204);
    platform.until_said(&name, "ready\nready\nready").await;
    assert_eq!(post("stop?t=0&signal=SIGUSR2").await.0, 204);
    assert_eq!(platform.wait(&name).await, 137, "what ignores the signal is killed");
    for (query, status) in [("stop?t=99999", 400), ("stop?signal=NOSUCH", 400), ("restart?signal=SIGUSR1", 501)] {
        assert_eq!(post(query).await.0, status, "{query}");
    }
    assert_eq!(post("restart?t=60").await.0, 204);
    assert_eq!(platform.status(&name).await, "running");
    platform.close().await;
}

/// The frames of a body: which stream, and what.
fn frames(mut body: &[u8]) -> Vec<(u8, String)> {
    let mut all = Vec::new();
    while let [stream, 0, 0, 0, a, b, c, d, rest @ ..] = body {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        all.push((*stream, String::from_utf8_lossy(&rest[..length]).into_owned()));
        body = &rest[length..];
    }
    assert!(body.is_empty(), "half a frame: {body:?}");
    all
}

async fn logs(platform: Platform) {
    platform.run_script("echo one; echo two >&2; sleep 0.3; echo three; head -c 40000 /dev/zero | tr '\\0' x");
    let name = container("a1");
    platform.run(&name).await;
    let followed = {
        let (socket, path) = (platform.socket.clone(), format!("/containers/{name}/logs?stdout=1&stderr=1&follow=1"));
        tokio::spawn(async move { crate::client::request(&socket, "GET", &path, None).await })
    };
    platform.wait(&name).await;
    let read = async |query: &str| {
        let (status, body) = platform.request("GET", &format!("/containers/{name}/logs?{query}"), None).await;
        assert_eq!(status, 200, "{body}");
        frames(body.as_str().unwrap_or_default().as_bytes())
    };
    let all = read("stdout=1&stderr=1").await;
    let short: Vec<(u8, &str)> = all.iter().take(3).map(|(stream, text)| (*stream, text.as_str())).collect();
    let mut sorted = short.clone();
    sorted.sort();
    // Two pipes have no order between them.
    assert_eq!(sorted, [(1, "one\n"), (1, "three\n"), (2, "two\n")]);
    let long: String = all.iter().skip(3).map(|(_, text)| text.as_str()).collect();
    assert_eq!(long.trim_end().len(), 40_000, "a long line comes in parts, without ends between them");
    let (status, body) =
        tokio::time::timeout(Duration::from_secs(60), followed).await.expect("it ends").expect("no panic");
    assert_eq!((status, frames(body.as_str().unwrap_or_default().as_bytes())), (200, all));
    assert_eq!(read("stderr=1").await, [(2, "two\n".to_string())]);
    assert_eq!(read("stderr=1&tail=0").await, []);
    assert_eq!(read("stderr=1&tail=5&since=1").await.len(), 1);
    assert_eq!(read("stderr=1&since=4102444800").await, []);
    assert_eq!(read("stderr=1&until=1.5").await, []);
    let timed = read("stderr=1&timestamps=1").await;
    assert!(timed[0].1.starts_with("20") && timed[0].1.ends_with("Z two\n"), "{timed:?}");
    for query in ["", "stdout=1&tail=x", "stdout=1&since=yesterday"] {
        assert_eq!(platform.request("GET", &format!("/containers/{name}/logs?{query}"), None).await.0, 400, "{query}");
    }
    assert_eq!(platform.request("GET", "/containers/nothing/logs?stdout=1", None).await.0, 404);
    platform.close().await;
}

async fn looks(platform: Platform) {
    platform.run_script(SCRIPT);
    let name = container("a1");
    platform.run(&name).await;
    platform.until_said(&name, "err").await;
    let port = platform.sidecar(&name).await;
    let tunnel = crate::client::tunnel(port, 4000).await.expect("it listens");
    assert!(crate::client::get(tunnel, "/").await.starts_with("hello"));
    let get = async |path: &str| platform.request("GET", &format!("/containers/{path}"), None).await;
    // The relay tells what it has carried twice a second.
    let mut stats = json!(null);
    for _ in 0..40 {
        stats = get(&format!("{name}/stats?stream=0&one-shot=1")).await.1;
        if stats["networks"]["tunnels"]["tx_bytes"].as_u64() > Some(0) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let number =
        |path: &str| stats.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {path}: {stats}"));
    assert_eq!(number("/memory_stats/limit"), 64 << 20);
    assert!(
        number("/memory_stats/usage") > 0
            && number("/pids_stats/current") >= 2
            && number("/cpu_stats/cpu_usage/total_usage") > 0
    );
    assert!(number("/networks/tunnels/rx_bytes") >= 10, "the request came in");
    assert!(number("/networks/tunnels/tx_bytes") > number("/networks/tunnels/rx_bytes"), "the page went out: {stats}");
    let two = get(&format!("{name}/stats?stream=false")).await.1;
    let system = |part: &str| two[part]["system_cpu_usage"].as_u64().expect("a number");
    assert!(system("cpu_stats") > system("precpu_stats"));

    let (_, top) = get(&format!("{name}/top")).await;
    assert_eq!(top["Titles"][7], "CMD");
    assert!(
        top["Processes"]
            .as_array()
            .is_some_and(|rows| rows.iter().any(|row| row[7].as_str().is_some_and(|text| text.contains("httpd")))),
        "{top}"
    );
    assert_eq!(get(&format!("{name}/top?ps_args=aux")).await.0, 501);
    let (_, whole) = get(&format!("{name}/json")).await;
    assert_eq!((&whole["State"]["Running"], &whole["HostConfig"]["Memory"]), (&json!(true), &json!(64 << 20)));
    assert!(whole["Config"].get("Env").is_none(), "values of variables are not told: {whole}");
    platform.kill(&name, "KILL").await;
    platform.wait(&name).await;
    assert_eq!(get(&format!("{name}/top")).await.0, 409);
    assert_eq!(get(&format!("{name}/stats?stream=0")).await.0, 200);
    let until = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("now").as_secs() + 1;
    let (_, events) = platform
        .request("GET", &format!("/events?since=1&until={until}&{}", encoded(json!({ "type": ["container"] }))), None)
        .await;
    let actions: Vec<String> = events
        .as_str()
        .unwrap_or_default()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["Action"].as_str().expect("text").to_string())
        .collect();
    assert_eq!(actions, ["create", "start", "die"]);
    assert_eq!(
        platform.request("GET", &format!("/events?{}", encoded(json!({ "event": ["die"] }))), None).await.0,
        501
    );
    platform.close().await;
}

async fn strangers(platform: Platform) {
    platform.run_script("exec sleep 1000");
    let application = platform.runtime.application("app").expect("was set");
    let theirs = "workerd-other-Class-a1";
    let spec = cfc_runtime::InstanceSpec {
        name: theirs.to_string(),
        application: "app".to_string(),
        image: application.image,
        command: None,
        env: Vec::new(),
        labels: Default::default(),
    };
    platform.runtime.create(spec).await.expect("makes");
    platform.runtime.start(theirs).await.expect("starts");
    assert_eq!(listed(&platform, "all=1").await, Vec::<String>::new());
    for (method, path) in [
        ("GET", format!("/containers/{theirs}/json")),
        ("GET", format!("/containers/{theirs}/logs?stdout=1")),
        ("POST", format!("/containers/{theirs}/stop")),
        ("POST", format!("/containers/{theirs}/kill")),
        ("POST", format!("/containers/{theirs}/exec")),
        ("DELETE", format!("/containers/{theirs}?force=1")),
        ("GET", "/containers/a1/json".to_string()),
    ] {
        let body = (method == "POST").then(|| json!({ "Cmd": ["true"] }));
        assert_eq!(platform.request(method, &path, body).await.0, 404, "{method} {path}");
    }
    assert!(platform.runtime.inspect(theirs).is_some_and(|view| view.phase.is_live()));
    platform.close().await;
}
