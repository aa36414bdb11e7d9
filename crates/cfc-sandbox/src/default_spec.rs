//! [`default_spec`] and [`build_spec`]: what a sandbox is when nobody says otherwise.

use std::sync::OnceLock;

use oci_spec::runtime::{LinuxPids, LinuxResources, Spec};
use serde_json::{Value, json};

use crate::config::DEVICE_NODES_ANNOTATION;
use crate::seccomp::default_profile;

/// What an instance may do: Docker's fourteen without NET_RAW, MKNOD, AUDIT_WRITE and SETFCAP.
const INSTANCE_CAPABILITIES: [&str; 10] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// What Docker gives besides, which package managers in a build want.
const BUILD_CAPABILITIES: [&str; 4] = ["CAP_AUDIT_WRITE", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETFCAP"];

/// How many processes a build's `RUN` may have at once. Ends fork bombs.
const BUILD_PROCESSES_MAX: i64 = 8_192;

/// When the machine has no memory left, a sandbox goes before its launcher and before the host's own programs.
const OOM_SCORE_ADJUSTMENT: i32 = 500;

/// A spec with cfc's hardened defaults.
///
/// All namespaces, with 65,536 host ids of its own (no id mappings: the launcher chooses), few capabilities, seccomp, no new privileges, masked and
/// read-only paths, private `/proc`, `/sys` (read-only), `/dev`, `/dev/pts`, `/dev/shm`, `/dev/mqueue`. The caller sets
/// `process.args`, `env`, `cwd` and `user`, limits, and mounts of its own.
pub fn default_spec() -> Spec {
    static SPEC: OnceLock<Spec> = OnceLock::new();
    SPEC.get_or_init(|| spec(&INSTANCE_CAPABILITIES, true)).clone()
}

/// The spec for a build's `RUN`: as [`default_spec`], with all of Docker's capabilities, with `sudo` and other set-user-id
/// programs working, device nodes that can be made and not opened, a limit on processes, and the host name
/// `buildkitsandbox`.
pub fn build_spec() -> Spec {
    static SPEC: OnceLock<Spec> = OnceLock::new();
    let make = || {
        let capabilities: Vec<_> = INSTANCE_CAPABILITIES.iter().chain(&BUILD_CAPABILITIES).copied().collect();
        let mut spec = spec(&capabilities, false);
        spec.set_hostname(Some("buildkitsandbox".to_owned()));
        spec.set_annotations(Some([(DEVICE_NODES_ANNOTATION.to_owned(), "true".to_owned())].into()));
        if let Some(linux) = spec.linux_mut() {
            let mut resources = LinuxResources::default();
            let mut pids = LinuxPids::default();
            pids.set_limit(BUILD_PROCESSES_MAX);
            resources.set_pids(Some(pids));
            linux.set_resources(Some(resources));
        }
        spec
    };
    SPEC.get_or_init(make).clone()
}

/// The spec for a `RUN --security=insecure`: as [`build_spec`], with all capabilities, all system calls, and nothing masked
/// or read-only. What is left is the user namespace: the program is root over what belongs to it and nobody to the machine.
/// Device nodes it cannot make: as it may change its mounts, it could open them.
pub fn insecure_build_spec() -> Spec {
    let mut spec = build_spec();
    if let Some(process) = spec.process_mut() {
        let all = Some(crate::child::capabilities::all());
        let mut capabilities = process.capabilities().clone().unwrap_or_default();
        capabilities.set_bounding(all.clone()).set_effective(all.clone()).set_permitted(all);
        process.set_capabilities(Some(capabilities));
    }
    if let Some(linux) = spec.linux_mut() {
        linux.set_masked_paths(None).set_readonly_paths(None).set_seccomp(None);
    }
    if let Some(mounts) = spec.mounts_mut() {
        for mount in mounts.iter_mut().filter(|mount| mount.typ().as_deref() == Some("sysfs")) {
            mount.set_options(Some(["nosuid", "nodev", "noexec"].map(str::to_owned).to_vec()));
        }
    }
    spec
}

fn spec(capabilities: &[&str], no_new_privileges: bool) -> Spec {
    let namespaces = ["user", "mount", "pid", "network", "ipc", "uts", "cgroup"];
    let spec = json!({
        "ociVersion": "1.2.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": [],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "noNewPrivileges": no_new_privileges,
            "oomScoreAdj": OOM_SCORE_ADJUSTMENT,
        },
        "root": {"path": "rootfs", "readonly": false},
        "mounts": mounts(),
        "linux": {
            // As Docker: every user of the sandbox may listen on low ports and ping.
            // And all that is sent there stays on the machine: it is not paced where the host's default is BBR.
            "sysctl": {
                "net.ipv4.ip_unprivileged_port_start": "0",
                "net.ipv4.ping_group_range": "0 65535",
                "net.ipv4.tcp_congestion_control": "reno",
            },
            "namespaces": namespaces.map(|name| json!({"type": name})),
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
                "/sys/devices/virtual/powercap", "/sys/firmware",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    });
    let mut spec: Spec = serde_json::from_value(spec).expect("the default spec is well-formed");
    if let Some(linux) = spec.linux_mut() {
        linux.set_seccomp(Some(default_profile()));
    }
    spec
}

fn mounts() -> Value {
    let mount = |target: &str, kind: &str, options: &[&str]| json!({"destination": target, "type": kind, "source": kind, "options": options});
    json!([
        mount("/proc", "proc", &["nosuid", "nodev", "noexec"]),
        mount("/dev", "tmpfs", &["nosuid", "noexec", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        mount("/dev/shm", "tmpfs", &["nosuid", "nodev", "noexec", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", &["nosuid", "nodev", "noexec"]),
        mount("/sys", "sysfs", &["nosuid", "nodev", "noexec", "ro"]),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_may_do_more_than_an_instance() {
        let count = |spec: &Spec| {
            let process = spec.process().as_ref().expect("a process");
            process.capabilities().as_ref().and_then(|c| c.bounding().as_ref().map(|b| b.len()))
        };
        assert_eq!(count(&default_spec()), Some(10));
        assert_eq!(count(&build_spec()), Some(14));
        let spec = build_spec();
        let pids = spec.linux().as_ref().and_then(|l| l.resources().as_ref()).and_then(|r| r.pids().as_ref());
        assert_eq!(pids.map(|pids| pids.limit()), Some(BUILD_PROCESSES_MAX), "and ends a fork bomb");
        assert_eq!(build_spec().hostname().as_deref(), Some("buildkitsandbox"));
    }
}
