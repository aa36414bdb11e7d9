//! Further processes of sandboxes that an OCI runtime runs, with each runtime that is installed. Needs root.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use cfc_sandbox::{ErrorKind, ExecConfig, ExitStatus, OciRuntime, WindowSize};
use serde_json::json;
use support::exec::{command, output, read_until, refused, run, script, start, until};
use support::oci::{as_instance, config, end, running, with_each};
use support::{Bench, field, with};

const SIZE: WindowSize = WindowSize { rows: 30, columns: 100 };

/// gVisor's commands are no processes of this machine: they end with a code, as in a shell.
fn is_virtual(runtime: &OciRuntime) -> bool {
    runtime.name() == "runsc"
}

#[test]
fn exit_codes_signals_and_streams_are_exact() {
    with_each(|bench, runtime| {
        let (name, config) = (runtime.name(), running(bench, runtime));
        let id = &config.id;
        for code in [0, 1, 42, 255] {
            let script = script(&format!("echo out; echo err >&2; exit {code}"));
            let expected = (ExitStatus::Code(code), "out\n".to_owned(), "err\n".to_owned());
            assert_eq!(run(bench, id, &script), expected, "{name}");
        }
        for signal in [libc::SIGTERM, libc::SIGKILL, libc::SIGUSR1] {
            let piped = start(bench, id, &command(&["sleep", "100"])).unwrap();
            piped.exec.signal(signal).unwrap();
            let exit = piped.exec.wait().unwrap();
            assert_eq!(exit.shell_code(), 128 + signal, "{name}: {exit:?}");
            assert!(is_virtual(runtime) || exit == ExitStatus::Signal(signal), "{name}: {exit:?}");
            piped.exec.signal(signal).expect("a signal to what has ended is fine");
        }
        let handled = script("trap 'echo got it; exit 7' TERM; echo ready; while true; do sleep 0.05; done");
        let mut piped = start(bench, id, &handled).unwrap();
        piped.stdout.read_exact(&mut [0; 6]).unwrap();
        piped.exec.signal(libc::SIGTERM).unwrap();
        assert_eq!(piped.exec.wait().unwrap(), ExitStatus::Code(7), "{name}");
        let mut said = String::new();
        piped.stdout.read_to_string(&mut said).unwrap();
        assert_eq!(said, "got it\n", "{name}");
        let mut piped = start(bench, id, &script("echo $$; read line; echo $line")).unwrap();
        piped.stdin.write_all(b"typed\n").unwrap();
        let mut text = String::new();
        piped.stdout.read_to_string(&mut text).unwrap();
        assert_eq!(text, format!("{}\ntyped\n", piped.exec.pid()), "{name}: the process id is the one inside");
        assert_eq!(piped.exec.wait().unwrap(), ExitStatus::Code(0), "{name}");
        end(bench, &config);
    });
}

#[test]
fn nothing_is_lost_of_what_commands_say_that_end_at_once() {
    with_each(|bench, runtime| {
        let (name, config) = (runtime.name(), running(bench, runtime));
        for number in 0..8 {
            let said = run(bench, &config.id, &command(&["echo", &number.to_string()]));
            assert_eq!(said, (ExitStatus::Code(0), format!("{number}\n"), String::new()), "{name}");
        }
        let flood = command(&["head", "-c", "5000000", "/dev/zero"]);
        let said = run(bench, &config.id, &flood);
        assert_eq!((said.0, said.1.len()), (ExitStatus::Code(0), 5_000_000), "{name}");
        end(bench, &config);
    });
}

#[test]
fn a_command_that_cannot_run_says_why() {
    with_each(|bench, runtime| {
        let (name, config) = (runtime.name(), running(bench, runtime));
        let id = &config.id;
        for word in ["no-such-command", "/no/such/file"] {
            let error = refused(bench, id, &command(&[word]));
            assert_eq!(error.exit_code(), Some(127), "{name}: {word}: {error}");
        }
        // Only runc knows of this one before it has given the command away.
        match start(bench, id, &command(&["/etc/no-interpreter"])) {
            Err(error) => assert_eq!(error.exit_code(), Some(127), "{name}: {error}"),
            Ok(piped) => assert_ne!(piped.exec.wait().unwrap(), ExitStatus::Code(0), "{name}"),
        }
        let error = refused(bench, id, &command(&["/etc/not-executable"]));
        assert!(error.exit_code() == Some(126) || is_virtual(runtime), "{name}: {error}");
        for (config, text) in [
            (ExecConfig { cwd: Some("/no/such/place".into()), ..command(&["true"]) }, "no such file"),
            (ExecConfig { user: Some("nobody-here".into()), ..command(&["true"]) }, "no user `nobody-here`"),
        ] {
            // gVisor starts where there is no directory, and says so to nobody.
            if config.cwd.is_some() && is_virtual(runtime) {
                continue;
            }
            let error = refused(bench, id, &config);
            assert!(error.to_string().contains(text), "{name}: {config:?}: {error}");
        }
        assert_eq!(output(bench, id, &command(&["echo", "well"])), "well\n", "{name}: and the next one works");
        assert!(fs::read_dir("/run").unwrap().flatten().all(|e| !e.file_name().to_string_lossy().starts_with("exec-")));
        end(bench, &config);
        assert_eq!(refused(bench, id, &command(&["true"])).kind(), &ErrorKind::NotFound, "{name}");
    });
}

