//! `kill -9` of the platform: what still runs is adopted, what is left of others is removed.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::Test;
use crate::client::{get, tunnel};
use crate::platform::{Platform, block_on, container};

pub const TESTS: &[Test] = &[("a_killed_platform_finds_its_instances_again", killed)];

/// The role of a platform that will be killed.
pub const VICTIM: &str = "--victim";

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

fn killed() {
    let directory = tempfile::tempdir().expect("a directory");
    let program = std::env::current_exe().expect("this test has a path");
    let mut victim = Command::new(program)
        .arg(VICTIM)
        .arg(directory.path())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the victim starts");
    let mut lines = BufReader::new(victim.stderr.take().expect("piped")).lines();
    assert!(lines.any(|line| line.is_ok_and(|line| line == "ready")), "the victim did not get ready");
    victim.kill().and_then(|()| victim.wait()).expect("the victim dies");
    // One of the two has lost its journal, as if the crash had come before it was written.
    let instances = directory.path().join("instances");
    std::fs::remove_file(instances.join(container("goes")).join("journal")).expect("is there");
    block_on(async {
        let platform = Platform::open(directory.path()).await;
        assert_eq!(platform.left_over(), [container("stays")]);
        let running: Vec<String> =
            platform.launcher.list().expect("answers").into_iter().map(|status| status.id).collect();
        assert_eq!(running, [container("stays")]);
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
        assert_eq!(platform.wait(&stays).await, json!(143));
        platform.close().await;
    });
}
