//! Makes the [`Furniture`] of a sandbox's root, and leaves the host's files.
//!
//! A shell does this before it waits. From then on it sees a scratch filesystem and nothing else:
//!
//! ```text
//! /f/0 … f/n   the new filesystems, to be moved to where they belong; or mounted in one another already
//! /mask, null  an empty directory and a /dev/null, to lay over masked paths
//! /l/0 … l/n   to be: the lower directories, topmost first, ids mapped
//! /c           to be: the directory that holds upper and work, ids mapped
//! /m, secret   to be: overlays of which a part is mounted somewhere; small files
//! /root        to be: the overlay (or the given directory), which becomes the root
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, OpenTreeFlags, UnmountFlags};

use super::rootfs::{attach, attach_to, new_filesystem};
use crate::error::ErrorKind;
use crate::inside::open_inside;
use crate::launcher::furniture::{Furniture, Piece};
use crate::launcher::mount_options::MountOptions;
use crate::step::Step;
use crate::sys;

/// Directories that any host has one of, to lay the scratch filesystem over. Not `/proc`, `/sys`, `/dev`: the kernel
/// lets a user namespace mount those only while it sees the host's uncovered.
const SCRATCH_CANDIDATES: [&str; 6] = ["/tmp", "/run", "/mnt", "/var", "/home", "/usr"];

/// The device nodes that every `/dev` shows.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

const DEV: &str = "/dev";

/// What a shell has ready.
pub(crate) struct Room {
    /// By the index of the spec's mount.
    pieces: BTreeMap<usize, OwnedFd>,
    /// The host's devices for a `/dev` that is no piece.
    pub(crate) devices: Vec<(&'static str, OwnedFd)>,
    pub(crate) masks: Masks,
}

/// What is laid over masked paths: an empty read-only directory and a `/dev/null`.
pub(crate) struct Masks {
    directory: OwnedFd,
    file: OwnedFd,
}

impl Room {
    /// The filesystem that is the spec's mount `index`.
    pub(crate) fn piece(&self, index: usize) -> Result<&OwnedFd, ErrorKind> {
        self.pieces.get(&index).ok_or_else(|| ErrorKind::Invalid(format!("the mount {index} was not prepared (a bug)")))
    }
}

/// Makes everything and makes the scratch filesystem the root.
pub(crate) fn furnish(furniture: &Furniture) -> Result<Room, ErrorKind> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).step(|| "make the mounts private".into())?;
    let scratch = make_scratch()?;
    let masks = make_masks()?;
    let mut room = Room { pieces: BTreeMap::new(), devices: open_devices()?, masks };
    for piece in &furniture.pieces {
        let tree = make_piece(furniture, &room, piece)?;
        room.pieces.insert(piece.index, tree);
        if piece.target == Path::new(DEV) {
            let root = root_of(&room.pieces[&piece.index]).step(|| "open /dev".into())?;
            std::mem::take(&mut room.devices).iter().try_for_each(|(name, tree)| show_device(&root, name, tree))?;
            link_streams(&root)?;
        }
    }
    protect(furniture, &room)?;
    leave_host(&scratch)?;
    Ok(room)
}

/// Mounts the scratch filesystem and enters it.
pub(super) fn make_scratch() -> Result<PathBuf, ErrorKind> {
    let scratch = SCRATCH_CANDIDATES.iter().map(PathBuf::from).find(|path| path.is_dir());
    let scratch = scratch.ok_or_else(|| ErrorKind::Unavailable("the host has no /tmp".into()))?;
    let data = [("mode".to_owned(), Some("700".to_owned()))];
    let filesystem = new_filesystem("tmpfs", &MountOptions { data: data.into(), ..MountOptions::default() })
        .step(|| "make the scratch filesystem".into())?;
    attach(&filesystem, CWD, scratch.as_path()).step(|| "mount the scratch filesystem".into())?;
    rustix::process::chdir(&scratch).step(|| "enter the scratch filesystem".into())?;
    for directory in ["l", "c", "root", "mask", "f"] {
        fs::create_dir(directory).step(|| "fill the scratch filesystem".into())?;
    }
    Ok(scratch)
}

