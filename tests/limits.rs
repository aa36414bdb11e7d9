//! What is seen from outside when an instance meets a limit: of memory, of its log's size, of the machine.

use std::process::Command;

use serde_json::Value;

use crate::support::{Home, Platform, busybox, can_sandbox, http, tools, wait_for};

const WORKER: &str = "container-starter";
const APPLICATION: &str = "container-starter-mycontainer";

/// Serves, writes very much into its log for each `/tmp/flood`, and runs out of memory once there is `/tmp/oom`.
const INSTRUCTIONS: &str = r#"
USER 0
ENTRYPOINT ["/bin/sh", "-c", "/app/server --port 4000 & while true; do \
    if [ -e /tmp/flood ]; then name=$(busybox cat /tmp/flood); busybox rm /tmp/flood; \
        busybox seq 1 80000 | busybox sed s/^/$name-/; echo flooded $name; fi; \
    if [ -e /tmp/oom ]; then exec busybox tail /dev/zero; fi; busybox sleep 0.05; done"]
CMD []
"#;

/// A platform with one instance of it; and the instance's id.
fn deployed(home: &Home) -> Option<(Platform<'_>, String)> {
    let (true, true, Some(busybox)) = (can_sandbox(), tools().is_some(), busybox()) else { return None };
    let project = home.project_with_shell(WORKER, &busybox, INSTRUCTIONS);
    let platform = Platform::start(home);
    home.must(&["deploy", &project.display().to_string()]);
    let (status, body) = platform.ask(WORKER, "alice");
    assert_eq!(status, 200, "{body}\n{}", platform.log());
    let id = instance(home)["id"].as_str().expect("an id").to_string();
    Some((platform, id))
}

fn instance(home: &Home) -> Value {
    let text = home.must(&["containers", "instances", APPLICATION, "--json"]);
    let instances: Value = serde_json::from_str(&text).expect("JSON");
    instances[0].clone()
}

fn inside(home: &Home, id: &str, script: &str) {
    home.must(&["containers", "exec", id, "--", "/bin/sh", "-c", &format!("busybox mkdir -p /tmp; {script}")]);
}

#[test]
fn running_out_of_memory_is_an_event_a_metric_and_the_reason_of_the_end() {
    let home = Home::new();
    let Some((platform, id)) = deployed(&home) else { return };
    inside(&home, &id, "echo >/tmp/oom");
    let ended = wait_for("the end", || Some(instance(&home)).filter(|instance| instance["ended"].is_string()));
    assert_eq!((&ended["oom_killed"], &ended["exit_code"]), (&Value::Bool(true), &Value::from(137)), "{ended}");
    let reason = "out of memory: its limit is 256 MiB";
    assert_eq!(ended["state"]["reason"], reason, "{ended}");
    let events = home.must(&["containers", "events", "--json"]);
    let events: Vec<Value> = events.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let kinds: Vec<&str> = events.iter().filter_map(|event| event["event"].as_str()).collect();
    assert!(kinds.windows(2).any(|pair| pair == ["oom_killed", "exited"]), "{kinds:?}");
    let exited = events.iter().find(|event| event["event"] == "exited").expect("it ended");
    assert_eq!(exited["reason"], reason, "{exited}");
    let metrics = metrics(&platform);
    let line = format!("cfc_container_oom_kills_total{{application=\"{APPLICATION}\"}} 1");
    assert!(metrics.lines().any(|other| other == line), "no `{line}` in\n{metrics}");
    let said = home.must(&["containers", "logs", APPLICATION]);
    assert!(said.contains("out of memory: the kernel killed a process at the limit of 256 MiB"), "{said}");
}

