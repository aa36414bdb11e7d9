//! Puts the sandbox's root together below the scratch filesystem that its shell has ([`furnish`](super::furnish)), and
//! makes it the root.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};

use super::furnish::{self, Room, if_there};
use super::overlay::{mount_root, part_of_overlay};
use super::stubs::Stubs;
use super::targets::Targets;
use crate::error::ErrorKind;
use crate::launcher::blueprint::{Blueprint, MountKind, MountPlan};
use crate::launcher::furniture::Furniture;
use crate::launcher::mount_options::MountOptions;
use crate::step::Step;
use crate::sys;

/// Builds the root and moves into it. What was made in the overlay for it is returned.
pub(crate) fn enter(blueprint: &Blueprint, furniture: &Furniture, room: &Room) -> Result<Stubs, ErrorKind> {
    let upper = mount_root(blueprint)?;
    let root = rustix::fs::open("root", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, rustix::fs::Mode::empty())
        .step(|| "open the new root".into())?;
    let mut targets = Targets::new(root, PathBuf::from("/root"), upper)?;
    for (index, mount) in blueprint.mounts.iter().enumerate() {
        if furniture.piece(index).is_some_and(|piece| piece.within.is_some()) {
            continue;
        }
        add_mount(&mut targets, index, mount, blueprint, room)?;
        if mount.target == Path::new("/dev") {
            fill_dev(&mut targets, blueprint, room)?;
        }
    }
    protect(&targets, blueprint, furniture, room)?;
    // Device nodes are dead inside a user namespace by themselves, on filesystems that were mounted there.
    let is_dead = blueprint.has_user_namespace && blueprint.node_maker.is_none();
    let nodev = if is_dead { 0 } else { libc::MOUNT_ATTR_NODEV };
    let readonly = if blueprint.is_root_readonly { libc::MOUNT_ATTR_RDONLY } else { 0 };
    if nodev | readonly != 0 {
        sys::set_mount_attributes(targets.root.as_fd(), false, nodev | readonly, None)
            .step(|| "set the options of the root".into())?;
    }
    rustix::process::fchdir(&targets.root).step(|| "enter the new root".into())?;
    if blueprint.capabilities.may_unmount() {
        furnish::pivot()?
    } else {
        cover()?
    }
    Ok(targets.stubs)
}

/// Lays the current directory over the root, and makes it the root.
///
/// Letting go of the old root, as [`furnish::pivot`] does, takes the kernel milliseconds. Here it stays below the new one,
/// as the kernel's own initial root lies below everybody's: out of reach to whoever cannot unmount what covers it, which
/// takes CAP_SYS_ADMIN in this namespace. In a namespace that a sandbox's process makes, both are locked together
/// (mount_namespaces(7)). And below there is nothing but the sandbox's own layers.
fn cover() -> Result<(), ErrorKind> {
    let step = || "make it the root".to_owned();
    rustix::mount::mount_move(".", "/").step(step)?;
    rustix::process::chroot(".").step(step)?;
    rustix::process::chdir("/").step(|| "enter the root".into())
}

fn add_mount(
    targets: &mut Targets,
    index: usize,
    mount: &MountPlan,
    blueprint: &Blueprint,
    room: &Room,
) -> Result<(), ErrorKind> {
    let (descriptors, step) = (&blueprint.descriptors, || format!("mount {}", mount.target.display()));
    match &mount.kind {
        MountKind::Bind { tree, is_directory } => {
            let target = targets.find_or_make(&mount.target, *is_directory)?;
            attach_to(descriptors.get(*tree), &target).step(step)
        }
        MountKind::New { .. } => attach_to(room.piece(index)?, &targets.find_or_make(&mount.target, true)?).step(step),
        MountKind::File { content, mode, uid, gid } => {
            let tree = file_in_memory(descriptors.get(*content), *mode, *uid, *gid).step(step)?;
            attach_to(&tree, &targets.find_or_make(&mount.target, false)?).step(step)
        }
        MountKind::Overlay { lowers, changes, subpath, attributes } => {
            let lowers: Vec<&OwnedFd> = lowers.iter().map(|lower| descriptors.get(*lower)).collect();
            let changes = changes.as_ref();
            let changes = changes.map(|it| (descriptors.get(it.parent), it.upper.as_str(), it.work.as_str()));
            let (tree, is_directory) = part_of_overlay(&lowers, changes, subpath, &mount.target)?;
            sys::set_mount_attributes(tree.as_fd(), false, *attributes, None).step(step)?;
            attach_to(&tree, &targets.find_or_make(&mount.target, is_directory)?).step(step)
        }
    }
}