fn make_masks() -> Result<Masks, ErrorKind> {
    let step = || "make the masks".to_owned();
    let options = MountOptions { attributes: libc::MOUNT_ATTR_RDONLY, ..MountOptions::default() };
    attach(&new_filesystem("tmpfs", &options).step(step)?, CWD, Path::new("mask")).step(step)?;
    fs::write("null", "").step(step)?;
    attach(&host_device("null").step(step)?, CWD, Path::new("null")).step(step)?;
    let open = |path: &str| rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).step(step);
    Ok(Masks { directory: open("mask")?, file: open("null")? })
}

fn open_devices() -> Result<Vec<(&'static str, OwnedFd)>, ErrorKind> {
    let mut devices = Vec::new();
    for name in DEVICES {
        let metadata = fs::metadata(Path::new(DEV).join(name)).step(|| format!("find the device /dev/{name}"))?;
        if metadata.file_type().is_char_device() && metadata.rdev() != 0 {
            devices.push((name, host_device(name).step(|| format!("open /dev/{name}"))?));
        }
    }
    Ok(devices)
}

fn host_device(name: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(CWD, Path::new(DEV).join(name), flags)
}

/// Makes a filesystem and mounts it at a place of its own, or in another one.
fn make_piece(furniture: &Furniture, room: &Room, piece: &Piece) -> Result<OwnedFd, ErrorKind> {
    let target = piece.target.display();
    let tree = new_filesystem(&piece.filesystem, &piece.options)
        .step(|| format!("make a {} for {target}", piece.filesystem))?;
    let step = || format!("mount {target}");
    match piece.within.and_then(|within| furniture.piece(within)) {
        None => {
            let place = PathBuf::from(format!("f/{}", piece.index));
            fs::create_dir(&place).step(step)?;
            attach(&tree, CWD, &place).step(step)?;
        }
        Some(outer) => {
            let inside = piece.target.strip_prefix(&outer.target).unwrap_or(Path::new(""));
            let root = root_of(room.piece(outer.index)?).step(step)?;
            attach_to(&tree, &make_directory(&root, inside).step(step)?).step(step)?;
        }
    }
    Ok(tree)
}

