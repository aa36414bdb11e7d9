//! Capability sets, as bits.

use oci_spec::runtime::{Capabilities, LinuxCapabilities};
use rustix::thread::{CapabilitySet, CapabilitySets};
use serde::{Deserialize, Serialize};

use crate::error::ErrorKind;
use crate::step::Step;

/// The capabilities' names in the kernel's order: the index is the number.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Every capability there is.
pub(crate) fn all() -> Capabilities {
    let named = |name: &str| serde_json::from_value(serde_json::Value::String(format!("CAP_{name}"))).ok();
    NAMES.iter().filter_map(|name| named(name)).collect()
}

/// The five sets of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CapabilityMasks {
    bounding: u64,
    effective: u64,
    permitted: u64,
    inheritable: u64,
    ambient: u64,
}

impl CapabilityMasks {
    /// Whether a process with these can have CAP_SYS_ADMIN, which unmounts.
    pub(crate) fn may_unmount(&self) -> bool {
        let all = self.bounding | self.effective | self.permitted | self.inheritable | self.ambient;
        NAMES.iter().position(|name| *name == "SYS_ADMIN").is_none_or(|number| all >> number & 1 == 1)
    }

    /// The spec's sets; what it leaves out is empty.
    pub(crate) fn new(capabilities: Option<&LinuxCapabilities>) -> CapabilityMasks {
        let Some(capabilities) = capabilities else { return CapabilityMasks::default() };
        CapabilityMasks {
            bounding: mask(capabilities.bounding()),
            effective: mask(capabilities.effective()),
            permitted: mask(capabilities.permitted()),
            inheritable: mask(capabilities.inheritable()),
            ambient: mask(capabilities.ambient()),
        }
    }

    /// Drops from the bounding set all but ours. Needs CAP_SETPCAP, so it comes before [`apply`](Self::apply).
    pub(crate) fn limit_bounding_set(&self) -> Result<(), ErrorKind> {
        for number in 0..64 {
            let bit = 1 << number;
            if self.bounding & bit != 0 {
                continue;
            }
            match rustix::thread::remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(bit)) {
                // The kernel knows no capability of this number, nor a higher one.
                Err(rustix::io::Errno::INVAL) => break,
                result => result.step(|| format!("drop capability {number}"))?,
            }
        }
        Ok(())
    }

    /// Sets the other four. To be called after the user has changed, with "keep capabilities" on.
    pub(crate) fn apply(&self) -> Result<(), ErrorKind> {
        let set = CapabilitySet::from_bits_retain;
        let sets = CapabilitySets {
            effective: set(self.effective & self.permitted),
            permitted: set(self.permitted),
            inheritable: set(self.inheritable & self.permitted),
        };
        rustix::thread::set_capabilities(None, sets).step(|| "set the capabilities".into())?;
        rustix::thread::clear_ambient_capability_set().step(|| "clear the ambient capabilities".into())?;
        for number in (0..64).filter(|number| self.ambient & (1 << number) != 0) {
            rustix::thread::configure_capability_in_ambient_set(set(1 << number), true)
                .step(|| format!("make capability {number} ambient"))?;
        }
        Ok(())
    }
}

fn mask(capabilities: &Option<Capabilities>) -> u64 {
    let number = |name: String| NAMES.iter().position(|known| *known == name);
    capabilities.iter().flatten().filter_map(|c| number(c.to_string())).map(|number| 1 << number).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_the_spec_has_its_number() {
        let all: Vec<String> = NAMES.iter().map(|name| format!("CAP_{name}")).collect();
        let parsed: LinuxCapabilities =
            serde_json::from_value(serde_json::json!({"bounding": all, "effective": ["CAP_CHOWN", "CAP_SYS_ADMIN"]}))
                .expect("the names are known");
        let masks = CapabilityMasks::new(Some(&parsed));
        assert_eq!(masks.bounding, (1 << 41) - 1);
        assert_eq!(masks.effective, 1 | 1 << 21);
        assert_eq!(masks.permitted, 0);
    }
}