/// A read-only copy of `content` as the only file of a filesystem that is mounted nowhere else.
fn file_in_memory(content: &OwnedFd, mode: u32, uid: u32, gid: u32) -> rustix::io::Result<OwnedFd> {
    const NAME: &str = "secret";
    fs::create_dir_all(NAME).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    // Laid over the one before, which stays where it was shown.
    attach(&new_filesystem("tmpfs", &MountOptions::default())?, CWD, Path::new(NAME))?;
    let directory = rustix::fs::open(NAME, OFlags::PATH | OFlags::CLOEXEC, rustix::fs::Mode::empty())?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&directory, NAME, flags, rustix::fs::Mode::from_raw_mode(0o600))?;
    let mut content = fs::File::from(content.try_clone().map_err(|_| Errno::MFILE)?);
    std::io::copy(&mut content, &mut fs::File::from(file.try_clone().map_err(|_| Errno::MFILE)?))
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    rustix::fs::fchown(&file, Some(rustix::fs::Uid::from_raw(uid)), Some(rustix::fs::Gid::from_raw(gid)))?;
    rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(mode))?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(&directory, NAME, flags)?;
    let attributes = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    sys::set_mount_attributes(tree.as_fd(), false, attributes, None)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok(tree)
}

/// What a `/dev` has that the shell could not give it.
fn fill_dev(targets: &mut Targets, blueprint: &Blueprint, room: &Room) -> Result<(), ErrorKind> {
    let given = blueprint.devices.iter().map(|(path, tree)| (path.clone(), blueprint.descriptors.get(*tree)));
    let usual = room.devices.iter().map(|(name, tree)| (Path::new("/dev").join(name), tree));
    for (path, tree) in usual.chain(given) {
        let target = targets.find_or_make(&path, false)?;
        attach_to(tree, &target).step(|| format!("show the device {}", path.display()))?;
    }
    furnish::link_streams(&targets.find(Path::new("/dev")).step(|| "open /dev".into())?)
}

/// What the shell could not do, since the host or the image shows in between.
fn protect(targets: &Targets, blueprint: &Blueprint, done: &Furniture, room: &Room) -> Result<(), ErrorKind> {
    for (name, value) in blueprint.sysctl.iter().filter(|entry| !done.sysctl.contains(entry)) {
        let path = Path::new("/proc/sys").join(name);
        let file = targets.open(&path, OFlags::WRONLY).step(|| format!("set the sysctl {name} to `{value}`"))?;
        furnish::set_sysctl(&file, name, value)?;
    }
    let find = |path: &String| if_there(targets.find(Path::new(path))).step(|| format!("find {path}"));
    for path in blueprint.readonly_paths.iter().filter(|path| !done.readonly_paths.contains(path)) {
        if let Some(target) = find(path)? {
            furnish::make_readonly(&target, path)?;
        }
    }
    for path in blueprint.masked_paths.iter().filter(|path| !done.masked_paths.contains(path)) {
        if let Some(target) = find(path)? {
            furnish::mask(&room.masks, &target, path)?;
        }
    }
    Ok(())
}

pub(super) fn new_filesystem(kind: &str, options: &MountOptions) -> rustix::io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(context.as_fd(), "source", kind)?;
    for (key, value) in &options.data {
        match value {
            Some(value) => rustix::mount::fsconfig_set_string(context.as_fd(), key.as_str(), value.as_str())?,
            None => rustix::mount::fsconfig_set_flag(context.as_fd(), key.as_str())?,
        }
    }
    rustix::mount::fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::from_bits_retain(options.attributes as u32);
    rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

pub(super) fn attach(tree: &OwnedFd, directory: BorrowedFd<'_>, point: &Path) -> rustix::io::Result<()> {
    rustix::mount::move_mount(tree.as_fd(), "", directory, point, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

pub(super) fn attach_to(tree: &OwnedFd, target: &OwnedFd) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree.as_fd(), "", target.as_fd(), "", flags)
}
