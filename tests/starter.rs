//! The job: Cloudflare's starter project, from its config to an answer out of a container.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use crate::support::{Home, Platform, can_sandbox, tools, wait_for};

pub const WORKER: &str = "container-starter";
pub const APPLICATION: &str = "container-starter-mycontainer";

pub fn ready() -> bool {
    can_sandbox() && tools().is_some()
}

/// The part of the starter's answer that names its container.
pub fn container_of(answer: &str) -> String {
    let value: serde_json::Value = serde_json::from_str(answer).unwrap_or_else(|error| panic!("{error}: {answer}"));
    value["instance"].as_str().unwrap_or_else(|| panic!("no instance in {answer}")).to_string()
}

pub fn visits_of(answer: &str) -> u64 {
    let value: serde_json::Value = serde_json::from_str(answer).unwrap_or_else(|error| panic!("{error}: {answer}"));
    value["visits"].as_u64().unwrap_or_else(|| panic!("no visits in {answer}"))
}

fn ask(platform: &Platform, session: &str) -> String {
    let (status, body) = platform.ask(WORKER, session);
    assert_eq!(status, 200, "{body}\n{}", platform.log());
    body
}

fn deployed<'a>(home: &'a Home, config: &str) -> Platform<'a> {
    let path = home.project(WORKER);
    let platform = Platform::start(home);
    let url = home.must(&["deploy", "--config", &path.join(config).display().to_string()]);
    let port = platform.address("gateway").rsplit_once(':').expect("host:port").1.to_string();
    assert_eq!(url, format!("http://{WORKER}.localhost:{port}"));
    platform
}

/// A platform with the project, and `source` as its Worker's.
pub fn deployed_from<'a>(home: &'a Home, source: &str) -> Platform<'a> {
    let project = home.project(WORKER);
    std::fs::write(project.join("src/index.js"), source).expect("writable");
    let platform = Platform::start(home);
    home.must(&["deploy", &project.display().to_string()]);
    platform
}

#[test]
fn two_sessions_are_two_containers_and_one_session_is_one() {
    for config in ["wrangler.jsonc", "wrangler.toml"] {
        if !ready() {
            return;
        }
        let home = Home::new();
        let platform = deployed(&home, config);
        let alice = ask(&platform, "alice");
        let bob = ask(&platform, "bob");
        let alice_again = ask(&platform, "alice");
        assert_ne!(container_of(&alice), container_of(&bob), "{config}");
        assert_eq!(container_of(&alice), container_of(&alice_again), "{config}");
        assert!(visits_of(&alice_again) > visits_of(&alice), "{config}");
        let instances = home.must(&["containers", "instances", APPLICATION, "--json"]);
        let instances: serde_json::Value = serde_json::from_str(&instances).expect("JSON");
        assert_eq!(instances.as_array().map(Vec::len), Some(2), "{instances}");
        platform.stop();
        assert_nothing_left(&home);
    }
}

#[test]
fn the_sixth_session_gets_the_classes_503_and_the_five_go_on() {
    if !ready() {
        return;
    }
    let home = Home::new();
    let platform = deployed(&home, "wrangler.jsonc");
    let sessions: Vec<String> = (1..=5).map(|number| format!("session-{number}")).collect();
    let containers: BTreeSet<String> = sessions.iter().map(|session| container_of(&ask(&platform, session))).collect();
    assert_eq!(containers.len(), 5);
    let (status, body) = platform.ask(WORKER, "one-too-many");
    assert_eq!(status, 503, "{body}");
    assert!(body.starts_with("There is no Container instance available at this time."), "{body}");
    let after: BTreeSet<String> = sessions.iter().map(|session| container_of(&ask(&platform, session))).collect();
    assert_eq!(containers, after, "the first five were disturbed");
}

#[test]
fn a_full_machine_gives_the_classes_503_too() {
    if !ready() {
        return;
    }
    let home = Home::new();
    let meminfo = std::fs::read_to_string("/proc/meminfo").expect("readable");
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")).expect("a total");
    let total_kib: u64 = total.trim().trim_end_matches(" kB").parse().expect("a number");
    // Room for one `lite` of 256 MiB, which the deploy's trial gives back.
    home.write("config.toml", &format!("memory_reserve_mib = {}\n", total_kib / 1024 - 300));
    let platform = deployed(&home, "wrangler.jsonc");
    let first = container_of(&ask(&platform, "first"));
    let (status, body) = platform.ask(WORKER, "second");
    assert_eq!(status, 503, "{body}");
    assert!(body.starts_with("There is no Container instance available at this time."), "{body}");
    assert_eq!(container_of(&ask(&platform, "first")), first, "the first was disturbed");
    let log = platform.log();
    assert!(log.contains("needs 256 MiB of memory"), "the operator is told why: {log}");
}

