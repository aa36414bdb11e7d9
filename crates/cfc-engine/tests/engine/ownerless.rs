//! A container that was restarted from outside, and a platform that is away before its Durable Object asks for it.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::Test;
use crate::adoption::{kill, start_victim};
use crate::platform::{Platform, block_on, container};

pub const TESTS: &[Test] = &[("a_restarted_container_without_an_owner_ends_also_when_cfc_was_away", away)];

/// The role of a platform that restarts three containers and will be killed.
pub const VICTIM: &str = "--restarting-victim";

const NAMES: [&str; 3] = ["long", "short", "owned"];
const SCRIPT: &str = "trap 'exit 6' TERM; echo ready; while true; do sleep 0.05; done";

pub fn be_victim(directory: &Path) -> ! {
    block_on(async {
        let platform = Platform::open(directory).await;
        platform.run_script_in(SCRIPT, 9);
        for name in NAMES.map(container) {
            platform.run(&name).await;
            platform.engine.restart(&name, Duration::from_secs(60)).await.expect("restarts");
            platform.until_said(&name, "ready\nready").await;
        }
        // Its Durable Object starts it: what runs is its own now.
        platform.run(&container("owned")).await;
        eprintln!("ready");
        std::future::pending().await
    })
}

fn away() {
    let directory = tempfile::tempdir().expect("a directory");
    kill(start_victim(VICTIM, directory.path()));
    let mark = |name: &str| directory.path().join("instances").join(container(name)).join("ownerless");
    assert!(mark("long").exists() && mark("short").exists() && !mark("owned").exists());
    // As if nobody had been there for an hour, and for all but three seconds of the ten minutes.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    std::fs::write(mark("long"), (now - 3_600).to_string()).expect("writable");
    std::fs::write(mark("short"), (now - 597).to_string()).expect("writable");
    block_on(async {
        let platform = Platform::open(directory.path()).await;
        platform.run_script_in(SCRIPT, 9);
        assert_eq!(platform.wait(&container("long")).await, 6);
        // What a Durable Object that is evicted removes is the process before.
        assert_eq!(platform.remove(&container("short")).await, 204);
        let view = || platform.runtime.inspect(&container("short")).expect("it is there still");
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        while view().phase.is_live() {
            assert!(tokio::time::Instant::now() < deadline, "it goes on for ever");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(view().phase.exit().map(|exit| exit.code), Some(6));
        assert_eq!(platform.status(&container("owned")).await, "running");
        assert_eq!(platform.remove(&container("owned")).await, 204);
        assert_eq!(platform.status(&container("owned")).await, "none", "it has an owner, who removed it");
        platform.close().await;
    });
}
