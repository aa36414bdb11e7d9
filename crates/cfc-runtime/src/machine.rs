//! [`Shares`]: how much of the machine instances may have; and the measuring of what that is.
//!
//! Memory and disk are set aside for an instance while it lives, so that those that live can use all they were promised.
//! The disk shrinks and grows by what others do on it, so it is measured at each start.

use std::fs;
use std::path::Path;
use std::sync::Weak;
use std::time::Duration;

use cfc_scheduler::{Capacity, Event, InstanceType, Resource};

use crate::error::{AtPath, RuntimeErrorKind};
use crate::runtime::{Inner, Runtime, blocking};
use crate::trial::is_trial;

/// How often it is looked at how full the disks of instances are.
const DISKS_LOOKED_AT: Duration = Duration::from_secs(5);
/// A disk that is cut down to what there is has a multiple of this size, so that few sizes are wanted.
const DISK_STEP_MB: u64 = 500;
/// Nothing is cut down to less than these: where that is all there is, a start is refused.
const DISK_MIN_MB: u64 = 500;
const MEMORY_MIN_MIB: u64 = 64;

/// How much of the machine instances may have. The rest is for its other programs, cfc and its registry included.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shares {
    /// How many times the CPUs may be promised; `None` counts no CPUs, since their time can be shared.
    pub cpu_overcommit: Option<f64>,
    /// How many times the memory may be promised, beyond the reserve. Above one, the machine may run out of it.
    pub memory_overcommit: f64,
    /// Memory for others, in MiB; `None` is a twentieth, at least 256 MiB.
    pub memory_reserve_mib: Option<u64>,
    /// How many times the free disk may be promised, beyond the reserve. Above one, the machine may run out of it.
    pub disk_overcommit: f64,
    /// Disk for others, in MB; `None` is a twentieth of the filesystem, at most 10 GB.
    pub disk_reserve_mb: Option<u64>,
}

impl Default for Shares {
    fn default() -> Shares {
        Shares {
            cpu_overcommit: None,
            memory_overcommit: 1.0,
            memory_reserve_mib: None,
            disk_overcommit: 1.0,
            disk_reserve_mb: None,
        }
    }
}

/// What the machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Measure {
    cpus: u64,
    memory_mib: u64,
    disk_size_mb: u64,
    disk_free_mb: u64,
}

impl Measure {
    /// Measures this machine, and the filesystem of `directory`.
    fn take(directory: &Path) -> Result<Measure, RuntimeErrorKind> {
        const MB: u64 = 1_000_000;
        let meminfo = fs::read_to_string("/proc/meminfo").at("read", Path::new("/proc/meminfo"))?;
        let disk = rustix::fs::statvfs(directory).map_err(std::io::Error::from).at("measure", directory)?;
        Ok(Measure {
            cpus: std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64),
            memory_mib: total_memory_mib(&meminfo).unwrap_or(u64::MAX),
            disk_size_mb: (disk.f_blocks * disk.f_frsize) / MB,
            disk_free_mb: (disk.f_bavail * disk.f_frsize) / MB,
        })
    }
}

fn total_memory_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib / 1024)
}

impl Shares {
    /// What may be set aside, when the disks of instances hold `disk_used_mb` already.
    fn of(&self, measure: &Measure, disk_used_mb: u64) -> Capacity {
        const MEMORY_RESERVE_MIN_MIB: u64 = 256;
        const DISK_RESERVE_MAX_MB: u64 = 10_000;
        let memory_reserve = self.memory_reserve_mib.unwrap_or((measure.memory_mib / 20).max(MEMORY_RESERVE_MIN_MIB));
        let memory_mib = measure.memory_mib.saturating_sub(memory_reserve);
        let disk_reserve = self.disk_reserve_mb.unwrap_or((measure.disk_size_mb / 20).min(DISK_RESERVE_MAX_MB));
        // What instances have written was promised to them: it is used up, but not by others.
        let disk_mb = (measure.disk_free_mb + disk_used_mb).saturating_sub(disk_reserve);
        let micro_cpus = measure.cpus * 1_000_000;
        let most = |amount: u64, least: u64| if amount < least { u64::MAX } else { amount };
        let times = |amount: u64, factor: f64| (amount as f64 * factor) as u64;
        Capacity {
            micro_cpus: self.cpu_overcommit.map(|factor| times(micro_cpus, factor)),
            memory_mib: Some(times(memory_mib, self.memory_overcommit)),
            disk_mb: Some(times(disk_mb, self.disk_overcommit)),
            largest: Some(InstanceType {
                micro_cpus,
                memory_mib: most(memory_mib, MEMORY_MIN_MIB),
                disk_mb: most(disk_mb - disk_mb % DISK_STEP_MB, DISK_MIN_MB),
            }),
        }
    }
}