/// The directory `path` below `root`, made with those above it where they are missing.
fn make_directory(root: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    for ancestor in path.ancestors().collect::<Vec<_>>().into_iter().rev().filter(|path| !path.as_os_str().is_empty()) {
        let (parent, name) = (ancestor.parent().unwrap_or(Path::new("")), ancestor.file_name().unwrap_or_default());
        match rustix::fs::mkdirat(find(root, parent)?, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
    find(root, path)
}

/// A mount's root as a place that other mounts can be put below.
fn root_of(tree: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(tree, ".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn find(root: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    open_inside(root, path, OFlags::PATH, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

fn show_device(dev: &OwnedFd, name: &str, tree: &OwnedFd) -> Result<(), ErrorKind> {
    let step = || format!("show the device /dev/{name}");
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(dev, name, flags, Mode::from_raw_mode(0o644)).step(step)?;
    attach_to(tree, &find(dev, Path::new(name)).step(step)?).step(step)
}

const KCORE: &str = "/proc/kcore";

/// The links of every `/dev`: to a process's own streams, and to the kernel's memory where a kernel shows that (masked).
pub(crate) fn link_streams(dev: &OwnedFd) -> Result<(), ErrorKind> {
    let links = [
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
        ("pts/ptmx", "ptmx"),
    ];
    let kcore = Path::new(KCORE).exists().then_some((KCORE, "core"));
    links.iter().chain(&kcore).try_for_each(|(to, name)| match rustix::fs::symlinkat(*to, dev, *name) {
        Err(Errno::EXIST) => Ok(()),
        result => result.step(|| format!("make /dev/{name}")),
    })
}

/// Sets what is to be set below the pieces, then makes read-only and masks what is to be.
fn protect(furniture: &Furniture, room: &Room) -> Result<(), ErrorKind> {
    for (name, value) in &furniture.sysctl {
        let path = Path::new("/proc/sys").join(name);
        let step = || format!("set the sysctl {name} to `{value}`");
        let Some((piece, rest)) = furniture.shows(&path) else { continue };
        let root = root_of(room.piece(piece.index)?).step(step)?;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        set_sysctl(&open_inside(&root, rest, OFlags::WRONLY, resolve).step(step)?, name, value)?;
    }
    for path in &furniture.readonly_paths {
        if let Some(target) = find_shown(furniture, room, path)? {
            make_readonly(&target, path)?;
        }
    }
    for path in &furniture.masked_paths {
        if let Some(target) = find_shown(furniture, room, path)? {
            mask(&room.masks, &target, path)?;
        }
    }
    Ok(())
}

fn find_shown(furniture: &Furniture, room: &Room, path: &str) -> Result<Option<OwnedFd>, ErrorKind> {
    let step = || format!("find {path}");
    let Some((piece, rest)) = furniture.shows(Path::new(path)) else { return Ok(None) };
    let root = root_of(room.piece(piece.index)?).step(step)?;
    if_there(find(&root, rest)).step(step)
}

/// Nothing where the kernel has no such file.
pub(crate) fn if_there(found: rustix::io::Result<OwnedFd>) -> rustix::io::Result<Option<OwnedFd>> {
    match found {
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        result => result.map(Some),
    }
}

pub(crate) fn set_sysctl(file: &OwnedFd, name: &str, value: &str) -> Result<(), ErrorKind> {
    let step = || format!("set the sysctl {name} to `{value}`");
    // An image can put anything at /proc when the spec mounts nothing there (CVE-2025-52881).
    let is_proc = rustix::fs::fstatfs(file).step(step)?.f_type == rustix::fs::PROC_SUPER_MAGIC;
    if !is_proc {
        return Err(ErrorKind::Invalid(format!("cannot set the sysctl {name}: the spec mounts no proc at /proc")));
    }
    rustix::io::write(file, value.as_bytes()).map(drop).step(step)
}

pub(crate) fn make_readonly(target: &OwnedFd, path: &str) -> Result<(), ErrorKind> {
    let step = || format!("make {path} read-only");
    let tree = copy_of(target.as_fd(), true).step(step)?;
    let attributes =
        libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    sys::set_mount_attributes(tree.as_fd(), true, attributes, None).step(step)?;
    attach_to(&tree, target).step(step)
}

pub(crate) fn mask(masks: &Masks, target: &OwnedFd, path: &str) -> Result<(), ErrorKind> {
    let step = || format!("mask {path}");
    let stat = rustix::fs::fstat(target).step(step)?;
    let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    let cover = if is_directory { &masks.directory } else { &masks.file };
    attach_to(&copy_of(cover.as_fd(), false).step(step)?, target).step(step)
}

pub(super) fn copy_of(place: BorrowedFd<'_>, is_recursive: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if is_recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(place, "", flags)
}

/// The kernel takes milliseconds to let go of mounts, which a start need not wait for when the host's go now.
fn leave_host(scratch: &Path) -> Result<(), ErrorKind> {
    rustix::process::chdir(scratch).step(|| "enter the scratch filesystem".into())?;
    pivot()
}

/// Makes the current directory the root, and lets go of the old one.
pub(crate) fn pivot() -> Result<(), ErrorKind> {
    // Both at one place: the old root then lies on top of the new one, and goes away with everything below it.
    rustix::process::pivot_root(".", ".").step(|| "make it the root".into())?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).step(|| "leave the old root".into())?;
    rustix::process::chdir("/").step(|| "enter the root".into())
}
