//! What a hostile image or process has done to other sandboxes, tried on ours: each attack must fail closed. Needs root.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cfc_sandbox::{ExitStatus, Network, Root, SandboxConfig, Stdio};
use serde_json::{Value, json};
use support::{Bench, LAUNCHER, bench, field, log_text, with};

/// A bench whose layer has the probe.
fn armed() -> Option<Bench> {
    let bench = bench()?;
    let probe = support::probe()?;
    fs::copy(probe, layer(&bench).join("bin/probe")).unwrap();
    Some(bench)
}

fn layer(bench: &Bench) -> PathBuf {
    bench.directory.path().join("layer")
}

/// What the probe says of a sandbox with these changes of its spec.
fn report(bench: &Bench, changes: &[(&str, Value)]) -> String {
    let config = with(&bench.config(&["/bin/probe", "report"]), &[("/hostname", json!("probe"))]);
    let (exit, text) = bench.run_config(&with(&config, changes));
    assert_eq!(exit.status, ExitStatus::Code(0), "{text}");
    text
}

fn wait_for(what: &str, is_it: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_it() {
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn mounts_and(bench: &Bench, args: &[&str], more: Vec<Value>) -> SandboxConfig {
    let config = bench.config(args);
    let mut mounts = serde_json::to_value(config.spec.mounts()).unwrap();
    mounts.as_array_mut().unwrap().extend(more);
    with(&config, &[("/mounts", mounts)])
}

#[test]
fn each_dangerous_call_is_refused_as_the_profile_says() {
    let Some(bench) = armed() else { return };
    let text = report(&bench, &[]);
    let (denied, unknown) = (libc::EPERM, libc::ENOSYS);
    let expected = [
        ("clone newuser", denied),
        ("clone newnet", denied),
        ("clone newns", denied),
        ("clone3 newuser", unknown),
        ("unshare user", denied),
        ("unshare mount", denied),
        ("unshare net", denied),
        ("unshare files", 0),
        ("setns", denied),
        ("mount", denied),
        ("umount", denied),
        ("pivot_root", denied),
        ("fsopen", denied),
        ("fsconfig", denied),
        ("fsmount", denied),
        ("fspick", denied),
        ("open_tree", denied),
        ("move_mount", denied),
        ("mount_setattr", denied),
        ("keyctl", denied),
        ("add_key", denied),
        ("request_key", denied),
        ("io_uring_setup", denied),
        ("io_uring_enter", denied),
        ("io_uring_register", denied),
        ("bpf", denied),
        ("userfaultfd", denied),
        ("perf_event_open", denied),
        ("pidfd_getfd", denied),
        ("personality read", 0),
        ("personality no randomize", denied),
        ("kexec_load", denied),
        ("init_module", denied),
        ("finit_module", denied),
        ("delete_module", denied),
        ("reboot", denied),
        ("swapon", denied),
        ("acct", denied),
        ("settimeofday", denied),
        ("clock_settime", denied),
        ("sethostname", denied),
        ("setdomainname", denied),
        ("syslog", denied),
        ("open_by_handle_at", denied),
        ("quotactl", denied),
        ("vhangup", denied),
        ("fanotify_init", denied),
        ("move_pages", denied),
        ("migrate_pages", denied),
        ("mbind", denied),
        ("kcmp", denied),
        ("vmsplice", denied),
        ("lookup_dcookie", denied),
        ("number 600", unknown),
        ("socket inet", 0),
        ("socket netlink", 0),
        ("socket raw", denied),
        ("socket packet", denied),
        ("socket vsock", denied),
        ("socket alg", denied),
        ("mknod char", denied),
        ("mknod fifo", 0),
        ("rlimit above", denied),
        ("bind 80", 0),
        ("ptrace me", 0),
    ];
    let found: Vec<_> = expected
        .iter()
        .filter(|(call, errno)| field(&text, &format!("call {call}")) != errno.to_string())
        .map(|(call, errno)| format!("{call}: expected {errno}, found {}", field(&text, &format!("call {call}"))))
        .collect();
    assert!(found.is_empty(), "{found:#?}");
    if cfg!(target_arch = "x86_64") {
        for call in ["uselib", "ustat", "sysfs", "iopl", "ioperm", "nfsservctl"] {
            assert_eq!(field(&text, &format!("call {call}")), denied.to_string(), "{call}");
        }
    }
}

#[test]
fn the_kernels_files_show_and_take_nothing() {
    let Some(bench) = armed() else { return };
    let text = report(&bench, &[]);
    let masked = [
        "/proc/acpi",
        "/proc/asound",
        "/proc/interrupts",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/sched_debug",
        "/proc/scsi",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/sys/devices/virtual/powercap",
        "/sys/firmware",
    ];
    for path in masked {
        let fact = field(&text, &format!("path {path}"));
        let is_absent = fact == format!("error {}", libc::ENOENT);
        let is_empty = fact.contains("read empty") || fact.contains("entries none");
        assert!(is_absent || is_empty || fact.contains(&format!("open {}", libc::EACCES)), "{path}: {fact}");
    }
    let readonly = [
        "/proc/sysrq-trigger",
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/hostname",
        "/proc/sys/kernel/panic",
        "/proc/sys/vm/drop_caches",
        "/proc/sys/net/ipv4/ip_forward",
        "/sys/power/state",
    ];
    for path in readonly {
        let fact = field(&text, &format!("path {path}"));
        let is_refused =
            [libc::EROFS, libc::EACCES, libc::EPERM].iter().any(|errno| fact.ends_with(&format!("write {errno}")));
        assert!(is_refused || fact == format!("error {}", libc::ENOENT), "{path}: {fact}");
    }
    for path in ["/sys", "/sys/fs/cgroup", "/sys/kernel", "/proc/sys", "/proc/bus", "/proc/irq"] {
        let fact = field(&text, &format!("path {path}"));
        assert!(!fact.ends_with("mkdir 0"), "{path}: {fact}");
    }
    for path in ["/dev/kmsg", "/dev/mem", "/dev/console"] {
        assert_eq!(field(&text, &format!("path {path}")), format!("error {}", libc::ENOENT), "{path}");
    }
    let kmsg = field(&text, "path /proc/kmsg");
    assert!(
        kmsg.contains(&format!("open {}", libc::EPERM)) || kmsg.contains(&format!("open {}", libc::EACCES)),
        "{kmsg}"
    );
    assert!(bench.run("dmesg").1.contains("not permitted"));
}

#[test]
fn namespaces_descriptors_signals_and_session_are_its_own() {
    let Some(bench) = armed() else { return };
    let text = report(&bench, &[]);
    for kind in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
        let host = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        let own = text.lines().find(|line| line.starts_with(&format!("namespace {kind}:"))).unwrap();
        assert_ne!(own, format!("namespace {}", host.display()));
    }
    let descriptors: Vec<_> = text.lines().filter(|line| line.starts_with("descriptor ")).collect();
    assert_eq!(descriptors.len(), 3, "{descriptors:?}");
    assert!(!text.contains("not default"), "a signal is ignored or handled: {text}");
    for set in ["SigBlk", "SigIgn", "SigCgt"] {
        assert_eq!(field(&text, &format!("status {set}")), "0000000000000000", "{set}");
    }
    assert!(text.contains("pid 1 parent 0 session 1 group 1 terminal 0"), "{text}");
    assert!(!text.contains("shared:") && !text.contains("master:"), "{text}");
    for line in text.lines().filter(|line| line.starts_with("cgroup: ")) {
        assert!(line.ends_with(":/"), "it sees where its cgroup is: {line}");
    }
}

/// CVE-2019-5736: the image makes us execute our own binary, with a loader of the image's that keeps it open.
#[test]
fn the_launcher_can_be_executed_but_not_overwritten_from_inside() {
    let Some(bench) = armed() else { return };
    let before = fs::read(LAUNCHER).unwrap();
    let loader = match cfg!(target_arch = "aarch64") {
        true => "lib/ld-linux-aarch64.so.1",
        false => "lib64/ld-linux-x86-64.so.2",
    };
    fs::create_dir_all(layer(&bench).join(loader).parent().unwrap()).unwrap();
    fs::copy(layer(&bench).join("bin/probe"), layer(&bench).join(loader)).unwrap();
    fs::write(layer(&bench).join("bin/script"), "#!/proc/self/exe\n").unwrap();
    fs::set_permissions(layer(&bench).join("bin/script"), fs::Permissions::from_mode(0o755)).unwrap();
    for command in ["/proc/self/exe", "/bin/script", "/proc/1/exe", "/proc/thread-self/exe"] {
        let config = bench.config(&[command]);
        if bench.launcher.start(&config).is_err() {
            continue;
        }
        bench.launcher.wait(&config.id).unwrap();
        bench.launcher.remove(&config.id).unwrap();
        let text = log_text(&config);
        for line in text.lines().filter(|line| line.starts_with("write to")) {
            assert!(!line.ends_with(": 0"), "{command}: {text}");
        }
    }
    assert!(fs::read(LAUNCHER).unwrap() == before, "the launcher was changed");
    let (_, text) = bench.run("for p in /proc/[0-9]*/exe; do ls -l $p; done; (echo x > /proc/1/exe) 2>&1");
    assert!(!text.contains("cfc-launcher"), "{text}");
}

/// CVE-2021-30465: what is mounted on changes between directory and link while we mount.
#[test]
fn a_mount_point_that_becomes_a_link_leads_nowhere_else() {
    let Some(bench) = armed() else { return };
    let root = bench.directory.path().join("live-root");
    std::process::Command::new("cp").arg("-a").arg(layer(&bench)).arg(&root).status().unwrap();
    let outside = bench.directory.path().join("outside");
    fs::create_dir_all(outside.join("inner")).unwrap();
    for name in ["proc", "dev", "sys", "volume"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    symlink(&outside, root.join("trap")).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // What is at /volume is a directory at one moment, and a link to the host's at the next.
                let [volume, trap, spare] = ["volume", "trap", "spare"].map(|name| root.join(name));
                let _ = fs::rename(&volume, &spare);
                let _ = fs::rename(&trap, &volume);
                let _ = fs::rename(&volume, &trap);
                let _ = fs::rename(&spare, &volume);
            }
        });
        for _ in 0..150 {
            let mount =
                json!({"destination": "/volume/inner", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"]});
            let mut config =
                mounts_and(&bench, &["sh", "-c", "echo x > /volume/inner/file; cat /proc/self/mountinfo"], vec![mount]);
            config.root = Root::Directory { path: root.clone() };
            if bench.launcher.start(&config).is_ok() {
                bench.launcher.wait(&config.id).unwrap();
                bench.launcher.remove(&config.id).unwrap();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(fs::read_dir(outside.join("inner")).unwrap().count(), 0, "it wrote outside");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "something was made outside");
    assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains("volume"), "it mounted outside");
}

/// CVE-2025-31133, CVE-2025-52565: masks and the console are laid by means of files that the image chose.
#[test]
fn masks_are_the_hosts_null_and_never_the_images() {
    let Some(bench) = armed() else { return };
    let dev = layer(&bench).join("dev");
    fs::create_dir_all(&dev).unwrap();
    symlink("/proc/sys/kernel/core_pattern", dev.join("null")).unwrap();
    symlink("/proc/sysrq-trigger", dev.join("console")).unwrap();
    symlink("/proc", dev.join("pts")).unwrap();
    let config = bench.config(&[
        "sh",
        "-c",
        "cat /proc/keys /proc/timer_list | wc -c; ls -l /proc/keys; cat /proc/self/mountinfo",
    ]);
    let all = serde_json::to_value(config.spec.mounts()).unwrap();
    let only_proc: Vec<_> =
        all.as_array().unwrap().iter().filter(|mount| mount["destination"] == "/proc").cloned().collect();
    let (exit, text) = bench.run_config(&with(&config, &[("/mounts", json!(only_proc))]));
    assert_eq!(exit.status, ExitStatus::Code(0), "{text}");
    assert!(text.starts_with("0\n"), "what is masked is empty: {text}");
    for line in text.lines().filter(|line| line.contains(" /proc/keys ") && line.contains(" - ")) {
        assert!(line.contains("devtmpfs") && !line.contains("core_pattern"), "{line}");
    }
    // With the usual mounts the image's /dev is hidden whole.
    let (_, text) = bench.run("ls -l /dev/null /dev/console; echo x > /dev/null && echo written");
    assert!(text.contains("1,   3") && text.contains("written") && !text.contains("core_pattern"), "{text}");
}

/// CVE-2025-52881: what we write to /proc for a sandbox goes where the image wants.
#[test]
fn a_sysctl_is_written_to_a_proc_or_not_at_all() {
    let Some(bench) = armed() else { return };
    let victim = layer(&bench).join("victim");
    fs::write(&victim, "untouched").unwrap();
    fs::create_dir_all(layer(&bench).join("proc/sys/net/ipv4")).unwrap();
    symlink("/victim", layer(&bench).join("proc/sys/net/ipv4/ip_unprivileged_port_start")).unwrap();
    let config = bench.config(&["true"]);
    let sysctl = json!({"net.ipv4.ip_unprivileged_port_start": "0"});
    let error = bench
        .launcher
        .start(&with(&config, &[("/mounts", json!([])), ("/linux/sysctl", sysctl)]))
        .expect_err("refused");
    assert!(error.to_string().contains("mounts no proc"), "{error}");
    assert_eq!(fs::read_to_string(victim).unwrap(), "untouched");
}

/// The shell's scratch filesystem lies below the root of a sandbox that cannot unmount.
#[test]
fn nobody_gets_below_the_root() {
    let Some(bench) = armed() else { return };
    let names =
        |text: &str| text.lines().filter_map(|line| line.strip_prefix("seen: ")).map(str::to_owned).collect::<Vec<_>>();
    let free: [(&str, Value); 1] = [("/linux/seccomp", Value::Null)];
    let administrator = json!({"bounding": ["CAP_SYS_ADMIN", "CAP_SYS_CHROOT"], "effective": ["CAP_SYS_ADMIN", "CAP_SYS_CHROOT"], "permitted": ["CAP_SYS_ADMIN", "CAP_SYS_CHROOT"]});
    let may_unmount = [free[0].clone(), ("/process/capabilities", administrator)];
    let cases: [(&str, &[(&str, Value)]); 4] =
        [("plain", &[]), ("plain", &free), ("nested", &free), ("plain", &may_unmount)];
    for (number, (how, changes)) in cases.into_iter().enumerate() {
        let (_, text) = bench.run_config(&with(&bench.config(&["/bin/probe", "uncover", how]), changes));
        let seen = names(&text);
        let scratch = ["l", "c", "mask", "null", "f"];
        assert!(!seen.is_empty() || number == 3, "{text}");
        assert!(seen.iter().all(|name| !scratch.contains(&name.as_str())), "{number}: {text}");
        assert!(text.contains("chroot: 0"), "it can climb: {text}");
        match number {
            0 | 1 => assert!(text.contains("umount: 1\n"), "EPERM: {text}"),
            2 => assert!(
                text.contains("unshare: 0\n") && text.contains("umount: 22\n"),
                "EINVAL, for they are locked: {text}"
            ),
            _ => assert!(text.contains("setns: 0\n"), "it comes back to its root: {text}"),
        }
    }
}

#[test]
fn a_set_user_id_program_gives_nothing() {
    let Some(bench) = armed() else { return };
    fs::set_permissions(layer(&bench).join("bin/probe"), fs::Permissions::from_mode(0o6755)).unwrap();
    let text = report(&bench, &[("/process/user", json!({"uid": 1000, "gid": 1000}))]);
    assert_eq!(field(&text, "status Uid"), "1000\t1000\t1000\t1000");
    assert_eq!(field(&text, "status Gid"), "1000\t1000\t1000\t1000");
    assert_eq!(field(&text, "status CapEff"), "0000000000000000");
    fs::set_permissions(layer(&bench).join("bin/probe"), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn strings_with_zero_bytes_are_refused_and_with_newlines_kept() {
    let Some(bench) = armed() else { return };
    let with_env = |value: &str| {
        with(&bench.config(&["sh", "-c", "echo \"<$A>\""]), &[("/process/env", json!(["PATH=/bin", value]))])
    };
    let error = bench.launcher.start(&with_env("A=x\0LD_PRELOAD=/evil.so")).expect_err("refused");
    assert!(error.to_string().contains("process.env") && error.to_string().contains("zero byte"), "{error}");
    assert_eq!(bench.run_config(&with_env("A=x\nB=y")).1, "<x\nB=y>");
    let error = bench.launcher.start(&bench.config(&["echo", "a\0b"])).expect_err("refused");
    assert!(error.to_string().contains("process.args"), "{error}");
}

#[test]
fn what_listens_on_the_host_is_not_there_inside() {
    let Some(bench) = armed() else { return };
    let name = format!("cfc-attack-{}", std::process::id());
    let _abstract = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = tcp.local_addr().unwrap().port();
    for network in [Network::Isolated, Network::Redirected { ipv6: false }] {
        let mut config = bench.config(&[
            "sh",
            "-c",
            &format!("probe abstract {name}; nc 127.0.0.1 {port} < /dev/null && echo reached; for d in /run /var/run /tmp /dev; do ls $d/*.sock $d/docker.sock; done"),
        ]);
        config.network = network;
        let (_, text) = bench.run_config(&config);
        assert_eq!(field(&text, "abstract"), libc::ECONNREFUSED.to_string(), "{text}");
        assert!(!text.contains("reached"), "{text}");
        assert!(text.lines().filter(|line| line.contains("sock")).all(|line| line.contains("No such file")), "{text}");
    }
}

/// The release agent of a v1 cgroup runs as the host's root.
#[test]
fn cgroups_are_not_there_to_be_escaped_through() {
    let Some(bench) = armed() else { return };
    let script = "ls -A /sys/fs/cgroup; mkdir /tmp/c; mount -t cgroup -o memory x /tmp/c; mount -t cgroup2 x /tmp/c; echo /evil > /sys/fs/cgroup/release_agent; find / -name release_agent 2>/dev/null; true";
    let (_, text) = bench.run(script);
    assert!(text.matches("ot permitted").count() + text.matches("ermission denied").count() >= 2, "{text}");
    assert!(!text.lines().any(|line| line.starts_with('/') && line.ends_with("release_agent")), "{text}");
}

#[test]
fn device_nodes_of_an_image_are_dead() {
    let Some(bench) = armed() else { return };
    for (name, arguments) in
        [("mem", ["c", "1", "1"]), ("kmsg", ["c", "1", "11"]), ("disk", ["b", "254", "0"]), ("vda", ["b", "253", "0"])]
    {
        let made =
            std::process::Command::new("mknod").arg(layer(&bench).join("home").join(name)).args(arguments).status();
        assert!(made.unwrap().success());
    }
    for namespaces in [
        vec!["user", "mount", "pid", "network", "ipc", "uts", "cgroup"],
        vec!["mount", "pid", "network", "ipc", "uts", "cgroup"],
    ] {
        let namespaces: Vec<_> = namespaces.into_iter().map(|name| json!({"type": name})).collect();
        let config = bench.config(&[
            "sh",
            "-c",
            "for d in mem kmsg disk vda; do head -c 1 /home/$d && echo opened $d; done; true",
        ]);
        let (_, text) = bench.run_config(&with(&config, &[("/linux/namespaces", json!(namespaces))]));
        assert!(!text.contains("opened"), "{text}");
        assert_eq!(text.matches("ermission denied").count(), 4, "{text}");
    }
}

#[test]
fn inodes_run_out_inside_and_not_outside() {
    let Some(bench) = armed() else { return };
    let limit = json!({"memory": {"limit": 48 << 20}, "pids": {"limit": 64}});
    let config = with(&bench.config(&["/bin/probe", "inodes", "/dev/shm"]), &[("/linux/resources", limit)]);
    let (exit, text) = bench.run_config(&config);
    let ended = exit.oom_killed
        || text.contains(&format!("then {}", libc::ENOSPC))
        || text.contains(&format!("then {}", libc::ENOMEM));
    assert!(ended, "{exit:?} {text}");
}

#[test]
fn buffers_of_sockets_count_against_its_own_memory() {
    let Some(bench) = armed() else { return };
    let limit: u64 = 32 << 20;
    let resources = json!({"memory": {"limit": limit}, "pids": {"limit": 64}});
    let config = with(&bench.config(&["/bin/probe", "hoard", "300"]), &[("/linux/resources", resources)]);
    bench.launcher.start(&config).unwrap();
    wait_for("the hoard", || {
        log_text(&config).contains("hoarded")
            || bench.launcher.list().unwrap().iter().all(|s| s.state != cfc_sandbox::State::Running)
    });
    let text = log_text(&config);
    // Killed for it, or held at about its limit; unlimited it is hundreds of megabytes.
    let hoarded: u64 = text.strip_prefix("hoarded: ").map_or(0, |count| count.trim().parse().unwrap());
    assert!(hoarded <= limit * 3, "{hoarded}");
    bench.launcher.kill_all(&config.id).unwrap();
    bench.launcher.wait(&config.id).unwrap();
}

#[test]
fn connections_that_are_tracked_are_tracked_in_its_own_namespace() {
    let Some(bench) = armed() else { return };
    let count = || fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").ok()?.trim().parse::<i64>().ok();
    let before = count().unwrap_or(0);
    let mut config = bench.config(&["/bin/probe", "track", "20000"]);
    config.network = Network::Redirected { ipv6: false };
    bench.launcher.start(&config).unwrap();
    wait_for("the flood", || log_text(&config).contains("tracked"));
    assert!(count().unwrap_or(0) - before < 5_000, "the host's table fills up");
    // And the host still has ports and connections.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    bench.launcher.kill_all(&config.id).unwrap();
    bench.launcher.wait(&config.id).unwrap();
}

#[test]
fn a_log_path_or_an_id_leads_nowhere_else() {
    let Some(bench) = armed() else { return };
    for id in ["../escape", "a/b", ".hidden", "", "a\nb"] {
        let config = SandboxConfig { id: id.to_owned(), ..bench.config(&["true"]) };
        assert!(bench.launcher.start(&config).is_err(), "{id:?}");
    }
    let mut config = bench.config(&["true"]);
    config.stdio = Stdio::Log { path: Path::new("/no/such/directory/log").to_owned(), max_bytes: 1 << 20 };
    assert!(bench.launcher.start(&config).is_err());
}
