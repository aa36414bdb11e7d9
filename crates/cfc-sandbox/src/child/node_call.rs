//! [`NodeCall`]: one `mknod` or `mknodat` of a device, made by a process of a sandbox and carried out for it.
//!
//! All that is known of the caller comes from its `/proc` directory, and all of it may change while we look: other threads
//! write to its memory, move directories, change links. That only decides which file of the sandbox's own root becomes the
//! node, as it would had the caller another moment's luck. The path is walked from the caller's root and directory, with its
//! rights, and the directory that is found must be of the overlay.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use super::file_identity::FileIdentity;
use super::nodes::Place;
use crate::error::ErrorKind;
use crate::inside::open_inside;
use crate::sys::HeldCall;

/// The kernel's longest path, with its zero byte.
const PATH_LENGTH_MAX: usize = 4096;

/// No page is smaller, so what does not cross a multiple of this is readable as a whole or not at all.
const PAGE: u64 = 4096;

/// What of a caller's capabilities decides about making a file: the same ones let us do for it what it could do.
const OF_CALLER: CapabilitySet = CapabilitySet::DAC_OVERRIDE
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::MKNOD);

/// The sandbox that calls come from.
pub(super) struct Sandbox {
    /// The host's `/proc`.
    pub(super) proc: OwnedFd,
    /// Its user namespace.
    pub(super) namespace: Place,
    /// The number of its root's filesystem.
    pub(super) overlay: u64,
}

/// What is called.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NodeCall {
    thread: u32,
    /// The directory that a relative path begins at: a descriptor, or `AT_FDCWD`.
    directory: i32,
    path_address: u64,
    kind: FileType,
    mode: u32,
    /// In the form of the system call.
    device: u32,
}

impl NodeCall {
    /// `None` when it is no call that makes a device node.
    pub(super) fn of(call: &HeldCall) -> Option<NodeCall> {
        let [first, second, third, fourth, ..] = call.arguments;
        let (directory, path_address, mode, device) = match i64::from(call.number) {
            libc::SYS_mknodat => (first as i32, second, third, fourth),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_mknod => (libc::AT_FDCWD, first, second, third),
            _ => return None,
        };
        // The kernel looks at so many bits.
        let (mode, device) = (u32::from(mode as u16), device as u32);
        let kind = FileType::from_raw_mode(mode);
        let is_device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
        is_device.then_some(NodeCall { thread: call.pid, directory, path_address, kind, mode: mode & 0o7777, device })
    }

    /// Makes the node. What the caller is to be told is the inner result; after an error this process must go no further.
    /// `is_pending` says whether the caller still waits.
    pub(super) fn make(
        &self,
        sandbox: &Sandbox,
        is_pending: &dyn Fn() -> bool,
    ) -> Result<Result<(), Errno>, ErrorKind> {
        let ready = Caller::find(sandbox, self.thread).and_then(|caller| {
            // It waited all the time, so what was found is its own and not of a later process with its number.
            if !is_pending() {
                return Err(Errno::SRCH);
            }
            let path = caller.path_at(self.path_address)?;
            let base = caller.enter_root(&path, self.directory)?;
            let identity = caller.identity(sandbox)?;
            if is_pending() { Ok((path, base, identity)) } else { Err(Errno::SRCH) }
        });
        match ready {
            Ok((path, base, identity)) => identity.act(|| self.make_at(&base, &path, sandbox.overlay)),
            Err(errno) => Ok(Err(errno)),
        }
    }

    fn make_at(&self, base: &OwnedFd, path: &[u8], overlay: u64) -> Result<(), Errno> {
        let (parent, name) = split(path);
        let parent = find(base, parent, overlay)?;
        if rustix::fs::fstat(&parent)?.st_dev != overlay {
            return Err(Errno::PERM);
        }
        rustix::fs::mknodat(&parent, name, self.kind, Mode::from_raw_mode(self.mode), self.device.into())
    }
}

/// The directory `path` from `base` on, for a look at whose filesystem it is of.
fn find(base: &OwnedFd, path: &[u8], overlay: u64) -> Result<OwnedFd, Errno> {
    let open = |resolve| open_inside(base, OsStr::from_bytes(path), OFlags::PATH | OFlags::DIRECTORY, resolve);
    match open(ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV) {
        // It leads through another mount: out of the overlay, unless it comes back. The kernel says the same of a link to `/`
        // on the way of a relative path. Links that only `/proc` has are not followed there: they would be ours.
        Err(Errno::XDEV) => open(ResolveFlags::NO_MAGICLINKS).map_err(|_| Errno::PERM),
        Err(Errno::LOOP) if rustix::fs::fstat(base)?.st_dev != overlay => Err(Errno::PERM),
        result => result,
    }
}

/// A thread of the sandbox, by its directory in `/proc`.
struct Caller(OwnedFd);

