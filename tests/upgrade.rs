//! `cfc upgrade`: a new program in the place of the old one, under load.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::starter::{APPLICATION, WORKER, assert_nothing_left, container_of, ready, visits_of};
use crate::support::{Home, Platform, http, wait_for};

fn inode(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).ino()
}

/// The launcher of the platform in `home`, which runs the program that is installed there.
fn launcher_of(home: &Home) -> u32 {
    let pids = std::fs::read_dir("/proc").expect("there is a /proc").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_it = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let exe = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        line.starts_with(b"cfc-launcher\0/") && comm == "cfc-launcher\n" && exe == home.path("bin/cfc")
    };
    let found: Vec<u32> = pids.filter(is_it).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0]
}

fn ask(address: &str, session: &str) -> (u16, String) {
    let body = format!("{{\"session-id\": \"{session}\"}}");
    let request = format!(
        "POST / HTTP/1.1\r\nHost: {WORKER}.localhost\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    http(address, &request)
}

#[test]
fn an_upgrade_under_load_loses_no_request_and_no_instance() {
    if !ready() {
        return;
    }
    let home = Home::installed();
    let program = home.path("bin/cfc");
    let platform = Platform::start(&home);
    home.must(&["deploy", "--config", &home.project(WORKER).join("wrangler.jsonc").display().to_string()]);
    let address = platform.address("gateway");
    let before: Vec<String> = ["alice", "bob"].map(|session| ask(&address, session).1).to_vec();

    let launcher = launcher_of(&home);
    let (is_over, answered) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        let clients: Vec<_> = ["alice", "bob"]
            .into_iter()
            .map(|session| {
                let (is_over, answered, address) = (&is_over, &answered, &address);
                scope.spawn(move || {
                    let mut last = 0;
                    while !is_over.load(Ordering::Relaxed) {
                        let (status, body) = ask(address, session);
                        assert_eq!(status, 200, "{session}: {body}");
                        assert!(visits_of(&body) > last, "{session}: {body} after {last}");
                        last = visits_of(&body);
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let upgraded = std::panic::catch_unwind(|| {
            for generation in 1..=3 {
                home.install();
                let answered_before = answered.load(Ordering::Relaxed);
                home.must(&["upgrade"]);
                assert_eq!(platform.generation(), generation);
                let executed = inode(&PathBuf::from(format!("/proc/{}/exe", platform.pid())));
                assert_eq!(executed, inode(&program), "the new program runs in the old one's process");
                let executed = inode(&PathBuf::from(format!("/proc/{launcher}/exe")));
                assert_eq!(executed, inode(&program), "and in the launcher's");
                wait_for("the clients to be answered", || {
                    (answered.load(Ordering::Relaxed) > answered_before + 10).then_some(())
                });
            }
        });
        is_over.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().expect("every request was answered by the same container");
        }
        upgraded.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    assert_eq!(platform.address("gateway"), address);
    for (session, before) in ["alice", "bob"].into_iter().zip(&before) {
        assert_eq!(container_of(before), container_of(&ask(&address, session).1), "{session}");
    }
    let listed = home.must(&["containers", "list"]);
    assert!(listed.contains(APPLICATION), "{listed}");
    platform.stop();
    assert_nothing_left(&home);
}

#[test]
fn a_program_that_does_not_run_is_not_upgraded_to() {
    if !ready() {
        return;
    }
    let home = Home::installed();
    let program = home.path("bin/cfc");
    let platform = Platform::start(&home);
    let broken = home.write("bin/broken", "not a program");
    std::fs::rename(broken, &program).expect("renamed");
    let output = Command::new(env!("CARGO_BIN_EXE_cfc"))
        .arg("upgrade")
        .envs([("CFC_DATA", home.data()), ("CFC_CONFIG", home.path("config.toml"))])
        .output()
        .expect("cfc runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("goes on as it is") && said.contains("cannot be executed"), "{said}");
    home.install();
    home.must(&["containers", "list"]);
    home.must(&["upgrade"]);
    assert_eq!(platform.generation(), 1);
    platform.stop();
}