#[test]
fn an_idle_container_sleeps_and_wakes_with_a_fresh_disk() {
    if !ready() {
        return;
    }
    let home = Home::new();
    let path = home.project("container-starter");
    let source = path.join("src/index.js");
    let text = std::fs::read_to_string(&source).expect("readable");
    assert!(text.contains("sleepAfter = \"10m\""), "the starter no longer sleeps after ten minutes: {text}");
    std::fs::write(&source, text.replace("sleepAfter = \"10m\"", "sleepAfter = \"2s\"")).expect("writable");
    let platform = Platform::start(&home);
    home.must(&["deploy", &path.display().to_string()]);
    let first = ask(&platform, "alice");
    wait_for("the container to sleep", || {
        let listed = home.must(&["containers", "instances", APPLICATION]);
        ["starting", "running", "ready", "stopping"].iter().all(|state| !listed.contains(state)).then_some(())
    });
    let log = home.must(&["containers", "logs", APPLICATION]);
    assert!(log.contains("visit 1"), "the log went with the instance:\n{log}");
    let second = ask(&platform, "alice");
    assert_eq!(visits_of(&second), 1, "the disk is not fresh: {second}");
    assert_ne!(container_of(&first), container_of(&second));
}

#[test]
fn what_a_container_writes_can_be_read() {
    if !ready() {
        return;
    }
    let home = Home::new();
    let platform = deployed(&home, "wrangler.jsonc");
    for session in ["alice", "bob", "alice"] {
        ask(&platform, session);
    }
    let log = wait_for("the containers' log", || {
        let log = home.must(&["containers", "logs", APPLICATION, "--timestamps"]);
        (log.matches("listens on port 4000").count() == 2 && log.matches("visit").count() == 3).then_some(log)
    });
    let times: Vec<&str> = log.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(times.is_sorted(), "the lines of two instances are not in order of time:\n{log}");
    let listed = home.must(&["containers", "instances", APPLICATION]);
    let instance = listed.lines().nth(1).and_then(|line| line.split(' ').next()).expect("an instance").to_string();
    let one = home.must(&["containers", "logs", APPLICATION, "--instance", &instance]);
    assert_eq!(one.matches("listens on port 4000").count(), 1, "{one}");
}

#[test]
fn a_followed_log_shows_what_is_written_later() {
    if !ready() {
        return;
    }
    let home = Home::new();
    let platform = deployed(&home, "wrangler.jsonc");
    let output = std::fs::File::create(home.path("followed")).expect("writable");
    let mut following = crate::support::Ended(
        home.cfc().args(["containers", "logs", "-f", APPLICATION]).stdout(output).spawn().expect("cfc runs"),
    );
    let followed = || std::fs::read_to_string(home.path("followed")).unwrap_or_default();
    // Nothing runs yet: following goes on until something does.
    std::thread::sleep(Duration::from_millis(300));
    ask(&platform, "alice");
    wait_for("the first visit in the followed log", || followed().contains("visit 1").then_some(()));
    ask(&platform, "alice");
    wait_for("the second visit in the followed log", || followed().contains("visit 2").then_some(()));
    assert_eq!(followed().matches("visit 1").count(), 1, "a line came twice:\n{}", followed());
    following.end();
}

#[test]
fn a_new_image_replaces_the_old_one_and_a_dropped_application_goes() {
    if !ready() {
        return;
    }
    let home = Home::new();
    let platform = deployed(&home, "wrangler.jsonc");
    assert!(ask(&platform, "alice").contains("Hello from a container"));
    let path = home.path(WORKER);
    let dockerfile = std::fs::read_to_string(path.join("Dockerfile")).expect("readable");
    std::fs::write(path.join("Dockerfile"), dockerfile.replace("Hello from a container", "Hello again"))
        .expect("writable");
    let config = std::fs::read_to_string(path.join("wrangler.jsonc")).expect("readable");
    let renamed = config.replace("\"max_instances\": 5", "\"max_instances\": 5, \"name\": \"renamed\"");
    std::fs::write(path.join("wrangler.jsonc"), renamed).expect("writable");
    home.must(&["deploy", &path.display().to_string()]);
    assert!(ask(&platform, "alice").contains("Hello again"));
    let listed = home.must(&["containers", "list"]);
    assert!(listed.contains("renamed") && !listed.contains(APPLICATION), "{listed}");
}

