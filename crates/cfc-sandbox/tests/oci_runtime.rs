//! Sandboxes that an OCI runtime runs: the whole life of one, with each runtime that is installed. Needs root.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use cfc_sandbox::{DiskKind, ErrorKind, ExitStatus, Network, OciRuntime, Root, SandboxConfig, State, Stdio};
use serde_json::json;
use support::oci::{as_instance, config, with_each};
use support::{bench, field, log_text, own_directory, with};

fn wait_for(what: &str, is_it: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_it() {
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn output_and_exit_code_are_those_of_the_command() {
    with_each(|bench, runtime| {
        let name = runtime.name();
        let script = "echo out; echo err >&2; hostname; pwd; id -u; echo \"$MARK\"; exit 42";
        let config = with(
            &config(bench, runtime, script),
            &[
                ("/process/env", json!(["PATH=/bin", "MARK=a b\nc"])),
                ("/process/cwd", json!("/home")),
                ("/hostname", json!("the-host")),
            ],
        );
        let (exit, text) = bench.run_config(&config);
        assert_eq!(exit.status, ExitStatus::Code(42), "{name}: {text}");
        let mut lines: Vec<_> = text.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["/home", "0", "a b", "c", "err", "out", "the-host"], "{name}");
    });
}

#[test]
fn a_name_may_be_as_long_as_any_instances() {
    with_each(|bench, runtime| {
        let id = format!("workerd-{}-{}", "a-worker".repeat(8), "0123456789abcdef".repeat(4));
        let config = SandboxConfig { id, ..config(bench, runtime, "exit 5") };
        bench.launcher.start(&config).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(bench.launcher.wait(&config.id).unwrap().status, ExitStatus::Code(5), "{}", runtime.name());
        bench.launcher.remove(&config.id).unwrap();
    });
}

#[test]
fn the_machines_null_device_stays_roots() {
    use std::os::unix::fs::MetadataExt;
    let state = || fs::metadata("/dev/null").map(|m| (m.uid(), m.gid(), m.ctime(), m.ctime_nsec())).unwrap();
    let before = state();
    with_each(|bench, runtime| {
        let user = json!({"uid": 1000, "gid": 1000});
        let config = with(&config(bench, runtime, "id -u; cat"), &[("/process/user", user)]);
        let (exit, text) = bench.run_config(&config);
        assert_eq!((exit.status, text.trim()), (ExitStatus::Code(0), "1000"), "{}", runtime.name());
        assert_eq!(state(), before, "{} gave away the machine's /dev/null", runtime.name());
    });
}

#[test]
fn a_command_that_cannot_run_says_why_and_leaves_nothing() {
    with_each(|bench, runtime| {
        let name = runtime.name();
        for command in ["no-such-command", "/no/such/file", "/etc/not-executable"] {
            let config = SandboxConfig { runtime: Some(runtime.clone()), ..bench.config(&[command]) };
            match bench.launcher.start(&config) {
                Err(error) => {
                    let is_named = error.exit_code().is_some() || error.to_string().contains("not-executable");
                    assert!(is_named && error.to_string().contains(command), "{name}: {error}");
                }
                Ok(_) => panic!("{name}: {command} started"),
            }
        }
        assert_eq!(bench.launcher.list().unwrap(), []);
    });
}

#[test]
fn a_runtime_that_fails_is_quoted() {
    let Some(bench) = bench() else { return };
    let script = bench.directory.path().join("broken");
    fs::write(&script, "#!/bin/sh\necho '{\"level\":\"error\",\"msg\":\"out of order\"}' > \"$4\"\nexit 3\n").unwrap();
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let runtime = OciRuntime::find("mine", &script, &[], None).unwrap();
    let error = bench.launcher.start(&config(&bench, &runtime, "true")).expect_err("fails");
    assert!(error.to_string().ends_with("the runtime `mine` failed: out of order"), "{error}");
    fs::remove_file(&script).unwrap();
    let error = bench.launcher.start(&config(&bench, &runtime, "true")).expect_err("fails");
    assert!(error.to_string().contains("`mine`") && error.to_string().contains("broken"), "{error}");
    assert_eq!(bench.launcher.list().unwrap(), []);
}

#[test]
fn signals_end_it_as_they_end_an_instance_of_our_own() {
    with_each(|bench, runtime| {
        let name = runtime.name();
        let handled =
            config(bench, runtime, "trap 'echo got it; exit 7' TERM; echo ready; while true; do sleep 0.05; done");
        bench.launcher.start(&handled).unwrap();
        wait_for("the handler", || log_text(&handled).contains("ready"));
        bench.launcher.kill(&handled.id, libc::SIGTERM).unwrap();
        assert_eq!(bench.launcher.wait(&handled.id).unwrap().status, ExitStatus::Code(7), "{name}");
        assert!(log_text(&handled).contains("got it"), "{name}");

        let unhandled = as_instance(&config(bench, runtime, "echo ready; exec sleep 1000"));
        bench.launcher.start(&unhandled).unwrap();
        wait_for("the command", || log_text(&unhandled).contains("ready"));
        bench.launcher.kill(&unhandled.id, libc::SIGTERM).unwrap();
        assert_eq!(bench.launcher.wait(&unhandled.id).unwrap().status.shell_code(), 143, "{name}");

        let ignored = as_instance(&config(bench, runtime, "trap '' TERM; echo ready; while true; do sleep 1; done"));
        bench.launcher.start(&ignored).unwrap();
        wait_for("the command", || log_text(&ignored).contains("ready"));
        bench.launcher.kill(&ignored.id, libc::SIGTERM).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        let state = bench.launcher.list().unwrap().into_iter().find(|s| s.id == ignored.id).unwrap().state;
        assert_eq!(state, State::Running, "{name}: it ignores SIGTERM");
        bench.launcher.kill_all(&ignored.id).unwrap();
        assert_eq!(bench.launcher.wait(&ignored.id).unwrap().status.shell_code(), 137, "{name}");
        for config in [handled, unhandled, ignored] {
            bench.launcher.remove(&config.id).unwrap();
        }
    });
}

/// As in a sandbox of our own: process 1 is ours, reaps orphans, is not to be looked into, and is on no disk.
#[test]
fn process_1_is_our_own_and_reaps_orphans() {
    with_each(|bench, runtime| {
        let name = runtime.name();
        let script = "head -c 8 /proc/1/cmdline | grep -c cfc; cat /proc/1/comm; echo $$ $PPID; \
                      for i in 1 2 3; do sh -c 'sleep 0.1 & :'; done; sleep 1; \
                      grep -l '^State:.Z' /proc/[0-9]*/status | wc -l; cat /dev/.cfc-init; echo x > /dev/.cfc-init; \
                      ls -a / /dev | grep cfc; exit 3";
        let config = as_instance(&config(bench, runtime, script));
        let (exit, text) = bench.run_config(&config);
        assert_eq!(exit.status, ExitStatus::Code(3), "{name}: {text}");
        assert!(text.contains("cfc-init") && text.contains("\n0\n"), "{name}: {text}");
        assert!(text.contains("sh: can't create /dev/.cfc-init"), "{name}: it cannot be changed: {text}");
        // gVisor leaves an empty file where it mounts one.
        let below = fs::read(support::own_directory(&config).join("upper/dev/.cfc-init"));
        assert!(below.is_err() || name == "runsc" && below.unwrap().is_empty(), "{name}: it is no part of the disk");
        for (command, code) in [("no-such-command", 127), ("/no/such/file", 127), ("/etc/not-executable", 126)] {
            let config = SandboxConfig { runtime: Some(runtime.clone()), ..bench.config(&[command]) };
            let error = bench.launcher.start(&as_instance(&config)).expect_err(command);
            assert_eq!(error.exit_code(), Some(code), "{name}: {error}");
        }
        assert_eq!(bench.launcher.list().unwrap(), []);
    });
}

#[test]
fn nothing_is_left_of_what_was_killed() {
    with_each(|bench, runtime| {
        let name = runtime.name();
        let mark = format!("98765.{}", runtime.name().len());
        let config = config(bench, runtime, &format!("sleep {mark} & (sleep {mark} & exec sleep {mark}); wait"));
        let started = bench.launcher.start(&config).unwrap();
        bench.launcher.kill_all(&config.id).unwrap();
        bench.launcher.wait(&config.id).unwrap();
        bench.launcher.remove(&config.id).unwrap();
        assert!(!Path::new(&format!("/proc/{}", started.pid)).exists());
        let has_word = |line: &Vec<u8>| {
            let text = String::from_utf8_lossy(line).into_owned();
            text.contains(&mark) || text.contains(&config.id)
        };
        let left: Vec<_> = command_lines().into_iter().filter(has_word).map(String::from_utf8).collect();
        assert!(left.is_empty(), "{name}: {left:?}");
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let found = find_directory(&hierarchy.path(), &config.id, 3);
            assert_eq!(found, None, "{name}");
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&config.id) && !mounts.contains("/run/bundle"), "{name}");
        assert!(!Path::new("/run/bundle").exists() && !Path::new("/run/state").exists());
    });
}

