//! The life of a sandbox's [`NodeMaker`](crate::launcher::node_maker::NodeMaker), and how its process 1 speaks with it.
//!
//! 1. Once process 1 waits for it in its scratch filesystem, it goes there for a moment and mounts the overlay, with the
//!    rights of the machine's root and the ids of the sandbox's: `nodev`, so that nobody opens what is made in it.
//! 2. Process 1 installs a filter that has the kernel hold every `mknod` of a device, and sends the calls' listener.
//! 3. Call by call, it does what the caller could do were it no user namespace ([`NodeCall`]), until no process is left.
//!
//! Should it die, the calls answer ENOSYS.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::panic::AssertUnwindSafe;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::thread::{CapabilitySet, LinkNameSpaceType};

use super::file_identity::FileIdentity;
use super::node_call::{NodeCall, Sandbox};
use super::overlay::mount_overlay;
use super::{die_with_launcher, identity};
use crate::error::ErrorKind;
use crate::launcher::blueprint::{Blueprint, RootPlan};
use crate::protocol::{self, Receiver};
use crate::seccomp;
use crate::step::Step;
use crate::sys;

/// The capabilities with which an overlay works on its upper directory. CAP_SYS_RESOURCE is not among them: it would write
/// to what a disk reserves for root. CAP_SYS_ADMIN is what mounting takes.
pub(crate) const OF_OVERLAY: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SYS_ADMIN);

/// Which file something is, on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    device: u64,
    inode: u64,
}

impl Place {
    pub(crate) fn of(file: impl AsFd) -> rustix::io::Result<Place> {
        rustix::fs::fstat(file).map(|stat| Place::from(&stat))
    }
}

impl From<&Stat> for Place {
    fn from(stat: &Stat) -> Place {
        Place { device: stat.st_dev, inode: stat.st_ino }
    }
}

/// For whom the process works.
pub(crate) struct Customer {
    /// The host's ids of the sandbox's root.
    pub(crate) owner: (u32, u32),
    /// The sandbox's user namespace.
    pub(crate) users: Place,
    /// The sandbox's mount namespace, in which nothing of the sandbox runs yet.
    pub(crate) mounts: OwnedFd,
}

/// The whole life of the process, which is a fork of the launcher.
pub(crate) fn run(blueprint: &Blueprint, socket: &OwnedFd, customer: &Customer) -> ! {
    let live = || live(blueprint, socket, customer);
    // After a panic, which is a bug, process 1 sees the end of the connection.
    if let Ok(Err(failure)) = std::panic::catch_unwind(AssertUnwindSafe(live)) {
        // Nobody listens any more when it comes late.
        let _ = send(socket, &Err::<(), ErrorKind>(failure), &[]);
    }
    sys::exit_now(0)
}

fn live(blueprint: &Blueprint, socket: &OwnedFd, customer: &Customer) -> Result<(), ErrorKind> {
    let RootPlan::Overlay { lowers, changes, upper, work } = &blueprint.root else {
        return Err(ErrorKind::Invalid("only an overlay takes device nodes (a bug)".into()));
    };
    let get = |handle| blueprint.descriptors.get(handle);
    let (lowers, changes): (Vec<_>, _) = (lowers.iter().map(|lower| get(*lower)).collect(), get(*changes));
    // The launcher's own, and the sandbox's: a pipe ends when nobody has it open.
    let kept = lowers.iter().copied().chain([changes, socket, &customer.mounts]);
    sys::close_all_but(&kept.map(AsRawFd::as_raw_fd).collect::<Vec<_>>());
    let _ = rustix::thread::set_name(c"cfc-nodes");
    protect()?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let proc = rustix::fs::open("/proc", flags, Mode::empty()).step(|| "open /proc".into())?;
    if receive::<()>(socket)?.is_none() {
        return Ok(());
    }
    let overlay = mount(&lowers, (changes, upper, work), customer)?;
    send(socket, &Ok::<(), ErrorKind>(()), &[])?;
    // The layers, which the overlay has itself, and the sandbox's mounts.
    sys::close_all_but(&[socket.as_raw_fd(), proc.as_raw_fd()]);
    let Some(((), mut listener)) = receive::<()>(socket)? else { return Ok(()) };
    match listener.pop() {
        Some(listener) => serve(&listener, &Sandbox { proc, namespace: customer.users, overlay }),
        None => Ok(()),
    }
}

/// To be said again after every change of identity, at which the kernel forgets it.
fn protect() -> Result<(), ErrorKind> {
    identity::close_memory()?;
    die_with_launcher()
}

