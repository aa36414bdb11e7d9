//! Owners, permissions, times and extended attributes of unpacked files.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{
    AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, fchmod, fchown, fsetxattr, futimens,
    utimensat,
};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use super::tar_reader::TarEntry;
use super::{invalid, tree};

/// Gives the file its owner, attributes, permissions and time, in the order in which none undoes another: a change of
/// owner clears set-id bits and capabilities.
pub(super) fn finish_file(entry: &TarEntry, file: &File, privileged: bool) -> io::Result<()> {
    if privileged {
        let (uid, gid) = owner(entry)?;
        fchown(file, Some(uid), Some(gid)).map_err(|error| no_such_owner(entry, error))?;
    }
    for (key, value) in kept_xattrs(entry) {
        let outcome = fsetxattr(file, key, value, XattrFlags::empty());
        tolerate(outcome, entry, key, privileged)?;
    }
    fchmod(file, Mode::from_raw_mode(entry.mode))?;
    futimens(file, &timestamps(entry.mtime))?;
    Ok(())
}

/// Sets owner and group of `name` itself.
pub(super) fn set_owner(entry: &TarEntry, parent: &OwnedFd, name: &OsStr, privileged: bool) -> io::Result<()> {
    if !privileged {
        return Ok(());
    }
    let (uid, gid) = owner(entry)?;
    chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(|error| no_such_owner(entry, error))
}

/// Whether this process may give files to every user that images usually have: as the machine's root, or in a user
/// namespace that has more than one id.
pub(super) fn may_give_away() -> bool {
    let held = rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::CHOWN));
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let count = |line: &str| line.split_whitespace().nth(2)?.parse::<u64>().ok();
    held && map.lines().filter_map(count).sum::<u64>() > 2
}

/// In a user namespace there are only some of the ids that an image can name.
fn no_such_owner(entry: &TarEntry, error: Errno) -> io::Error {
    match error {
        Errno::INVAL => {
            invalid(&format!("its owner {}:{} is none of the ids that this user has here", entry.uid, entry.gid))
        }
        other => other.into(),
    }
}

/// Sets the permissions of `name`, which is not a symbolic link.
pub(super) fn set_mode(mode: u32, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    Ok(chmodat(parent, name, Mode::from_raw_mode(mode), AtFlags::empty())?)
}

/// Sets the modification time of `name` itself.
pub(super) fn set_mtime(mtime: (i64, u32), parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    Ok(utimensat(parent, name, &timestamps(mtime), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Sets the extended attributes of `name` itself.
pub(super) fn set_xattrs(entry: &TarEntry, parent: &OwnedFd, name: &OsStr, privileged: bool) -> io::Result<()> {
    for (key, value) in kept_xattrs(entry) {
        let outcome = tree::set_xattr(parent, name, key, value);
        tolerate(outcome, entry, key, privileged)?;
    }
    Ok(())
}

/// The attributes of the entry that are set.
fn kept_xattrs(entry: &TarEntry) -> impl Iterator<Item = (&OsStr, &[u8])> {
    let is_kept = |key: &OsStr| is_portable_xattr(key) && !is_overlay_xattr(key);
    let all = entry.xattrs.iter().map(|(key, value)| (key.as_os_str(), value.as_slice()));
    all.filter(move |(key, _)| is_kept(key))
}

/// Whether a layer may bring the attribute, and takes it along: labels and checksums of security modules belong to the
/// host.
pub(crate) fn is_portable_xattr(key: &OsStr) -> bool {
    let key = key.as_bytes();
    let is_acl = matches!(key, b"system.posix_acl_access" | b"system.posix_acl_default");
    key.starts_with(b"user.") || key == b"security.capability" || is_acl
}

/// Whether the attribute is overlayfs's own, with which a layer could hide and redirect what is in other layers.
pub(crate) fn is_overlay_xattr(key: &OsStr) -> bool {
    key.as_bytes().starts_with(b"user.overlay.") || key.as_bytes().starts_with(b"trusted.overlay.")
}

/// Lets pass that an attribute cannot be set here: as an ordinary user, on a file system without them, or on something
/// that takes none (`user.*` is for files and directories only). File capabilities are not let pass for root.
fn tolerate(outcome: rustix::io::Result<()>, entry: &TarEntry, key: &OsStr, privileged: bool) -> io::Result<()> {
    let Err(error) = outcome else { return Ok(()) };
    let matters = privileged && key == "security.capability";
    if matters || !matches!(error, Errno::PERM | Errno::OPNOTSUPP) {
        let error = io::Error::from(error);
        return Err(io::Error::new(error.kind(), format!("cannot set attribute `{}`: {error}", key.display())));
    }
    tracing::debug!(entry = %String::from_utf8_lossy(&entry.path), attribute = %key.display(), %error, "left out");
    Ok(())
}

fn owner(entry: &TarEntry) -> io::Result<(Uid, Gid)> {
    let id = |id: u64| match u32::try_from(id) {
        // The last one means "leave it" to the kernel.
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(invalid("an owner that no user can have")),
    };
    Ok((Uid::from_raw(id(entry.uid)?), Gid::from_raw(id(entry.gid)?)))
}

fn timestamps((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}
