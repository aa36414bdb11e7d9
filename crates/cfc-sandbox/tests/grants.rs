//! What is denied by default and works where the operator grants it: FUSE, and containers in containers. Needs root, and for
//! the real programs their packages; the root filesystem is this machine's own, below an overlay.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cfc_sandbox::{Exit, ExitStatus, Grant, Root, SandboxConfig};
use serde_json::json;
use support::{Bench, bench};

/// A sandbox that sees this machine's programs.
fn on_this_machines_root(bench: &Bench, script: &str, grants: &[Grant]) -> SandboxConfig {
    let mut config = bench.config(&["/bin/sh", "-c", script]);
    let Root::Overlay { lowers, .. } = &mut config.root else { panic!("an overlay") };
    *lowers = vec![bench.directory.path().join("layer"), PathBuf::from("/")];
    lowers.remove(0);
    for grant in grants {
        grant.add_to(&mut config.spec).unwrap();
    }
    config
}

fn run(bench: &Bench, config: &SandboxConfig) -> Option<(Exit, String)> {
    match bench.launcher.start(config) {
        Err(error) if error.to_string().contains("map the ids of /") => {
            eprintln!("skipped: this machine's root filesystem cannot map ids: {error}");
            None
        }
        started => {
            started.unwrap();
            let exit = bench.launcher.wait(&config.id).unwrap();
            bench.launcher.remove(&config.id).unwrap();
            Some((exit, support::log_text(config)))
        }
    }
}

fn has(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap().status.success();
    if !found {
        eprintln!("skipped: needs {program}");
    }
    found
}

/// A squashfs with one file, where the sandbox finds it.
fn squashfs(bench: &Bench) -> PathBuf {
    let content = bench.directory.path().join("content");
    fs::create_dir_all(&content).unwrap();
    fs::write(content.join("hello"), "from a filesystem in user space\n").unwrap();
    let image = PathBuf::from(format!("/var/tmp/cfc-grants-{}.squashfs", std::process::id()));
    let _ = fs::remove_file(&image);
    assert!(Command::new("mksquashfs").arg(&content).arg(&image).arg("-quiet").status().unwrap().success());
    image
}

#[test]
fn fuse_works_where_it_is_granted_and_nowhere_else() {
    let Some(bench) = bench() else { return };
    if !has("squashfuse") || !has("mksquashfs") || !Path::new("/dev/fuse").exists() {
        return eprintln!("skipped: needs squashfuse, mksquashfs and /dev/fuse");
    }
    let image = squashfs(&bench);
    let script = format!(
        "mkdir -p /srv/m; squashfuse {} /srv/m && cat /srv/m/hello && umount /srv/m && echo unmounted",
        image.display()
    );
    let denied = run(&bench, &on_this_machines_root(&bench, &script, &[]));
    let granted = run(&bench, &on_this_machines_root(&bench, &script, &[Grant::Fuse]));
    fs::remove_file(&image).unwrap();
    let (Some((denied, said)), Some((granted, text))) = (denied, granted) else { return };
    assert_ne!(denied.status, ExitStatus::Code(0), "{said}");
    assert!(
        said.contains("device not found") || said.contains("No such file") || said.contains("not permitted"),
        "{said}"
    );
    assert_eq!(granted.status, ExitStatus::Code(0), "{text}");
    assert!(text.contains("from a filesystem in user space") && text.contains("unmounted"), "{text}");
}

#[test]
fn namespaces_can_be_nested_where_it_is_granted_and_nowhere_else() {
    let Some(bench) = bench() else { return };
    let script = "unshare -Urmpf --mount-proc sh -c 'mount -t tmpfs x /mnt && hostname && ls /proc | head -1 && id -u'";
    let Some((denied, said)) = run(&bench, &on_this_machines_root(&bench, script, &[])) else { return };
    assert_ne!(denied.status, ExitStatus::Code(0));
    assert!(said.contains("Operation not permitted"), "{said}");
    let Some((granted, text)) = run(&bench, &on_this_machines_root(&bench, script, &[Grant::Nested])) else { return };
    assert_eq!(granted.status, ExitStatus::Code(0), "{text}");
    assert!(text.ends_with("1\n0"), "{text}");
}

#[test]
fn podman_runs_a_container_inside_where_it_is_granted() {
    let Some(bench) = bench() else { return };
    if !has("podman") || !has("crun") {
        return;
    }
    let script = "mkdir -p /srv/root/bin /srv/root/proc /srv/root/sys /srv/root/dev /srv/root/etc /srv/root/run /srv/root/tmp; cp /bin/busybox /srv/root/bin/sh; \
        export XDG_RUNTIME_DIR=/tmp HOME=/root; mkdir -p /run/lock; mount -t tmpfs x /sys/fs/cgroup; \
        podman --storage-driver=vfs --root=/srv/store --runroot=/srv/runroot --cgroup-manager=cgroupfs --events-backend=file --runtime=/usr/bin/crun \
        run --rm --cgroups=disabled --network=none --security-opt seccomp=unconfined --ulimit host --log-driver=none --rootfs /srv/root /bin/sh -c 'echo nested $$' 2>&1";
    let Some((denied, _)) = run(&bench, &on_this_machines_root(&bench, script, &[])) else { return };
    assert_ne!(denied.status, ExitStatus::Code(0));
    let Some((granted, text)) = run(&bench, &on_this_machines_root(&bench, script, &[Grant::Nested])) else { return };
    assert_eq!(granted.status, ExitStatus::Code(0), "{text}");
    assert!(text.contains("nested 1"), "{text}");
}

#[test]
fn what_is_granted_still_ends_at_the_user_namespace() {
    let Some(bench) = bench() else { return };
    for grants in [vec![Grant::Nested], vec![Grant::Fuse, Grant::Nested]] {
        if grants.contains(&Grant::Fuse) && !Path::new("/dev/fuse").exists() {
            continue;
        }
        let mut config = bench.config(&[
            "sh",
            "-c",
            "echo 1 > /proc/sys/kernel/panic; echo x > /proc/sys/kernel/core_pattern; echo h > /proc/sysrq-trigger; head -c 1 /proc/kcore; \
             mkdir /tmp/c /tmp/d; mount -t cgroup -o memory x /tmp/c; echo 1 > /tmp/c/memory.limit_in_bytes; mkdir /tmp/c/x; cat /tmp/c/release_agent; \
             mount -t ext4 /dev/vda /tmp/d; mknod /tmp/node b 254 0; dmesg; cat /proc/self/uid_map; ls /sys/fs/cgroup",
        ]);
        for grant in &grants {
            grant.add_to(&mut config.spec).unwrap();
        }
        let panic = fs::read_to_string("/proc/sys/kernel/panic").unwrap();
        let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
        let (_, text) = bench.run_config(&config);
        assert_eq!(fs::read_to_string("/proc/sys/kernel/panic").unwrap(), panic, "{text}");
        assert_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(), pattern, "{text}");
        let refused = ["ermission denied", "not permitted", "Read-only", "No such file", "nonexistent directory"];
        let count: usize = refused.iter().map(|words| text.matches(words).count()).sum();
        assert!(count >= 9, "{text}");
        assert!(text.contains("65536"), "{text}");
    }
}

#[test]
fn the_default_grants_nothing() {
    let spec = serde_json::to_value(cfc_sandbox::default_spec()).unwrap();
    let capabilities = spec["process"]["capabilities"]["bounding"].to_string();
    assert!(!capabilities.contains("SYS_ADMIN") && !spec["linux"]["devices"].to_string().contains("fuse"));
    assert_eq!(spec["process"]["noNewPrivileges"], json!(true));
}
