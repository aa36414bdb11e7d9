//! Starting, ending, limits, logs and the launcher's own life. Needs root.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use cfc_sandbox::{ErrorKind, ExitStatus, Happening, INIT_ANNOTATION, Launcher, SandboxConfig, State, sweep};
use serde_json::json;
use support::{LAUNCHER, bench, log_text, own_directory, ready, with};

#[test]
fn exit_codes_and_signals_are_exact() {
    let Some(bench) = bench() else { return };
    assert_eq!(bench.run("exit 0").0.status, ExitStatus::Code(0));
    assert_eq!(bench.run("exit 42").0.status, ExitStatus::Code(42));
    assert_eq!(bench.run("exit 255").0.status, ExitStatus::Code(255));
    let config = bench.config(&["sleep", "100"]);
    bench.launcher.start(&config).unwrap();
    bench.launcher.kill(&config.id, libc::SIGKILL).unwrap();
    let exit = bench.launcher.wait(&config.id).unwrap();
    assert_eq!((exit.status, exit.oom_killed), (ExitStatus::Signal(libc::SIGKILL), false));
    assert_eq!(exit.status.shell_code(), 137);
}

#[test]
fn a_command_that_cannot_run_says_why_and_leaves_nothing() {
    let Some(bench) = bench() else { return };
    for (command, code, word) in [
        ("no-such-command", 127, "not found"),
        ("/no/such/file", 127, "not found"),
        ("/etc/no-interpreter", 127, "interpreter"),
        ("/etc/not-executable", 126, "cannot be executed"),
        ("/etc", 126, "cannot be executed"),
    ] {
        let error = bench.launcher.start(&bench.config(&[command])).expect_err(command);
        assert_eq!(error.exit_code(), Some(code), "{command}: {error}");
        assert!(error.to_string().contains(word) && error.hint().is_some(), "{command}: {error}");
    }
    assert_eq!(bench.launcher.list().unwrap(), []);
}

#[test]
fn a_failing_step_is_named() {
    let Some(bench) = bench() else { return };
    let config = with(&bench.config(&["true"]), &[("/linux/sysctl", json!({"net.no.such.thing": "1"}))]);
    let error = bench.launcher.start(&config).expect_err("fails");
    assert!(error.to_string().contains("set the sysctl net/no/such/thing"), "{error}");
    let mut config = bench.config(&["true"]);
    config.root = cfc_sandbox::Root::Directory { path: "/no/such/root".into() };
    let error = bench.launcher.start(&config).expect_err("fails");
    assert!(error.to_string().contains("/no/such/root"), "{error}");
}

#[test]
fn sigterm_reaches_a_handler_and_kill_all_ends_a_tree() {
    let Some(bench) = bench() else { return };
    let config =
        bench.config(&["sh", "-c", "trap 'echo got it; exit 7' TERM; echo ready; while true; do sleep 0.01; done"]);
    bench.launcher.start(&config).unwrap();
    wait_for(|| log_text(&config).contains("ready"));
    bench.launcher.kill(&config.id, libc::SIGTERM).unwrap();
    assert_eq!(bench.launcher.wait(&config.id).unwrap().status, ExitStatus::Code(7));
    assert!(log_text(&config).contains("got it"));

    let config = bench.config(&[
        "sh",
        "-c",
        "trap '' TERM; (sleep 1234.5 & sleep 1234.5) & sleep 1234.5 & echo ready; sleep 1234.5",
    ]);
    bench.launcher.start(&config).unwrap();
    wait_for(|| log_text(&config).contains("ready"));
    bench.launcher.kill_all(&config.id).unwrap();
    assert_eq!(bench.launcher.wait(&config.id).unwrap().status, ExitStatus::Signal(libc::SIGKILL));
    assert_eq!(processes_with("1234.5"), 0);
    assert_eq!(bench.launcher.kill(&config.id, libc::SIGTERM).unwrap_err().kind(), &ErrorKind::NotRunning);
}

