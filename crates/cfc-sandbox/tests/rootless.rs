//! A launcher that is root in a user namespace only, as an ordinary user's is: further processes, ids, limits, networks.
//! (How cfc gets there is the integration tests' business.)
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use cfc_sandbox::{ErrorKind, ExecConfig, ExitStatus, INIT_ANNOTATION, Launcher, OciRuntime, Root, SandboxConfig};
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

/// Each runtime as the root of a user namespace: a container's whole life, and commands in it.
#[test]
fn oci_runtimes_run_in_the_users_own_namespace() {
    let Some((bench, _process)) = bench() else { return };
    for name in ["runc", "crun", "runsc"] {
        let runtime = match OciRuntime::find(name, Path::new(name), &[], None) {
            Ok(runtime) => runtime,
            Err(error) => {
                eprintln!("skipped: {error}");
                continue;
            }
        };
        let config = |script: &str| {
            let config =
                with(&bench.config(&["sh", "-c", script]), &[("/annotations", json!({ INIT_ANNOTATION: "true" }))]);
            give(&support::own_directory(&config));
            SandboxConfig { runtime: Some(runtime.clone()), ..config }
        };
        let once = config("id -u; cat /proc/self/uid_map; echo x > /made; echo err >&2; chown 7:8 /made; exit 42");
        let (exit, text) = bench.run_config(&once);
        assert_eq!(exit.status, ExitStatus::Code(42), "{name}: {text}");
        assert!(text.contains("0\n") && text.contains("err"), "{name}: {text}");
        let Root::Overlay { upper, .. } = &once.root else { panic!("an overlay") };
        let made = fs::metadata(upper.join("made")).unwrap();
        assert_eq!((made.uid(), made.gid()), (FIRST + 7, FIRST + 8), "{name}");

        let stays = config("trap 'exit 6' TERM; while true; do sleep 0.05; done");
        let started = bench.launcher.start(&stays).unwrap();
        let owner = fs::metadata(format!("/proc/{}", started.pid)).unwrap().uid();
        assert!(owner == 0 || owner == FIRST, "{name}: {owner}");
        assert_eq!(output(&bench, &stays.id, &script("id -u; echo $$ >/of-a-command")), "0\n", "{name}");
        assert_eq!(
            run(&bench, &stays.id, &script("echo out; echo err >&2; exit 4")),
            (ExitStatus::Code(4), "out\n".into(), "err\n".into()),
            "{name}"
        );
        let app = ExecConfig { user: Some("app".into()), ..script("id -u") };
        assert_eq!(output(&bench, &stays.id, &app), "1000\n", "{name}");
        assert!(bench.launcher.network(&stays.id).unwrap().listeners().unwrap().ports().unwrap().is_empty());
        bench.launcher.kill(&stays.id, libc::SIGTERM).unwrap();
        assert_eq!(bench.launcher.wait(&stays.id).unwrap().status, ExitStatus::Code(6), "{name}");
        bench.launcher.remove(&stays.id).unwrap();
        let error = bench.launcher.start(&SandboxConfig { runtime: Some(runtime), ..bench.config(&["no-such"]) });
        assert!(error.is_err(), "{name}");
    }
    bench.launcher.shutdown().unwrap();
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

#[test]
fn a_step_of_a_build_makes_no_device_nodes() {
    let Some((bench, _process)) = bench() else { return };
    let mut config = bench.config(&["mknod", "/home/x", "c", "1", "3"]);
    let args = config.spec.process().as_ref().unwrap().args().clone();
    config.spec = cfc_sandbox::build_spec();
    config.spec.process_mut().as_mut().unwrap().set_args(args);
    give(&support::own_directory(&config));
    let (exit, text) = bench.run_config(&config);
    let expected = (ExitStatus::Code(1), "mknod: /home/x: Operation not permitted");
    assert_eq!((exit.status, text.as_str()), expected);
}
