//! [`Grant`]: what an operator may allow an application beyond [`default_spec`](crate::default_spec), and what it costs.

use oci_spec::runtime::{Capabilities, Capability, LinuxDeviceBuilder, LinuxDeviceType, LinuxSeccomp, Spec};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::seccomp::{self, KEYRINGS, MOUNTS, NAMESPACES};

/// More than a sandbox may by default. Each makes more of the kernel reachable; none reaches over the user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grant {
    /// Filesystems in user space: `/dev/fuse`, and mounting in the sandbox's own mount namespace.
    ///
    /// Costs: `CAP_SYS_ADMIN` in the sandbox's user namespace and the system calls that mount. A sandbox can then take the
    /// masks off its `/proc`, where the user namespace alone protects.
    Fuse,
    /// Containers inside the sandbox, as rootless Docker and podman make them.
    ///
    /// Costs: namespaces and all mounts, most capabilities in the sandbox's user namespace, set-user-id programs, an
    /// unmasked `/proc`. Bugs of the kernel that need a user namespace are within reach.
    Nested,
}

const FUSE_CAPABILITIES: [Capability; 1] = [Capability::SysAdmin];

/// Docker's default, and what makes namespaces and networks. All of them end at the user namespace.
const NESTED_CAPABILITIES: [Capability; 9] = [
    Capability::AuditWrite,
    Capability::DacReadSearch,
    Capability::Mknod,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::SysAdmin,
    Capability::SysPtrace,
    Capability::SysResource,
];

impl Grant {
    /// Both, for messages.
    pub const NAMES: [&str; 2] = ["fuse", "nested"];

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Grant::Fuse => Self::NAMES[0],
            Grant::Nested => Self::NAMES[1],
        }
    }

    /// The grant of this name.
    pub fn named(name: &str) -> Option<Grant> {
        match name {
            "fuse" => Some(Grant::Fuse),
            "nested" => Some(Grant::Nested),
            _ => None,
        }
    }

    /// Adds it to `spec`. An error says what this machine lacks.
    pub fn add_to(self, spec: &mut Spec) -> Result<()> {
        match self {
            Grant::Fuse => {
                add_fuse_device(spec)?;
                add_capabilities(spec, &FUSE_CAPABILITIES);
                change_profile(spec, |profile| seccomp::allow(profile, MOUNTS));
            }
            Grant::Nested => {
                add_capabilities(spec, &NESTED_CAPABILITIES);
                change_profile(spec, |profile| {
                    seccomp::allow(profile, MOUNTS);
                    seccomp::allow(profile, NAMESPACES);
                    // Runtimes go on without keyrings where the kernel has none, and give up where they are refused.
                    seccomp::forget(profile, KEYRINGS);
                });
                if let Some(process) = spec.process_mut() {
                    process.set_no_new_privileges(Some(false));
                }
                if let Some(linux) = spec.linux_mut() {
                    // The kernel lets a namespace mount a proc only while it sees all of one.
                    linux.set_masked_paths(None).set_readonly_paths(None);
                }
            }
        }
        Ok(())
    }
}

fn add_fuse_device(spec: &mut Spec) -> Result<()> {
    const PATH: &str = "/dev/fuse";
    let failed = |kind: ErrorKind| Error::new("grant `fuse`", kind);
    if !std::path::Path::new(PATH).exists() {
        let message = "this machine has no /dev/fuse (`modprobe fuse`)";
        return Err(failed(ErrorKind::Unavailable(message.to_owned())));
    }
    let device =
        LinuxDeviceBuilder::default().path(PATH).typ(LinuxDeviceType::C).major(10).minor(229).file_mode(0o666_u32);
    let device = device.build().map_err(|error| failed(ErrorKind::Invalid(error.to_string())))?;
    if let Some(linux) = spec.linux_mut() {
        let mut devices = linux.devices().clone().unwrap_or_default();
        devices.push(device);
        linux.set_devices(Some(devices));
    }
    Ok(())
}

fn add_capabilities(spec: &mut Spec, more: &[Capability]) {
    let Some(process) = spec.process_mut() else { return };
    let Some(mut capabilities) = process.capabilities().clone() else { return };
    let with = |set: &Option<Capabilities>| {
        let mut set = set.clone().unwrap_or_default();
        set.extend(more.iter().copied());
        Some(set)
    };
    let (bounding, effective) = (with(capabilities.bounding()), with(capabilities.effective()));
    let permitted = with(capabilities.permitted());
    capabilities.set_bounding(bounding).set_effective(effective).set_permitted(permitted);
    process.set_capabilities(Some(capabilities));
}

fn change_profile(spec: &mut Spec, change: impl FnOnce(&mut LinuxSeccomp)) {
    let Some(linux) = spec.linux_mut() else { return };
    let Some(mut profile) = linux.seccomp().clone() else { return };
    change(&mut profile);
    linux.set_seccomp(Some(profile));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::default_spec;

    #[test]
    fn every_name_is_a_grant_and_no_other() {
        assert!(Grant::NAMES.iter().all(|name| Grant::named(name).is_some()));
        assert_eq!(Grant::named("all"), None);
    }

    #[test]
    fn nested_takes_the_masks_off_and_the_default_keeps_them() {
        let mut spec = default_spec();
        Grant::Nested.add_to(&mut spec).expect("needs nothing of the machine");
        let linux = spec.linux().as_ref().expect("linux");
        assert!(linux.masked_paths().is_none() && linux.readonly_paths().is_none());
        let default = default_spec();
        assert!(default.linux().as_ref().is_some_and(|linux| linux.masked_paths().is_some()));
    }
}
