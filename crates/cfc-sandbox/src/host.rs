//! What this machine offers to sandboxes, and what earlier launchers left on it.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Resource};
use rustix::thread::CapabilitySet;
use serde::Serialize;

use crate::cgroup::{Cgroup, Hierarchies};
use crate::client::Launcher;
use crate::disk;
use crate::error::{Error, ErrorKind, Result, UNMASKED_PROC};
use crate::launcher::host_ids::HostIds;
use crate::listeners::Listeners;
use crate::oci_runtime::{OciRuntime, WELL_KNOWN};
use crate::protocol;
use crate::rootless::{self, SANDBOX_IDS, is_rootless};

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

/// The oldest kernels with overlays over id-mapped mounts, and with overlays for ordinary users.
const KERNEL_MIN: (u32, u32) = (5, 19);
const KERNEL_MIN_ROOTLESS: (u32, u32) = (5, 12);

/// Sandboxes hold about four descriptors each, in the launcher.
const DESCRIPTORS_WANTED: u64 = 4096;

/// The controllers that hold limits.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// Looks for what this machine lacks, for this user. Changes nothing.
///
/// An ordinary user's process calls [`enter_rootless`](crate::enter_rootless) before.
pub fn check_host() -> Vec<Finding> {
    let always = [
        check_privilege(),
        check_kernel(),
        check_user_namespaces(),
        check_overlay(),
        check_proc(),
        check_listeners(),
        check_descriptors(),
    ];
    let mut findings: Vec<Finding> = always.into_iter().flatten().collect();
    match is_rootless() {
        false => findings.extend(check_cgroups(&Hierarchies::detect()).into_iter().chain(check_disks())),
        true => findings.extend([check_ids(), missing_limits(), check_disk(), check_ports()].into_iter().flatten()),
    }
    findings.push(check_fuse());
    findings
}

/// Which limits sandboxes of this user cannot have, and what to do about it; `None` when they can have all.
///
/// The machine's root gets an error instead when it asks for such a limit.
pub fn missing_limits() -> Option<Finding> {
    let hierarchies = is_rootless().then(Hierarchies::detect)?;
    let lacking = lacking_controllers(&hierarchies);
    let what = format!("containers have no limit of {}: this user was given no cgroup for it", lacking.join(", "));
    let remedy = "with systemd: systemd-run --user --scope -p Delegate=yes cfc serve; else have root give you a cgroup, or \
                  run cfc as root";
    (!lacking.is_empty()).then(|| Finding::new(Severity::Warning, what, remedy))
}

fn check_privilege() -> Option<Finding> {
    if let Some(failure) = rootless::failure() {
        let hint = Error::new("", failure.clone()).hint().unwrap_or("run cfc as root");
        return Some(Finding::new(Severity::Error, failure.to_string(), hint));
    }
    let held = rustix::thread::capabilities(None).map(|sets| sets.effective).unwrap_or(CapabilitySet::empty());
    if !rootless::is_privileged() {
        let what = "this process lacks the rights to make sandboxes";
        return Some(Finding::new(Severity::Error, what, "run cfc as root, or let it make a user namespace"));
    }
    let lacks_resource = !held.contains(CapabilitySet::SYS_RESOURCE);
    let what = "root lacks CAP_SYS_RESOURCE: limits above this machine's hard limits are lowered to them";
    (lacks_resource && !is_rootless()).then(|| Finding::new(Severity::Note, what, "none needed"))
}

/// The users that images and containers can have.
fn check_ids() -> Option<Finding> {
    let count = HostIds::detect().count();
    if count >= SANDBOX_IDS {
        let what = format!("containers run as {count} of this user's subordinate ids");
        return Some(Finding::new(Severity::Note, what, "none needed"));
    }
    let why = rootless::why_single().map(|why| format!(" ({why})")).unwrap_or_default();
    let what = match count {
        1 => format!(
            "containers have a single user, who is you outside{why}: USER and chown to others fail in them, and files of \
             images lose their owners"
        ),
        count => format!("containers have the users 0 to {} only{why}", count.saturating_sub(1)),
    };
    let remedy = "install newuidmap (Debian: apt-get install uidmap), and as root: usermod --add-subuids 100000-165535 \
                  --add-subgids 100000-165535 USER (ranges that nobody else has), then end `cfc serve` and start it again";
    Some(Finding::new(Severity::Warning, what, remedy))
}

fn check_disk() -> Option<Finding> {
    let what = "containers have no limit of disk: they can fill the filesystem of the data directory";
    let remedy = "give the data directory a filesystem of its own, or run cfc as root";
    Some(Finding::new(Severity::Warning, what, remedy))
}

fn check_ports() -> Option<Finding> {
    let start = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").ok()?;
    let start: u16 = start.trim().parse().ok()?;
    let what = format!("this user cannot listen on ports below {start}; inside containers every port is free");
    let remedy = "choose higher ones, or as root: sysctl -w net.ipv4.ip_unprivileged_port_start=80";
    (start > 0).then(|| Finding::new(Severity::Note, what, remedy))
}