impl Runtime {
    /// From now on instances get no more than `shares` of this machine; what lives already counts.
    ///
    /// Without it, what was given when the runtime was opened holds.
    pub fn share_machine(&self, shares: Shares) {
        let mut inner = self.lock();
        inner.shares = Some(shares);
        self.measure(&mut inner);
        drop(inner);
        let shared = std::sync::Arc::downgrade(&self.shared);
        self.shared.tasks.spawn(async move {
            loop {
                tokio::time::sleep(DISKS_LOOKED_AT).await;
                let Some(shared) = Weak::upgrade(&shared) else { return };
                let runtime = Runtime { shared };
                if !runtime.lock().records.is_empty() {
                    blocking(move || runtime.look_at_disks()).await;
                }
            }
        });
    }

    /// Tells the scheduler what there is.
    pub(crate) fn measure(&self, inner: &mut Inner) {
        let Some(shares) = inner.shares else { return };
        let used_mb = inner.disk_used_mb.values().sum();
        match Measure::take(self.shared.directories.root()) {
            Ok(measure) => {
                inner.scheduler.step(self.now(), Event::Measured(shares.of(&measure, used_mb)));
            }
            Err(error) => tracing::warn!(%error, "cannot measure this machine; what was measured before holds"),
        }
    }

    fn look_at_disks(&self) {
        match self.shared.launcher.disks() {
            Ok(disks) => {
                let used = disks.into_iter().map(|(name, usage)| (name, usage.used_bytes / 1_000_000));
                self.lock().disk_used_mb = used.collect();
            }
            Err(error) => tracing::debug!(%error, "cannot look at the disks of instances"),
        }
    }

    /// What instances of an application do not get of what it asks for, in words for a person: `500 MiB of memory instead
    /// of 1024`.
    pub fn clamps(&self, application: &str) -> Vec<String> {
        self.lock().clamps.get(application).cloned().unwrap_or_default()
    }

    /// Says once, until it changes, what the instances of an application do not get of what it asks for.
    pub(crate) fn warn_of_clamps(&self, inner: &mut Inner, application: &str, instance_type: &InstanceType) {
        let clamps = clamps(inner, instance_type);
        let known = inner.clamps.entry(application.to_string()).or_default();
        if !clamps.is_empty() && *known != clamps && !is_trial(application) {
            tracing::warn!(application, "its instances get less than it asks for: {}", clamps.join("; "));
        }
        *known = clamps;
    }
}

/// What of `instance_type` this machine cannot give, in words for a person.
fn clamps(inner: &Inner, instance_type: &InstanceType) -> Vec<String> {
    let given = inner.scheduler.capacity().clamp(instance_type);
    let cut = |resource: Resource| {
        let (wanted, given) = (resource.needed_by(instance_type), resource.needed_by(&given));
        (given < wanted).then(|| format!("{given} {resource} instead of {wanted}"))
    };
    [Resource::Cpu, Resource::Memory, Resource::Disk].into_iter().filter_map(cut).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEASURE: Measure = Measure { cpus: 2, memory_mib: 24_000, disk_size_mb: 250_000, disk_free_mb: 50_000 };

    #[test]
    fn a_reserve_is_kept_and_what_instances_wrote_stays_theirs() {
        let capacity = Shares::default().of(&MEASURE, 3_000);
        assert_eq!((capacity.memory_mib, capacity.disk_mb, capacity.micro_cpus), (Some(22_800), Some(43_000), None));
        let shares = Shares { disk_reserve_mb: Some(0), memory_reserve_mib: Some(0), ..Shares::default() };
        let capacity = shares.of(&MEASURE, 0);
        assert_eq!((capacity.memory_mib, capacity.disk_mb), (Some(24_000), Some(50_000)));
    }

    #[test]
    fn overcommit_promises_more_to_all_but_not_to_one() {
        let shares =
            Shares { cpu_overcommit: Some(4.0), memory_overcommit: 2.0, disk_overcommit: 10.0, ..Shares::default() };
        let capacity = shares.of(&MEASURE, 0);
        assert_eq!((capacity.micro_cpus, capacity.memory_mib), (Some(8_000_000), Some(45_600)));
        assert_eq!(capacity.disk_mb, Some(400_000));
        let largest = InstanceType { micro_cpus: 2_000_000, memory_mib: 22_800, disk_mb: 40_000 };
        assert_eq!(capacity.largest, Some(largest));
    }

    #[test]
    fn a_full_filesystem_has_room_for_nothing() {
        let capacity = Shares::default().of(&Measure { disk_free_mb: 9_000, ..MEASURE }, 0);
        assert_eq!(capacity.disk_mb, Some(0));
        assert_eq!(capacity.clamp(&InstanceType::LITE), InstanceType::LITE, "so a start is refused, not cut down");
    }

    #[test]
    fn this_machine_can_be_measured() {
        let measure = Measure::take(Path::new("/")).expect("is measured");
        assert!(measure.cpus > 0 && measure.memory_mib > 0 && measure.disk_size_mb > 0, "{measure:?}");
    }
}
