//! [`Application`]: the instances of one container class, and [`InstanceType`]: how large each of them is.

use serde::{Deserialize, Serialize};

/// What all instances of one container class share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Application {
    /// Unique on this machine.
    pub name: String,
    /// How many of its instances may live at the same time.
    pub max_instances: u32,
    /// How large each instance is.
    pub instance_type: InstanceType,
}

/// The share of the machine that one instance gets. Limits, and what is set aside while it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceType {
    /// Millionths of a virtual CPU: 62 500 is a sixteenth.
    pub micro_cpus: u64,
    /// Memory in MiB (2^20 bytes). There is no swap beside it.
    pub memory_mib: u64,
    /// Disk in MB (10^6 bytes).
    pub disk_mb: u64,
}

impl InstanceType {
    /// The smallest named type, which is also the default.
    pub const LITE: InstanceType = InstanceType { micro_cpus: 62_500, memory_mib: 256, disk_mb: 2_000 };

    /// A type of its own size. CPUs are rounded to the next millionth; nothing below one.
    pub fn custom(vcpu: f64, memory_mib: u64, disk_mb: u64) -> InstanceType {
        let micro_cpus = (vcpu * 1e6).round().clamp(1.0, 1e12) as u64;
        InstanceType { micro_cpus, memory_mib, disk_mb }
    }

    /// The type that Cloudflare calls `name`.
    pub fn named(name: &str) -> Result<InstanceType, UnknownInstanceType> {
        let (micro_cpus, memory_mib, disk_mb) = match name {
            "lite" | "dev" => return Ok(InstanceType::LITE),
            "basic" => (250_000, 1_024, 4_000),
            "standard" | "standard-1" => (500_000, 4_096, 8_000),
            "standard-2" => (1_000_000, 6_144, 12_000),
            "standard-3" => (2_000_000, 8_192, 16_000),
            "standard-4" => (4_000_000, 12_288, 20_000),
            _ => return Err(UnknownInstanceType(name.to_string())),
        };
        Ok(InstanceType { micro_cpus, memory_mib, disk_mb })
    }
}

/// No instance type has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown instance type `{0}`, expected `lite`, `basic`, `standard-1`, `standard-2`, `standard-3` or `standard-4`"
)]
pub struct UnknownInstanceType(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sixteenth_of_a_cpu_is_exact() {
        assert_eq!(InstanceType::custom(0.0625, 256, 2_000), InstanceType::LITE);
    }

    #[test]
    fn old_names_mean_the_new_types() {
        assert_eq!(InstanceType::named("dev"), InstanceType::named("lite"));
        assert_eq!(InstanceType::named("standard"), InstanceType::named("standard-1"));
        assert!(InstanceType::named("huge").is_err());
    }
}