#[test]
fn a_process_killed_at_the_memory_limit_is_told_at_once_and_is_no_reason_of_a_later_end() {
    let home = Home::new();
    let Some((platform, id)) = deployed(&home) else { return };
    inside(&home, &id, "busybox tail /dev/zero; true");
    let oom_kills = || -> Vec<Value> {
        let events = home.must(&["containers", "events", "--json"]);
        let events = events.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        events.filter(|event| event["event"] == "oom_killed").collect()
    };
    let told = wait_for("the event", || oom_kills().into_iter().next());
    assert_eq!((&told["kills"], &told["limit_mib"]), (&Value::from(1), &Value::from(256)), "{told}");
    let running = instance(&home);
    assert!(running["ended"].is_null() && running["oom_killed"] != true, "{running}");
    let said = home.must(&["containers", "logs", APPLICATION]);
    assert!(said.contains("out of memory: the kernel killed a process at the limit of 256 MiB"), "{said}");
    let warned = "the kernel killed a process of the container at its limit of 256 MiB";
    assert!(platform.log().contains(warned), "{}", platform.log());
    assert!(
        metrics(&platform).contains(&format!("cfc_container_oom_kills_total{{application=\"{APPLICATION}\"}} 1\n"))
    );

    home.must(&["containers", "stop", &id]);
    let ended = wait_for("the end", || Some(instance(&home)).filter(|instance| instance["ended"].is_string()));
    assert!(ended["oom_killed"] != true && ended["state"]["reason"].is_null(), "{ended}");
    assert_eq!(oom_kills().len(), 1, "it was told already");
}

fn metrics(platform: &Platform) -> String {
    let address = platform.address("control");
    http(&address, &format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")).1
}

#[test]
fn lines_since_a_time_are_found_across_the_rotation_of_the_log() {
    let home = Home::new();
    let Some((_platform, id)) = deployed(&home) else { return };
    let said = |text: &str| {
        wait_for("the flood", || {
            let last = home.must(&["containers", "logs", APPLICATION, "--tail", "1"]);
            last.contains(text).then_some(())
        });
    };
    inside(&home, &id, "echo one >/tmp/flood");
    said("flooded one");
    // Times are told to the second here, and the next one is to be later than all of the first flood.
    std::thread::sleep(std::time::Duration::from_millis(1_100));
    let date = Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"]).output().expect("date runs").stdout;
    let between = String::from_utf8(date).expect("UTF-8").trim().to_string();
    inside(&home, &id, "echo two >/tmp/flood");
    said("flooded two");
    let directory = home.data().join("instances").join(&id);
    let [older, newer] = ["log.1", "log"].map(|name| std::fs::read_to_string(directory.join(name)).expect("is there"));
    assert!(
        older.contains("one-80000") && older.contains("two-1\"") && newer.contains("two-80000"),
        "it was not rotated in the second flood"
    );
    let since = home.must(&["containers", "logs", APPLICATION, "--since", &between]);
    let numbers: Vec<&str> =
        since.lines().filter_map(|line| line.split_once("two-").map(|(_, number)| number)).collect();
    assert_eq!((numbers.len(), numbers.first(), numbers.last()), (80_000, Some(&"1"), Some(&"80000")));
    assert!(!since.contains("one-"), "lines from before");
}

#[test]
fn what_the_machine_cannot_give_is_said_when_it_is_deployed() {
    if !can_sandbox() || tools().is_none() {
        return;
    }
    let home = Home::new();
    let memory = std::fs::read_to_string("/proc/meminfo").expect("readable");
    let total: u64 = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok())
        .expect("a number");
    home.write("config.toml", &format!("memory_reserve_mib = {}\n", total / 1024 - 200));
    let project = home.project(WORKER);
    let platform = Platform::start(&home);
    let deploy = || {
        let output = home.run(&["deploy", &project.display().to_string()]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        said
    };
    let warning = format!(
        "warning: instances of `{APPLICATION}` get less than it asks for: 200 MiB of memory instead of 256\nhint: "
    );
    assert!(deploy().contains(&warning));
    assert!(deploy().contains(&warning), "whoever deploys again is told again");
    let log = platform.log();
    assert_eq!(log.matches("its instances get less than it asks for").count(), 1, "the log says it once: {log}");
    let (status, body) = platform.ask(WORKER, "alice");
    assert_eq!(status, 200, "{body}");
}
