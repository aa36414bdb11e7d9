//! What a sandboxed process is, sees, and may not do. Needs root.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use cfc_sandbox::{ExitStatus, Network};
use serde_json::json;
use support::{bench, field, own_directory, with};

#[test]
fn a_process_is_mapped_bounded_and_filtered() {
    let Some(bench) = bench() else { return };
    let text = bench.output("echo $$; cat /proc/self/status; cat /proc/self/uid_map; cat /proc/1/comm; hostname");
    assert_eq!(text.lines().next(), Some("1"), "the command is process 1");
    assert_eq!(field(&text, "Uid"), "0\t0\t0\t0");
    assert_eq!(field(&text, "NoNewPrivs"), "1");
    assert_eq!(field(&text, "Seccomp"), "2");
    // CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE SYS_CHROOT
    let expected = "00000000000405fb";
    assert_eq!(field(&text, "CapBnd"), expected);
    assert_eq!(field(&text, "CapEff"), expected);
    assert_eq!(field(&text, "CapInh"), "0000000000000000");
    assert_eq!(field(&text, "CapAmb"), "0000000000000000");
    assert!(id_map(&text) >= 100_000, "{text}");
}

#[test]
fn another_user_has_no_capabilities_and_can_write_to_its_output() {
    let Some(bench) = bench() else { return };
    let config =
        bench.config(&["sh", "-c", "id -u; id -G; cat /proc/self/status; echo again > /dev/stdout; touch /tmp/mine"]);
    let config = with(&config, &[("/process/user", json!({"uid": 1000, "gid": 1000, "additionalGids": [1000, 10]}))]);
    let (exit, text) = bench.run_config(&config);
    assert_eq!(exit.status, ExitStatus::Code(0), "{text}");
    assert!(text.starts_with("1000\n1000 10\n"), "{text}");
    assert_eq!(field(&text, "CapEff"), "0000000000000000");
    assert_eq!(field(&text, "CapPrm"), "0000000000000000");
    assert!(text.contains("\nagain"), "{text}");
    let made = fs::metadata(own_directory(&config).join("upper/tmp/mine")).unwrap();
    assert_eq!((made.uid(), made.gid()), (1000, 1000), "on disk the ids are the image's own");
}

#[test]
fn no_mount_of_the_host_is_visible_and_no_descriptor_leaks() {
    let Some(bench) = bench() else { return };
    let text = bench.output("cat /proc/self/mountinfo; echo --; ls -l /proc/self/fd");
    let (mounts, descriptors) = text.split_once("--").unwrap();
    let points: Vec<&str> = mounts.lines().map(|line| line.split(' ').nth(4).unwrap()).collect();
    for point in &points {
        let known = *point == "/" || ["/proc", "/sys", "/dev"].iter().any(|top| point.starts_with(top));
        assert!(known, "{point} in {mounts}");
    }
    assert!(!mounts.contains("shared:") && !mounts.contains("master:"), "{mounts}");
    let numbers: Vec<_> = descriptors.lines().filter_map(|line| line.split_once(" -> ")).collect();
    assert_eq!(numbers.len(), 3, "only stdin, stdout and stderr: {descriptors}");
}

#[test]
fn masked_paths_are_empty_and_readonly_paths_refuse() {
    let Some(bench) = bench() else { return };
    let script = "cat /proc/kcore | head -c 1; cat /proc/keys /proc/timer_list /proc/interrupts; ls -A /sys/firmware /proc/scsi /proc/acpi; true";
    let text = bench.output(script);
    for line in text.lines().filter(|line| !line.is_empty()) {
        assert!(line.ends_with(':') || line.contains("No such file"), "{text}");
    }
    for script in [
        "echo 1 > /proc/sys/kernel/panic",
        "echo h > /proc/sysrq-trigger",
        "echo 1 > /proc/sys/net/ipv4/ip_forward",
        "mkdir /sys/fs/cgroup/x",
        "touch /sys/x",
    ] {
        let (exit, text) = bench.run(script);
        assert_ne!(exit.status, ExitStatus::Code(0), "{script}: {text}");
    }
}

#[test]
fn the_network_has_settings_of_its_own() {
    let Some(bench) = bench() else { return };
    let text = bench.output(
        "cd /proc/sys/net/ipv4; cat ip_unprivileged_port_start ping_group_range tcp_congestion_control; ls /sys/class/net",
    );
    assert_eq!(text, "0\n0\t65535\nreno\nlo");
}