#[test]
fn a_deploy_that_fails_leaves_the_old_version_serving() {
    if !ready() {
        return;
    }
    let home = Home::new();
    let platform = deployed(&home, "wrangler.jsonc");
    let before = ask(&platform, "alice");
    let path = home.path("container-starter");
    std::fs::write(path.join("src/index.js"), "throw new Error('a broken Worker');\nexport class MyContainer {}\n")
        .expect("writable");
    let output = home.run(&["deploy", &path.display().to_string()]);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let after = ask(&platform, "alice");
    assert_eq!(container_of(&before), container_of(&after));
}

#[test]
fn after_kill_9_state_is_whole_and_nothing_leaks() {
    if !ready() {
        return;
    }
    let home = Home::new();
    let platform = deployed(&home, "wrangler.jsonc");
    let before = ask(&platform, "alice");
    platform.kill();
    let platform = Platform::start(&home);
    let listed = home.must(&["containers", "list"]);
    assert!(listed.contains(APPLICATION), "{listed}");
    let after = ask(&platform, "alice");
    if container_of(&before) == container_of(&after) {
        assert!(visits_of(&after) > visits_of(&before), "the container was neither kept nor replaced");
    }
    ask(&platform, "bob");
    platform.stop();
    std::thread::sleep(Duration::from_millis(100));
    assert_nothing_left(&home);
}

#[test]
fn kill_9_at_any_moment_of_a_start_leaves_nothing() {
    if !ready() {
        return;
    }
    let home = Home::new();
    let mut platform = deployed(&home, "wrangler.jsonc");
    for delay_ms in [0, 5, 15, 40, 90] {
        let address = platform.address("gateway");
        let session = format!("s{delay_ms}");
        let asking = std::thread::spawn(move || {
            let _ = std::panic::catch_unwind(|| {
                let body = format!("{{\"session-id\": \"{session}\"}}");
                let request = format!(
                    "POST / HTTP/1.1\r\nHost: {WORKER}.localhost\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
                crate::support::http(&address, &request)
            });
        });
        std::thread::sleep(Duration::from_millis(delay_ms));
        platform.kill();
        asking.join().expect("it catches its own panics");
        platform = Platform::start(&home);
        ask(&platform, &format!("s{delay_ms}"));
    }
    platform.stop();
    assert_nothing_left(&home);
}

/// No process, mount, cgroup, loop device or file of an instance is left behind by a platform that ended.
pub fn assert_nothing_left(home: &Home) {
    let left = home.instance_directories();
    assert!(left.is_empty(), "directories of instances are left: {left:?}");
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("readable");
    let data = home.data().display().to_string();
    let mounted: Vec<&str> = mounts.lines().filter(|line| line.contains(&data)).collect();
    assert!(mounted.is_empty(), "mounts are left: {mounted:?}");
    let processes = processes_naming(&data);
    assert!(processes.is_empty(), "processes are left: {processes:?}");
    wait_for("the launcher to end", || home.launchers().is_empty().then_some(()));
    let launchers = home.noted_launchers();
    assert!(!launchers.is_empty(), "no launcher was seen, so nothing is known of its cgroups");
    let cgroups = cgroups_of_launchers(&launchers, &mounts);
    assert!(cgroups.is_empty(), "cgroups are left: {cgroups:?}");
    let devices = loop_devices_of(&data);
    assert!(devices.is_empty(), "loop devices are left: {devices:?}");
}

/// The directories of these launchers in any cgroup hierarchy: `cfc-`, their pid namespace, their number, when they started.
fn cgroups_of_launchers(launchers: &[u32], mounts: &str) -> Vec<PathBuf> {
    let points = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (point, kind) = (fields.next()?, fields.next()?);
        kind.starts_with("cgroup").then_some(point)
    });
    let is_theirs = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let number = name.strip_prefix("cfc-").and_then(|rest| rest.split('-').nth(1)?.parse().ok());
        number.is_some_and(|number| launchers.contains(&number))
    };
    let entries = points.flat_map(|point| std::fs::read_dir(point).into_iter().flatten().flatten());
    entries.map(|entry| entry.path()).filter(is_theirs).collect()
}

/// The loop devices whose file is or was in `directory`.
fn loop_devices_of(directory: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/sys/block").into_iter().flatten().flatten().map(|entry| entry.path());
    let file = |path: &PathBuf| std::fs::read_to_string(path.join("loop/backing_file")).unwrap_or_default();
    entries.filter(|path| file(path).starts_with(directory)).collect()
}

/// Command lines of processes that name `text`.
fn processes_naming(text: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").expect("readable").flatten();
    let command_lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    let readable = command_lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    readable.filter(|line| line.contains(text)).collect()
}
