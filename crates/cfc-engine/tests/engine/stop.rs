//! How containers are asked to end, how they take it, and what is told about it.

use std::time::Duration;

use cfc_engine::EgressPolicy;
use cfc_runtime::{InstanceEventKind, Phase, RuntimeErrorKind};

use crate::Test;
use crate::platform::{Platform, block_on, container, on_platform};

pub const TESTS: &[Test] = &[
    ("a_container_that_ignores_sigterm_is_killed", || on_platform(ignores)),
    ("a_container_ends_with_the_code_it_gives_on_its_stop_signal", || on_platform(stop_signal)),
    ("a_sigterm_of_workerd_has_a_deadline_too", kill_has_a_deadline),
    ("a_stop_ends_orphans_and_reaps_zombies", || on_platform(orphans)),
    ("a_stop_before_the_process_is_there_is_kept", || on_platform(early)),
    ("events_tell_the_whole_life", || on_platform(events)),
    ("a_restarted_container_is_taken_over_as_it_runs", || on_platform(restart)),
];

/// Long enough for any process that heeds its signal.
const PATIENT: Duration = Duration::from_secs(60);

async fn ignores(platform: Platform) {
    platform.run_script("trap '' TERM; echo ready; while true; do sleep 0.05; done");
    let name = container("a1");
    platform.run(&name).await;
    platform.until_said(&name, "ready").await;
    let stopping = tokio::spawn({
        let (runtime, name) = (platform.runtime.clone(), name.clone());
        async move { runtime.stop(&name, Duration::from_millis(400)).await }
    });
    let mut phase = platform.runtime.phase(&name).expect("is there");
    let seen = phase.wait_for(|phase| matches!(phase, Phase::Stopping { .. })).await.expect("is there").clone();
    assert!(seen.is_live() && seen.pid().is_some(), "{seen:?}");
    assert_eq!(stopping.await.expect("ends").expect("stops").code, 137);
    let again = platform.runtime.stop(&name, PATIENT).await.expect_err("it does not run");
    assert!(matches!(again.kind, RuntimeErrorKind::NotRunning), "{again:?}");
    platform.close().await;
}

async fn stop_signal(platform: Platform) {
    platform.run_script("trap 'exit 42' TERM; echo ready; while true; do sleep 0.05; done");
    let name = container("a1");
    platform.run(&name).await;
    platform.until_said(&name, "ready").await;
    assert_eq!(platform.runtime.stop(&name, PATIENT).await.expect("stops").code, 42);

    let script = "trap '' TERM; trap 'exit 43' QUIT; echo ready; while true; do sleep 0.05; done";
    platform.run_script_with(script, |config| config.stop_signal = Some("SIGQUIT".to_string()));
    let name = container("a2");
    platform.run(&name).await;
    platform.until_said(&name, "ready").await;
    assert_eq!(platform.runtime.stop(&name, PATIENT).await.expect("stops").code, 43);
    platform.close().await;
}

/// The `Container` class's `stop()` is a SIGTERM through the engine, which workerd never follows by anything.
fn kill_has_a_deadline() {
    let directory = tempfile::tempdir().expect("a directory");
    block_on(async {
        let grace = Duration::from_millis(300);
        let platform = Platform::open_with_grace(directory.path(), EgressPolicy::default(), grace).await;
        platform.run_script("trap '' TERM; echo ready; while true; do sleep 0.05; done");
        let name = container("a1");
        platform.run(&name).await;
        platform.until_said(&name, "ready").await;
        assert_eq!(platform.kill(&name, "SIGUSR2").await, 204, "USR2 ends it unless it is handled");
        assert_eq!(platform.wait(&name).await, 128 + 12);
        assert_eq!(platform.start(&name).await, 204);
        platform.until_said(&name, "ready\nready").await;
        assert_eq!(platform.kill(&name, "SIGTERM").await, 204);
        assert_eq!(platform.wait(&name).await, 137);
        platform.close().await;
    });
}

async fn orphans(platform: Platform) {
    let script = "
        for number in 1 2 3 4 5; do (sleep 0.01 &); done
        (setsid sleep 987654321 &)
        sleep 0.5
        for process in /proc/[0-9]*; do
            case $(cat $process/stat 2>/dev/null) in *') Z '*) echo zombie $process;; esac
        done
        echo counted
        trap 'exit 7' TERM
        while true; do sleep 0.05; done";
    platform.run_script(script);
    let name = container("a1");
    platform.run(&name).await;
    platform.until_said(&name, "counted").await;
    let output = platform.output(&name).await;
    assert!(!output.contains("zombie"), "{output}");
    assert_eq!(processes_with("987654321"), 1, "the orphan should run");
    assert_eq!(platform.runtime.stop(&name, PATIENT).await.expect("stops").code, 7);
    assert_eq!(processes_with("987654321"), 0, "the orphan outlived its container");
    platform.close().await;
}

