//! [`InstanceType`]: how much of a machine one instance may use.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::keys;
use crate::table::{Table, described, list};

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

    /// A size of its own; what is not given is as large as in `lite`.
    pub fn custom(vcpu: Option<f64>, memory_mib: Option<u64>, disk_mb: Option<u64>) -> InstanceType {
        let lite = InstanceType::default();
        InstanceType {
            name: None,
            vcpu: vcpu.unwrap_or(lite.vcpu),
            memory_mib: memory_mib.unwrap_or(lite.memory_mib),
            disk_mb: disk_mb.unwrap_or(lite.disk_mb),
        }
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

/// What Cloudflare gives to a custom size. wrangler sends any numbers and Cloudflare refuses them; on machines of one's own
/// the only bound is the machine, so this is worth a warning. How much disk a GiB of memory may have is free since 29
/// September 2026; before, it was 2 GB.
const CUSTOM_VCPU: (f64, f64) = (1.0, 4.0);
const CUSTOM_MEMORY_MIB_MAX: u64 = 12_288;
const CUSTOM_DISK_MB_MAX: u64 = 20_000;
const CUSTOM_MEMORY_MIB_PER_VCPU: f64 = 3_072.0;

fn warn_of_bounds(size: &Table, custom: &InstanceType) {
    const REFUSED: &str = "cfc runs it, Cloudflare would refuse it";
    let (least, most) = CUSTOM_VCPU;
    if !(least..=most).contains(&custom.vcpu) {
        size.warning("vcpu", format!("{} is outside of {least} to {most}: {REFUSED}", custom.vcpu));
    }
    let memory_min = (custom.vcpu * CUSTOM_MEMORY_MIB_PER_VCPU).ceil();
    let (memory, disk) = (custom.memory_mib, custom.disk_mb);
    if memory > CUSTOM_MEMORY_MIB_MAX {
        size.warning("memory_mib", format!("{memory} is more than {CUSTOM_MEMORY_MIB_MAX}: {REFUSED}"));
    } else if (memory as f64) < memory_min {
        let needed = format!("{} vCPU need {memory_min}, 3072 each", custom.vcpu);
        size.warning("memory_mib", format!("{memory} is too little, {needed}: {REFUSED}"));
    }
    if disk > CUSTOM_DISK_MB_MAX {
        size.warning("disk_mb", format!("{disk} is more than {CUSTOM_DISK_MB_MAX}: {REFUSED}"));
    }
}

/// Reads `instance_type`; `deprecated` is the size that the old `configuration` gives.
pub(crate) fn read(table: &Table, deprecated: Option<InstanceType>) -> Option<InstanceType> {
    const FIELD: &str = "instance_type";
    match (table.value(FIELD), deprecated) {
        (Some(_), Some(_)) => {
            table.problem(FIELD, "`configuration` gives a size too", "keep `instance_type` and remove `configuration`");
            None
        }
        (None, deprecated) => Some(deprecated.unwrap_or_default()),
        (Some(Value::String(name)), None) => {
            let named = InstanceType::named(name);
            match &named {
                Some(InstanceType { name: Some(new_name), .. }) if new_name != name => {
                    table.warning(FIELD, format!("`{name}` is now called `{new_name}`"));
                }
                Some(_) => {}
                None => {
                    let names: Vec<&str> = InstanceType::names().collect();
                    let known = format!("choose one of {}, or give `vcpu`, `memory_mib` and `disk_mb`", list(&names));
                    let hint = keys::similar(name, names.into_iter())
                        .map_or(known, |similar| format!("did you mean `{similar}`?"));
                    table.problem(FIELD, format!("there is no instance type `{name}`"), hint);
                }
            }
            named
        }
        (Some(Value::Object(_)), None) => {
            let size = table.object(FIELD)?;
            let custom = InstanceType::custom(
                size.positive_number("vcpu"),
                size.whole_number("memory_mib"),
                size.whole_number("disk_mb"),
            );
            for (field, value) in [("memory_mib", custom.memory_mib), ("disk_mb", custom.disk_mb)] {
                if value == 0 {
                    size.problem(field, "expected more than zero", "");
                }
            }
            warn_of_bounds(&size, &custom);
            size.refuse_others();
            Some(custom)
        }
        (Some(other), None) => {
            let hint = "for example `\"basic\"` or `{ \"vcpu\": 1, \"memory_mib\": 1024, \"disk_mb\": 4000 }`";
            table.problem(FIELD, format!("expected a name or an object, found {}", described(other)), hint);
            None
        }
    }
}
