//! Builds the sandbox's tree of mounts and makes it the root.
//!
//! Everything is put together below a scratch filesystem that disappears with the old root:
//!
//! ```text
//! <scratch>/l/0 … l/n   the lower directories, topmost first, ids mapped
//! <scratch>/c           the directory that holds upper and work, ids mapped
//! <scratch>/root        the overlay (or the given directory): the root to be
//! <scratch>/m/0 … m/n   overlays of which a part is mounted somewhere: their lowers, changes and root, as above
//! <scratch>/mask, null  an empty directory and a /dev/null, to lay over masked paths
//! ```

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags,
};

use super::stubs::Stubs;
use super::targets::Targets;
use crate::error::ErrorKind;
use crate::launcher::blueprint::{Blueprint, Descriptors, Handle, MountKind, MountPlan, RootPlan};
use crate::launcher::mount_options::MountOptions;
use crate::step::Step;
use crate::sys;

/// Directories that any host has one of, to lay the scratch filesystem over. Not `/proc`, `/sys`, `/dev`: the kernel
/// lets a user namespace mount those only while it sees the host's uncovered.
const SCRATCH_CANDIDATES: [&str; 6] = ["/tmp", "/run", "/mnt", "/var", "/home", "/usr"];

/// Builds the root and moves into it. What was made in the overlay for it is returned.
pub(crate) fn enter(blueprint: &Blueprint) -> Result<Stubs, ErrorKind> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).step(|| "make the mounts private".into())?;
    let scratch = make_scratch()?;
    let upper = mount_root(blueprint)?;
    let root = rustix::fs::open("root", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, rustix::fs::Mode::empty())
        .step(|| "open the new root".into())?;
    let mut targets = Targets::new(root, scratch.join("root"), upper)?;
    for mount in &blueprint.mounts {
        add_mount(&mut targets, mount, &blueprint.descriptors)?;
        if mount.target == Path::new("/dev") {
            fill_dev(&mut targets, blueprint)?;
        }
    }
    set_sysctls(&targets, &blueprint.sysctl)?;
    set_readonly(&targets, &blueprint.readonly_paths)?;
    mask(&targets, blueprint)?;
    // An image's device nodes are dead inside a user namespace by themselves.
    let nodev = if blueprint.has_user_namespace { 0 } else { libc::MOUNT_ATTR_NODEV };
    let readonly = if blueprint.is_root_readonly { libc::MOUNT_ATTR_RDONLY } else { 0 };
    if nodev | readonly != 0 {
        sys::set_mount_attributes(targets.root.as_fd(), false, nodev | readonly, None)
            .step(|| "set the options of the root".into())?;
    }
    pivot(&targets.root)?;
    Ok(targets.stubs)
}

fn make_scratch() -> Result<PathBuf, ErrorKind> {
    let scratch = SCRATCH_CANDIDATES.iter().map(PathBuf::from).find(|path| path.is_dir());
    let scratch = scratch.ok_or_else(|| ErrorKind::Unavailable("the host has no /tmp".into()))?;
    let data = [("mode".to_owned(), Some("700".to_owned()))];
    let filesystem = new_filesystem("tmpfs", &MountOptions { data: data.into(), ..MountOptions::default() })
        .step(|| "make the scratch filesystem".into())?;
    attach(&filesystem, CWD, scratch.as_path()).step(|| "mount the scratch filesystem".into())?;
    rustix::process::chdir(&scratch).step(|| "enter the scratch filesystem".into())?;
    for directory in ["l", "c", "root", "mask"] {
        fs::create_dir(directory).step(|| "fill the scratch filesystem".into())?;
    }
    Ok(scratch)
}

/// Mounts the root at `root`. Returns the upper directory's path, when there is one.
pub(super) fn mount_root(blueprint: &Blueprint) -> Result<Option<PathBuf>, ErrorKind> {
    let get = |handle: &Handle| blueprint.descriptors.get(*handle);
    let (lowers, changes, upper, work) = match &blueprint.root {
        RootPlan::Directory(tree) => {
            attach(get(tree), CWD, Path::new("root")).step(|| "mount the root directory".into())?;
            return Ok(None);
        }
        RootPlan::Overlay { lowers, changes, upper, work } => (lowers, changes, upper, work),
    };
    let lowers: Vec<&OwnedFd> = lowers.iter().map(get).collect();
    mount_overlay("", &lowers, Some((get(changes), upper, work)))?;
    let upper = std::env::current_dir().step(|| "find the scratch filesystem".into())?.join("c").join(upper);
    Ok(Some(upper))
}

