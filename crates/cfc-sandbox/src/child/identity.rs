//! Who the process is: limits, user, capabilities, seccomp.

use rustix::process::{DumpableBehavior, Gid, Resource, Rlimit, Uid};

use crate::child::capabilities::CapabilityMasks;
use crate::error::ErrorKind;
use crate::launcher::blueprint::{Blueprint, UserPlan};
use crate::seccomp::Instruction;
use crate::step::Step;
use crate::sys;

/// The resources in the order of their numbers, which is also the spec's order.
const RESOURCES: [Resource; 16] = [
    Resource::Cpu,
    Resource::Fsize,
    Resource::Data,
    Resource::Stack,
    Resource::Core,
    Resource::Rss,
    Resource::Nproc,
    Resource::Nofile,
    Resource::Memlock,
    Resource::As,
    Resource::Locks,
    Resource::Sigpending,
    Resource::Msgqueue,
    Resource::Nice,
    Resource::Rtprio,
    Resource::Rttime,
];

/// Who a process is to be.
pub(crate) struct Identity<'a> {
    pub(crate) user: &'a UserPlan,
    pub(crate) capabilities: &'a CapabilityMasks,
    pub(crate) no_new_privileges: bool,
    pub(crate) seccomp: &'a [Instruction],
}

impl Blueprint {
    /// The application's identity.
    pub(crate) fn identity(&self) -> Identity<'_> {
        Identity {
            user: &self.user,
            capabilities: &self.capabilities,
            no_new_privileges: self.no_new_privileges,
            seccomp: &self.seccomp,
        }
    }
}

/// The resource of the kernel's `number`.
pub(crate) fn resource(number: u32) -> Option<Resource> {
    RESOURCES.get(number as usize).copied()
}

/// Becomes the user namespace's root. Until then the process has an unmapped user, with all capabilities.
pub(crate) fn become_root() -> Result<(), ErrorKind> {
    drop_groups().step(|| "drop the launcher's groups".into())?;
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)
        .step(|| "become the sandbox's root group".into())?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).step(|| "become the sandbox's root".into())?;
    close_memory()
}

/// Nobody in the sandbox may look at this process until `execve` has replaced it: it is a copy of the launcher. To be said
/// again after each change of user, at which the kernel takes `fs.suid_dumpable` for its answer.
pub(crate) fn close_memory() -> Result<(), ErrorKind> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).step(|| "close the launcher's memory".into())
}

/// Drops all supplementary groups. In a user namespace with a single id nobody may: groups that exclude their members
/// from something would be a way in. There the launcher's stay, and count for nothing inside.
fn drop_groups() -> rustix::io::Result<()> {
    match rustix::thread::set_thread_groups(&[]) {
        Err(rustix::io::Errno::PERM) if is_setgroups_denied() => Ok(()),
        result => result,
    }
}

fn is_setgroups_denied() -> bool {
    std::fs::read_to_string("/proc/self/setgroups").is_ok_and(|text| text.trim() == "deny")
}

/// Sets resource limits, clamped to what this machine's hard limits allow.
pub(crate) fn set_rlimits(rlimits: &[(u32, u64, u64)]) -> Result<(), ErrorKind> {
    for (number, soft, hard) in rlimits {
        let Some(resource) = resource(*number) else { continue };
        let allowed = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
        let hard = (*hard).min(allowed);
        let limit = |value: u64| (value != u64::MAX).then_some(value);
        let rlimit = Rlimit { current: limit((*soft).min(hard)), maximum: limit(hard) };
        rustix::process::setrlimit(resource, rlimit).step(|| format!("set the limit {resource:?} to {hard}"))?;
    }
    Ok(())
}

/// Takes a user and capabilities.
///
/// Without no_new_privs a filter needs CAP_SYS_ADMIN, so it is installed here, before that is dropped.
pub(crate) fn take(identity: &Identity<'_>) -> Result<(), ErrorKind> {
    let Identity { user, capabilities, no_new_privileges, .. } = identity;
    if !no_new_privileges {
        install_seccomp(identity)?;
    }
    capabilities.limit_bounding_set()?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(user.umask));
    let groups: Vec<Gid> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    match groups.is_empty() {
        true => drop_groups(),
        false => rustix::thread::set_thread_groups(&groups),
    }
    .step(|| format!("take the groups {:?}", user.groups))?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).step(|| format!("take the group {}", user.gid))?;
    rustix::thread::set_keep_capabilities(true).step(|| "keep the capabilities".into())?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).step(|| format!("take the user {}", user.uid))?;
    // Before the capabilities go: as long as it has all of them, nobody with fewer can look at it either.
    close_memory()?;
    capabilities.apply()?;
    rustix::thread::set_keep_capabilities(false).step(|| "stop keeping capabilities".into())?;
    if *no_new_privileges {
        rustix::thread::set_no_new_privs(true).step(|| "set no_new_privs".into())?;
    }
    Ok(())
}

/// Installs the seccomp filter, when there is one. What follows must be allowed by it.
pub(crate) fn install_seccomp(identity: &Identity<'_>) -> Result<(), ErrorKind> {
    if identity.seccomp.is_empty() {
        return Ok(());
    }
    sys::install_seccomp(identity.seccomp).step(|| "install the seccomp filter".into())
}
