//! What a deploy, and the end of the platform, do to containers that run.

use std::io::Write;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::starter::{APPLICATION, WORKER, container_of, ready, visits_of};
use crate::support::{Home, Platform, busybox, wait_for};

/// The starter, whose container says that it was told to end, and takes a second for it.
const SLOW_TO_END: &str = "ENTRYPOINT [\"/bin/sh\", \"-c\", \
    \"trap 'echo got TERM; sleep 1; exit 3' TERM; /app/server --port 4000 & wait\"]\nCMD []\n";

fn slow_to_end(home: &Home) -> Option<PathBuf> {
    if !ready() {
        return None;
    }
    Some(home.project_with_shell(WORKER, &busybox()?, SLOW_TO_END))
}

fn deploy(home: &Home, project: &Path) {
    home.must(&["deploy", &project.display().to_string()]);
}

fn change(project: &Path, file: &str, from: &str, to: &str) {
    let path = project.join(file);
    let text = std::fs::read_to_string(&path).expect("readable");
    assert!(text.contains(from), "{text}");
    std::fs::write(path, text.replace(from, to)).expect("writable");
}

fn ask(platform: &Platform, session: &str) -> String {
    let (status, body) = platform.ask(WORKER, session);
    assert_eq!(status, 200, "{body}\n{}", platform.log());
    body
}

/// With which code the application's containers have exited, in order.
fn exits(home: &Home) -> Vec<i64> {
    let events = home.must(&["containers", "events", "--json"]);
    let events = events.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    events
        .filter(|event| event["event"] == "exited")
        .map(|event| event["exit_code"].as_i64().expect("a code"))
        .collect()
}

#[test]
fn a_deploy_leaves_containers_alone_whose_image_and_size_stay() {
    let home = Home::new();
    let Some(project) = slow_to_end(&home) else { return };
    let platform = Platform::start(&home);
    deploy(&home, &project);
    let before = exits(&home);
    let first = ask(&platform, "alice");
    deploy(&home, &project);
    let second = ask(&platform, "alice");
    change(
        &project,
        "src/index.js",
        "async fetch(request, env) {",
        "async fetch(request, env) {\n    console.log('new');",
    );
    deploy(&home, &project);
    let third = ask(&platform, "alice");
    for (number, answer) in [(1, &first), (2, &second), (3, &third)] {
        assert_eq!((container_of(answer), visits_of(answer)), (container_of(&first), number), "{answer}");
    }
    // Trials of images end too, and are nobody's.
    assert_eq!(exits(&home)[before.len()..].iter().filter(|code| **code == 3).count(), 0);

    change(&project, "wrangler.jsonc", "\"max_instances\": 5", "\"max_instances\": 5, \"instance_type\": \"basic\"");
    deploy(&home, &project);
    let fourth = ask(&platform, "alice");
    assert_eq!(visits_of(&fourth), 1, "its container is of another size now");
    wait_for("the old one to end in its own way", || exits(&home).contains(&3).then_some(()));
}

#[test]
fn a_new_image_reaches_every_container_although_clients_hold_the_old_ones() {
    let home = Home::new();
    let Some(project) = slow_to_end(&home) else { return };
    let held = "if (new URL(request.url).pathname === '/held') await scheduler.wait(120_000);";
    change(&project, "src/index.js", "async fetch(request, env) {", &format!("async fetch(request, env) {{ {held}"));
    let platform = Platform::start(&home);
    deploy(&home, &project);
    for session in ["alice", "bob", "carol"] {
        ask(&platform, session);
    }
    // Whose Durable Object is in memory, whose container an operator has started anew, and a request that does not end.
    let restarted = home.must(&["containers", "instances", APPLICATION, "--json"]);
    let restarted: Value = serde_json::from_str(&restarted).expect("JSON");
    home.must(&["containers", "restart", restarted[0]["id"].as_str().expect("an id")]);
    let mut request = TcpStream::connect(platform.address("gateway")).expect("connects");
    let body = r#"{"session-id": "alice"}"#;
    let length = body.len();
    write!(request, "POST /held HTTP/1.1\r\nHost: {WORKER}.localhost\r\nContent-Length: {length}\r\n\r\n{body}")
        .expect("sends");

    change(&project, "Dockerfile", "Hello from a container", "Hello again");
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut last = String::new();
            while !is_over.load(Ordering::Relaxed) {
                last = ask(&platform, "dave");
            }
            last
        });
        deploy(&home, &project);
        is_over.store(true, Ordering::Relaxed);
        client.join().expect("every request is answered");
    });
    for session in ["alice", "bob", "carol", "dave"] {
        let answer = ask(&platform, session);
        assert!(answer.contains("Hello again"), "{session}: {answer}");
    }
    let ended = wait_for("the old ones to end in their own way", || {
        let exits = exits(&home);
        (exits.iter().filter(|code| **code == 3).count() >= 4).then_some(exits)
    });
    assert!(!ended.contains(&137), "{ended:?}");
    let log = home.must(&["containers", "logs", APPLICATION]);
    assert!(log.contains("got TERM"), "{log}");
}

#[test]
fn the_end_of_the_platform_lets_containers_end() {
    let home = Home::new();
    let Some(project) = slow_to_end(&home) else { return };
    let platform = Platform::start(&home);
    deploy(&home, &project);
    ask(&platform, "alice");
    let began = Instant::now();
    platform.stop();
    // It would have been killed at once.
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
    crate::starter::assert_nothing_left(&home);
}