/// Whoever decided to end a process must not hit its successor of the same name, which may be in its set-up still.
#[test]
fn a_signal_for_a_process_spares_the_next_one_of_the_name() {
    let Some(bench) = bench() else { return };
    let config = bench.config(&["sleep", "1234.75"]);
    let first = bench.launcher.start(&config).unwrap();
    bench.launcher.kill_process(&config.id, first.pid, libc::SIGKILL).unwrap();
    bench.launcher.wait(&config.id).unwrap();
    bench.launcher.remove(&config.id).unwrap();

    let config = SandboxConfig { id: config.id, ..bench.config(&["sleep", "1234.75"]) };
    let second = bench.launcher.start(&config).unwrap();
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        let error = bench.launcher.kill_process(&config.id, first.pid, signal).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::NotRunning);
    }
    assert_eq!(bench.launcher.kill_all_with(&config.id, first.pid).unwrap_err().kind(), &ErrorKind::NotRunning);
    assert_eq!(processes_with("1234.75"), 1);
    bench.launcher.kill_all_with(&config.id, second.pid).unwrap();
    assert_eq!(bench.launcher.wait(&config.id).unwrap().status, ExitStatus::Signal(libc::SIGKILL));
}

#[test]
fn files_in_memory_and_all_processes_share_the_limit() {
    let Some(bench) = bench() else { return };
    let config = bench.config(&[
        "sh",
        "-c",
        "head -c 200000000 /dev/zero > /dev/shm/big; x=$(yes | head -c 200000000); echo survived",
    ]);
    let resources =
        json!({"memory": {"limit": 32 << 20}, "cpu": {"quota": 50_000, "period": 100_000}, "pids": {"limit": 32}});
    let (exit, text) = bench.run_config(&with(&config, &[("/linux/resources", resources)]));
    // Which of the processes are killed is the kernel's choice: process 1 may be among them.
    assert!(exit.usage.oom_kills > 0 && exit.oom_killed != text.contains("survived"), "{exit:?} {text}");
    assert_eq!(bench.run("true").0.usage.oom_kills, 0);
}

#[test]
fn a_child_killed_at_the_memory_limit_is_told_at_once_and_is_not_how_the_sandbox_ended() {
    let Some(bench) = bench() else { return };
    let limited = |command: &[&str]| {
        let resources = json!({"memory": {"limit": 32 << 20}});
        with(&bench.config(command), &[("/linux/resources", resources)])
    };
    let config = limited(&["sh", "-c", "tail /dev/zero; sleep 1000"]);
    let mut happenings = bench.launcher.watch().unwrap().filter(|happening| match happening {
        Happening::OutOfMemory { id, .. } | Happening::Ended { id, .. } => *id == config.id,
    });
    let started = bench.launcher.start(&config).unwrap();
    let told = Happening::OutOfMemory { id: config.id.clone(), kills: 1, limit_bytes: Some(32 << 20) };
    assert_eq!(happenings.next(), Some(told));
    assert!(log_text(&config).contains("killed a process at the limit of 32 MiB"), "{}", log_text(&config));
    bench.launcher.kill_all_with(&config.id, started.pid).unwrap();
    let exit = bench.launcher.wait(&config.id).unwrap();
    assert_eq!((exit.status, exit.oom_killed), (ExitStatus::Signal(libc::SIGKILL), false), "we have killed it");
    assert_eq!(happenings.next(), Some(Happening::Ended { id: config.id.clone(), exit }));

    let (exit, _) = bench.run_config(&limited(&["sh", "-c", "tail /dev/zero; exit 0"]));
    assert_eq!((exit.status, exit.oom_killed, exit.usage.oom_kills), (ExitStatus::Code(0), false, 1));
    let (exit, _) = bench.run_config(&limited(&["/bin/busybox", "tail", "/dev/zero"]));
    assert!(exit.oom_killed, "{exit:?}");
}