fn command_lines() -> Vec<Vec<u8>> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok()).collect()
}

fn find_directory(directory: &Path, name: &str, depth: u32) -> Option<std::path::PathBuf> {
    let entries = fs::read_dir(directory).ok()?.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    entries.into_iter().find_map(|entry| match entry.file_name() == name {
        true => Some(entry.path()),
        false => depth.checked_sub(1).and_then(|depth| find_directory(&entry.path(), name, depth)),
    })
}

#[test]
fn it_is_reached_from_inside_its_network_and_its_traffic_is_redirected() {
    with_each(|bench, runtime| {
        let name = runtime.name();
        let Some(probe) = support::probe() else { return };
        fs::copy(probe, bench.directory.path().join("layer/bin/probe")).unwrap();
        let script = "probe serve 8080 & probe connect 192.0.2.7 8081; wait";
        let mut config = config(bench, runtime, script);
        config.network = Network::Redirected { ipv6: false };
        bench.launcher.start(&config).unwrap();
        let network = bench.launcher.network(&config.id).unwrap();
        let connect = || {
            let socket = network.tcp_socket(false).unwrap();
            rustix::io::ioctl_fionbio(&socket, false).unwrap();
            rustix::net::connect(&socket, &"127.0.0.1:8080".parse::<SocketAddr>().unwrap()).ok().map(|()| socket)
        };
        wait_for("the server", || connect().is_some());
        let socket = connect().unwrap();
        let mut stream = TcpStream::from(socket);
        stream.write_all(b"x").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with("served\n"), "{name}: {answer}");

        let sockets = bench.launcher.outbound(&config.id).unwrap();
        let listener = std::net::TcpListener::from(sockets.tcp);
        wait_for("the connection", || {
            let Ok((stream, _)) = listener.accept() else { return false };
            assert_eq!(
                cfc_sandbox::original_destination(&stream).unwrap(),
                "192.0.2.7:8081".parse().unwrap(),
                "{name}"
            );
            true
        });
        bench.launcher.kill_all(&config.id).unwrap();
        bench.launcher.wait(&config.id).unwrap();
        bench.launcher.remove(&config.id).unwrap();
    });
}

