//! `cfc serve` without a file descriptor left: what runs goes on, nobody waits for ever, and all is well afterwards.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit};
use serde_json::Value;

use crate::support::{Home, Platform, busybox, can_sandbox, tools, wait_for};

const WORKER: &str = "container-starter";
const APPLICATION: &str = "container-starter-mycontainer";

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").count()
}

fn limit(pid: u32, current: Option<u64>) {
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit { current: current.or(maximum), maximum };
    rustix::process::prlimit(Pid::from_raw(pid as i32), Resource::Nofile, limit)
        .expect("the limit of our own may change");
}

/// What comes back within the patience: a status, or nothing.
fn try_ask(platform: &Platform, session: &str, patience: Duration) -> Option<u16> {
    let mut stream = TcpStream::connect(platform.address("gateway")).ok()?;
    stream.set_read_timeout(Some(patience)).ok()?;
    let body = format!("{{\"session-id\": \"{session}\"}}");
    let head =
        format!("POST / HTTP/1.1\r\nHost: {WORKER}.localhost\r\nConnection: close\r\nContent-Type: application/json");
    write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).ok()?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).ok()?;
    std::str::from_utf8(&answer).ok()?.split(' ').nth(1)?.parse().ok()
}

fn visits(platform: &Platform, session: &str) -> u64 {
    let (status, body) = platform.ask(WORKER, session);
    assert_eq!(status, 200, "{body}\n{}", platform.log());
    serde_json::from_str::<Value>(&body).expect("JSON")["visits"].as_u64().expect("a number")
}

#[test]
fn a_platform_without_descriptors_keeps_what_runs_and_recovers() {
    if !can_sandbox() || tools().is_none() {
        return;
    }
    let home = Home::new();
    let platform = Platform::start(&home);
    home.must(&["deploy", &home.project(WORKER).display().to_string()]);
    assert_eq!(visits(&platform, "alice"), 1);
    let instances = || -> Value {
        serde_json::from_str(&home.must(&["containers", "instances", APPLICATION, "--json"])).expect("JSON")
    };
    let before = instances();
    let pid = platform.pid();
    let usual = wait_for("connections to end", || Some(descriptors(pid)).filter(|count| *count < 200));

    let mut refused = 0;
    for more in [0, 1, 2, 3, 4, 6, 8, 12] {
        limit(pid, Some((descriptors(pid) + more) as u64));
        let idle: Vec<_> =
            (0..more).map(|_| TcpStream::connect(platform.address("gateway")).expect("the kernel accepts")).collect();
        let started = Instant::now();
        // It may be answered, refused with a reason, or wait in the kernel until there is a descriptor: never more.
        match try_ask(&platform, "alice", Duration::from_secs(1)) {
            Some(200) => {}
            Some(status) => {
                assert!((500..600).contains(&status), "{status}");
                refused += 1;
            }
            None => refused += 1,
        }
        // A start needs more of them.
        if try_ask(&platform, &format!("new-{}", more % 3), Duration::from_secs(1)) != Some(200) {
            refused += 1;
        }
        assert!(started.elapsed() < Duration::from_secs(60));
        drop(idle);
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("cfc serve lives");
        assert!(!state.contains(") Z"), "cfc serve ended:\n{}", platform.log());
        let container = before[0]["pid"].as_u64().expect("it runs");
        assert!(std::path::Path::new(&format!("/proc/{container}")).exists(), "alice's container ended");
    }
    assert!(refused > 2, "there were enough descriptors all the time");
    limit(pid, None);

    wait_for("alice to be answered", || {
        (try_ask(&platform, "alice", Duration::from_secs(10)) == Some(200)).then_some(())
    });
    assert!(visits(&platform, "alice") > 1, "alice's container is a new one");
    let after = instances();
    let alice = after.as_array().expect("a list").iter().find(|instance| instance["id"] == before[0]["id"]);
    assert_eq!(alice.expect("is there")["pid"], before[0]["pid"]);
    wait_for("the new ones to be answered", || {
        (try_ask(&platform, "new-0", Duration::from_secs(10)) == Some(200)).then_some(())
    });
    // An instance has a listener and its sockets for what it sends out.
    let n_instances = instances().as_array().map_or(0, Vec::len);
    let most = usual + 16 * n_instances + 32;
    wait_for("descriptors as before", || (descriptors(pid) <= most).then_some(()));
    platform.stop();
    assert_eq!(home.instance_directories(), Vec::<std::path::PathBuf>::new());
}

/// Descriptors that the platform may have: what it needs for four instances, and not what two floods would take.
const FEW: u64 = 300;
/// Connections that say nothing are kept for two seconds each, since their servers may speak first.
const FLOOD: &str = "busybox mkdir -p /tmp; busybox mkfifo /tmp/silence; exec 3<>/tmp/silence; for round in 1 2 3 4 5; do \
    for each in $(busybox seq 100); do busybox nc 198.51.100.7 80 <&3 >/dev/null 2>&1 & done; busybox sleep 1; done";

#[test]
fn containers_that_flood_leave_descriptors_to_everybody_else() {
    let (true, true, Some(busybox)) = (can_sandbox(), tools().is_some(), busybox()) else { return };
    let home = Home::new();
    let platform = Platform::start(&home);
    limit(platform.pid(), Some(FEW));
    let project = home.project_with_shell(WORKER, &busybox, "USER 0\n");
    home.must(&["deploy", &project.display().to_string()]);
    for session in ["neighbour", "flood-1", "flood-2"] {
        assert_eq!(visits(&platform, session), 1);
    }
    let instances: Value =
        serde_json::from_str(&home.must(&["containers", "instances", APPLICATION, "--json"])).expect("JSON");
    let ids: Vec<&str> = instances.as_array().expect("a list").iter().filter_map(|i| i["id"].as_str()).collect();
    std::thread::scope(|scope| {
        let floods: Vec<_> = ids[1..]
            .iter()
            .map(|id| scope.spawn(|| home.run(&["containers", "exec", id, "--", "/bin/sh", "-c", FLOOD])))
            .collect();
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(8) {
            let asked = Instant::now();
            assert_eq!(try_ask(&platform, "neighbour", Duration::from_secs(5)), Some(200), "{}", platform.log());
            assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(visits(&platform, "late"), 1);
        for flood in floods {
            flood.join().expect("it was carried out");
        }
    });
    let log = platform.log();
    assert!(!log.contains("Too many open files"), "{log}");
    // How many places a flood wants at once depends on how fast the machine is.
    assert!(log.matches("connections of a container are refused").count() <= 2, "each is told of once: {log}");
}