#[test]
fn a_fork_bomb_meets_its_limit() {
    let Some(bench) = bench() else { return };
    let config = bench.config(&["sh", "-c", "i=0; while [ $i -lt 40 ]; do sleep 5 & i=$((i+1)); done; echo made all"]);
    let config = with(&config, &[("/linux/resources", json!({"pids": {"limit": 16}}))]);
    let (_, text) = bench.run_config(&config);
    assert!(!text.contains("made all"), "{text}");
}

#[test]
fn orphans_are_reaped_by_the_init_that_was_asked_for() {
    let Some(bench) = bench() else { return };
    let script = "echo $$; (sleep 0.01 & exec sleep 0.05) & wait; sleep 0.1; ls -d /proc/[0-9]* | wc -w; exit 9";
    let config = with(&bench.config(&["sh", "-c", script]), &[("/annotations", json!({INIT_ANNOTATION: "true"}))]);
    let (exit, text) = bench.run_config(&config);
    assert_eq!(exit.status, ExitStatus::Code(9), "{text}");
    assert!(text.starts_with("2\n"), "the application is not process 1: {text}");
    let config = with(&bench.config(&["sleep", "100"]), &[("/annotations", json!({INIT_ANNOTATION: "true"}))]);
    bench.launcher.start(&config).unwrap();
    bench.launcher.kill(&config.id, libc::SIGTERM).unwrap();
    assert_eq!(bench.launcher.wait(&config.id).unwrap().status.shell_code(), 128 + libc::SIGTERM);
}