#[test]
fn dangerous_calls_are_refused() {
    let Some(bench) = bench() else { return };
    for script in
        ["mount -t tmpfs x /tmp", "unshare -U true", "unshare -n true", "mount --bind /etc /tmp", "hostname x"]
    {
        let (exit, text) = bench.run(script);
        assert_ne!(exit.status, ExitStatus::Code(0), "{script}: {text}");
        assert!(text.contains("Operation not permitted") || text.contains("permission denied"), "{script}: {text}");
    }
}

#[test]
fn devices_are_the_usual_ones() {
    let Some(bench) = bench() else { return };
    let text = bench.output(
        "ls /dev; head -c 4 /dev/urandom > /tmp/r; echo x > /dev/null; echo y > /dev/shm/y; ls /dev/pts /dev/mqueue",
    );
    let names: Vec<&str> = text.lines().take_while(|line| !line.is_empty() && !line.ends_with(':')).collect();
    let usual = [
        "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom",
        "zero",
    ];
    // As runc has it.
    let core = std::path::Path::new("/proc/kcore").exists().then_some("core");
    assert_eq!(names, core.into_iter().chain(usual).collect::<Vec<_>>());
}

#[test]
fn limits_of_the_spec_are_clamped_to_the_machines() {
    let Some(bench) = bench() else { return };
    let config = bench.config(&["cat", "/proc/self/limits"]);
    let limits = json!([{"type": "RLIMIT_NOFILE", "soft": 1_048_576, "hard": 1_048_576}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]);
    let (exit, text) = bench.run_config(&with(&config, &[("/process/rlimits", limits)]));
    assert_eq!(exit.status, ExitStatus::Code(0));
    let open_files = text.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let hard: u64 = open_files.split_whitespace().nth(4).unwrap().parse().unwrap();
    assert!((1024..=1_048_576).contains(&hard), "{open_files}");
}

#[test]
fn what_is_made_for_mounts_does_not_stay_in_the_upper_directory() {
    let Some(bench) = bench() else { return };
    let hosts = bench.directory.path().join("hosts");
    fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
    let config = bench.config(&["sh", "-c", "cat /etc/hosts /run/secrets/deep/token; echo made > /home/made"]);
    let mut mounts = serde_json::to_value(config.spec.mounts()).unwrap();
    for target in ["/etc/hosts", "/run/secrets/deep/token"] {
        let mount = json!({"destination": target, "type": "bind", "source": hosts, "options": ["bind", "ro"]});
        mounts.as_array_mut().unwrap().push(mount);
    }
    let config = with(&config, &[("/mounts", mounts)]);
    let (exit, text) = bench.run_config(&config);
    assert_eq!((exit.status, text.as_str()), (ExitStatus::Code(0), "127.0.0.1 localhost\n127.0.0.1 localhost"));
    let upper = own_directory(&config).join("upper");
    let mut left: Vec<_> =
        fs::read_dir(&upper).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    assert_eq!(left, ["home"], "only what the command made");
}

#[test]
fn a_missing_working_directory_is_made_and_one_outside_is_refused() {
    let Some(bench) = bench() else { return };
    let config = with(&bench.config(&["sh", "-c", "pwd"]), &[("/process/cwd", json!("/srv/app"))]);
    assert_eq!(bench.run_config(&config).1, "/srv/app");
    for number in 3..40 {
        for cwd in [format!("/proc/self/fd/{number}"), format!("/proc/self/fd/{number}/made")] {
            let config = with(&bench.config(&["ls"]), &[("/process/cwd", json!(cwd))]);
            if bench.launcher.start(&config).is_ok() {
                bench.launcher.wait(&config.id).unwrap();
                panic!("{cwd} was entered: {}", support::log_text(&config));
            }
            assert!(!own_directory(&config).join("made").exists(), "{cwd} was made beside the upper directory");
        }
    }
    assert!(!bench.directory.path().join("layer/made").exists(), "a directory was made in the shared layer");
}

