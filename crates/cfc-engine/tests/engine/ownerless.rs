//! A container that was restarted from outside, and a platform that is away before its Durable Object asks for it.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cfc_engine::EgressPolicy;
use cfc_runtime::{InstanceEventKind, Phase, Shares};

use crate::Test;
use crate::adoption::{kill, start_victim};
use crate::platform::{Platform, block_on, container, on_platform};

pub const TESTS: &[Test] = &[
    ("a_restarted_container_without_an_owner_ends_also_when_cfc_was_away", away),
    ("a_container_that_no_durable_object_asks_for_has_the_configured_time_to_end", unclaimed),
    ("a_restart_that_would_be_refused_leaves_the_container_alone", || on_platform(refused)),
];

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

/// One that its version has left to the next, and one that was restarted. Neither heeds SIGTERM.
fn unclaimed() {
    let directory = tempfile::tempdir().expect("a directory");
    block_on(async {
        let grace = Duration::from_millis(300);
        let platform = Platform::open_with_grace(directory.path(), EgressPolicy::default(), grace).await;
        platform.engine.set_ownerless_max(Duration::from_millis(200));
        platform.run_script("trap 'echo asked' TERM; echo ready; while true; do sleep 0.05; done");
        let (left, restarted) = (container("left"), container("restarted"));
        for name in [&left, &restarted] {
            platform.run(name).await;
            platform.until_said(name, "ready").await;
        }
        platform.engine.pass_on(|view| view.spec.name == left);
        platform.engine.restart(&restarted, Duration::ZERO).await.expect("restarts");
        for name in [&left, &restarted] {
            // Not the engine's own `wait`, by which a Durable Object would ask for it.
            let ended = tokio::time::timeout(Duration::from_secs(60), platform.runtime.wait(name)).await;
            let report = ended.expect("it ends long before fifteen minutes are over").expect("is there");
            assert_eq!(report.code, 137);
        }
        assert!(platform.output(&left).await.contains("asked"), "it was not asked to end first");
        platform.close().await;
    });
}

async fn refused(platform: Platform) {
    platform.run_script(SCRIPT);
    let name = container("a1");
    platform.run(&name).await;
    platform.until_said(&name, "ready").await;
    let pid = || platform.runtime.inspect(&name).and_then(|view| view.phase.pid());
    let before = pid();
    let application = platform.runtime.application("app").expect("was set");
    let mut events = platform.runtime.event_reader();
    platform.runtime.read_events(&mut events);
    for (shares, max_instances, reason) in [
        (Shares { disk_reserve_mb: Some(u64::MAX), ..Shares::default() }, 2, "100 MB of disk, 0 are free"),
        (Shares { memory_reserve_mib: Some(u64::MAX), ..Shares::default() }, 2, "64 MiB of memory, 0 are free"),
        (Shares::default(), 0, "already has 0 live instances, its `max_instances`"),
    ] {
        platform.runtime.share_machine(shares);
        platform.runtime.set_application(cfc_runtime::Application { max_instances, ..application.clone() });
        let error = platform.engine.restart(&name, Duration::from_secs(60)).await.expect_err("it may not start again");
        assert!(error.kind.to_string().contains(reason), "{error}: {}", error.kind);
        assert_eq!(pid(), before, "it was ended all the same");
    }
    let told = platform.runtime.read_events(&mut events);
    assert!(told.iter().all(|event| matches!(event.kind, InstanceEventKind::Refused { .. })), "{told:?}");
    // What it has itself is free for its successor.
    platform.runtime.share_machine(Shares::default());
    platform.runtime.set_application(cfc_runtime::Application { max_instances: 1, ..application });
    platform.engine.restart(&name, Duration::from_secs(60)).await.expect("there is room for it alone");
    assert!(matches!(platform.runtime.inspect(&name).map(|view| view.phase), Some(Phase::Running { .. })));
    platform.close().await;
}