#[test]
fn many_clients_wait_at_once_while_others_go_on() {
    let Some(bench) = bench() else { return };
    let configs: Vec<_> =
        (0..8).map(|i| bench.config(&["sh", "-c", &format!("read x < /dev/null; sleep 0.5; exit {i}")])).collect();
    let codes: Vec<ExitStatus> = std::thread::scope(|scope| {
        let run = |config| {
            let launcher = bench.launcher.clone();
            scope.spawn(move || {
                launcher.start(config).unwrap();
                launcher.wait(&config.id).unwrap().status
            })
        };
        let threads: Vec<_> = configs.iter().map(run).collect();
        wait_for(|| bench.launcher.list().unwrap().iter().any(|status| status.state == State::Running));
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(codes, (0..8).map(ExitStatus::Code).collect::<Vec<_>>());
    let twice = bench.launcher.start(&configs[0]).unwrap_err();
    assert_eq!(twice.kind(), &ErrorKind::AlreadyExists);
}

#[test]
fn a_flood_of_output_is_bounded_and_blocks_nobody() {
    let Some(bench) = bench() else { return };
    let flood = bench.config(&["yes", "a line of output that is neither short nor long"]);
    bench.launcher.start(&flood).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(bench.output("echo hello"), "hello");
    bench.launcher.kill_all(&flood.id).unwrap();
    bench.launcher.wait(&flood.id).unwrap();
    let own = own_directory(&flood);
    for name in ["log", "log.1"] {
        let length = fs::metadata(own.join(name)).unwrap().len();
        assert!(length <= (1 << 20) + 200_000, "{name}: {length}");
    }
}

#[test]
fn sockets_reach_what_listens_on_the_sandboxs_localhost_only() {
    let Some(bench) = bench() else { return };
    let config = bench.config(&["sh", "-c", "echo hi > /tmp/index.html; exec httpd -f -p 127.0.0.1:8080 -h /tmp"]);
    bench.launcher.start(&config).unwrap();
    let network = bench.launcher.network(&config.id).unwrap();
    wait_for(|| network.listeners().unwrap().ports().unwrap() == [8080]);
    let socket = network.tcp_socket(false).unwrap();
    rustix::io::ioctl_fionbio(&socket, false).unwrap();
    let address: std::net::SocketAddrV4 = "127.0.0.1:8080".parse().unwrap();
    rustix::net::connect(&socket, &address).unwrap();
    let mut stream = std::net::TcpStream::from(socket);
    std::io::Write::write_all(&mut stream, b"GET /index.html HTTP/1.0\r\n\r\n").unwrap();
    let answer = std::io::read_to_string(&mut stream).unwrap();
    assert!(answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.ends_with("hi\n"), "{answer}");
    bench.launcher.kill_all(&config.id).unwrap();
    bench.launcher.wait(&config.id).unwrap();
    assert_eq!(network.listeners().unwrap().ports().unwrap(), [] as [u16; 0]);
}

#[test]
fn given_descriptors_are_the_commands_own() {
    let Some(bench) = bench() else { return };
    let mut config = bench.config(&["sh", "-c", "read line; echo got $line; echo oops >&2"]);
    config.stdio = cfc_sandbox::Stdio::Files;
    let (input, give) = std::io::pipe().unwrap();
    let (mut output, out) = std::io::pipe().unwrap();
    let (mut errors, err) = std::io::pipe().unwrap();
    bench.launcher.start_with_stdio(&config, input.into(), out.into(), err.into()).unwrap();
    std::io::Write::write_all(&mut &give, b"a word\n").unwrap();
    assert_eq!(bench.launcher.wait(&config.id).unwrap().status, ExitStatus::Code(0));
    assert_eq!(std::io::read_to_string(&mut output).unwrap(), "got a word\n");
    assert_eq!(std::io::read_to_string(&mut errors).unwrap(), "oops\n");
}

#[test]
fn a_launcher_outlives_its_client_and_is_adopted() {
    let Some(directory) = ready() else { return };
    let socket = directory.path().join("launcher.sock");
    let config = support::config(directory.path(), &["sh", "-c", "sleep 0.5; exit 5"]);
    let config = with(&config, &[("/annotations", json!({"who": "me"}))]);
    {
        let launcher = Launcher::connect_or_start(Path::new(LAUNCHER), &socket).unwrap();
        launcher.start(&config).unwrap();
    }
    let adopted = Launcher::connect_or_start(Path::new("/no/such/program"), &socket).unwrap();
    let list = adopted.list().unwrap();
    assert_eq!(list.len(), 1);
    assert_eq!((list[0].state, list[0].annotations["who"].as_str()), (State::Running, "me"));
    assert!(!sweep(&socket).unwrap().contains(&config.id), "nothing of a living launcher is swept");
    assert_eq!(adopted.wait(&config.id).unwrap().status, ExitStatus::Code(5));
    assert_eq!(adopted.wait(&config.id).unwrap().status, ExitStatus::Code(5), "the status is kept");
    adopted.remove(&config.id).unwrap();
    assert_eq!(adopted.wait(&config.id).unwrap_err().kind(), &ErrorKind::NotFound);
    adopted.shutdown().unwrap();
    assert!(Launcher::connect(&socket).is_none());
}

#[test]
fn the_sandboxes_of_a_killed_launcher_die_and_are_swept() {
    let Some(directory) = ready() else { return };
    let socket = directory.path().join("launcher.sock");
    let mut process = Command::new(LAUNCHER).arg(&socket).stdout(std::process::Stdio::null()).spawn().unwrap();
    wait_for(|| Launcher::connect(&socket).is_some());
    let launcher = Launcher::connect(&socket).unwrap();
    let config = support::config(directory.path(), &["sleep", "2345.6"]);
    launcher.start(&config).unwrap();
    process.kill().unwrap();
    process.wait().unwrap();
    wait_for(|| processes_with("2345.6") == 0);
    let swept = sweep(&socket).unwrap();
    // A cgroup of v2 keeps the name that it was made with.
    let is_v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    assert!(if is_v2 { !swept.is_empty() } else { swept.contains(&config.id) }, "{swept:?}");
    assert!(!socket.exists());
    assert!(launcher.list().is_err());
}

#[test]
fn the_next_start_replaces_a_launcher_that_died() {
    let Some(directory) = ready() else { return };
    let socket = directory.path().join("launcher.sock");
    let launcher = Launcher::connect_or_start(Path::new(LAUNCHER), &socket).unwrap();
    let lost = support::config(directory.path(), &["sleep", "4567.8"]);
    launcher.start(&lost).unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(launcher_pid(&socket)).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    wait_for(|| processes_with("4567.8") == 0 && Launcher::connect(&socket).is_none());
    assert!(launcher.wait(&lost.id).is_err(), "what has died is not forgotten silently");
    let next = support::config(directory.path(), &["sh", "-c", "exit 3"]);
    launcher.start(&next).unwrap();
    assert_eq!(launcher.wait(&next.id).unwrap().status, ExitStatus::Code(3));
    launcher.remove(&next.id).unwrap();
    assert!(!sweep(&socket).unwrap().contains(&lost.id), "it was swept already");
    // One that was told to end has not died: whoever asks it still must not bring another to life.
    let asking = launcher.clone();
    launcher.shutdown().unwrap();
    assert!(asking.list().is_err() && asking.start(&next).is_err());
    assert!(Launcher::connect(&socket).is_none(), "another launcher has taken its place");
}

#[test]
fn a_private_launcher_ends_with_its_owner() {
    let Some(bench) = bench() else { return };
    let config = bench.config(&["sleep", "3456.7"]);
    bench.launcher.start(&config).unwrap();
    assert_eq!(processes_with("3456.7"), 1);
    drop(bench.launcher);
    assert_eq!(processes_with("3456.7"), 0);
}

fn wait_for(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "it did not happen in time");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How many processes of this machine have `argument` among their arguments.
fn processes_with(argument: &str) -> usize {
    let has = |path: std::path::PathBuf| {
        fs::read(path.join("cmdline")).is_ok_and(|line| line.split(|b| *b == 0).any(|word| word == argument.as_bytes()))
    };
    fs::read_dir("/proc").unwrap().filter(|entry| has(entry.as_ref().unwrap().path())).count()
}

#[test]
fn cycles_and_concurrent_starts_leak_nothing() {
    let Some(directory) = ready() else { return };
    let socket = directory.path().join("launcher.sock");
    let launcher = Launcher::connect_or_start(Path::new(LAUNCHER), &socket).unwrap();
    let pid = launcher_pid(&socket);
    let count = || fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let cycle = |config: &cfc_sandbox::SandboxConfig| {
        launcher.start(config).unwrap();
        assert_eq!(launcher.wait(&config.id).unwrap().status, ExitStatus::Code(3));
        launcher.remove(&config.id).unwrap();
    };
    let config = || support::config(directory.path(), &["sh", "-c", "echo x; exit 3"]);
    let (first, second) = (config(), config());
    std::thread::scope(|scope| {
        [scope.spawn(|| cycle(&first)), scope.spawn(|| cycle(&second))].map(|t| t.join().unwrap())
    });
    let threads = 6;
    let hold: Vec<Launcher> = (0..threads).map(|_| launcher.clone()).collect();
    std::thread::scope(|scope| {
        for _ in &hold {
            scope.spawn(|| (0..5).for_each(|_| cycle(&config())));
        }
    });
    // Idle connections stay: at most one a thread. So do four shells, with four descriptors each, and the slots in which
    // shells get theirs.
    let (connections, slots) = (threads + 2, 24 + 1);
    wait_for(|| count() <= 12 + connections + 4 * 4 + slots);
    assert_eq!(launcher.list().unwrap(), []);
    let config = config();
    let id = config.id.clone();
    let wins = std::thread::scope(|scope| {
        let starts: Vec<_> = (0..16).map(|_| scope.spawn(|| launcher.start(&config).is_ok())).collect();
        starts.into_iter().map(|t| t.join().unwrap()).filter(|won| *won).count()
    });
    assert_eq!(wins, 1, "one id starts once");
    launcher.wait(&id).unwrap();
    launcher.shutdown().unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(directory.path().to_str().unwrap()), "{mounts}");
    assert!(!sweep(&socket).unwrap().contains(&id));
}

#[test]
fn shells_wait_unseen_become_sandboxes_and_die_with_their_launcher() {
    let Some(directory) = ready() else { return };
    let socket = directory.path().join("launcher.sock");
    let launcher = Launcher::connect_or_start(Path::new(LAUNCHER), &socket).unwrap();
    let pid = launcher_pid(&socket);
    let run = || {
        let config = support::config(directory.path(), &["sh", "-c", "hostname; exit 3"]);
        launcher.start(&config).unwrap();
        assert_eq!(launcher.wait(&config.id).unwrap().status, ExitStatus::Code(3));
        assert_eq!(support::log_text(&config), config.id, "it is what was asked for, whoever began it");
        launcher.remove(&config.id).unwrap();
    };
    assert_eq!(shells_of(pid).len(), 0, "nothing is made before it is known what is wanted");
    run();
    wait_for(|| shells_of(pid).len() == 4);
    let before = shells_of(pid);
    assert_eq!(launcher.list().unwrap(), [], "a shell is no sandbox");
    run();
    wait_for(|| shells_of(pid).len() == 4);
    let after = shells_of(pid);
    assert_eq!(before.iter().filter(|shell| !after.contains(shell)).count(), 1, "{before:?} {after:?}");
    // One that dies is in nobody's way.
    rustix::process::kill_process(rustix::process::Pid::from_raw(after[0]).unwrap(), rustix::process::Signal::KILL)
        .unwrap();
    (0..5).for_each(|_| run());
    wait_for(|| shells_of(pid).len() == 4);
    let last = [shells_of(pid), vec![zygote_of(pid)]].concat();
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
    wait_for(|| last.iter().all(|process| !Path::new(&format!("/proc/{process}/ns")).exists()));
    // Another test's sweep may have been faster.
    sweep(&socket).unwrap();
    let left = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let hierarchies = left.lines().filter(|line| line.contains(" - cgroup")).filter_map(|line| line.split(' ').nth(4));
    let launchers = hierarchies.flat_map(|point| fs::read_dir(point).into_iter().flatten().flatten());
    let is_of_it = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().contains(&format!("-{pid}-"));
    assert_eq!(launchers.filter(is_of_it).map(|entry| entry.path()).collect::<Vec<_>>(), [] as [std::path::PathBuf; 0]);
}

#[test]
fn all_shells_of_a_kind_come_from_one_process_that_may_die() {
    let Some(bench) = bench() else { return };
    let socket = bench.directory.path().join("launcher.sock");
    let launcher = Launcher::connect_or_start(Path::new(LAUNCHER), &socket).unwrap();
    let pid = launcher_pid(&socket);
    let run = |config: &SandboxConfig| {
        launcher.start(config).unwrap();
        assert_eq!(launcher.wait(&config.id).unwrap().status, ExitStatus::Code(3));
    };
    let held = bench.config(&["sleep", "1000"]);
    let held_pid = launcher.start(&held).unwrap().pid;
    assert_eq!(parent_of(held_pid), pid, "whatever it comes from, it is the launcher's child");
    let zygote = zygote_of(pid);
    (0..6).for_each(|_| run(&bench.config(&["sh", "-c", "exit 3"])));
    assert_eq!(zygote_of(pid), zygote);
    // The standard streams and what it is told through: nothing of the launcher's, or of a sandbox's.
    let descriptors = || fs::read_dir(format!("/proc/{zygote}/fd")).unwrap().count();
    wait_for(|| descriptors() == 4);
    wait_for(|| shells_of(pid).len() == 4);
    kill(zygote);
    (0..6).for_each(|_| run(&bench.config(&["sh", "-c", "exit 3"])));
    let next = zygote_of(pid);
    assert_ne!(next, zygote);
    run(&with(&bench.config(&["sh", "-c", "exit 3"]), &[("/linux/maskedPaths", json!([]))]));
    let other = zygote_of(pid);
    assert_ne!(other, next, "shells of another kind come from another one");
    launcher.kill_all(&held.id).unwrap();
    launcher.wait(&held.id).unwrap();
    launcher.shutdown().unwrap();
    wait_for(|| !Path::new(&format!("/proc/{other}")).exists());
}

/// A program that is the launcher with `variables` in its environment.
fn launcher_with(directory: &Path, variables: &str) -> std::path::PathBuf {
    let program = directory.join("launcher");
    fs::write(&program, format!("#!/bin/sh\n{variables} exec {LAUNCHER} \"$@\"\n")).unwrap();
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    program
}

#[test]
fn a_shell_that_fails_while_it_waits_says_why() {
    let Some(bench) = bench() else { return };
    let program = launcher_with(bench.directory.path(), "CFC_FAIL_POINT=child.shell.made:1:error");
    let launcher = Launcher::private(&program).unwrap();
    for _ in 0..20 {
        let error = launcher.start(&bench.config(&["true"])).expect_err("the shell fails");
        assert!(error.to_string().contains("be a shell"), "{error}");
    }
    assert_eq!(launcher.list().unwrap(), []);
}

#[test]
fn what_is_expected_waits_and_becomes_the_next_sandbox_that_is_like_it() {
    let Some(bench) = bench() else { return };
    let first = bench.config(&["sleep", "1000"]);
    let first_pid = bench.launcher.start(&first).unwrap().pid;
    let launcher = parent_of(first_pid);
    assert!(shells_of(launcher).is_empty(), "a launcher of a moment keeps none by itself");
    let mut expected = bench.config(&["nonesuch"]);
    expected.root = cfc_sandbox::Root::Directory { path: "/no/such/root".into() };
    bench.launcher.expect(&expected).unwrap();
    bench.launcher.expect(&expected).unwrap();
    wait_for(|| shells_of(launcher).len() == 1);
    let shell = shells_of(launcher)[0];
    // One of another kind does not take it and does not end it.
    let like = bench.config(&["true"]);
    let user = json!([{"type": "mount"}, {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}]);
    let mut network = bench.config(&["true"]);
    network.network = cfc_sandbox::Network::Redirected { ipv6: false };
    for other in [
        with(&like, &[("/linux/maskedPaths", json!([]))]),
        with(&bench.config(&["true"]), &[("/linux/seccomp", json!(null))]),
        with(&bench.config(&["true"]), &[("/linux/namespaces", user)]),
        network,
    ] {
        assert_ne!(bench.launcher.start(&other).unwrap().pid, shell);
        assert_eq!(bench.launcher.wait(&other.id).unwrap().status, ExitStatus::Code(0));
        assert_eq!(shells_of(launcher), [shell]);
    }
    // It has seen nothing of any sandbox's files.
    let mounts = fs::read_to_string(format!("/proc/{shell}/mountinfo")).unwrap();
    assert!(!mounts.contains(&*bench.directory.path().to_string_lossy()) && !mounts.contains("overlay"), "{mounts}");
    let next = bench.config(&["sh", "-c", "echo became; sleep 1000"]);
    assert_eq!(bench.launcher.start(&next).unwrap().pid, shell);
    wait_for(|| log_text(&next) == "became");
    assert!(shells_of(launcher).is_empty());
    // One that died, as by want of memory, is not missed.
    bench.launcher.expect(&expected).unwrap();
    wait_for(|| shells_of(launcher).len() == 1);
    let shell = shells_of(launcher)[0];
    kill(shell);
    wait_for(|| fs::read_to_string(format!("/proc/{shell}/status")).unwrap().contains("\nState:\tZ"));
    let last = bench.config(&["sh", "-c", "exit 3"]);
    bench.launcher.start(&last).unwrap();
    assert_eq!(bench.launcher.wait(&last.id).unwrap().status, ExitStatus::Code(3));
    // There is one at most: of what is expected last.
    bench.launcher.expect(&expected).unwrap();
    wait_for(|| shells_of(launcher).len() == 1);
    let shell = shells_of(launcher)[0];
    bench.launcher.expect(&with(&expected, &[("/linux/seccomp", json!(null))])).unwrap();
    // By one look: between two the old one may go before the new one comes.
    wait_for(|| matches!(shells_of(launcher)[..], [other] if other != shell));
    // Nothing waits longer than the launcher.
    let shell = shells_of(launcher)[0];
    let cgroups = cgroups_of(shell);
    assert!(!cgroups.is_empty() && cgroups.iter().all(|cgroup| cgroup.exists()), "{cgroups:?}");
    bench.launcher.shutdown().unwrap();
    assert!(!Path::new(&format!("/proc/{shell}")).exists());
    assert!(!cgroups.iter().any(|cgroup| cgroup.exists()), "{cgroups:?}");
}

/// The cgroups of its launcher's that process `pid` is in.
fn cgroups_of(pid: i32) -> Vec<std::path::PathBuf> {
    let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let names: Vec<_> =
        own.lines().filter_map(|line| line.splitn(3, ':').nth(2)).filter(|it| it.contains("cfc-")).collect();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = mounts.lines().filter(|line| line.contains(" - cgroup")).filter_map(|line| line.split(' ').nth(4));
    let all =
        points.flat_map(|point| names.iter().map(move |name| Path::new(point).join(name.trim_start_matches('/'))));
    all.filter(|path| path.exists()).collect()
}

fn parent_of(pid: i32) -> i32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    support::field(&status, "PPid").parse().unwrap()
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// The processes that wait, children of the launcher `pid`.
fn shells_of(pid: i32) -> Vec<i32> {
    children_called("cfc-shell", pid)
}

/// The process that the shells of the launcher `pid` come from. A shell that was just made has its name for a moment.
fn zygote_of(pid: i32) -> i32 {
    wait_for(|| children_called("cfc-zygote", pid).len() == 1);
    children_called("cfc-zygote", pid)[0]
}

/// The children of `pid` that have this name, those included that have ended and that it has not looked at since.
fn children_called(name: &str, pid: i32) -> Vec<i32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|child| child.parse().ok());
    let is_it = |child: &i32| fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|comm| comm.trim() == name);
    children.filter(is_it).collect()
}