/// Mounts an overlay of `lowers` at `<base>root`, with `l` and `c` of the same base for what it consists of.
fn mount_overlay(base: &str, lowers: &[&OwnedFd], changes: Option<(&OwnedFd, &str, &str)>) -> Result<(), ErrorKind> {
    for (i, lower) in lowers.iter().enumerate() {
        let point = format!("{base}l/{i}");
        fs::create_dir(&point).step(|| "fill the scratch filesystem".into())?;
        attach(lower, CWD, Path::new(&point)).step(|| format!("mount layer {i}"))?;
    }
    let lower_list: Vec<String> = (0..lowers.len()).map(|i| format!("{base}l/{i}")).collect();
    let mut options = format!("lowerdir={},userxattr", lower_list.join(":"));
    if let Some((parent, upper, work)) = changes {
        attach(parent, CWD, Path::new(&format!("{base}c"))).step(|| "mount the upper directory".into())?;
        // `volatile`: no write is forced to disk. What the sandbox wrote need not survive a power cut.
        options += &format!(",upperdir={base}c/{upper},workdir={base}c/{work},volatile");
    }
    let options = std::ffi::CString::new(options)
        .map_err(|_| ErrorKind::Invalid("the upper directory's path holds a zero byte".into()))?;
    rustix::mount::mount("overlay", format!("{base}root"), "overlay", MountFlags::empty(), options.as_c_str())
        .step(|| format!("mount the overlay of {} layers", lowers.len()))
}