/// Mounts the overlay at the `root` of the sandbox's scratch filesystem, and comes back. Returns its device number.
///
/// A mount namespace of its own would do as well. For that the host's mounts are copied, and letting go of them again takes
/// the kernel a wait for every processor, which the sandbox's start would wait for too.
fn mount(lowers: &[&OwnedFd], changes: (&OwnedFd, &str, &str), customer: &Customer) -> Result<u64, ErrorKind> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let home = rustix::fs::open("/proc/self/ns/mnt", flags, Mode::empty()).step(|| "open the mounts".into())?;
    let enter =
        |mounts: &OwnedFd| rustix::thread::move_into_link_name_space(mounts.as_fd(), Some(LinkNameSpaceType::Mount));
    enter(&customer.mounts).step(|| "enter the mounts of the sandbox".into())?;
    // What an overlay makes for itself, whiteouts too, belongs to whoever mounted it.
    let (uid, gid) = customer.owner;
    let root = FileIdentity { uid, gid, groups: Vec::new(), umask: 0o022, capabilities: OF_OVERLAY };
    root.act(|| mount_overlay("", lowers, Some(changes), MountFlags::NODEV))??;
    let overlay = rustix::fs::stat("root").step(|| "look at the overlay".into())?.st_dev;
    enter(&home).step(|| "go back to the mounts of the launcher".into())?;
    protect()?;
    Ok(overlay)
}

/// Answers calls until there is no process left that could make one.
fn serve(listener: &OwnedFd, sandbox: &Sandbox) -> Result<(), ErrorKind> {
    loop {
        let mut awaited = [PollFd::new(listener, PollFlags::IN)];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut awaited, None)).step(|| "wait for calls".into())?;
        if !awaited[0].revents().contains(PollFlags::IN) {
            return Ok(());
        }
        let call = match sys::receive_call(listener.as_fd()) {
            Ok(call) => call,
            // The caller was killed before we looked.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => continue,
            Err(error) => return Err(error).step(|| "take a call".into()),
        };
        let is_pending = || sys::is_call_pending(listener.as_fd(), call.id);
        let outcome = NodeCall::of(&call).map_or(Ok(Err(Errno::PERM)), |node| node.make(sandbox, &is_pending))?;
        protect()?;
        // Fails when the caller was killed meanwhile.
        let _ = sys::answer_call(listener.as_fd(), call.id, outcome.err().map_or(0, Errno::raw_os_error));
    }
}

/// In the sandbox's process 1, which sees its scratch filesystem and nothing else: has the root mounted there.
pub(super) fn have_root_mounted(socket: &OwnedFd) -> Result<(), ErrorKind> {
    let died = || ErrorKind::Unavailable("the process that mounts the root died (out of memory?)".into());
    send(socket, &(), &[]).map_err(|_| died())?;
    receive::<Result<(), ErrorKind>>(socket)?.ok_or_else(died)?.0
}

/// In the sandbox's process 1, while it may: has the kernel hold calls that make device nodes, and sends their listener.
pub(super) fn hand_over_calls(socket: &OwnedFd) -> Result<(), ErrorKind> {
    let Some(program) = seccomp::hold_device_nodes() else { return Ok(()) };
    match sys::install_seccomp_listener(&program) {
        Ok(listener) => send(socket, &(), &[listener.as_fd()]),
        // A kernel before 5.0; or cfc itself runs below somebody's listener, and the kernel allows a single one. The calls
        // then fail as in any user namespace.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EBUSY)) => Ok(()),
        Err(error) => Err(error).step(|| "hold the calls that make device nodes".into()),
    }
}

fn send(socket: &OwnedFd, message: &impl serde::Serialize, descriptors: &[BorrowedFd<'_>]) -> Result<(), ErrorKind> {
    let step = || "speak with the process that makes device nodes".to_owned();
    let bytes = protocol::encode(message).step(step)?;
    // A few bytes, which fit into the buffer of any socket.
    protocol::send(socket, &bytes, descriptors).map(drop).step(step)
}

/// The next message; `None` when the other has gone.
fn receive<M: serde::de::DeserializeOwned>(socket: &OwnedFd) -> Result<Option<(M, Vec<OwnedFd>)>, ErrorKind> {
    let step = || "listen to the process that makes device nodes".to_owned();
    let mut receiver = Receiver::default();
    loop {
        if let Some(message) = receiver.next().step(step)? {
            return Ok(Some(message));
        }
        if !receiver.receive(socket).step(step)? {
            return Ok(None);
        }
    }
}