fn launcher_pid(socket: &Path) -> i32 {
    let stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    rustix::net::sockopt::socket_peercred(&stream).unwrap().pid.as_raw_nonzero().get()
}

#[test]
fn usage_is_told_while_it_runs_and_after() {
    let Some(bench) = bench() else { return };
    let config =
        bench.config(&["sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; sleep 1000 & sleep 1000"]);
    let config = with(&config, &[("/linux/resources", json!({"memory": {"limit": 64 << 20}}))]);
    bench.launcher.start(&config).expect("starts");
    let started = std::time::Instant::now();
    let usage = loop {
        let usage = bench.launcher.usage(&config.id).expect("measures");
        if usage.pids >= 2 {
            break usage;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "{usage:?}");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(usage.cpu_usec > 1_000 && usage.cpu_usec < 60_000_000, "{usage:?}");
    assert!(usage.memory_bytes > 0 && usage.memory_bytes < 1 << 30, "{usage:?}");
    assert!(usage.memory_peak_bytes >= usage.memory_anonymous_bytes && usage.memory_anonymous_bytes > 0, "{usage:?}");
    bench.launcher.kill_all(&config.id).expect("kills");
    let exit = bench.launcher.wait(&config.id).expect("ends");
    assert!(exit.usage.cpu_usec >= usage.cpu_usec, "{exit:?}");
    assert_eq!(bench.launcher.usage(&config.id).expect("remembers"), exit.usage);
    bench.launcher.remove(&config.id).expect("is removed");
    assert!(bench.launcher.usage(&config.id).is_err());
}
