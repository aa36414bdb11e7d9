//! [`InstanceType`]: how much of a machine one instance may use.

use serde::{Deserialize, Serialize};

/// How much of a machine one instance may use. One MiB is 2^20 bytes, one MB is 10^6 bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceType {
    /// The name, where it is one of Cloudflare's; `None` for a custom size.
    pub name: Option<String>,
    /// CPUs, in fractions of one.
    pub vcpu: f64,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Disk in MB.
    pub disk_mb: u64,
}

/// Cloudflare's sizes: name, vCPU, memory in MiB, disk in MB. The last two are the old names of `lite` and `standard-1`.
const NAMED: &[(&str, f64, u64, u64)] = &[
    ("lite", 0.0625, 256, 2000),
    ("basic", 0.25, 1024, 4000),
    ("standard-1", 0.5, 4096, 8000),
    ("standard-2", 1.0, 6144, 12000),
    ("standard-3", 2.0, 8192, 16000),
    ("standard-4", 4.0, 12288, 20000),
    ("dev", 0.0625, 256, 2000),
    ("standard", 0.5, 4096, 8000),
];

impl InstanceType {
    /// The size that Cloudflare gives this name; the old names `dev` and `standard` become `lite` and `standard-1`.
    pub fn named(name: &str) -> Option<InstanceType> {
        let name = match name {
            "dev" => "lite",
            "standard" => "standard-1",
            name => name,
        };
        let (name, vcpu, memory_mib, disk_mb) = *NAMED.iter().find(|row| row.0 == name)?;
        Some(InstanceType { name: Some(name.to_string()), vcpu, memory_mib, disk_mb })
    }

    /// The names that a config may use, smallest first.
    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMED.iter().map(|row| row.0).filter(|name| !matches!(*name, "dev" | "standard"))
    }
}

impl Default for InstanceType {
    /// `lite`.
    fn default() -> InstanceType {
        let (_, vcpu, memory_mib, disk_mb) = NAMED[0];
        InstanceType { name: Some("lite".to_string()), vcpu, memory_mib, disk_mb }
    }
}