fn processes_with(argument: &str) -> usize {
    let entries = std::fs::read_dir("/proc").expect("readable").flatten();
    let command_lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    command_lines.filter(|line| line.split(|byte| *byte == 0).any(|word| word == argument.as_bytes())).count()
}

async fn early(platform: Platform) {
    platform.run_script("trap 'exit 3' TERM; while true; do sleep 0.05; done");
    for number in 0..5 {
        let name = container(&format!("a{number}"));
        assert_eq!(platform.create(&name).await.0, 201);
        let (status, report) = tokio::join!(platform.start(&name), async {
            while !platform.runtime.inspect(&name).is_some_and(|view| view.phase.is_live()) {
                tokio::task::yield_now().await;
            }
            platform.runtime.stop(&name, PATIENT).await
        });
        assert_eq!(status, 204);
        // SIGTERM before the shell has set its trap ends it.
        assert!(matches!(report.expect("stops").code, 3 | 143));
        platform.remove(&name).await;
    }
    platform.close().await;
}

async fn events(platform: Platform) {
    platform.run_script("trap 'exit 5' TERM; httpd -p 127.0.0.1:4000 -h /www; while true; do sleep 0.05; done");
    let mut reader = platform.runtime.event_reader();
    let name = container("a1");
    platform.run(&name).await;
    assert_eq!(platform.start(&name).await, 304);
    drop(platform.runtime.connect(&name, 4000, PATIENT).await.expect("it listens"));
    let view = platform.runtime.inspect(&name).expect("is there");
    assert!(matches!(view.phase, Phase::Ready { .. }), "{view:?}");
    assert!(view.ready_after.is_some() && view.timings.is_some_and(|timings| !timings.launch.is_zero()), "{view:?}");
    assert_eq!(platform.runtime.stop(&name, PATIENT).await.expect("stops").code, 5);
    platform.remove(&name).await;
    let events = platform.runtime.read_events(&mut reader);
    let kinds: Vec<String> = events
        .iter()
        .map(|event| match &event.kind {
            InstanceEventKind::Running { .. } => "running".to_string(),
            InstanceEventKind::Ready { .. } => "ready".to_string(),
            InstanceEventKind::Exited(report) => format!("exited {}", report.code),
            InstanceEventKind::Refused { rule, .. } => format!("refused {rule}"),
            other => format!("{other:?}").to_lowercase(),
        })
        .collect();
    let expected =
        ["created", "starting", "running", "refused already_running", "ready", "stopping", "exited 5", "removed"];
    assert_eq!(kinds, expected);
    assert!(events.iter().all(|event| event.instance == name && event.application == "app"));
    assert!(events.iter().map(|event| event.number).eq(1..=8));
    platform.close().await;
}

async fn restart(platform: Platform) {
    platform.run_script("touch /tmp/trace; ls /tmp; trap 'exit 6' TERM; while true; do sleep 0.05; done");
    let name = container("a1");
    let proxy = platform.sidecar(&name).await;
    platform.run(&name).await;
    platform.until_said(&name, "trace").await;
    let pid = |platform: &Platform| platform.runtime.inspect(&name).and_then(|view| view.phase.pid());
    let before = pid(&platform);
    // workerd's wait hears of the end, though the next process is there at once.
    let (code, restarted) = tokio::join!(platform.wait(&name), platform.engine.restart(&name, PATIENT));
    restarted.expect("restarts");
    assert_eq!(code, 6);
    let after = pid(&platform);
    assert!(after.is_some() && after != before);
    // What a Durable Object does that goes means the process before.
    assert_eq!(platform.remove(&name).await, 204);
    assert_eq!(platform.request("POST", &format!("/containers/{name}/wait?condition=removed"), None).await.0, 404);
    assert_eq!(pid(&platform), after);
    // What one does that starts gets the process that runs, once.
    assert_eq!(platform.create(&name).await.0, 201);
    assert_eq!(platform.start(&name).await, 204);
    assert_eq!(platform.start(&name).await, 304);
    assert_eq!(pid(&platform), after);
    assert_eq!(platform.sidecar_port(&name).await, proxy);
    // From then on it is as any other.
    assert_eq!(platform.create(&name).await.0, 409);
    assert_eq!(platform.remove(&name).await, 204);
    assert_eq!(pid(&platform), None);

    // One that is created otherwise than it was is made anew.
    platform.run(&name).await;
    platform.engine.restart(&name, PATIENT).await.expect("restarts");
    let before = pid(&platform);
    platform.run_script("sleep 1000");
    platform.run(&name).await;
    assert!(pid(&platform).is_some() && pid(&platform) != before);
    platform.close().await;
}