fn add_mount(targets: &mut Targets, mount: &MountPlan, descriptors: &Descriptors) -> Result<(), ErrorKind> {
    let step = || format!("mount {}", mount.target.display());
    match &mount.kind {
        MountKind::Bind { tree, is_directory } => {
            let target = targets.find_or_make(&mount.target, *is_directory)?;
            attach_to(descriptors.get(*tree), &target).step(step)
        }
        MountKind::New { filesystem, options } => {
            let target = targets.find_or_make(&mount.target, true)?;
            let tree = new_filesystem(filesystem, options)
                .step(|| format!("make a {filesystem} for {}", mount.target.display()))?;
            attach_to(&tree, &target).step(step)
        }
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

/// A detached copy of `subpath` of an overlay, and whether it is a directory. Links in `subpath` stay inside the overlay.
fn part_of_overlay(
    lowers: &[&OwnedFd],
    changes: Option<(&OwnedFd, &str, &str)>,
    subpath: &Path,
    target: &Path,
) -> Result<(OwnedFd, bool), ErrorKind> {
    let fill = || "fill the scratch filesystem".to_owned();
    fs::create_dir_all("m").step(fill)?;
    let number = fs::read_dir("m").step(fill)?.count();
    let base = format!("m/{number}/");
    for directory in ["l", "c", "root"] {
        fs::create_dir_all(format!("{base}{directory}")).step(fill)?;
    }
    mount_overlay(&base, lowers, changes)?;
    let step = || format!("find {} in what is mounted at {}", subpath.display(), target.display());
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = rustix::fs::open(format!("{base}root"), flags, rustix::fs::Mode::empty()).step(step)?;
    let resolve = rustix::fs::ResolveFlags::IN_ROOT | rustix::fs::ResolveFlags::NO_MAGICLINKS;
    let part = crate::inside::open_inside(&root, subpath, flags, resolve).step(step)?;
    let is_directory = FileType::from_raw_mode(rustix::fs::fstat(&part).step(step)?.st_mode) == FileType::Directory;
    Ok((copy_of(part.as_fd(), false).step(step)?, is_directory))
}

fn fill_dev(targets: &mut Targets, blueprint: &Blueprint) -> Result<(), ErrorKind> {
    for (path, tree) in &blueprint.devices {
        let target = targets.find_or_make(path, false)?;
        attach_to(blueprint.descriptors.get(*tree), &target).step(|| format!("show the device {}", path.display()))?;
    }
    let dev = targets.find(Path::new("/dev")).step(|| "open /dev".into())?;
    let links = [
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
        ("pts/ptmx", "ptmx"),
    ];
    links.iter().try_for_each(|(to, name)| match rustix::fs::symlinkat(*to, &dev, *name) {
        Err(Errno::EXIST) => Ok(()),
        result => result.step(|| format!("make /dev/{name}")),
    })
}

fn set_sysctls(targets: &Targets, sysctls: &[(String, String)]) -> Result<(), ErrorKind> {
    for (name, value) in sysctls {
        let path = Path::new("/proc/sys").join(name);
        let step = || format!("set the sysctl {name} to `{value}`");
        let file = targets.open(&path, OFlags::WRONLY).step(step)?;
        // An image can put anything at /proc when the spec mounts nothing there (CVE-2025-52881).
        let is_proc = rustix::fs::fstatfs(&file).step(step)?.f_type == rustix::fs::PROC_SUPER_MAGIC;
        if !is_proc {
            return Err(ErrorKind::Invalid(format!("cannot set the sysctl {name}: the spec mounts no proc at /proc")));
        }
        rustix::io::write(&file, value.as_bytes()).map(drop).step(step)?;
    }
    Ok(())
}

fn set_readonly(targets: &Targets, paths: &[String]) -> Result<(), ErrorKind> {
    for path in paths {
        let Some(target) = find_existing(targets, path)? else { continue };
        let step = || format!("make {path} read-only");
        let tree = copy_of(target.as_fd(), true).step(step)?;
        let attributes =
            libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
        sys::set_mount_attributes(tree.as_fd(), true, attributes, None).step(step)?;
        attach_to(&tree, &target).step(step)?;
    }
    Ok(())
}

fn mask(targets: &Targets, blueprint: &Blueprint) -> Result<(), ErrorKind> {
    let mut masks = None;
    for path in &blueprint.masked_paths {
        let Some(target) = find_existing(targets, path)? else { continue };
        let step = || format!("mask {path}");
        if masks.is_none() {
            masks = Some(make_masks(blueprint)?);
        }
        let Some((directory, file)) = &masks else { continue };
        let stat = rustix::fs::fstat(&target).step(step)?;
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let tree = copy_of(if is_directory { directory.as_fd() } else { file.as_fd() }, false).step(step)?;
        attach_to(&tree, &target).step(step)?;
    }
    Ok(())
}

/// An empty read-only directory and the host's `/dev/null`, mounted where copies can be made of them.
fn make_masks(blueprint: &Blueprint) -> Result<(OwnedFd, OwnedFd), ErrorKind> {
    let step = || "make the masks".to_owned();
    let options = MountOptions { attributes: libc::MOUNT_ATTR_RDONLY, ..MountOptions::default() };
    attach(&new_filesystem("tmpfs", &options).step(step)?, CWD, Path::new("mask")).step(step)?;
    fs::write("null", "").step(step)?;
    attach(blueprint.descriptors.get(blueprint.null), CWD, Path::new("null")).step(step)?;
    let open =
        |path: &str| rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, rustix::fs::Mode::empty()).step(step);
    Ok((open("mask")?, open("null")?))
}

fn find_existing(targets: &Targets, path: &str) -> Result<Option<OwnedFd>, ErrorKind> {
    match targets.find(Path::new(path)) {
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        result => result.map(Some).step(|| format!("find {path}")),
    }
}

fn pivot(root: &OwnedFd) -> Result<(), ErrorKind> {
    rustix::process::fchdir(root).step(|| "enter the new root".into())?;
    // Both at one place: the old root then lies on top of the new one, and goes away with everything below it.
    rustix::process::pivot_root(".", ".").step(|| "make it the root".into())?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).step(|| "leave the old root".into())?;
    rustix::process::chdir("/").step(|| "enter the root".into())
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

fn copy_of(place: BorrowedFd<'_>, is_recursive: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if is_recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(place, "", flags)
}

pub(super) fn attach(tree: &OwnedFd, directory: BorrowedFd<'_>, point: &Path) -> rustix::io::Result<()> {
    rustix::mount::move_mount(tree.as_fd(), "", directory, point, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

fn attach_to(tree: &OwnedFd, target: &OwnedFd) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree.as_fd(), "", target.as_fd(), "", flags)
}