#[test]
fn environment_user_and_directory_are_as_asked() {
    with_each(|bench, runtime| {
        let name = runtime.name();
        let config = with(
            &config(bench, runtime, "sleep 1000"),
            &[("/process/env", json!(["PATH=/bin", "A=1", "B=2", "HOME=/root"])), ("/process/cwd", json!("/home"))],
        );
        bench.launcher.start(&config).unwrap();
        let id = &config.id;
        let show = "echo $A $B $C $HOME; id -u; id -g; id -G; pwd";
        assert_eq!(output(bench, id, &script(show)), "1 2 /root\n0\n0\n0\n/home\n", "{name}");
        let asked = ExecConfig {
            environment: vec!["B=x=y".into(), "C=one\ntwo".into(), "B=3".into()],
            user: Some("app".into()),
            cwd: Some("/tmp".into()),
            ..script(show)
        };
        assert_eq!(output(bench, id, &asked), "1 3 one two /home\n1000\n1000\n1000\n/tmp\n", "{name}");
        let user = |user: &str| ExecConfig { user: Some(user.into()), ..script("id -u; id -g; echo $HOME") };
        for (asked, expected) in
            [("1000:7", "1000\n7\n/home\n"), ("4242", "4242\n0\n/\n"), ("root", "0\n0\n/root\n"), ("", "0\n0\n/root\n")]
        {
            assert_eq!(output(bench, id, &user(asked)), expected, "{name}: {asked}");
        }
        for outside in ["70000:0", "4294967295", "-1"] {
            // gVisor's container has no user namespace: it has all ids.
            if outside != "70000:0" || !is_virtual(runtime) {
                refused(bench, id, &user(outside));
            }
        }
        end(bench, &config);
    });
}

/// What a command may, beside what the container's own process may.
#[test]
fn a_command_has_the_containers_own_rights_and_limits() {
    with_each(|bench, runtime| {
        let name = runtime.name();
        let probe = "grep -e ^Cap -e ^NoNewPrivs -e ^Seccomp: -e ^Uid -e ^Gid -e ^Groups -e ^Umask /proc/self/status; \
                     cat /proc/self/limits 2>/dev/null; cat /proc/self/oom_score_adj; for n in user mnt pid net ipc uts cgroup; do readlink /proc/self/ns/$n; done; hostname; \
                     mount -t tmpfs x /tmp 2>&1; ls /sys/class/net";
        let limits = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]);
        let changes = [("/process/rlimits", limits), ("/process/oomScoreAdj", json!(300))];
        let config = as_instance(&with(&config(bench, runtime, &format!("{probe}; exec sleep 1000")), &changes));
        bench.launcher.start(&config).unwrap();
        let own = || support::log_text(&config);
        until("the container's own", || own().contains("lo"));
        let actual = output(bench, &config.id, &script(probe));
        // A runc that is made with Go 1.19 raises its own soft limit of open files, and passes that on.
        let is_even = |line: &&str| !(name == "runc" && line.starts_with("Max open files"));
        // gVisor gives each link a number of its own.
        let shown = |line: &str| {
            if is_virtual(runtime) {
                line.split('[').next().map(str::to_owned)
            } else {
                Some(line.trim_end().to_owned())
            }
        };
        let lines = |text: &str| text.lines().filter(is_even).filter_map(shown).collect::<Vec<_>>();
        assert_eq!(lines(&actual), lines(&own()), "{name}");
        let user = ExecConfig { user: Some("app".into()), ..script("cat /proc/self/status; echo x > /dev/stdout") };
        let text = output(bench, &config.id, &user);
        assert_eq!(field(&text, "CapEff"), "0000000000000000", "{name}");
        assert!(text.ends_with("x\n"), "{name}: any user can open its own output");
        end(bench, &config);
    });
}