#[test]
fn its_memory_limit_holds_and_an_oom_kill_is_told() {
    with_each(|bench, runtime| {
        let name = runtime.name();
        let script =
            "head -c 300m /dev/zero | { sleep 0; dd bs=300M count=1 iflag=fullblock of=/dev/null; }; echo done";
        let config = config(bench, runtime, script);
        let config =
            with(&config, &[("/linux/resources", json!({"memory": {"limit": 100 << 20}, "pids": {"limit": 400}}))]);
        let (exit, text) = bench.run_config(&config);
        assert!(exit.usage.oom_kills > 0, "{name}: {exit:?} {text}");
        assert!(!text.contains("300.0M"), "{name}: {text}");
    });
}

#[test]
fn the_files_of_its_disk_have_the_images_own_ids() {
    with_each(|bench, runtime| {
        let name = runtime.name();
        let hosts = bench.directory.path().join("hosts");
        // Over an empty one gVisor lays a /tmp of its own.
        fs::write(bench.directory.path().join("layer/tmp/kept"), "").unwrap();
        fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
        let config = config(
            bench,
            runtime,
            "cat /etc/hosts; echo made > /tmp/made; echo x > /etc/hosts; echo again > /dev/stdout",
        );
        let mut mounts = serde_json::to_value(config.spec.mounts()).unwrap();
        let mount = json!({"destination": "/etc/hosts", "type": "bind", "source": hosts, "options": ["bind", "ro"]});
        mounts.as_array_mut().unwrap().push(mount);
        let user = json!({"uid": 1000, "gid": 1000});
        let (exit, text) = bench.run_config(&with(&config, &[("/mounts", mounts), ("/process/user", user)]));
        assert_eq!(exit.status, ExitStatus::Code(0), "{name}: {text}");
        assert!(text.contains("127.0.0.1 localhost") && text.contains("again"), "{name}: {text}");
        let made = own_directory(&config).join("upper/tmp/made");
        let stat = std::os::unix::fs::MetadataExt::uid(&fs::metadata(&made).unwrap_or_else(|e| panic!("{name}: {e}")));
        assert_eq!(stat, 1000, "{name}");
        assert_eq!(fs::read_to_string(&hosts).unwrap(), "127.0.0.1 localhost\n", "{name}: it is read-only");
    });
}

#[test]
fn a_disk_of_its_own_is_full_for_it_alone() {
    with_each(|bench, runtime| {
        let name = runtime.name();
        let disk = DiskKind { bytes: 30_000_000, directory: bench.directory.path().to_owned() };
        if let Err(error) = bench.launcher.prepare_disk(&disk) {
            return eprintln!("skipped: {error}");
        }
        let config = config(bench, runtime, "dd if=/dev/zero of=/home/big bs=64k; echo status=$?");
        let Root::Overlay { lowers, .. } = config.root.clone() else { panic!("an overlay") };
        bench.launcher.start(&SandboxConfig { root: Root::Disk { lowers, disk }, ..config.clone() }).unwrap();
        bench.launcher.wait(&config.id).unwrap();
        bench.launcher.remove(&config.id).unwrap();
        let text = log_text(&config);
        assert!(text.contains("No space left") && text.contains("status=1"), "{name}: {text}");
    });
}

