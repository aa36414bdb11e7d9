//! What a platform survives and tells: damaged records, settings of nobody, readers that are cut off, outputs that are full.

use std::fs::File;
use std::process::Stdio;

use crate::starter::{APPLICATION, WORKER, ready};
use crate::support::{Home, Platform, can_sandbox, has_program, http, wait_for};

fn get(platform: &Platform, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    http(&platform.address("control"), &request)
}

#[test]
fn a_truncated_record_keeps_no_other_worker_from_its_service() {
    if !ready() {
        return;
    }
    let home = Home::new();
    let project = home.project(WORKER);
    let platform = Platform::start(&home);
    home.must(&["deploy", &project.display().to_string()]);
    platform.stop();
    let record = "data/bucket/control/workers/bad/00000000000000000011.json";
    home.write(record, "{\"writer\":\"");
    let platform = Platform::start(&home);
    assert_eq!(platform.ask(WORKER, "alice").0, 200, "{}", platform.log());
    assert!(home.must(&["containers", "list"]).contains(APPLICATION));
    let log = platform.log();
    assert!(log.contains("workers/bad/00000000000000000011.json") && log.contains("data directory away"), "{log}");
    let (status, said) = get(&platform, "/healthz");
    assert!(status == 503 && said.contains("workers/bad/00000000000000000011.json"), "{status} {said}");
    let (status, said) = platform.ask("bad", "alice");
    assert!(status == 503 && said.contains("cannot read what is deployed"), "{status} {said}");
    std::fs::remove_file(home.path(record)).expect("it is there");
    assert_eq!(get(&platform, "/healthz").0, 200);
    platform.stop();
}

#[test]
fn settings_of_an_application_that_is_not_there_are_warned_of_and_deploys_say_what_holds() {
    if !ready() {
        return;
    }
    let home = Home::new();
    let project = home.project(WORKER);
    home.write(
        "config.toml",
        &format!("[applications.typo-app]\ngrants = [\"nested\"]\n[applications.{APPLICATION}]\ngrants = [\"fuse\"]\n"),
    );
    let platform = Platform::start(&home);
    assert!(platform.log().contains("`[applications.typo-app]`"), "{}", platform.log());
    home.write(&format!("{WORKER}/.dev.vars"), "API_KEY=\"s3cr3t\"\n");
    let output = home.run(&["deploy", &project.display().to_string()]);
    let said = home.redact(&String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    assert!(said.contains(&format!("warning: `[HOME]/{WORKER}/.dev.vars` is not read")), "{said}");
    assert!(
        said.contains("warning: `[applications.typo-app]`") && said.contains(&format!("`{APPLICATION}`")),
        "{said}"
    );
    assert!(!said.contains(&format!("`[applications.{APPLICATION}]`")), "{said}");
    assert!(said.contains(&format!("{APPLICATION} runs in cfc's own sandbox with fuse")), "{said}");
    let listed: serde_json::Value = serde_json::from_str(&home.must(&["containers", "list", "--json"])).expect("JSON");
    assert_eq!(listed[0]["isolation"], "cfc's own sandbox with fuse");
    assert_eq!(listed[0]["running"], 0);
    assert_eq!(platform.ask(WORKER, "alice").0, 200);
    let listed: serde_json::Value = serde_json::from_str(&home.must(&["containers", "list", "--json"])).expect("JSON");
    assert_eq!(listed[0]["running"], 1);
    platform.stop();
}

#[test]
fn who_follows_logs_and_events_goes_on_after_an_upgrade_and_is_told_of_the_end() {
    if !ready() {
        return;
    }
    let home = Home::installed();
    let project = home.project(WORKER);
    let platform = Platform::start(&home);
    home.must(&["deploy", &project.display().to_string()]);
    assert_eq!(platform.ask(WORKER, "alice").0, 200);
    let follow = |name: &str, arguments: &[&str]| {
        let file = |suffix: &str| File::create(home.path(&format!("{name}.{suffix}"))).expect("writable");
        home.cfc().args(arguments).stdout(file("out")).stderr(file("err")).spawn().expect("cfc runs")
    };
    let read = |file: &str| std::fs::read_to_string(home.path(file)).unwrap_or_default();
    let logs = follow("logs", &["containers", "logs", APPLICATION, "-f"]);
    let events = follow("events", &["containers", "events", "-f"]);
    wait_for("the first line", || read("logs.out").contains("visit 1").then_some(()));
    wait_for("the first event", || read("events.out").contains(" running").then_some(()));
    home.install();
    home.must(&["upgrade"]);
    assert_eq!(platform.ask(WORKER, "alice").0, 200);
    wait_for("the second line", || read("logs.out").contains("visit 2").then_some(()));
    assert_eq!(read("logs.out").matches("visit 1").count(), 1, "{}", read("logs.out"));
    assert_eq!(platform.ask(WORKER, "bob").0, 200);
    wait_for("the second start", || (read("events.out").matches(" running").count() > 1).then_some(()));
    platform.stop();
    for (name, mut process) in [("logs.err", logs), ("events.err", events)] {
        let status = process.wait().expect("a child");
        assert_eq!(status.code(), Some(1), "{}", read(name));
        assert!(read(name).contains("the server ended"), "{}", read(name));
        assert!(!read(name).contains("same version"), "{}", read(name));
    }
}

#[test]
fn an_output_that_cannot_be_written_to_is_an_error_and_a_closed_one_is_none() {
    if !can_sandbox() {
        return;
    }
    let home = Home::new();
    home.write("one/Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    let platform = Platform::start(&home);
    for arguments in
        [&["containers", "list"][..], &["build", "one", "-t", "one"], &["registry", "usage"], &["images", "list"]]
    {
        let full = File::options().write(true).open("/dev/full").expect("there is one");
        let output = home.cfc().args(arguments).stdout(full).output().expect("cfc runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains("cannot write to the standard output") && said.contains("No space left"), "{said}");

        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = home.cfc().args(arguments).stdout(writer).stderr(Stdio::piped()).output().expect("cfc runs");
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    platform.stop();
}

#[test]
fn the_doctor_looks_at_the_data_directory() {
    if !can_sandbox() || !has_program("unshare") {
        return;
    }
    let script = "mkdir -p $CFC_DATA; mount -t tmpfs -o $1 tmpfs $CFC_DATA; shift; exec \"$@\"";
    for (options, expected) in [("ro", "cannot be written to"), ("size=20m", "MB of free disk")] {
        let home = Home::through(&["unshare", "--mount", "sh", "-c", script, "sh", options]);
        let output = home.run(&["doctor"]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = said.lines().find(|line| line.contains(expected)).unwrap_or_else(|| panic!("{options}: {said}"));
        assert!(line.starts_with("error: ") && output.status.code() == Some(1), "{options}: {said}");
    }
}

#[test]
fn a_gateway_on_a_free_port_has_the_others_on_free_ones_whatever_the_file_says() {
    if !can_sandbox() {
        return;
    }
    let home = Home::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("bound").port();
    home.write("config.toml", &format!("control_port = {port}\nregistry_port = {port}\n"));
    let platform = Platform::start(&home);
    assert_eq!(get(&platform, "/healthz").0, 200);
    platform.stop();
}
