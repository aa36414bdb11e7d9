//! What an application may have: places and memory; and starts that fail.

use cfc_runtime::{Application, InstanceType, LogStream, Shares};
use serde_json::json;

use crate::Test;
use crate::client::tunnel;
use crate::platform::{Platform, container, on_platform};

pub const TESTS: &[Test] = &[
    ("an_instance_without_a_place_says_so_and_starts_later", || on_platform(no_place)),
    ("a_start_that_fails_says_why", || on_platform(failed_start)),
    ("memory_is_limited_and_its_end_reported", || on_platform(out_of_memory)),
    ("a_small_instance_is_throttled_only_once_it_listens", || on_platform(boosted)),
    ("without_the_boost_a_small_instance_is_throttled_at_once", || on_platform(not_boosted)),
    ("a_full_machine_says_what_is_short", || on_platform(no_room)),
    ("a_disk_is_as_large_as_the_instance_type_says", || on_platform(full_disk)),
    ("a_type_larger_than_the_machine_is_cut_down", || on_platform(too_large)),
];

const NO_INSTANCE: &str = "there is no container instance that can be provided to this durable object";

async fn no_place(platform: Platform) {
    platform.run_script("exec httpd -f -p 4000 -h /www");
    let (first, second, third) = (container("a1"), container("a2"), container("a3"));
    platform.run(&first).await;
    platform.run(&second).await;
    let port = platform.sidecar(&third).await;
    platform.run(&third).await;
    assert_eq!(platform.status(&third).await, "running", "it counts as running at first");
    let (status, text) = tunnel(port, 4000).await.expect_err("there is no place");
    assert_eq!(status, 503);
    let limit = "application `app` already has 2 live instances, its `max_instances`";
    assert_eq!(text, format!("the container is not listening: {NO_INSTANCE}: {limit}"));
    assert_eq!(platform.status(&third).await, "running");
    let wait = format!("/containers/{third}/wait");
    let (waited, connected) = tokio::join!(platform.request("POST", &wait, None), tunnel(port, 4000));
    assert_eq!(waited, (503, json!({ "message": text })));
    assert_eq!(connected.expect_err("there is no place").0, 503);
    assert_eq!(platform.status(&third).await, "exited");
    let view = platform.runtime.inspect(&third).expect("is there");
    assert_eq!(view.refused.as_deref(), Some(limit));
    assert_eq!(platform.remove(&third).await, 204);
    assert_eq!(platform.status(&third).await, "none");
    assert_eq!(platform.remove(&first).await, 204);
    platform.run(&third).await;
    assert!(tunnel(port, 4000).await.is_ok(), "there is a place now");
    assert_eq!(platform.runtime.inspect(&third).expect("is there").refused, None);
    platform.close().await;
}

async fn failed_start(platform: Platform) {
    platform.run_script_with("", |config| config.cmd = Some(vec!["/server".to_string()]));
    let name = container("a1");
    let port = platform.sidecar(&name).await;
    platform.run(&name).await;
    let (status, text) = tunnel(port, 4000).await.expect_err("there is no such command");
    assert_eq!(status, 503);
    assert!(text.contains("could not be started") && text.contains("`/server`"), "{text}");
    // Nobody connects again: the end comes by itself.
    let (status, body) = platform.request("POST", &format!("/containers/{name}/wait"), None).await;
    assert_eq!((status, &body["message"]), (503, &json!(text)));
    assert_eq!(platform.launcher.list().expect("the launcher answers"), []);
    platform.close().await;
}

async fn out_of_memory(platform: Platform) {
    platform.run_script("tail /dev/zero");
    let name = container("a1");
    platform.run(&name).await;
    let code = platform.wait(&name).await;
    let (_, body) = platform.request("GET", &format!("/containers/{name}/json"), None).await;
    assert_eq!((code, &body["State"]["OOMKilled"]), (137, &json!(true)), "{body}");
    assert_eq!(body["State"]["Error"], "out of memory: its limit is 64 MiB");
    let mut log = platform.runtime.logs(&name).expect("a log");
    let mut lines = Vec::new();
    while let Some(line) = log.next().await.expect("reads") {
        lines.push(line);
    }
    let said = lines.iter().find(|line| line.stream == LogStream::System).map(|line| line.line.as_str());
    assert_eq!(said, Some("out of memory: the kernel killed a process at the limit of 64 MiB"), "{lines:?}");
    platform.close().await;
}

