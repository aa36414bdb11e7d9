//! What this machine offers to sandboxes, and what earlier launchers left on it.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Resource};
use rustix::thread::CapabilitySet;
use serde::Serialize;

use crate::cgroup::{Cgroup, Hierarchies};
use crate::client::Launcher;
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::protocol;

/// One thing the machine lacks or limits, for `cfc doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What was found.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

/// How bad a [`Finding`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Severity {
    /// Worth knowing; everything works.
    Note,
    /// Something works less well.
    Warning,
    /// Sandboxes cannot run.
    Error,
}

impl Finding {
    fn new(severity: Severity, what: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { severity, what: what.into(), remedy: remedy.into() }
    }
}

/// The oldest kernel with overlays over id-mapped mounts.
const KERNEL_MIN: (u32, u32) = (5, 19);

/// Sandboxes hold about four descriptors each, in the launcher.
const DESCRIPTORS_WANTED: u64 = 4096;

/// Looks for what this machine lacks. Changes nothing.
pub fn check_host() -> Vec<Finding> {
    [check_privilege(), check_kernel(), check_user_namespaces(), check_overlay(), check_proc(), check_descriptors()]
        .into_iter()
        .flatten()
        .chain(check_cgroups(&Hierarchies::detect()))
        .chain(check_disks())
        .collect()
}

fn check_privilege() -> Option<Finding> {
    if !rustix::process::geteuid().is_root() {
        return Some(Finding::new(Severity::Error, "cfc does not run as root", "run it as root"));
    }
    let held = rustix::thread::capabilities(None).map(|sets| sets.effective).unwrap_or(CapabilitySet::empty());
    let needed = [
        (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN"),
        (CapabilitySet::SETUID, "CAP_SETUID"),
        (CapabilitySet::SETGID, "CAP_SETGID"),
    ];
    let missing: Vec<_> = needed.iter().filter(|(bit, _)| !held.contains(*bit)).map(|(_, name)| *name).collect();
    if !missing.is_empty() {
        let what = format!("root lacks {}", missing.join(", "));
        return Some(Finding::new(Severity::Error, what, "in a container, run it privileged"));
    }
    let lacks_resource = !held.contains(CapabilitySet::SYS_RESOURCE);
    let what = "root lacks CAP_SYS_RESOURCE: limits above this machine's hard limits are lowered to them";
    lacks_resource.then(|| Finding::new(Severity::Note, what, "none needed"))
}

fn check_kernel() -> Option<Finding> {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let what = format!("the kernel is {release}; overlays with mapped ids need {}.{}", KERNEL_MIN.0, KERNEL_MIN.1);
    (version < KERNEL_MIN).then(|| Finding::new(Severity::Error, what, "use a newer kernel"))
}

fn check_user_namespaces() -> Option<Finding> {
    let read = |path: &str| fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let Some(limit) = read("/proc/sys/user/max_user_namespaces") else {
        return Some(Finding::new(
            Severity::Error,
            "the kernel has no user namespaces",
            "use a kernel built with CONFIG_USER_NS",
        ));
    };
    let remedy = "sysctl user.max_user_namespaces=15000";
    (limit == 0).then(|| Finding::new(Severity::Error, "user namespaces are switched off", remedy))
}

fn check_overlay() -> Option<Finding> {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let has_overlay = known.lines().any(|line| line.split_whitespace().last() == Some("overlay"));
    let what = "the kernel knows no overlay filesystem";
    (!has_overlay).then(|| Finding::new(Severity::Error, what, "modprobe overlay"))
}

/// A user namespace may mount a proc only while it sees one that nothing covers.
fn check_proc() -> Option<Finding> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let point = |line: &str| line.split(' ').nth(4).map(str::to_owned);
    let covered: Vec<String> = mounts.lines().filter_map(point).filter(|p| p.starts_with("/proc/")).collect();
    let covered: Vec<String> = covered.into_iter().filter(|p| p != "/proc/sys/fs/binfmt_misc").collect();
    let what = format!("parts of /proc are covered ({}): sandboxes cannot mount their own", covered.join(", "));
    let remedy = "in a container, run it with an unmasked /proc (Docker: --privileged)";
    (!covered.is_empty()).then(|| Finding::new(Severity::Error, what, remedy))
}

