//! A launcher that is root in a user namespace only, as an ordinary user's is: further processes, ids, limits, networks.
//! (How cfc gets there is the integration tests' business.)
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use cfc_sandbox::{ErrorKind, ExitStatus, INIT_ANNOTATION, Launcher, Root};
use serde_json::json;
use support::exec::{output, refused, run, script};
use support::{Bench, LAUNCHER, ready, with};

/// Ids that nobody has on the machine.
const FIRST: u32 = 2_100_000_000;

/// The launcher's process: it and its sandboxes end with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A bench whose launcher has 65536 ids.
fn bench() -> Option<(Bench, Process)> {
    let directory = ready()?;
    let has_programs = ["unshare", "setpriv"].iter().all(|name| Command::new(name).arg("--version").output().is_ok());
    if !has_programs {
        eprintln!("skipped: unshare and setpriv are not installed");
        return None;
    }
    // The build directory may be below one that only its owner can enter.
    let program = directory.path().join("cfc-launcher");
    fs::copy(LAUNCHER, &program).unwrap();
    give(directory.path());
    let socket = directory.path().join("launcher.sock");
    let become_root = "read go && exec setpriv --reuid 0 --regid 0 --clear-groups -- \"$@\"";
    let mut launcher = Command::new("unshare");
    launcher.args(["--user", "--mount", "--keep-caps", "sh", "-c", become_root, "sh"]).arg(&program).arg(&socket);
    let mut launcher = Process(launcher.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap());
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/user")).unwrap();
    let pid = launcher.0.id().to_string();
    support::exec::until("its namespace exists", || namespace(&pid) != namespace("self"));
    for map in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{pid}/{map}"), format!("0 {FIRST} 65536\n")).unwrap();
    }
    launcher.0.stdin.take().unwrap().write_all(b"go\n").unwrap();
    support::exec::until("the launcher listens", || Launcher::connect(&socket).is_some());
    Some((Bench { launcher: Launcher::connect(&socket).unwrap(), directory }, launcher))
}

fn give(path: &Path) {
    let owner = format!("{FIRST}:{FIRST}");
    assert!(Command::new("chown").args(["-R", &owner]).arg(path).status().unwrap().success());
}

#[test]
fn further_processes_join_and_return_their_codes() {
    let Some((bench, _process)) = bench() else { return };
    let config = with(&bench.config(&["sleep", "1000"]), &[("/annotations", json!({ INIT_ANNOTATION: "true" }))]);
    give(&support::own_directory(&config));
    bench.launcher.start(&config).unwrap();
    assert_eq!(output(&bench, &config.id, &script("id -u; echo $$ >/of-a-command")), "0\n");
    let Root::Overlay { upper, .. } = &config.root else { panic!("an overlay") };
    assert_eq!(fs::metadata(upper.join("of-a-command")).unwrap().uid(), FIRST);
    assert_eq!(run(&bench, &config.id, &script("exit 42")).0, ExitStatus::Code(42));
    assert_eq!(run(&bench, &config.id, &script("kill -9 $$")).0, ExitStatus::Signal(9));
    assert!(bench.launcher.network(&config.id).unwrap().listeners().unwrap().ports().unwrap().is_empty());
    bench.launcher.kill_all(&config.id).unwrap();
    bench.launcher.wait(&config.id).unwrap();
    assert_eq!(refused(&bench, &config.id, &script("true")).kind(), &ErrorKind::NotRunning);
    bench.launcher.shutdown().unwrap();
}
