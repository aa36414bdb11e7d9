//! Every fail point of the engine: the process dies there, or the step fails there, and the next engine on the same
//! directory finds everything in order. The runtime's own points have tests of their own.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::Test;
use crate::platform::{Platform, block_on, container};

pub const TESTS: &[Test] = &[
    ("an_engine_killed_at_any_step_is_followed_by_one_that_finds_order", killed_everywhere),
    ("a_step_of_the_engine_that_fails_is_told_and_the_next_try_succeeds", failing_everywhere),
];

/// The role of a platform that does all that an engine does, again and again.
pub const VICTIM: &str = "--engine-steps";

const DONE: i32 = 11;
const PATIENCE: Duration = Duration::from_secs(60);
const SCRIPT: &str = "trap 'exit 3' TERM; echo ready; while true; do sleep 0.05; done";

/// Goes through a container's life until it dies, or until steps have failed and then all went well three times.
pub fn be_victim(directory: &Path) -> ! {
    block_on(async {
        let platform = Platform::open(directory).await;
        platform.run_script(SCRIPT);
        eprintln!("ready");
        let (mut has_failed, mut successes) = (false, 0);
        for number in 0.. {
            match life(&platform, &container(&format!("a{}", number % 2))).await {
                Ok(()) => successes += 1,
                Err(problem) => {
                    eprintln!("{problem}");
                    (has_failed, successes) = (true, 0);
                }
            }
            if has_failed && successes == 3 {
                std::process::exit(DONE);
            }
        }
        unreachable!("the numbers do not end")
    })
}

/// What workerd and an operator do with one container. The error is the first answer that is not as it should be.
async fn life(platform: &Platform, name: &str) -> Result<(), String> {
    let ask = async |method: &str, path: String, body: Option<serde_json::Value>, expected: &[u16]| {
        let (status, answer) = platform.request(method, &path, body).await;
        let is_expected = expected.contains(&status);
        is_expected.then_some(()).ok_or_else(|| format!("{method} {path}: {status} {answer}"))
    };
    let proxy = format!("{name}-proxy");
    // What a life before left behind. One without an owner is nobody's to remove by this interface.
    platform.runtime.remove(name).await;
    platform.remove(&proxy).await;
    let sidecar = json!({ "Image": crate::platform::SIDECAR_IMAGE });
    ask("POST", format!("/containers/create?name={proxy}"), Some(sidecar), &[201]).await?;
    ask("POST", format!("/containers/{proxy}/start"), None, &[204]).await?;
    let body = json!({ "Image": platform.image_name() });
    ask("POST", format!("/containers/create?name={name}"), Some(body), &[201]).await?;
    ask("POST", format!("/containers/{name}/start"), None, &[204]).await?;
    let (status, exec) =
        platform.request("POST", &format!("/containers/{name}/exec"), Some(json!({ "Cmd": ["true"] }))).await;
    let id = exec["Id"].as_str().ok_or_else(|| format!("exec: {status} {exec}"))?;
    ask("POST", format!("/exec/{id}/start"), Some(json!({ "Detach": true })), &[200]).await?;
    ask("POST", format!("/containers/{name}/restart?t=60"), None, &[204]).await?;
    // Its Durable Object asks for it, and so owns it again.
    let wait = format!("/containers/{name}/wait");
    let waiting = platform.request("POST", &wait, None);
    let (waited, killed) = tokio::join!(waiting, async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let killed = ask("POST", format!("/containers/{name}/kill?signal=SIGTERM"), None, &[204]).await;
        if killed.is_err() {
            platform.kill(name, "SIGKILL").await;
        }
        killed
    });
    killed?;
    if waited.0 != 200 {
        return Err(format!("wait: {} {}", waited.0, waited.1));
    }
    ask("DELETE", format!("/containers/{name}?force=true"), None, &[204]).await?;
    ask("DELETE", format!("/containers/{proxy}?force=true"), None, &[204]).await
}

fn killed_everywhere() {
    for point in points() {
        let directory = tempfile::tempdir().expect("a directory");
        let status = play(directory.path(), &format!("{}:2:kill", point.name));
        assert_eq!(status.signal(), Some(9), "{}: it was never reached", point.name);
        finds_order(directory.path(), &point.name);
    }
}

fn failing_everywhere() {
    let directory = tempfile::tempdir().expect("a directory");
    let failing: Vec<Point> = points().into_iter().filter(|point| point.can_fail).collect();
    assert!(failing.len() > 4, "too few points can fail");
    for point in failing {
        let status = play(directory.path(), &format!("{}:2:error", point.name));
        assert_eq!(status.code(), Some(DONE), "{}: nobody noticed, or it did not recover", point.name);
        finds_order(directory.path(), &point.name);
    }
}

fn play(directory: &Path, failure: &str) -> std::process::ExitStatus {
    let program = std::env::current_exe().expect("this test has a path");
    let mut command = Command::new(program);
    command.arg(VICTIM).arg(directory).env("CFC_FAIL_POINT", failure).stderr(Stdio::null());
    let mut victim = command.spawn().expect("the victim starts");
    let started = Instant::now();
    loop {
        if let Some(status) = victim.try_wait().expect("a child") {
            return status;
        }
        if started.elapsed() > PATIENCE {
            let _ = victim.kill();
            let _ = victim.wait();
            panic!("{failure}: it was never reached, or nobody noticed");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The next engine: what is known is on disk and runs once, and a whole life succeeds.
fn finds_order(directory: &Path, after: &str) {
    block_on(async {
        let platform = Platform::open(directory).await;
        platform.run_script(SCRIPT);
        let known: BTreeSet<String> = platform.runtime.list().into_iter().map(|view| view.spec.name).collect();
        assert_eq!(known, platform.left_over().into_iter().collect(), "{after}");
        let sandboxes = platform.launcher.list().expect("it answers").into_iter().map(|status| status.id);
        assert!(sandboxes.collect::<BTreeSet<_>>().is_subset(&known), "{after}");
        for id in ["a0", "a1"] {
            life(&platform, &container(id)).await.unwrap_or_else(|problem| panic!("after {after}: {problem}"));
        }
        platform.close().await;
    });
}

struct Point {
    name: String,
    /// Whether an error there is a failure of the operation, and not only noted.
    can_fail: bool,
}

/// The points in the engine's sources.
fn points() -> Vec<Point> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut points = Vec::new();
    for entry in
        std::fs::read_dir(sources).expect("the sources are there").flatten().filter(|entry| entry.path().is_file())
    {
        let text = std::fs::read_to_string(entry.path()).expect("a source");
        points.extend(text.lines().filter_map(point_of));
    }
    points.sort_by(|one: &Point, other| one.name.cmp(&other.name));
    assert!(points.len() > 8, "fail points are looked for in the wrong place");
    points
}

fn point_of(line: &str) -> Option<Point> {
    let (before, after) = line.split_once("fail_point(\"").or_else(|| line.split_once("fails(\""))?;
    let (name, _) = after.split_once('"')?;
    Some(Point { name: name.to_string(), can_fail: !before.contains("let _ =") })
}