#[test]
fn a_mount_point_may_be_a_link_to_what_is_not_there() {
    let Some(bench) = bench() else { return };
    let hosts = bench.directory.path().join("hosts");
    fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
    let etc = bench.directory.path().join("layer/etc");
    std::os::unix::fs::symlink("../run/resolve/stub", etc.join("resolv.conf")).unwrap();
    std::os::unix::fs::symlink("/../../absent/hosts", etc.join("hosts")).unwrap();
    std::os::unix::fs::symlink("loop", etc.join("loop")).unwrap();
    let on = |targets: &[&str]| {
        let config = bench.config(&["cat", "/etc/resolv.conf", "/run/resolve/stub", "/absent/hosts"]);
        let mut mounts = serde_json::to_value(config.spec.mounts()).unwrap();
        for target in targets {
            let mount = json!({"destination": target, "type": "bind", "source": hosts, "options": ["bind", "ro"]});
            mounts.as_array_mut().unwrap().push(mount);
        }
        with(&config, &[("/mounts", mounts)])
    };
    let config = on(&["/etc/resolv.conf", "/etc/hosts"]);
    let (exit, text) = bench.run_config(&config);
    assert_eq!((exit.status, text.lines().count()), (ExitStatus::Code(0), 3), "{text}");
    assert_eq!(fs::read_dir(own_directory(&config).join("upper")).unwrap().count(), 0, "nothing of it stays");
    assert!(!Path::new("/absent").exists() && !Path::new("/run/resolve").exists(), "nothing was made on the host");
    assert!(bench.launcher.start(&on(&["/etc/loop"])).is_err());
}

/// Of an image whose `/etc/hosts` is odd: whatever file it is, ours takes its place and it stays as it was; a directory
/// cannot be covered by a file, and the error names it.
#[test]
fn a_mount_point_may_be_any_file_and_is_named_when_it_is_a_directory() {
    use std::os::unix::fs::PermissionsExt;
    let Some(bench) = bench() else { return };
    let hosts = bench.directory.path().join("hosts");
    fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
    let etc = bench.directory.path().join("layer/etc");
    let on = |target: &str| {
        let config = bench.config(&["cat", target]);
        let mut mounts = serde_json::to_value(config.spec.mounts()).unwrap();
        let mount = json!({"destination": target, "type": "bind", "source": hosts, "options": ["bind", "ro"]});
        mounts.as_array_mut().unwrap().push(mount);
        with(&config, &[("/mounts", mounts)])
    };
    fs::write(etc.join("read-only"), "the image's").unwrap();
    fs::set_permissions(etc.join("read-only"), fs::Permissions::from_mode(0o000)).unwrap();
    fs::hard_link(etc.join("read-only"), etc.join("linked")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, etc.join("pipe"), rustix::fs::FileType::Fifo, 0o644.into(), 0).unwrap();
    for target in ["/etc/read-only", "/etc/linked", "/etc/pipe"] {
        let (exit, text) = bench.run_config(&on(target));
        assert_eq!((exit.status, text.as_str()), (ExitStatus::Code(0), "127.0.0.1 localhost"), "{target}");
    }
    assert_eq!(fs::read_to_string(etc.join("read-only")).unwrap(), "the image's");
    fs::create_dir(etc.join("directory")).unwrap();
    let error = bench.launcher.start(&on("/etc/directory")).unwrap_err().to_string();
    let expected =
        "`/etc/directory` in the image is a directory, and a file is mounted there: remove it from the image";
    assert!(error.contains(expected), "{error}");
}

#[test]
fn a_build_shares_the_hosts_network_and_may_use_set_user_id_programs() {
    let Some(bench) = bench() else { return };
    let mut config = bench.config(&["sh", "-c", "cat /proc/self/status; ls /sys/class/net; hostname"]);
    let args = config.spec.process().as_ref().unwrap().args().clone();
    config.spec = cfc_sandbox::build_spec();
    config.spec.process_mut().as_mut().unwrap().set_args(args);
    config.network = Network::Host;
    let (exit, text) = bench.run_config(&config);
    assert_eq!(exit.status, ExitStatus::Code(0), "{text}");
    assert_eq!(field(&text, "NoNewPrivs"), "0");
    assert_eq!(field(&text, "Seccomp"), "2");
    assert!(text.ends_with("buildkitsandbox"), "{text}");
    for device in fs::read_dir("/sys/class/net").unwrap() {
        let name = device.unwrap().file_name().into_string().unwrap();
        assert!(text.lines().any(|line| line == name), "{name} in {text}");
    }
}

#[test]
fn a_sandbox_goes_first_when_memory_runs_out() {
    let Some(bench) = bench() else { return };
    let (exit, text) = bench.run("cat /proc/self/oom_score_adj; echo -500 > /proc/self/oom_score_adj");
    assert!(text.starts_with("500\n"), "{text}");
    assert_ne!(exit.status, ExitStatus::Code(0), "it cannot make itself more important: {text}");
}

#[test]
fn a_readonly_root_refuses_writes() {
    let Some(bench) = bench() else { return };
    let config = with(&bench.config(&["sh", "-c", "echo x > /home/x"]), &[("/root/readonly", json!(true))]);
    let (exit, text) = bench.run_config(&config);
    assert_eq!(exit.status, ExitStatus::Code(1), "{text}");
    assert!(text.contains("Read-only file system"), "{text}");
}

