//! Deleting a Worker: what goes, what stays, and that a crash in between leaves no half of it.

use std::path::PathBuf;

use serde_json::Value;

use crate::starter::{APPLICATION, WORKER, assert_nothing_left, container_of, ready, visits_of};
use crate::support::{Home, Platform, busybox, wait_for};

/// The starter, whose container takes a moment for its end and says so by its exit code.
const SLOW_TO_END: &str = "ENTRYPOINT [\"/bin/sh\", \"-c\", \
    \"trap 'sleep 1; exit 3' TERM; /app/server --port 4000 & wait\"]\nCMD []\n";

fn slow_to_end(home: &Home) -> Option<PathBuf> {
    if !ready() {
        return None;
    }
    Some(home.project_with_shell(WORKER, &busybox()?, SLOW_TO_END))
}

fn deploy(home: &Home) {
    home.must(&["deploy", &home.path(WORKER).display().to_string()]);
}

fn ask(platform: &Platform) -> String {
    let (status, body) = platform.ask(WORKER, "alice");
    assert_eq!(status, 200, "{body}\n{}", platform.log());
    body
}

fn exits(home: &Home) -> Vec<i64> {
    let events = home.must(&["containers", "events", "--json"]);
    let lines = events.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    lines.filter(|event| event["event"] == "exited").map(|event| event["exit_code"].as_i64().expect("a code")).collect()
}

/// Nothing of the Worker is left: no route, application, container or state.
fn assert_gone(platform: &Platform) {
    let home = platform.home;
    let (status, body) = platform.ask(WORKER, "alice");
    assert_eq!(status, 404, "{body}");
    assert!(!home.must(&["containers", "list"]).contains(APPLICATION));
    let workers = home.data().join("workers");
    let left =
        || std::fs::read_dir(&workers).expect("readable").flatten().map(|entry| entry.path()).collect::<Vec<_>>();
    wait_for("its state to be removed", || left().is_empty().then_some(()));
    wait_for("its containers to end", || home.instance_directories().is_empty().then_some(()));
}

#[test]
fn a_deleted_worker_leaves_nothing_and_its_successor_begins_anew() {
    let home = Home::new();
    if slow_to_end(&home).is_none() {
        return;
    }
    let platform = Platform::start(&home);
    deploy(&home);
    ask(&platform);
    assert!(visits_of(&ask(&platform)) > 1);

    let said = home.must_fail(&["delete", WORKER]);
    assert!(said.contains("There is no terminal to ask at") && said.contains("hint: add `--force`"), "{said}");
    let said = home.must_fail(&["delete", "other", "--force"]);
    assert!(said.contains("there is no Worker `other`") && said.contains(&format!("there are `{WORKER}`")), "{said}");
    ask(&platform);

    // Without a name it is the project's.
    let output = home.cfc().args(["delete", "--force"]).current_dir(home.path(WORKER)).output().expect("cfc runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), WORKER);
    assert!(said.contains(APPLICATION) && said.contains("images stay in the registry"), "{said}");
    assert_gone(&platform);
    assert_eq!(exits(&home), [3], "it was not left the time for its end");

    deploy(&home);
    assert_eq!(visits_of(&ask(&platform)), 1);
    platform.stop();
    assert_nothing_left(&home);
}

#[test]
fn an_application_can_be_deleted_by_itself() {
    if !ready() {
        return;
    }
    let home = Home::new();
    home.project(WORKER);
    let platform = Platform::start(&home);
    deploy(&home);
    ask(&platform);
    let said = home.must_fail(&["containers", "delete", APPLICATION]);
    assert!(said.contains("hint: add `--force`"), "{said}");
    assert_eq!(home.must(&["containers", "delete", APPLICATION, "--force"]), APPLICATION);
    assert!(!home.must(&["containers", "list"]).contains(APPLICATION));
    assert!(home.instance_directories().is_empty());
    let (status, _) = platform.ask(WORKER, "alice");
    assert_ne!(status, 404, "the Worker went along");
    platform.stop();
}

/// Deletes on a platform that dies at the point, and returns it when it has started again.
fn killed_at<'a>(home: &'a Home, point: &str) -> Platform<'a> {
    let platform = Platform::start_with(home, &[("CFC_FAIL_POINT", &format!("{point}:1:kill"))]);
    deploy(home);
    ask(&platform);
    let output = home.run(&["delete", WORKER, "--force"]);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    platform.wait();
    Platform::start(home)
}

#[test]
fn kill_9_before_a_deletion_is_recorded_leaves_the_worker_with_its_container() {
    let home = Home::new();
    if slow_to_end(&home).is_none() {
        return;
    }
    let platform = Platform::start_with(&home, &[("CFC_FAIL_POINT", "server.delete.suspended:1:kill")]);
    deploy(&home);
    let before = ask(&platform);
    let output = home.run(&["delete", WORKER, "--force"]);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    platform.wait();
    let platform = Platform::start(&home);
    let after = ask(&platform);
    assert_eq!(container_of(&before), container_of(&after));
    assert!(visits_of(&after) > visits_of(&before));
    platform.stop();
}

#[test]
fn kill_9_after_a_deletion_is_recorded_leaves_nothing_of_the_worker() {
    for point in ["recorded", "ended", "erased"] {
        let home = Home::new();
        if slow_to_end(&home).is_none() {
            return;
        }
        let platform = killed_at(&home, &format!("server.delete.{point}"));
        assert_gone(&platform);
        platform.stop();
        assert_nothing_left(&home);
    }
}

#[test]
fn a_worker_that_was_deleted_is_deployed_beside_a_container_that_does_not_end() {
    let home = Home::new();
    if !ready() {
        return;
    }
    let Some(busybox) = busybox() else { return };
    let stubborn = "ENTRYPOINT [\"/bin/sh\", \"-c\", \"trap '' TERM; /app/server --port 4000 & \
                    while true; do sleep 1000; done\"]\nCMD []\n";
    home.project_with_shell(WORKER, &busybox, stubborn);
    let platform = Platform::start(&home);
    deploy(&home);
    let before = ask(&platform);
    ask(&platform);
    let output = home.run(&["delete", WORKER, "--force"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("1 of its containers were told to end and still use their `stop_grace`"), "{said}");
    deploy(&home);
    let after = ask(&platform);
    assert_eq!(visits_of(&after), 1, "the deleted Worker's container serves its successor: {before} {after}");
    platform.stop();
    assert_nothing_left(&home);
}
