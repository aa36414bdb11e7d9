//! `kill -9` of the platform: what still runs is adopted, what is left of others is removed.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::Test;
use crate::client::{get, tunnel};
use crate::platform::{Platform, block_on, container};

pub const TESTS: &[Test] = &[
    ("a_killed_platform_finds_its_instances_again", killed),
    ("a_platform_killed_at_any_moment_leaks_nothing", killed_at_any_moment),
];

/// The role of a platform that runs two instances and will be killed.
pub const VICTIM: &str = "--victim";
/// The role of a platform that will be killed while it starts and removes instances.
pub const BUSY_VICTIM: &str = "--busy-victim";

const ROUNDS: u64 = 6;

/// Starts two instances, says so, and waits for the end.
pub fn be_victim(directory: &Path) -> ! {
    block_on(async {
        let platform = Platform::open(directory).await;
        platform.run_script("exec httpd -f -p 4000 -h /www");
        platform.run(&container("stays")).await;
        platform.run(&container("goes")).await;
        assert_eq!(platform.create(&container("cold")).await.0, 201);
        eprintln!("ready");
        std::future::pending().await
    })
}

/// Starts and removes instances, several at a time, until the end.
pub fn be_busy_victim(directory: &Path) -> ! {
    block_on(async {
        let platform = Platform::open(directory).await;
        platform.run_script("sleep 0.05");
        eprintln!("ready");
        let churn = async |id: &str, wait: bool| {
            let name = container(id);
            loop {
                platform.create(&name).await;
                platform.start(&name).await;
                if wait {
                    platform.request("POST", &format!("/containers/{name}/wait"), None).await;
                }
                platform.remove(&name).await;
            }
        };
        tokio::join!(churn("b1", true), churn("b2", false), churn("b3", true)).0
    })
}

pub fn start_victim(role: &str, directory: &Path) -> Child {
    let program = std::env::current_exe().expect("this test has a path");
    let command = &mut Command::new(program);
    let mut victim = command.arg(role).arg(directory).stderr(Stdio::piped()).spawn().expect("the victim starts");
    let mut lines = BufReader::new(victim.stderr.take().expect("piped")).lines();
    assert!(lines.any(|line| line.is_ok_and(|line| line == "ready")), "the victim did not get ready");
    victim
}

pub fn kill(mut victim: Child) {
    victim.kill().and_then(|()| victim.wait()).expect("the victim dies");
}

fn killed() {
    let directory = tempfile::tempdir().expect("a directory");
    kill(start_victim(VICTIM, directory.path()));
    // One of the two has lost its journal, as if the crash had come before it was written.
    let instances = directory.path().join("instances");
    std::fs::remove_file(instances.join(container("goes")).join("journal")).expect("is there");
    block_on(async {
        let platform = Platform::open(directory.path()).await;
        assert_eq!(platform.left_over(), [container("stays")]);
        assert_eq!(sandboxes(&platform), BTreeSet::from([container("stays")]));
        platform.run_script("exec httpd -f -p 4000 -h /www");
        let stays = container("stays");
        assert_eq!(platform.status(&stays).await, "running");
        // A workerd that finds it running asks for its sidecar next.
        let port = platform.sidecar_port(&stays).await;
        assert_eq!(get(tunnel(port, 4000).await.expect("listens"), "/").await, "hello from the container\n");
        // It takes one of the two places.
        platform.run(&container("a1")).await;
        platform.run(&container("a2")).await;
        let (status, _) = platform.request("POST", &format!("/containers/{}/wait", container("a2")), None).await;
        assert_eq!(status, 503);
        assert_eq!(platform.kill(&stays, "SIGTERM").await, 204);
        assert_eq!(platform.wait(&stays).await, 143);
        platform.close().await;
    });
}

fn killed_at_any_moment() {
    let given: Option<u64> = std::env::var("CFC_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| std::process::id().into());
    eprintln!("  CFC_SEED={seed}");
    let directory = tempfile::tempdir().expect("a directory");
    for round in 0..ROUNDS {
        let victim = start_victim(BUSY_VICTIM, directory.path());
        let moment = (seed.wrapping_add(round).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) % 300;
        std::thread::sleep(Duration::from_millis(moment));
        kill(victim);
        block_on(async {
            let platform = Platform::open(directory.path()).await;
            let known: BTreeSet<String> = platform.runtime.list().into_iter().map(|view| view.spec.name).collect();
            let on_disk: BTreeSet<String> = platform.left_over().into_iter().collect();
            assert_eq!(known, on_disk, "after {moment} ms");
            // One that ends just now is still known and gone from the launcher.
            assert!(sandboxes(&platform).is_subset(&known), "after {moment} ms");
            if round + 1 == ROUNDS {
                platform.close().await;
            } else {
                platform.runtime.stop_all(Duration::ZERO).await;
                assert_eq!(platform.left_over(), Vec::<String>::new());
            }
        });
    }
}

/// The ids of all sandboxes that the launcher knows.
fn sandboxes(platform: &Platform) -> BTreeSet<String> {
    platform.launcher.list().expect("the launcher answers").into_iter().map(|status| status.id).collect()
}