#[test]
fn without_a_user_namespace_the_rest_still_holds() {
    let Some(bench) = bench() else { return };
    let config = bench.config(&[
        "sh",
        "-c",
        "cat /proc/self/uid_map /proc/self/status; cat /proc/self/mountinfo; mount -t tmpfs x /tmp",
    ]);
    let namespaces = ["mount", "pid", "network", "ipc", "uts", "cgroup"].map(|name| json!({"type": name}));
    let config = with(&config, &[("/linux/namespaces", json!(namespaces))]);
    let (exit, text) = bench.run_config(&config);
    assert_ne!(exit.status, ExitStatus::Code(0), "mounting is refused");
    assert!(text.starts_with("         0          0 4294967295"), "{text}");
    assert_eq!(field(&text, "CapEff"), "00000000000405fb");
    let root = text.lines().find(|line| line.contains(" / / ")).unwrap();
    assert!(root.contains("nodev"), "{root}");
}

#[test]
fn the_init_tells_the_application_nothing_about_the_launcher() {
    let Some(bench) = bench() else { return };
    let script = "for f in environ mem maps exe cwd/etc root/etc; do cat /proc/1/$f; done; ls -l /proc/1/fd /proc/1/exe; cat /proc/1/comm";
    for namespaces in [
        vec!["user", "mount", "pid", "network", "ipc", "uts", "cgroup"],
        vec!["mount", "pid", "network", "ipc", "uts", "cgroup"],
    ] {
        let namespaces: Vec<_> = namespaces.into_iter().map(|name| json!({"type": name})).collect();
        let config = with(
            &bench.config(&["sh", "-c", script]),
            &[
                ("/annotations", json!({cfc_sandbox::INIT_ANNOTATION: "true"})),
                ("/linux/namespaces", json!(namespaces)),
            ],
        );
        let (_, text) = bench.run_config(&config);
        assert!(text.contains("cfc-init") && !text.contains("PATH") && !text.contains("cfc-launcher"), "{text}");
        assert!(text.matches("ermission denied").count() >= 7, "{text}");
    }
}

/// The first host id of the one range in a `/proc/self/uid_map`.
fn id_map(text: &str) -> u32 {
    let ranges = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut ranges = ranges.filter(|fields| fields.len() == 3 && fields[0] == "0" && fields[2] == "65536");
    ranges.next().unwrap_or_else(|| panic!("no map of 65536 ids in {text}"))[1].parse().unwrap()
}

#[test]
fn two_sandboxes_have_no_host_id_in_common_so_neither_could_signal_trace_or_read_the_other() {
    let Some(bench) = bench() else { return };
    let start = || {
        let config = bench.config(&["sh", "-c", "cat /proc/self/uid_map; echo done; exec sleep 60"]);
        let pid = bench.launcher.start(&config).unwrap().pid;
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !support::log_text(&config).contains("done") {
            assert!(std::time::Instant::now() < deadline, "{}", support::log_text(&config));
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let first = id_map(&support::log_text(&config));
        (config, pid, first)
    };
    let (one, two) = (start(), start());
    assert!(one.2.abs_diff(two.2) >= 65_536, "{} and {} overlap", one.2, two.2);
    // Inside, neither sees the other's processes at all. So ask as the second's root from where both can be seen.
    let files = bench.directory.path().join("files");
    fs::create_dir(&files).unwrap();
    fs::set_permissions(bench.directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for (_, pid, first) in [&one, &two] {
        let file = files.join(pid.to_string());
        fs::write(&file, "secret").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::chown(&file, Some(*first), Some(*first)).unwrap();
    }
    let can = |pid: i32| {
        let file = files.join(pid.to_string());
        let ask = |script: &str| {
            let target = two.1.to_string();
            let mut command = std::process::Command::new("nsenter");
            command.args(["-U", "-t", &target, "sh", "-c", script]).stderr(std::process::Stdio::null());
            command.status().unwrap().success()
        };
        let signal = ask(&format!("kill -0 {pid}"));
        let trace = ask(&format!("head -c 0 /proc/{pid}/mem"));
        let read = ask(&format!("head -c 0 {}", file.display()));
        [signal, trace, read]
    };
    assert_eq!(can(two.1), [true, true, true], "its own it may");
    assert_eq!(can(one.1), [false, false, false]);
    for (config, ..) in [one, two] {
        bench.launcher.kill_all(&config.id).unwrap();
        bench.launcher.wait(&config.id).unwrap();
        bench.launcher.remove(&config.id).unwrap();
    }
}
