//! The overlays of a sandbox: its root, and those of which a part is mounted somewhere.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, OFlags};
use rustix::mount::MountFlags;

use super::furnish::copy_of;
use super::nodes;
use super::rootfs::attach;
use crate::error::ErrorKind;
use crate::launcher::blueprint::{Blueprint, Handle, RootPlan};
use crate::step::Step;

/// Mounts the root at `root`. Returns the upper directory, when there is one.
pub(super) fn mount_root(blueprint: &Blueprint) -> Result<Option<OwnedFd>, ErrorKind> {
    let get = |handle: &Handle| blueprint.descriptors.get(*handle);
    let (lowers, changes, upper, work) = match &blueprint.root {
        RootPlan::Directory(tree) => {
            attach(get(tree), CWD, Path::new("root")).step(|| "mount the root directory".into())?;
            return Ok(None);
        }
        RootPlan::Overlay { lowers, changes, upper, work } => (lowers, changes, upper, work),
    };
    let open = |flags| rustix::fs::openat(get(changes), upper.as_str(), flags, rustix::fs::Mode::empty());
    let upper_directory =
        open(OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC).step(|| "open the upper directory".into())?;
    if let Some(maker) = blueprint.node_maker {
        nodes::have_root_mounted(get(&maker))?;
    } else {
        let lowers: Vec<&OwnedFd> = lowers.iter().map(get).collect();
        mount_overlay("", &lowers, Some((get(changes), upper, work)), MountFlags::empty())?;
    }
    Ok(Some(upper_directory))
}

/// Mounts an overlay of `lowers` at `<base>root`, with `l` and `c` of the same base for what it consists of.
pub(super) fn mount_overlay(
    base: &str,
    lowers: &[&OwnedFd],
    changes: Option<(&OwnedFd, &str, &str)>,
    flags: MountFlags,
) -> Result<(), ErrorKind> {
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
        // A machine's defaults, which only its root gets: names of one file of a layer would then stay one when it is
        // changed, with all but the changed name kept in `work`.
        options += ",index=off,nfs_export=off";
    }
    let options = std::ffi::CString::new(options)
        .map_err(|_| ErrorKind::Invalid("the upper directory's path holds a zero byte".into()))?;
    rustix::mount::mount("overlay", format!("{base}root"), "overlay", flags, options.as_c_str())
        .step(|| format!("mount the overlay of {} layers", lowers.len()))
}

/// A detached copy of `subpath` of an overlay, and whether it is a directory. Links in `subpath` stay inside the overlay.
pub(super) fn part_of_overlay(
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
    mount_overlay(&base, lowers, changes, MountFlags::empty())?;
    let step = || format!("find {} in what is mounted at {}", subpath.display(), target.display());
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = rustix::fs::open(format!("{base}root"), flags, rustix::fs::Mode::empty()).step(step)?;
    let resolve = rustix::fs::ResolveFlags::IN_ROOT | rustix::fs::ResolveFlags::NO_MAGICLINKS;
    let part = crate::inside::open_inside(&root, subpath, flags, resolve).step(step)?;
    let is_directory = FileType::from_raw_mode(rustix::fs::fstat(&part).step(step)?.st_mode) == FileType::Directory;
    Ok((copy_of(part.as_fd(), false).step(step)?, is_directory))
}