fn check_kernel() -> Option<Finding> {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let (minimum, what_for) = match is_rootless() {
        true => (KERNEL_MIN_ROOTLESS, "overlays of ordinary users"),
        false => (KERNEL_MIN, "overlays with mapped ids"),
    };
    let what = format!("the kernel is {release}; {what_for} need {}.{}", minimum.0, minimum.1);
    (version < minimum).then(|| Finding::new(Severity::Error, what, "use a newer kernel"))
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
    // An ordinary user's own attempt has said so already.
    let is_news = limit == 0 && rootless::failure().is_none();
    let remedy = "sysctl -w user.max_user_namespaces=15000";
    is_news.then(|| Finding::new(Severity::Error, "user namespaces are switched off", remedy))
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
    (!covered.is_empty()).then(|| Finding::new(Severity::Error, what, UNMASKED_PROC))
}

/// Without it nobody learns that an application listens. Asking loads the module, where there is one.
fn check_listeners() -> Option<Finding> {
    let error = Listeners::here().and_then(|listeners| listeners.ports().map_err(std::io::Error::other)).err()?;
    let what =
        format!("the kernel does not tell which ports are listened on, so containers never count as ready ({error})");
    let remedy = "modprobe tcp_diag; else use a kernel with CONFIG_INET_DIAG";
    Some(Finding::new(Severity::Error, what, remedy))
}

fn check_descriptors() -> Option<Finding> {
    let limit = rustix::process::getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let what = format!("at most {limit} open files: room for about {} instances", limit / 7);
    (limit < DESCRIPTORS_WANTED)
        .then(|| Finding::new(Severity::Warning, what, "raise the hard limit (ulimit -Hn, LimitNOFILE=)"))
}

/// The cgroup controllers that no hierarchy of this machine has: limits of these a sandbox cannot be given.
///
/// Looked for once: where they are mounted does not change under a running system.
pub fn missing_controllers() -> &'static [&'static str] {
    static MISSING: OnceLock<Vec<&'static str>> = OnceLock::new();
    MISSING.get_or_init(|| lacking_controllers(&Hierarchies::detect()))
}

fn lacking_controllers(hierarchies: &Hierarchies) -> Vec<&'static str> {
    CONTROLLERS.into_iter().filter(|name| !hierarchies.offers(name)).collect()
}

fn check_cgroups(hierarchies: &Hierarchies) -> Vec<Finding> {
    let lacking = lacking_controllers(hierarchies);
    if lacking.is_empty() {
        return vec![Finding::new(Severity::Note, format!("limits use {}", hierarchies.describe()), "none needed")];
    }
    let what = format!("{} without the controllers {}: no such limits", hierarchies.describe(), lacking.join(", "));
    let remedy = "mount the cgroup filesystem with these controllers; in a container, start that with --privileged, or with \
                  /sys/fs/cgroup writable";
    vec![Finding::new(Severity::Error, what, remedy)]
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

/// Which classes of isolation there are besides cfc's own sandbox.
/// The well-known OCI runtimes that this machine has.
pub fn well_known_runtimes() -> Vec<OciRuntime> {
    let path = std::env::var("PATH").ok();
    WELL_KNOWN.iter().filter_map(|name| OciRuntime::find(name, Path::new(name), &[], path.as_deref()).ok()).collect()
}

/// What there is to say of an OCI runtime: where it is, which version, and whether it works, which is tried with a launcher
/// made from `program`. One that was `asked` for and does not work is worth a warning.
pub fn check_runtime(runtime: &OciRuntime, program: &Path, asked: bool) -> Finding {
    let version = runtime.version().unwrap_or_else(|| "of an unknown version".to_owned());
    let what = format!("the OCI runtime `{}` ({}, {version})", runtime.name(), runtime.program().display());
    match runtime.check(program) {
        Ok(()) => {
            let is_hostile = runtime.kind() == crate::oci_runtime::Kind::Runsc;
            let remedy = format!(
                "none needed; `runtime = \"{}\"` in the configuration file uses it{}",
                runtime.name(),
                if is_hostile { ": the class for hostile code" } else { "" }
            );
            Finding::new(Severity::Note, format!("{what} works"), remedy)
        }
        Err(error) => {
            let severity = if asked { Severity::Warning } else { Severity::Note };
            let remedy = match asked {
                true => "correct it, or take another; `cfc` is the sandbox that needs no other program",
                false => "none needed; nothing uses it",
            };
            Finding::new(severity, format!("{what} does not work here: {error}"), remedy)
        }
    }
}

fn check_fuse() -> Finding {
    match Path::new("/dev/fuse").exists() {
        true => Finding::new(Severity::Note, "there is /dev/fuse: the grant `fuse` can be given", "none needed"),
        false => Finding::new(Severity::Note, "no /dev/fuse: the grant `fuse` cannot be given", "modprobe fuse"),
    }
}

/// How long the processes of a cgroup may take to die.
const KILL_DEADLINE: Duration = Duration::from_secs(5);

/// Removes what launchers that are gone have left: their sandboxes' cgroups, with whatever is left in them, and a socket at
/// `socket` that nobody listens on.
///
/// Touches nothing of a launcher that still runs. Returns the names of the cgroups that were removed: the sandboxes' ids, or
/// in v2, where a cgroup cannot be renamed, those of the shells that they were made of.
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
