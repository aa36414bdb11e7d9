//! Bombs: whatever a sandbox fills up ends at its own limit, and its neighbour notices nothing. Needs root.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use cfc_sandbox::{ExitStatus, SandboxConfig, missing_controllers};
use serde_json::json;
use support::{Bench, bench, with};

const MIB: u64 = 1 << 20;
const LIMIT: u64 = 48 * MIB;

/// A bench, and a neighbour that lives while a bomb goes off.
struct Street {
    bench: Bench,
    neighbour: SandboxConfig,
}

fn street() -> Option<Street> {
    let bench = bench()?;
    if !missing_controllers().is_empty() {
        eprintln!("skipped: no cgroup hierarchy has {}", missing_controllers().join(", "));
        return None;
    }
    let neighbour = limited(&bench, "exec sleep 600");
    bench.launcher.start(&neighbour).unwrap();
    Some(Street { bench, neighbour })
}

fn limited(bench: &Bench, script: &str) -> SandboxConfig {
    let limits = json!({"memory": {"limit": LIMIT, "swap": LIMIT}, "pids": {"limit": 64}});
    let files = json!([{"type": "RLIMIT_NOFILE", "soft": 128, "hard": 128}]);
    with(&bench.config(&["sh", "-c", script]), &[("/linux/resources", limits), ("/process/rlimits", files)])
}

impl Street {
    /// Runs a bomb to its end, and looks whether the neighbour is well.
    fn bomb(&self, script: &str) -> (cfc_sandbox::Exit, String) {
        let ended = self.bench.run_config(&limited(&self.bench, script));
        let status = self.bench.launcher.list().unwrap();
        assert!(
            status.iter().any(|s| s.id == self.neighbour.id && s.state == cfc_sandbox::State::Running),
            "{status:?}"
        );
        // A new one starts as ever.
        let (exit, text) = self.bench.run_config(&limited(&self.bench, "echo fine"));
        assert_eq!((exit.status, text.as_str()), (ExitStatus::Code(0), "fine"));
        ended
    }
}

#[test]
fn memory_ends_at_the_limit_and_the_log_says_so() {
    let Some(street) = street() else { return };
    let (exit, text) = street.bomb("/bin/busybox tail /dev/zero");
    assert!(exit.oom_killed, "{exit:?}: {text}");
    assert!(text.contains("out of memory: the kernel killed a process at the limit of 48 MiB"), "{text}");
}

#[test]
fn filesystems_in_memory_count_as_memory() {
    let Some(street) = street() else { return };
    // /dev/shm holds 64 MiB, which is more than there is.
    for place in ["/dev/shm", "/dev"] {
        let script = format!("dd if=/dev/zero of={place}/big bs=1M count=60 2>&1; echo after");
        let (exit, text) = street.bomb(&script);
        assert!(exit.usage.oom_kills > 0, "{place}: {exit:?}: {text}");
    }
}

#[test]
fn page_cache_of_files_is_not_the_end_of_anybody() {
    let Some(street) = street() else { return };
    let (exit, text) =
        street.bomb("dd if=/dev/zero of=/home/big bs=1M count=200 2>/dev/null; ls -l /home/big; rm /home/big");
    assert_eq!(exit.status, ExitStatus::Code(0), "{text}");
    assert!(!exit.oom_killed && text.contains("209715200"), "{text}");
}

#[test]
fn forks_end_at_the_limit_of_processes() {
    let Some(street) = street() else { return };
    let (_, text) = street.bomb("b() { b | b & }; b; i=0; while [ $i -lt 200 ]; do sleep 600 & i=$((i+1)); done");
    assert!(text.contains("fork") || text.contains("Resource temporarily unavailable"), "{text}");
}

#[test]
fn descriptors_end_at_the_limit_of_open_files() {
    let Some(street) = street() else { return };
    // tail opens all before it reads the first.
    let script =
        "ulimit -n; cd /home; i=0; while [ $i -lt 200 ]; do echo > f$i; i=$((i+1)); done; /bin/busybox tail f*";
    let (exit, text) = street.bomb(script);
    assert_ne!(exit.status, ExitStatus::Code(0), "{text}");
    assert!(text.starts_with("128") && text.contains("Too many open files"), "{text}");
}

#[test]
fn a_limit_above_the_machines_own_is_lowered_to_it() {
    let Some(bench) = bench() else { return };
    let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let files = json!([{"type": "RLIMIT_NOFILE", "soft": u64::MAX - 1, "hard": u64::MAX - 1}]);
    let config = with(&bench.config(&["sh", "-c", "ulimit -Hn"]), &[("/process/rlimits", files)]);
    let (exit, text) = bench.run_config(&config);
    assert_eq!(exit.status, ExitStatus::Code(0), "{text}");
    assert!(text == hard.to_string() || text == (u64::MAX - 1).to_string(), "{text}, not {hard}");
}

/// As in a container that was started with `--privileged`: the top of the cgroup tree that it sees is its own cgroup, with its
/// processes in it.
#[test]
fn limits_hold_in_a_container_of_others_too() {
    let tree = PathBuf::from("/sys/fs/cgroup");
    if bench().is_none() || !tree.join("cgroup.controllers").exists() {
        eprintln!("skipped: needs root and cgroup v2 alone (scripts/test-v2 has it)");
        return;
    }
    fs::write(tree.join("cgroup.subtree_control"), "+cpu +memory +pids").unwrap();
    let container = tree.join(format!("cfc-test-container-{}", std::process::id()));
    fs::create_dir(&container).unwrap();
    let inside = "mount --make-rprivate / && umount -l /sys/fs/cgroup && mount -t cgroup2 cgroup /sys/fs/cgroup && \
                  exec $0 --exact memory_ends_at_the_limit_and_the_log_says_so --nocapture";
    let enter = "echo $$ >$0/cgroup.procs && exec unshare --cgroup --mount sh -c \"$1\" $2";
    let mut command = Command::new("sh");
    command.args(["-c", enter]).arg(&container).arg(inside).arg(std::env::current_exe().unwrap());
    let output = command.output().unwrap();
    let moved = container.join("init").exists();
    let removed = fs::remove_dir(container.join("init")).and(fs::remove_dir(&container));
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed") && !text.contains("skipped"), "{text}");
    assert!(moved, "its processes have moved: {text}");
    removed.unwrap();
}