async fn no_room(platform: Platform) {
    platform.run_script("exec httpd -f -p 4000 -h /www");
    for (shares, what) in [
        (Shares { memory_reserve_mib: Some(u64::MAX), ..Shares::default() }, "64 MiB of memory, 0 are free"),
        (Shares { disk_reserve_mb: Some(u64::MAX), ..Shares::default() }, "100 MB of disk, 0 are free"),
        (Shares { cpu_overcommit: Some(1e-9), ..Shares::default() }, "1000000 millionths of a CPU, 0 are free"),
    ] {
        platform.runtime.share_machine(shares);
        let name = container("a1");
        let port = platform.sidecar(&name).await;
        platform.run(&name).await;
        let (status, text) = tunnel(port, 4000).await.expect_err("there is no room");
        assert_eq!(status, 503);
        let refusal = format!("an instance of application `app` needs {what} on this machine");
        assert_eq!(text, format!("the container is not listening: {NO_INSTANCE}: {refusal}"));
        assert_eq!(platform.remove(&name).await, 204);
        assert_eq!(platform.remove(&format!("{name}-proxy")).await, 204);
    }
    assert_eq!(platform.launcher.list().expect("the launcher answers"), []);
    platform.runtime.share_machine(Shares { memory_overcommit: 2.0, ..Shares::default() });
    let name = container("a1");
    let port = platform.sidecar(&name).await;
    platform.run(&name).await;
    assert!(tunnel(port, 4000).await.is_ok(), "there is room now");
    platform.close().await;
}

async fn full_disk(platform: Platform) {
    if platform.launcher.disks().is_err() || !has_loop_devices() {
        eprintln!("skipped: this machine makes no disks");
        return platform.close().await;
    }
    platform
        .run_script("/bin/busybox dd if=/dev/zero of=/tmp/big bs=64k count=4000; echo x > /tmp/big && echo room again");
    let name = container("a1");
    platform.run(&name).await;
    assert_eq!(platform.wait(&name).await, 0);
    let mut log = platform.runtime.logs(&name).expect("a log");
    let mut text = String::new();
    while let Some(line) = log.next().await.expect("reads") {
        text.push_str(&line.line);
    }
    assert!(text.contains("No space left on device") && text.contains("room again"), "{text}");
    platform.close().await;
}

pub fn has_loop_devices() -> bool {
    !cfc_sandbox::check_host().iter().any(|finding| finding.what.contains("disks have no limit"))
}

async fn too_large(platform: Platform) {
    platform.run_script("exec httpd -f -p 4000 -h /www");
    platform.runtime.share_machine(Shares::default());
    let application = platform.runtime.application("app").expect("was set");
    let instance_type = InstanceType::custom(1_000.0, 1 << 30, 1 << 40);
    platform.runtime.set_application(Application { instance_type, ..application });
    let name = container("a1");
    let port = platform.sidecar(&name).await;
    platform.run(&name).await;
    assert!(tunnel(port, 4000).await.is_ok(), "it runs with what there is");
    let second = container("a2");
    let port = platform.sidecar(&second).await;
    platform.run(&second).await;
    let (status, text) = tunnel(port, 4000).await.expect_err("the first has all");
    assert_eq!(status, 503);
    assert!(text.contains(NO_INSTANCE) && text.contains("MiB of memory, 0 are free"), "{text}");
    platform.close().await;
}

/// Says `spun` after a while of computing, waits for a signal, then listens and computes on.
const SPIN: &str = "trap 'go=1' USR1; i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done; echo spun; \
    while [ -z \"$go\" ]; do sleep 0.05; done; httpd -p 4000 -h /www; while :; do :; done";

async fn boosted(platform: Platform) {
    let name = spin(&platform, true).await;
    assert_eq!(throttled(&platform, &name), 0, "it does not listen yet");
    assert_eq!(platform.kill(&name, "USR1").await, 204);
    until_throttled(&platform, &name).await;
    platform.close().await;
}

async fn not_boosted(platform: Platform) {
    let name = spin(&platform, false).await;
    assert!(throttled(&platform, &name) > 0, "it has a sixteenth of a processor from the start");
    platform.close().await;
}

/// Starts a lite instance and returns its name when it has spun.
async fn spin(platform: &Platform, startup_cpu_boost: bool) -> String {
    platform.run_script(SPIN);
    let application = platform.runtime.application("app").expect("was set");
    let instance_type = cfc_runtime::InstanceType::LITE;
    platform.runtime.set_application(cfc_runtime::Application { startup_cpu_boost, instance_type, ..application });
    let name = container("a1");
    platform.sidecar(&name).await;
    platform.run(&name).await;
    platform.until_said(&name, "spun").await;
    name
}

async fn until_throttled(platform: &Platform, name: &str) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while throttled(platform, name) == 0 {
        assert!(std::time::Instant::now() < deadline, "it listens and is not throttled");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// How often the kernel has made the instance wait for its next share of the processor.
fn throttled(platform: &Platform, name: &str) -> u64 {
    let pid = platform.runtime.inspect(name).and_then(|view| view.phase.pid()).expect("it runs");
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("it has cgroups");
    let paths = groups.lines().filter_map(|line| line.splitn(3, ':').nth(2)).flat_map(|path| {
        ["cpu", "cpu,cpuacct", "."].map(|hierarchy| format!("/sys/fs/cgroup/{hierarchy}{path}/cpu.stat"))
    });
    // The root's own statistics have no such line.
    let count = |text: String| text.lines().find_map(|line| line.strip_prefix("nr_throttled ")?.parse().ok());
    paths.filter_map(|path| std::fs::read_to_string(path).ok().and_then(count)).max().unwrap_or(0)
}
