//! Rootless: gives the process of an ordinary user what sandboxes need, in a user namespace of its own.
//!
//! The process moves in itself, before it has threads, so its arguments, terminal, process id and exit code stay what
//! they are, and whatever it writes stays the user's:
//!
//! | id inside | id on the machine | whose |
//! | --- | --- | --- |
//! | 0 … 65535 | the user's subordinate ids, of `/etc/subuid` and `/etc/subgid` | the users of images and sandboxes |
//! | 65536 | the user's own | cfc's |
//!
//! A sandbox has 0 … 65535 only: even its root is nobody on the machine, and not the user. Without subordinate ids there
//! is one id, the user's, called 0 inside: the sandbox's root then is the user, and an image's other users do not exist.
//!
//! A process that is root in a namespace of somebody else's (an unprivileged container) keeps the ids it has.

mod inherit;
mod mapper;
mod obstacle;
mod ranges;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags};
use rustix::thread::{CapabilitySet, LinkNameSpaceType, UnshareFlags};

use crate::client::Launcher;
use crate::error::{Error, ErrorKind, Result};
use crate::step::Step;
use crate::sys;

pub(crate) use inherit::keep_capabilities;
pub use inherit::{execute_with_capabilities, spawn_with_capabilities};
pub use obstacle::Obstacle;

/// The ids that sandboxes may have: 0 up to this, excluded.
pub(crate) const SANDBOX_IDS: u32 = 65_536;

/// Who this process was before it entered, and what came of it.
#[derive(Debug)]
struct Entered {
    user: u32,
    program: Option<PathBuf>,
    /// Why there are no subordinate ids, when there are none; or why there is no namespace.
    outcome: std::result::Result<Option<String>, ErrorKind>,
}

static ENTERED: OnceLock<Entered> = OnceLock::new();

/// What sandboxes need of their launcher, in its user namespace.
const NEEDED: CapabilitySet = CapabilitySet::SYS_ADMIN
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER);

/// Gives this process the privileges that sandboxes need, when it does not have them yet.
///
/// To be called while it has a single thread. `launcher` is the socket of a launcher that may run: its namespaces are
/// entered rather than new ones made, for only from there are its sandboxes' networks reached.
///
/// Fails with [`ErrorKind::NoUserNamespace`] where the machine refuses. Then sandboxes cannot be made by this process.
pub fn enter_rootless(launcher: Option<&Path>) -> Result<()> {
    let inherited = inherited_user();
    let user = inherited.unwrap_or_else(|| rustix::process::getuid().as_raw());
    let program = std::env::current_exe().ok();
    let outcome = match (inherited, is_privileged()) {
        // The program before has entered, and this one was executed there.
        (Some(_), _) => Ok(None),
        (None, true) => own_mounts().map(|()| None),
        (None, false) => match launcher.and_then(namespaces_of) {
            Some(namespaces) => join(&namespaces).map(|()| None),
            None => make(),
        },
    };
    let entered = ENTERED.get_or_init(|| Entered { user, program, outcome });
    match &entered.outcome {
        Ok(_) => Ok(()),
        Err(kind) => Err(Error::new("get the rights to make sandboxes", kind.clone())),
    }
}

/// The id by which the machine knows the user of this process, also when the process has entered a namespace, or the
/// program before it has.
pub fn user_id() -> u32 {
    let entered = ENTERED.get().map(|entered| entered.user);
    entered.or_else(inherited_user).unwrap_or_else(|| rustix::process::getuid().as_raw())
}

/// The user whose namespaces this process was executed in, which it has all rights in.
fn inherited_user() -> Option<u32> {
    inherit::inherited_user().filter(|_| is_privileged())
}

/// The program that this process runs. In a mount namespace that it has entered, the kernel knows it by a path that leads
/// nowhere.
pub fn current_program() -> std::io::Result<PathBuf> {
    match ENTERED.get().and_then(|entered| entered.program.clone()) {
        Some(program) => Ok(program),
        None => std::env::current_exe(),
    }
}

/// Why sandboxes have the user's single id, when [`enter_rootless`] found no others.
pub(crate) fn why_single() -> Option<&'static str> {
    ENTERED.get()?.outcome.as_ref().ok()?.as_deref()
}

/// Why this process has no namespace, when [`enter_rootless`] has failed.
pub(crate) fn failure() -> Option<&'static ErrorKind> {
    ENTERED.get()?.outcome.as_ref().err()
}

/// Whether this process has, in its own user namespace, what sandboxes need.
pub(crate) fn is_privileged() -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(NEEDED))
}

/// Whether sandboxes of this process are made in a user namespace, by somebody who is not the machine's root: without
/// disks of their own, and with such limits as the user was given.
pub fn is_rootless() -> bool {
    !is_in_initial_namespace()
}

/// Whether this process is in the machine's own user namespace, where root is the machine's root.
pub(crate) fn is_in_initial_namespace() -> bool {
    /// The inode that the kernel gives to the first one (`PROC_USER_INIT_INO`).
    const INITIAL: u64 = 0xEFFF_FFFD;
    std::fs::metadata("/proc/self/ns/user")
        .is_ok_and(|metadata| std::os::unix::fs::MetadataExt::ino(&metadata) == INITIAL)
}

/// Root in somebody's user namespace may not be root of its mounts: then it needs a mount namespace, too.
fn own_mounts() -> std::result::Result<(), ErrorKind> {
    if is_in_initial_namespace() {
        return Ok(());
    }
    sys::unshare(UnshareFlags::NEWNS).step(|| "make a mount namespace".into())
}

/// The user and mount namespaces of the launcher that listens on `socket`.
fn namespaces_of(socket: &Path) -> Option<[std::os::fd::OwnedFd; 2]> {
    let pid = Launcher::connect(socket)?.process_id()?;
    let open = |name: &str| {
        let path = format!("/proc/{pid}/ns/{name}");
        rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()
    };
    Some([open("user")?, open("mnt")?])
}

fn join([user, mounts]: &[std::os::fd::OwnedFd; 2]) -> std::result::Result<(), ErrorKind> {
    use std::os::fd::AsFd;
    let step = || "enter the namespaces of the launcher that runs already".to_owned();
    let directory = std::env::current_dir().step(|| "find the current directory".into())?;
    rustix::thread::move_into_link_name_space(user.as_fd(), Some(LinkNameSpaceType::User)).step(step)?;
    rustix::thread::move_into_link_name_space(mounts.as_fd(), Some(LinkNameSpaceType::Mount)).step(step)?;
    // Entering has made the root the current directory.
    std::env::set_current_dir(&directory).step(|| format!("go back to {}", directory.display()))
}

/// Makes the namespaces. Returns why there is a single id, when there is.
fn make() -> std::result::Result<Option<String>, ErrorKind> {
    let refused = |step: &str, error: std::io::Error| ErrorKind::NoUserNamespace(Obstacle::find(step, &error));
    let mapper = mapper::Mapper::start()?;
    sys::unshare(UnshareFlags::NEWUSER).map_err(|error| refused("make a user namespace", error))?;
    let why_single = mapper.map().map_err(|error| refused("write its id maps", error))?;
    // A security module may have let us in, and left us without rights there.
    sys::unshare(UnshareFlags::NEWNS).map_err(|error| refused("make a mount namespace in it", error))?;
    Ok(why_single)
}
