//! What an OCI spec can ask for and this crate does not do: refused by name, never ignored.

use oci_spec::runtime::{Linux, LinuxResources, Process, Spec};

/// The path in the spec of the first thing that is not supported.
///
/// `linux.resources.devices` is let pass: inside a user namespace no device but those bound into `/dev` can be opened.
pub(crate) fn first_unsupported(spec: &Spec) -> Option<&'static str> {
    let process = spec.process().as_ref().map(of_process).unwrap_or_default();
    let linux = spec.linux().as_ref().map(of_linux).unwrap_or_default();
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref()).map(of_resources);
    let own = vec![("hooks", spec.hooks().is_some()), ("domainname", spec.domainname().is_some())];
    let all = own.into_iter().chain(process).chain(linux).chain(resources.unwrap_or_default());
    all.into_iter().find_map(|(path, is_asked)| is_asked.then_some(path))
}

type Asked = Vec<(&'static str, bool)>;

fn of_process(process: &Process) -> Asked {
    vec![
        ("process.terminal", process.terminal() == Some(true)),
        ("process.apparmorProfile", process.apparmor_profile().is_some()),
        ("process.selinuxLabel", process.selinux_label().is_some()),
        ("process.ioPriority", process.io_priority().is_some()),
        ("process.scheduler", process.scheduler().is_some()),
        ("process.execCPUAffinity", process.exec_cpu_affinity().is_some()),
    ]
}

fn of_linux(linux: &Linux) -> Asked {
    vec![
        ("linux.netDevices", linux.net_devices().is_some()),
        ("linux.cgroupsPath", linux.cgroups_path().is_some()),
        ("linux.mountLabel", linux.mount_label().is_some()),
        ("linux.intelRdt", linux.intel_rdt().is_some()),
        ("linux.memoryPolicy", linux.memory_policy().is_some()),
        ("linux.personality", linux.personality().is_some()),
        ("linux.timeOffsets", linux.time_offsets().is_some()),
        ("linux.rootfsPropagation", linux.rootfs_propagation().as_deref().is_some_and(|p| !p.contains("private"))),
    ]
}

fn of_resources(resources: &LinuxResources) -> Asked {
    let memory = resources.memory().as_ref();
    let cpu = resources.cpu().as_ref();
    vec![
        ("linux.resources.blockIO", resources.block_io().is_some()),
        (
            "linux.resources.hugepageLimits",
            resources.hugepage_limits().as_ref().is_some_and(|limits| !limits.is_empty()),
        ),
        ("linux.resources.network", resources.network().is_some()),
        ("linux.resources.rdma", resources.rdma().is_some()),
        ("linux.resources.unified", resources.unified().is_some()),
        ("linux.resources.memory.reservation", memory.is_some_and(|m| m.reservation().is_some())),
        ("linux.resources.memory.kernel", memory.is_some_and(|m| m.kernel().is_some())),
        ("linux.resources.memory.kernelTCP", memory.is_some_and(|m| m.kernel_tcp().is_some())),
        ("linux.resources.memory.swappiness", memory.is_some_and(|m| m.swappiness().is_some())),
        ("linux.resources.memory.disableOOMKiller", memory.is_some_and(|m| m.disable_oom_killer() == Some(true))),
        ("linux.resources.cpu.burst", cpu.is_some_and(|c| c.burst().is_some())),
        ("linux.resources.cpu.idle", cpu.is_some_and(|c| c.idle().is_some())),
        ("linux.resources.cpu.cpus", cpu.is_some_and(|c| c.cpus().is_some())),
        ("linux.resources.cpu.mems", cpu.is_some_and(|c| c.mems().is_some())),
        ("linux.resources.cpu.realtimeRuntime", cpu.is_some_and(|c| c.realtime_runtime().is_some())),
        ("linux.resources.cpu.realtimePeriod", cpu.is_some_and(|c| c.realtime_period().is_some())),
    ]
}

#[cfg(test)]
mod tests {
    use crate::default_spec::{build_spec, default_spec};

    use super::*;

    #[test]
    fn our_own_specs_ask_for_nothing_that_is_missing() {
        assert_eq!(first_unsupported(&default_spec()), None);
        assert_eq!(first_unsupported(&build_spec()), None);
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut spec = default_spec();
        if let Some(process) = spec.process_mut() {
            process.set_terminal(Some(true));
        }
        assert_eq!(first_unsupported(&spec), Some("process.terminal"));
    }
}
