//! A pseudo-terminal from the sandbox's own devpts.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::pty::OpenptFlags;

use super::exec::connect_all;
use crate::error::ErrorKind;
use crate::inside::open_inside;
use crate::launcher::blueprint::UserPlan;
use crate::protocol;
use crate::step::Step;
use crate::terminal::{WindowSize, set_size};

/// `DEVPTS_SUPER_MAGIC` of linux/magic.h.
const DEVPTS: u64 = 0x1cd1;

/// Makes a terminal of `size` this session's own and its stdin, stdout and stderr. Its outer end goes through `handover`.
pub(super) fn open(size: Option<WindowSize>, user: &UserPlan, handover: &OwnedFd) -> Result<(), ErrorKind> {
    let outer = open_outer()?;
    rustix::pty::unlockpt(&outer).step(|| "unlock the terminal".into())?;
    if let Some(size) = size {
        set_size(&outer, size).step(|| "set the terminal's size".into())?;
    }
    // By its other end, not by a name that the container could have given to something else.
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let inner = rustix::pty::ioctl_tiocgptpeer(&outer, flags).step(|| "open the terminal".into())?;
    let (uid, gid) = (Uid::from_raw(user.uid), None::<Gid>);
    rustix::fs::fchown(&inner, Some(uid), gid).step(|| format!("give the terminal to the user {}", user.uid))?;
    connect_all(&inner)?;
    rustix::process::ioctl_tiocsctty(rustix::stdio::stdin()).step(|| "take the terminal".into())?;
    send(&outer, handover)
}

/// Makes stdin this session's own terminal, where it is one that no other session has: then keys end and stop its programs.
pub(super) fn take_stdin() {
    let _ = rustix::process::ioctl_tiocsctty(rustix::stdio::stdin());
}

/// Opens `/dev/pts/ptmx`, and only if that is what it seems: a container can put anything there (CVE-2025-52565).
fn open_outer() -> Result<OwnedFd, ErrorKind> {
    let step = || "open the container's /dev/pts".to_owned();
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).step(step)?;
    let below = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let directory = open_inside(&root, "dev/pts", OFlags::PATH | OFlags::DIRECTORY, below).step(step)?;
    check_is_devpts(&directory)?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK;
    let outer = open_inside(&directory, "ptmx", flags, below | ResolveFlags::NO_XDEV).step(step)?;
    check_is_devpts(&outer)?;
    let mode = rustix::fs::fstat(&outer).step(step)?.st_mode;
    if FileType::from_raw_mode(mode) == FileType::CharacterDevice { Ok(outer) } else { Err(not_devpts()) }
}

fn check_is_devpts(file: &OwnedFd) -> Result<(), ErrorKind> {
    let kind = rustix::fs::fstatfs(file).step(|| "look at the container's /dev/pts".into())?.f_type;
    if kind as u64 == DEVPTS { Ok(()) } else { Err(not_devpts()) }
}

fn not_devpts() -> ErrorKind {
    ErrorKind::Invalid("no terminal: the container's /dev/pts is no devpts (do without a terminal)".into())
}

fn send(outer: &OwnedFd, handover: &OwnedFd) -> Result<(), ErrorKind> {
    let step = || "hand over the terminal".to_owned();
    let sent = protocol::send(handover, b"t", &[outer.as_fd()]).step(step)?;
    if sent == 1 { Ok(()) } else { Err(std::io::Error::from_raw_os_error(libc::EMSGSIZE)).step(step) }
}