#[test]
fn a_command_uses_what_its_container_may_use() {
    with_each(|bench, runtime| {
        let name = runtime.name();
        let limits = json!({"memory": {"limit": 150 << 20}, "pids": {"limit": 400}});
        let config = with(&as_instance(&config(bench, runtime, "exec sleep 1000")), &[("/linux/resources", limits)]);
        bench.launcher.start(&config).unwrap();
        let hungry = script("head -c 400m /dev/zero | { sleep 0; dd bs=400M count=1 iflag=fullblock of=/dev/null; }");
        let (exit, _, said) = run(bench, &config.id, &hungry);
        assert_ne!(exit, ExitStatus::Code(0), "{name}: {said}");
        assert!(!said.contains("400.0M"), "{name}: {said}");
        // gVisor's kernel is what runs out of memory, with all that it runs.
        bench.launcher.kill_all(&config.id).unwrap();
        let exit = bench.launcher.wait(&config.id).unwrap();
        assert!(exit.usage.oom_kills > 0, "{name}: {exit:?}");
        bench.launcher.remove(&config.id).unwrap();
    });
}

#[test]
fn the_machines_null_device_stays_roots() {
    use std::os::unix::fs::MetadataExt;
    let state = || fs::metadata("/dev/null").map(|m| (m.uid(), m.gid(), m.ctime(), m.ctime_nsec())).unwrap();
    let before = state();
    with_each(|bench, runtime| {
        let config = running(bench, runtime);
        let null = || fs::File::options().read(true).write(true).open("/dev/null").unwrap().into();
        let app = ExecConfig { user: Some("app".into()), ..command(&["cat"]) };
        let exec = bench.launcher.exec(&config.id, &app, [null(), null(), null()]).unwrap();
        assert_eq!(exec.wait().unwrap(), ExitStatus::Code(0));
        assert_eq!(state(), before, "{} gave away the machine's /dev/null", runtime.name());
        end(bench, &config);
    });
}

#[test]
fn a_terminal_has_size_job_control_and_end() {
    with_each(|bench, runtime| {
        let (name, config) = (runtime.name(), running(bench, runtime));
        let id = &config.id;
        let shell = ExecConfig { terminal: Some(SIZE), ..command(&["sh", "-i"]) };
        let mut exec = bench.launcher.exec_in_terminal(id, &shell).unwrap();
        let terminal = exec.take_terminal().unwrap();
        let say = |text: &str| assert_eq!(terminal.write(text.as_bytes()).unwrap(), text.len());
        say("stty size; test -t 0 && test -t 1 && test -t 2 && echo t=$TERM\n");
        let shown = read_until(&terminal, "\nt=xterm\r\n");
        assert!(shown.contains("30 100"), "{name}: {shown:?}");
        terminal.resize(WindowSize { rows: 50, columns: 132 }).unwrap();
        say("stty size\n");
        read_until(&terminal, "50 132");
        say("sh -c 'echo asleep $((1 + 1)); sleep 1000'; echo after\n");
        read_until(&terminal, "asleep 2");
        say("\x03");
        say("echo still $((40 + 2))\n");
        read_until(&terminal, "still 42");
        say("exit 7\n");
        assert_eq!(exec.wait().unwrap(), ExitStatus::Code(7), "{name}");

        let watcher = script("trap 'stty size; exit 3' WINCH; echo ready; while true; do sleep 0.1; done");
        let watcher = ExecConfig { terminal: Some(SIZE), ..watcher };
        let mut exec = bench.launcher.exec_in_terminal(id, &watcher).unwrap();
        let terminal = exec.take_terminal().unwrap();
        read_until(&terminal, "ready");
        terminal.resize(WindowSize { rows: 7, columns: 8 }).unwrap();
        read_until(&terminal, "7 8");
        assert_eq!(exec.wait().unwrap(), ExitStatus::Code(3), "{name}: it was told of the new size");

        for number in 0..5 {
            let quick = ExecConfig { terminal: Some(SIZE), ..command(&["echo", "said", &number.to_string()]) };
            let mut exec = bench.launcher.exec_in_terminal(id, &quick).unwrap();
            let terminal = exec.take_terminal().unwrap();
            read_until(&terminal, &format!("said {number}\r\n"));
            assert_eq!(exec.wait().unwrap(), ExitStatus::Code(0), "{name}");
        }
        let missing = ExecConfig { terminal: Some(SIZE), ..command(&["/no/such/file"]) };
        let error = bench.launcher.exec_in_terminal(id, &missing).expect_err("refused");
        assert_eq!(error.exit_code(), Some(127), "{name}: {error}");
        end(bench, &config);
    });
}