#[test]
fn the_host_is_out_of_reach() {
    with_each(|bench, runtime| {
        let name = runtime.name();
        let script = "cat /proc/self/status; ls /sys/class/net; ls /sys/fs/cgroup; cat /proc/mounts; ps; echo --; mount -t tmpfs x /tmp; unshare -U true; echo 1 > /proc/sys/kernel/panic; mkdir /sys/fs/cgroup/x; cat /dev/disk; ls /run";
        let disk = bench.directory.path().join("layer/dev");
        fs::create_dir_all(&disk).unwrap();
        let _ = std::process::Command::new("mknod")
            .arg(bench.directory.path().join("layer/home/disk"))
            .args(["b", "254", "0"])
            .status();
        let config = config(bench, runtime, &format!("{script}; cat /home/disk | head -c 1 | wc -c"));
        let (_, text) = bench.run_config(&config);
        // The two streams come in any order.
        let (facts, refused) = (&text, &text);
        assert!(
            refused.matches("denied").count()
                + refused.matches("not permitted").count()
                + refused.matches("Read-only").count()
                >= 3,
            "{name}: {text}"
        );
        assert_eq!(field(facts, "CapEff"), "00000000000405fb", "{name}");
        assert!(!text.contains("eth0"), "{name}: it sees its own network only: {text}");
        assert!(!text.ends_with('1'), "{name}: a device of the image is dead: {text}");
        let _ = fs::remove_file(bench.directory.path().join("layer/home/disk"));
    });
}

#[test]
fn several_run_side_by_side_and_end_with_the_launcher() {
    with_each(|bench, runtime| {
        let launcher = cfc_sandbox::Launcher::private(Path::new(support::LAUNCHER)).unwrap();
        let pids: Vec<_> =
            (0..3).map(|_| launcher.start(&config(bench, runtime, "echo here; sleep 1000")).unwrap().pid).collect();
        drop(launcher);
        for pid in pids {
            assert!(!Path::new(&format!("/proc/{pid}")).exists(), "{}", runtime.name());
        }
    });
}

#[test]
fn a_flood_is_cut_and_the_log_is_whole() {
    with_each(|bench, runtime| {
        let mut config = config(bench, runtime, "for i in 1 2 3 4 5 6 7 8 9; do echo line $i; done");
        let Stdio::Log { max_bytes, .. } = &mut config.stdio else { panic!("a log") };
        *max_bytes = 1 << 20;
        let (exit, text) = bench.run_config(&config);
        assert_eq!((exit.status, text.lines().count()), (ExitStatus::Code(0), 9), "{}", runtime.name());
    });
}

#[test]
fn it_outlives_whoever_started_it_and_is_found_again() {
    with_each(|bench, runtime| {
        let name = runtime.name();
        let socket = bench.directory.path().join(format!("{name}.socket"));
        let launcher = cfc_sandbox::Launcher::connect_or_start(Path::new(support::LAUNCHER), &socket).unwrap();
        let config = as_instance(&config(bench, runtime, "echo ready; exec sleep 1000"));
        let started = launcher.start(&config).unwrap();
        drop(launcher);
        let launcher = cfc_sandbox::Launcher::connect(&socket).unwrap();
        let known = launcher.list().unwrap().into_iter().find(|status| status.id == config.id).unwrap();
        assert_eq!((known.started, known.state), (started, State::Running), "{name}");
        assert!(launcher.network(&config.id).is_ok(), "{name}");
        wait_for("its output", || log_text(&config) == "ready");
        launcher.kill(&config.id, libc::SIGTERM).unwrap();
        assert_eq!(launcher.wait(&config.id).unwrap().status.shell_code(), 143, "{name}");
        launcher.remove(&config.id).unwrap();
        launcher.shutdown().unwrap();
    });
}

#[test]
fn what_only_our_own_can_do_is_refused_by_name() {
    let Some(bench) = bench() else { return };
    let Ok(runtime) = OciRuntime::find("runc", Path::new("runc"), &[], None) else { return };
    let config = with(&config(&bench, &runtime, "true"), &[("/hooks", json!({"prestart": []}))]);
    let error = bench.launcher.start(&config).expect_err("refused");
    assert!(matches!(error.kind(), ErrorKind::Invalid(_)) && error.to_string().contains("hooks"), "{error}");
}
