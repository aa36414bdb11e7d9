//! Looking after the containers of a running platform: what `cfc containers` shows and does, with the real workerd and
//! the real `Container` class.

use serde_json::Value;

use crate::support::{Home, Platform, can_sandbox, http, tools, wait_for};

const WORKER: &str = "container-starter";
const APPLICATION: &str = "container-starter-mycontainer";

/// A platform with the starter project, or nothing where it cannot run.
fn deployed(home: &Home) -> Option<Platform<'_>> {
    if !can_sandbox() || tools().is_none() {
        return None;
    }
    let path = home.project(WORKER);
    let platform = Platform::start(home);
    home.must(&["deploy", &path.display().to_string()]);
    Some(platform)
}

/// The number of the visit that a container of its own answers with.
fn visit(platform: &Platform, session: &str) -> u64 {
    let (status, body) = platform.ask(WORKER, session);
    assert_eq!(status, 200, "{body}\n{}", platform.log());
    let answer: Value = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"));
    answer["visits"].as_u64().unwrap_or_else(|| panic!("no visits in {body}"))
}

fn json(home: &Home, arguments: &[&str]) -> Value {
    let text = home.must(arguments);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The only instance of the application.
fn instance(home: &Home) -> Value {
    let instances = json(home, &["containers", "instances", APPLICATION, "--json"]);
    assert_eq!(instances.as_array().map(Vec::len), Some(1), "{instances}");
    instances[0].clone()
}

fn get(platform: &Platform, path: &str) -> (u16, String) {
    let address = platform.address("control");
    http(&address, &format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"))
}

/// What the application uses is measured: memory is there, and more requests take more of the rest.
fn measures_move(platform: &Platform) {
    let measure = |name: &str| -> f64 {
        let (_, metrics) = get(platform, "/metrics");
        let start = format!("cfc_container_{name}{{application=\"{APPLICATION}\"}} ");
        let value = metrics.lines().find_map(|line| line.strip_prefix(&start)?.parse().ok());
        value.unwrap_or_else(|| panic!("no `{start}` in\n{metrics}"))
    };
    let memory = measure("memory_bytes");
    assert!((100_000.0..268_435_456.0).contains(&memory), "{memory}");
    let growing =
        ["cpu_seconds_total", "network_bytes_total", "network_receive_bytes_total", "network_transmit_bytes_total"];
    let before = growing.map(measure);
    assert!(before[0] > 0.0 && before[1] > 100.0, "{before:?}");
    wait_for("all measures to grow", || {
        visit(platform, "alice");
        growing.iter().zip(&before).all(|(name, before)| measure(name) > *before).then_some(())
    });
}

#[test]
fn an_instance_can_be_looked_at_from_all_sides() {
    let home = Home::new();
    let Some(platform) = deployed(&home) else { return };
    visit(&platform, "alice");
    let shown = instance(&home);
    assert_eq!(shown["state"]["status"], "ready", "{shown}");
    let object = shown["name"].as_str().expect("a Durable Object's id");

    // By the whole name, by the Durable Object's id, and by its beginning.
    let inspected = json(&home, &["containers", "inspect", shown["id"].as_str().expect("an id")]);
    for given in [object, &object[..6]] {
        assert_eq!(json(&home, &["containers", "inspect", given])["id"], shown["id"], "{given}");
    }
    let pid = inspected["pid"].as_u64().expect("a pid");
    assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert_eq!(inspected["limits"]["memory_mib"], 256, "{inspected}");
    for phase in ["admit", "disk", "launch", "ready"] {
        assert!(inspected["timings_ms"][phase].is_f64() || inspected["timings_ms"][phase].is_u64(), "{inspected}");
    }
    let environment = inspected["env"].as_array().expect("a list");
    assert!(environment.iter().any(|name| name == "CLOUDFLARE_DURABLE_OBJECT_ID"), "{inspected}");
    assert!(environment.iter().all(|name| !name.as_str().unwrap_or("=").contains('=')), "a value is told: {inspected}");
    // How it is kept apart, as the kernel says.
    let isolation = &inspected["isolation"];
    assert_eq!((&isolation["runtime"], &isolation["grants"]), (&"cfc".into(), &serde_json::json!([])), "{inspected}");
    assert_eq!((&isolation["seccomp"], &isolation["no_new_privileges"]), (&true.into(), &true.into()), "{inspected}");
    let users = &isolation["user_namespace"]["users"][0];
    assert!(users[0] == 0 && users[1].as_u64() > Some(0) && users[2] == 65_536, "{inspected}");
    let capabilities = isolation["capabilities"].as_array().expect("a list");
    assert!(capabilities.iter().any(|one| one == "CAP_CHOWN") && capabilities.len() == 10, "{inspected}");
    assert!(isolation["internet"].is_boolean(), "{inspected}");
    assert!(inspected["usage"]["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{inspected}");

    let stats = json(&home, &["containers", "stats", "--no-stream", "--json"]);
    assert_eq!(stats[0]["id"], shown["id"]);
    assert_eq!(stats[0]["memory_limit_bytes"], 256 << 20);
    assert!(stats[0]["network_bytes"].as_u64().is_some_and(|bytes| bytes > 100), "a request came in: {stats}");
    // Relays tell twice a second what they have carried.
    let carried = wait_for("what went in and out", || {
        let stats = json(&home, &["containers", "stats", "--no-stream", "--json"]);
        (stats[0]["sent_bytes"].as_u64() > Some(0)).then(|| stats[0].clone())
    });
    assert!(carried["received_bytes"].as_u64().is_some_and(|bytes| bytes > 100), "a request came in: {carried}");
    assert!(carried["tunnels_open"].is_u64(), "{carried}");
    let table = home.must(&["containers", "stats", APPLICATION, "--no-stream"]);
    assert!(table.contains(&object[..12]) && table.contains('%') && table.contains("NET IN / OUT"), "{table}");

    let events = home.must(&["containers", "events", "--since", "1h", "--json"]);
    let kinds: Vec<String> = events
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["event"].as_str().expect("text").to_string())
        .collect();
    assert_eq!(kinds, ["created", "starting", "running", "ready"]);
    let text = home.must(&["containers", "events"]);
    assert!(text.contains(&format!("{APPLICATION} {} ready ready_ms=", &object[..12])), "{text}");
    assert_eq!(home.must(&["containers", "events", "--since", "2999-01-01T00:00:00Z"]), "");

    let (status, metrics) = get(&platform, "/metrics");
    assert_eq!(status, 200);
    measures_move(&platform);
    let one = format!("{{application=\"{APPLICATION}\"}}");
    for line in [
        format!("cfc_container_starts_total{one} 1"),
        format!("cfc_container_instances{{application=\"{APPLICATION}\",state=\"ready\"}} 1"),
        format!("cfc_container_start_seconds_count{{application=\"{APPLICATION}\",phase=\"launch\"}} 1"),
        format!("cfc_container_oom_kills_total{one} 0"),
    ] {
        assert!(metrics.lines().any(|other| other == line), "no `{line}` in\n{metrics}");
    }
    // Each by application, and starts by phase as a histogram.
    for (name, labels) in [
        ("starts_total", ""),
        ("restarts_total", ""),
        ("exits_total", ""),
        ("oom_kills_total", ""),
        ("instances", ",state=\"ready\""),
        ("cpu_seconds_total", ""),
        ("memory_bytes", ""),
        ("network_bytes_total", ""),
        ("network_receive_bytes_total", ""),
        ("network_transmit_bytes_total", ""),
        ("tunnels_open", ""),
        ("start_seconds_bucket", ",phase=\"admit\",le=\"0.001\""),
        ("start_seconds_bucket", ",phase=\"disk\",le=\"30\""),
        ("start_seconds_bucket", ",phase=\"launch\",le=\"+Inf\""),
        ("start_seconds_sum", ",phase=\"ready\""),
    ] {
        let start = format!("cfc_container_{name}{{application=\"{APPLICATION}\"{labels}}} ");
        assert!(metrics.lines().any(|line| line.starts_with(&start)), "no `{start}` in\n{metrics}");
    }
    assert!(!metrics.contains(object), "a label names an instance:\n{metrics}");
    assert_eq!(get(&platform, "/healthz"), (200, "ok\n".to_string()));
}

#[test]
fn a_stopped_instance_is_shown_and_starts_again_when_it_is_asked() {
    let home = Home::new();
    let Some(platform) = deployed(&home) else { return };
    visit(&platform, "alice");
    assert_eq!(visit(&platform, "alice"), 2);
    let id = instance(&home)["id"].as_str().expect("an id").to_string();
    assert_eq!(home.must(&["containers", "stop", &id, "--time", "10s"]), id);
    let shown = instance(&home);
    assert!(shown["exit_code"].is_i64() && shown["ended"].is_string() && shown["pid"].is_null(), "{shown}");
    assert!(home.must(&["containers", "logs", APPLICATION, "--instance", &id]).contains("visit 2"));
    // The class hears of it, and starts it at the next request, on a fresh disk.
    assert_eq!(visit(&platform, "alice"), 1);
    assert_eq!(instance(&home)["state"]["status"], "ready");
}

#[test]
fn a_restarted_instance_is_taken_over_by_its_durable_object() {
    let home = Home::new();
    let Some(platform) = deployed(&home) else { return };
    visit(&platform, "alice");
    assert_eq!(visit(&platform, "alice"), 2);
    let before = instance(&home);
    let id = before["id"].as_str().expect("an id");
    assert_eq!(home.must(&["containers", "restart", id]), id);
    let restarted = instance(&home);
    assert_ne!(restarted["pid"], before["pid"], "the process is the same");
    assert!(restarted["pid"].is_u64(), "nothing runs: {restarted}");
    // The Durable Object saw it end, and starts it: what it gets is the process that runs already.
    assert_eq!(visit(&platform, "alice"), 1, "the disk is not fresh");
    let taken_over = instance(&home);
    assert_eq!(taken_over["pid"], restarted["pid"], "started once more: {}", home.must(&["containers", "events"]));
    assert_eq!(visit(&platform, "alice"), 2);
    let (_, metrics) = get(&platform, "/metrics");
    assert!(metrics.contains(&format!("cfc_container_restarts_total{{application=\"{APPLICATION}\"}} 1")), "{metrics}");
}

#[test]
fn a_restarted_instance_outlives_the_eviction_of_its_durable_object() {
    let home = Home::new();
    let Some(platform) = deployed(&home) else { return };
    visit(&platform, "alice");
    let id = instance(&home)["id"].as_str().expect("an id").to_string();
    home.must(&["containers", "restart", &id]);
    let restarted = instance(&home);
    // A Durable Object that has nothing to do is evicted after ten seconds, and workerd deletes its container.
    std::thread::sleep(std::time::Duration::from_secs(14));
    assert_eq!(instance(&home)["pid"], restarted["pid"], "{}", home.must(&["containers", "events"]));
    assert_eq!(visit(&platform, "alice"), 1);
    assert_eq!(instance(&home)["pid"], restarted["pid"], "{}", home.must(&["containers", "events"]));
}

#[test]
fn events_are_followed_and_logs_are_chosen_by_time_and_stream() {
    let home = Home::new();
    let Some(platform) = deployed(&home) else { return };
    let output = std::fs::File::create(home.path("followed")).expect("writable");
    let mut following = crate::support::Ended(
        home.cfc().args(["containers", "events", "-f", "--json"]).stdout(output).spawn().expect("cfc runs"),
    );
    visit(&platform, "alice");
    let followed = || std::fs::read_to_string(home.path("followed")).unwrap_or_default();
    wait_for("the start in the followed events", || followed().contains("\"ready\"").then_some(()));
    home.must(&["containers", "stop", instance(&home)["id"].as_str().expect("an id")]);
    wait_for("the end in the followed events", || followed().contains("\"exited\"").then_some(()));
    following.end();

    let log = |more: &[&str]| home.must(&[&["containers", "logs", APPLICATION], more].concat());
    let all = log(&[]);
    assert!(all.contains(" stdout: ") || all.contains(" stderr: "), "{all}");
    let [stdout, stderr] = ["stdout", "stderr"].map(|stream| log(&["--stream", stream]));
    assert_eq!(stdout.lines().count() + stderr.lines().count(), all.lines().count());
    assert!(!stdout.contains(" stderr: ") && !stderr.contains(" stdout: "));
    assert_eq!(log(&["--since", "1h"]), all);
    assert_eq!(log(&["--since", "2999-01-01T00:00:00Z"]), "");
    assert_eq!(log(&["--tail", "1"]).lines().count(), 1);
    let first = log(&["--timestamps"]).lines().next().expect("a line").to_string();
    assert!(first.starts_with("20") && first.split(' ').next().is_some_and(|time| time.ends_with('Z')), "{first}");
}

#[test]
fn what_cannot_be_done_with_an_instance_is_said() {
    let home = Home::new();
    let Some(platform) = deployed(&home) else { return };
    insta::assert_snapshot!("no_such_instance", home.must_fail(&["containers", "inspect", "nothing"]));
    insta::assert_snapshot!("no_such_time", home.must_fail(&["containers", "events", "--since", "yesterday"]));
    for session in ["alice", "bob"] {
        visit(&platform, session);
    }
    let said = home.must_fail(&["containers", "stop", "workerd-"]);
    assert!(said.contains("`workerd-` is the beginning of 2 instances: "), "{said}");
    let said = home.must_fail(&["containers", "exec", "workerd-", "--", "/app/server"]);
    assert!(said.contains("`workerd-` is the beginning of 2 instances: ") && said.contains("hint: "), "{said}");
    for instance in json(&home, &["containers", "instances", APPLICATION, "--json"]).as_array().expect("a list") {
        assert!(said.contains(instance["name"].as_str().expect("a name")), "{instance} is not among {said}");
    }
    let output = home.run(&["containers", "logs", APPLICATION, "--stream", "both"]);
    assert_eq!(output.status.code(), Some(2));
    let id =
        json(&home, &["containers", "instances", APPLICATION, "--json"])[0]["id"].as_str().expect("an id").to_string();
    home.must(&["containers", "stop", &id]);
    let said = home.must_fail(&["containers", "stop", &id]);
    insta::assert_snapshot!("not_running", said.replace(&id, "[ID]"));
    drop(platform);
}
