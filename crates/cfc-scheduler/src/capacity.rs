//! [`Capacity`]: what the machine has for instances.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::InstanceType;

/// What may be set aside for instances at the same time; `None` where nobody counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// Millionths of a CPU. CPU time can be shared, so this is usually not counted.
    pub micro_cpus: Option<u64>,
    /// Memory in MiB.
    pub memory_mib: Option<u64>,
    /// Disk in MB.
    pub disk_mb: Option<u64>,
    /// The most that one instance can be given, which may be less than what may be promised to all of them.
    pub largest: Option<InstanceType>,
}

/// One of the things a machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resource {
    /// CPU time, in millionths of a CPU.
    Cpu,
    /// Memory, in MiB.
    Memory,
    /// Disk, in MB.
    Disk,
}

impl Resource {
    const ALL: [Resource; 3] = [Resource::Cpu, Resource::Memory, Resource::Disk];

    /// How much of it an instance of this type needs.
    pub fn needed_by(self, instance_type: &InstanceType) -> u64 {
        match self {
            Resource::Cpu => instance_type.micro_cpus,
            Resource::Memory => instance_type.memory_mib,
            Resource::Disk => instance_type.disk_mb,
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Resource::Cpu => "millionths of a CPU",
            Resource::Memory => "MiB of memory",
            Resource::Disk => "MB of disk",
        })
    }
}

impl Capacity {
    /// `wanted`, cut down to what this machine can give to one instance at all.
    pub fn clamp(&self, wanted: &InstanceType) -> InstanceType {
        let most = self.largest.unwrap_or(*wanted);
        InstanceType {
            micro_cpus: wanted.micro_cpus.min(most.micro_cpus),
            memory_mib: wanted.memory_mib.min(most.memory_mib),
            disk_mb: wanted.disk_mb.min(most.disk_mb),
        }
    }

    /// The first resource of which `wanted` does not fit beside what is in `use`, with how much of it is free.
    pub(crate) fn shortage<'a>(
        &self,
        wanted: &InstanceType,
        used: impl Iterator<Item = &'a InstanceType> + Clone,
    ) -> Option<(Resource, u64)> {
        Resource::ALL.into_iter().find_map(|resource| {
            let total = self.of(resource)?;
            let used = used.clone().map(|instance_type| resource.needed_by(instance_type));
            let used = used.fold(0, u64::saturating_add);
            let free = total.saturating_sub(used);
            (resource.needed_by(wanted) > free).then_some((resource, free))
        })
    }

    fn of(&self, resource: Resource) -> Option<u64> {
        match resource {
            Resource::Cpu => self.micro_cpus,
            Resource::Memory => self.memory_mib,
            Resource::Disk => self.disk_mb,
        }
    }
}