#[test]
fn a_dropped_command_ends_with_its_group_and_a_released_one_goes_on() {
    with_each(|bench, runtime| {
        let (name, config) = (runtime.name(), running(bench, runtime));
        let id = &config.id;
        let count = || output(bench, id, &command(&["ps", "-o", "args"])).matches("sleep 777").count();
        let waits = "sleep 777 & sleep 777; true";
        let piped = start(bench, id, &script(waits)).unwrap();
        until("both sleep", || count() >= 2);
        drop(piped);
        until(&format!("{name}: they end"), || count() == 0);
        let mut exec =
            bench.launcher.exec_in_terminal(id, &ExecConfig { terminal: Some(SIZE), ..script(waits) }).unwrap();
        let terminal = exec.take_terminal();
        until("both sleep", || count() >= 2);
        drop((terminal, exec));
        until(&format!("{name}: they end"), || count() == 0);
        let piped = start(bench, id, &script("sleep 777 & exec sleep 777")).unwrap();
        until("they sleep", || count() >= 2);
        piped.exec.signal_group(libc::SIGKILL).unwrap();
        assert_eq!(piped.exec.wait().unwrap().shell_code(), 137, "{name}");
        until(&format!("{name}: its group has ended"), || count() == 0);
        let null = || fs::File::options().read(true).write(true).open("/dev/null").unwrap().into();
        let released = bench.launcher.exec(id, &command(&["sleep", "777"]), [null(), null(), null()]).unwrap();
        released.release().unwrap();
        drop(released);
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(count(), 1, "{name}: a released command outlives its holder");
        end(bench, &config);
    });
}

#[test]
fn commands_end_with_their_container_and_leave_nothing() {
    with_each(|bench, runtime| {
        let (name, config) = (runtime.name(), running(bench, runtime));
        let held: Vec<_> = (0..5).map(|_| start(bench, &config.id, &command(&["sleep", "1000"])).unwrap()).collect();
        let launcher = launcher_pid(bench, &config.id);
        bench.launcher.kill_all(&config.id).unwrap();
        bench.launcher.wait(&config.id).unwrap();
        for piped in &held {
            assert_eq!(piped.exec.wait().unwrap(), ExitStatus::Signal(libc::SIGKILL), "{name}");
        }
        assert_eq!(refused(bench, &config.id, &command(&["true"])).kind(), &ErrorKind::NotRunning, "{name}");
        bench.launcher.remove(&config.id).unwrap();
        let children = fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children")).unwrap();
        assert_eq!(children, "", "{name}: no process is left");
    });
}

#[test]
fn many_commands_leak_nothing() {
    with_each(|bench, runtime| {
        let (name, config) = (runtime.name(), running(bench, runtime));
        let launcher = launcher_pid(bench, &config.id);
        let descriptors = || fs::read_dir(format!("/proc/{launcher}/fd")).unwrap().count();
        let children = || fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children")).unwrap();
        run(bench, &config.id, &command(&["true"]));
        let before = (descriptors(), children());
        let held: Vec<_> = (0..6).map(|_| start(bench, &config.id, &script("read x; exit 3")).unwrap()).collect();
        for (number, piped) in held.into_iter().enumerate() {
            match number % 3 {
                0 => drop(piped),
                1 => {
                    drop(piped.stdin);
                    assert_eq!(piped.exec.wait().unwrap(), ExitStatus::Code(3), "{name}");
                }
                _ => {
                    piped.exec.signal(libc::SIGKILL).unwrap();
                    assert_eq!(piped.exec.wait().unwrap().shell_code(), 137, "{name}");
                }
            }
        }
        // The connection of the first may not have been closed yet when it was looked.
        until(&format!("{name}: all is as before"), || descriptors() <= before.0 && before.1 == children());
        let first = config_pid(bench, &config.id);
        let scratch = fs::read_dir(format!("/proc/{first}/root/run")).unwrap().flatten();
        let left: Vec<_> =
            scratch.map(|e| e.file_name()).filter(|n| n.to_string_lossy().starts_with("exec-")).collect();
        assert!(left.is_empty() && Path::new(&format!("/proc/{first}/root/run/state")).exists(), "{name}: {left:?}");
        end(bench, &config);
    });
}

fn config_pid(bench: &Bench, id: &str) -> i32 {
    bench.launcher.list().unwrap().into_iter().find(|status| status.id == id).unwrap().started.pid
}

fn launcher_pid(bench: &Bench, id: &str) -> i32 {
    let status = fs::read_to_string(format!("/proc/{}/status", config_pid(bench, id))).unwrap();
    field(&status, "PPid").parse().unwrap()
}