impl Caller {
    fn find(sandbox: &Sandbox, thread: u32) -> Result<Caller, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(&sandbox.proc, thread.to_string(), flags, Mode::empty()).map(Caller)
    }

    fn open(&self, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        rustix::fs::openat(&self.0, name, flags | OFlags::CLOEXEC, Mode::empty())
    }

    fn directory(&self, name: &str) -> Result<OwnedFd, Errno> {
        self.open(name, OFlags::PATH | OFlags::DIRECTORY)
    }

    /// The path in its memory, without the zero byte. As for the kernel, an empty one leads nowhere.
    fn path_at(&self, address: u64) -> Result<Vec<u8>, Errno> {
        // The first byte of an address may be a tag there.
        let mut address = if cfg!(target_arch = "aarch64") { address & (u64::MAX >> 8) } else { address };
        let memory = File::from(self.open("mem", OFlags::RDONLY).map_err(|_| Errno::PERM)?);
        let mut path = Vec::new();
        while path.len() < PATH_LENGTH_MAX {
            let length = (PAGE - address % PAGE) as usize;
            let mut part = vec![0; length.min(PATH_LENGTH_MAX - path.len())];
            memory.read_exact_at(&mut part, address).map_err(|_| Errno::FAULT)?;
            if let Some(end) = part.iter().position(|byte| *byte == 0) {
                path.extend_from_slice(&part[..end]);
                return if path.is_empty() { Err(Errno::NOENT) } else { Ok(path) };
            }
            address = address.checked_add(part.len() as u64).ok_or(Errno::FAULT)?;
            path.append(&mut part);
        }
        Err(Errno::NAMETOOLONG)
    }

    /// Makes the caller's root ours, and opens the directory that `path` begins at.
    fn enter_root(&self, path: &[u8], directory: i32) -> Result<OwnedFd, Errno> {
        let root = self.directory("root")?;
        rustix::process::fchdir(&root)?;
        rustix::process::chroot(".")?;
        match (path.starts_with(b"/"), directory) {
            (true, _) => Ok(root),
            (false, libc::AT_FDCWD) => self.directory("cwd"),
            (false, number) => match self.directory(&format!("fd/{number}")) {
                Err(Errno::NOENT) => Err(Errno::BADF),
                result => result,
            },
        }
    }

    /// With whose rights it calls. A namespace of its own, in which it could be root, counts for nothing.
    fn identity(&self, sandbox: &Sandbox) -> Result<FileIdentity, Errno> {
        let namespace = rustix::fs::statat(&self.0, "ns/user", AtFlags::empty())?;
        if Place::from(&namespace) != sandbox.namespace {
            return Err(Errno::PERM);
        }
        let mut status = Vec::new();
        let mut file = File::from(self.open("status", OFlags::RDONLY)?);
        file.read_to_end(&mut status).map_err(|_| Errno::SRCH)?;
        identity_in(&String::from_utf8_lossy(&status)).ok_or(Errno::PERM)
    }
}

/// The identity in a `/proc/<pid>/status`: the last of four ids is the one that files see.
fn identity_in(status: &str) -> Option<FileIdentity> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let file_id = |name: &str| field(name)?.split_whitespace().nth(3)?.parse().ok();
    let groups = field("Groups")?.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    let effective = u64::from_str_radix(field("CapEff")?.trim(), 16).ok()?;
    Some(FileIdentity {
        uid: file_id("Uid")?,
        gid: file_id("Gid")?,
        groups,
        umask: u32::from_str_radix(field("Umask")?.trim(), 8).ok()?,
        capabilities: CapabilitySet::from_bits_retain(effective) & OF_CALLER,
    })
}

/// A path's directory, and its last part with the slashes behind it, of which the kernel is to say what it thinks.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    match path[..end].iter().rposition(|byte| *byte == b'/') {
        Some(slash) => path.split_at(slash + 1),
        None if end == 0 => (path, b"."),
        None => (b".", path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(number: i64, arguments: [u64; 6]) -> Option<NodeCall> {
        NodeCall::of(&HeldCall { id: 1, pid: 7, number: number as i32, arguments })
    }

    #[test]
    fn only_device_nodes_are_made() {
        let character = u64::from(libc::S_IFCHR | 0o640);
        let made = call(libc::SYS_mknodat, [3, 0x1000, character, 0x103, 0, 0]).expect("a device");
        let expected = NodeCall {
            thread: 7,
            directory: 3,
            path_address: 0x1000,
            kind: FileType::CharacterDevice,
            mode: 0o640,
            device: 0x103,
        };
        assert_eq!(made, expected);
        let high = character | 1 << 40 | 1 << 16;
        assert_eq!(call(libc::SYS_mknodat, [3, 0x1000, high, 0x103 | 1 << 32, 0, 0]), Some(expected), "as the kernel");
        for mode in [libc::S_IFREG, libc::S_IFIFO, libc::S_IFSOCK, libc::S_IFDIR, libc::S_IFLNK, 0, 0o170_000] {
            assert_eq!(call(libc::SYS_mknodat, [3, 0x1000, mode.into(), 0, 0, 0]), None, "{mode:o}");
        }
        assert_eq!(call(libc::SYS_openat, [3, 0x1000, character, 0x103, 0, 0]), None);
    }

    #[test]
    fn the_last_part_of_a_path_keeps_its_slashes() {
        let check = |path: &str, parent: &str, name: &str| {
            assert_eq!(split(path.as_bytes()), (parent.as_bytes(), name.as_bytes()), "{path}");
        };
        check("a", ".", "a");
        check("a/", ".", "a/");
        check("/a", "/", "a");
        check("/a//b//", "/a//", "b//");
        check("a/..", "a/", "..");
        check("..", ".", "..");
        check("///", "///", ".");
    }

    #[test]
    fn the_identity_is_the_one_that_files_see() {
        let status = "Name:\tUid: x\\nUid:\nUmask:\t0027\nUid:\t1\t2\t3\t100004\nGid:\t5\t6\t7\t100008\nGroups:\t100010 100050 \nCapEff:\t00000000a80425fb\n";
        let expected = FileIdentity {
            uid: 100_004,
            gid: 100_008,
            groups: vec![100_010, 100_050],
            umask: 0o27,
            capabilities: CapabilitySet::DAC_OVERRIDE | CapabilitySet::FSETID | CapabilitySet::MKNOD,
        };
        assert_eq!(identity_in(status), Some(expected));
        assert_eq!(identity_in(&status.replace("Umask", "Mask")), None);
        assert_eq!(identity_in(""), None);
    }
}