fn check_descriptors() -> Option<Finding> {
    let limit = rustix::process::getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let what = format!("at most {limit} open files: room for about {} instances", limit / 7);
    (limit < DESCRIPTORS_WANTED)
        .then(|| Finding::new(Severity::Warning, what, "raise the hard limit (ulimit -Hn, LimitNOFILE=)"))
}

fn check_cgroups(hierarchies: &Hierarchies) -> Vec<Finding> {
    let lacking: Vec<_> = ["cpu", "memory", "pids"].into_iter().filter(|name| !hierarchies.offers(name)).collect();
    if lacking.is_empty() {
        return vec![Finding::new(Severity::Note, format!("limits use {}", hierarchies.describe()), "none needed")];
    }
    let what = format!("{} without the controllers {}: no such limits", hierarchies.describe(), lacking.join(", "));
    vec![Finding::new(Severity::Error, what, "mount the cgroup filesystem with these controllers")]
}

/// Without these, what an instance writes is bounded by the machine's disk only.
fn check_disks() -> Option<Finding> {
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let has_ext4 = filesystems.lines().any(|line| line.split_whitespace().last() == Some("ext4"));
    let (lacking, remedy) = match () {
        () if !Path::new("/dev/loop-control").exists() => {
            ("there are no loop devices", "modprobe loop; in a container, show it the host's /dev")
        }
        () if disk::lacks_mkfs() => ("there is no mkfs.ext4", "apt-get install e2fsprogs"),
        () if !has_ext4 => ("the kernel knows no ext4", "modprobe ext4"),
        () => return None,
    };
    let what = format!("{lacking}: instances' disks have no limit of their own, and a full one is the host's");
    Some(Finding::new(Severity::Warning, what, remedy))
}

/// How long the processes of a cgroup may take to die.
const KILL_DEADLINE: Duration = Duration::from_secs(5);

/// Removes what launchers that are gone have left: their sandboxes' cgroups, with whatever is left in them, and a socket at
/// `socket` that nobody listens on.
///
/// Touches nothing of a launcher that still runs. Returns the ids of the sandboxes that were removed.
pub fn sweep(socket: &Path) -> Result<Vec<String>> {
    if socket.exists() && Launcher::connect(socket).is_none() {
        let _ = fs::remove_file(socket);
    }
    let hierarchies = Hierarchies::detect();
    let mut removed = Vec::new();
    for parent in hierarchies.parents().into_iter().filter(|parent| protocol::is_orphan(parent)) {
        for id in hierarchies.sandboxes(&parent) {
            empty(hierarchies.existing(&parent, &id))
                .map_err(|kind| Error::new(format!("sweep what is left of sandbox `{id}`"), kind))?;
            removed.push(id);
        }
        hierarchies.remove_parent(&parent);
    }
    Ok(removed)
}

fn empty(mut cgroup: Cgroup) -> std::result::Result<(), ErrorKind> {
    let deadline = Instant::now() + KILL_DEADLINE;
    while !cgroup.remove() {
        for pid in cgroup.processes() {
            kill(pid, &cgroup);
        }
        if Instant::now() > deadline {
            return Err(ErrorKind::Unavailable(format!("the processes {:?} do not die", cgroup.processes())));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn kill(pid: i32, cgroup: &Cgroup) {
    let Some(pid) = Pid::from_raw(pid) else { return };
    let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { return };
    // Only now is it certain that the number has not passed to another process meanwhile.
    if cgroup.processes().contains(&pid.as_raw_nonzero().get()) {
        let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finding_says_what_to_do() {
        for finding in check_host() {
            assert!(!finding.what.is_empty() && !finding.remedy.is_empty(), "{finding:?}");
        }
    }
}
