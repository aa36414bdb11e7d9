//! [`copy_tree`]: a part of an image's filesystem into a directory of ours, with owners, modes and attributes.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, mknodat};

use crate::failure::{Failure, OnPath, Result};
use crate::tree::{FileInfo, Kind, Tree};

/// Copies what is in the directory `from` of `tree` into `to`, which is there. Sockets are left out.
///
/// Devices are refused: it is mounted as it lies, and what is mounted so is dead only by a mount option.
pub(crate) fn copy_tree(tree: &dyn Tree, from: &Path, to: &Path) -> Result<()> {
    // A stack of our own: the depth is up to whoever made the files.
    let mut pending: Vec<(PathBuf, PathBuf)> = vec![(from.to_path_buf(), to.to_path_buf())];
    while let Some((from, to)) = pending.pop() {
        for (name, info) in tree.list(&from)? {
            let (source, target) = (from.join(&name), to.join(&name));
            if copy_one(tree, &source, &info, &target)? {
                pending.push((source, target));
            }
        }
    }
    Ok(())
}

/// Copies a single thing; whether it is a directory, to be filled.
fn copy_one(tree: &dyn Tree, source: &Path, info: &FileInfo, target: &Path) -> Result<bool> {
    match &info.kind {
        Kind::Directory => fs::create_dir(target).on("make the directory", target)?,
        Kind::File => {
            let mut to = File::options().write(true).create_new(true).open(target).on("make", target)?;
            std::io::copy(&mut tree.open(source)?, &mut to).on("copy to", target)?;
        }
        Kind::Symlink(link) => symlink(link, target).on("make the link", target)?,
        Kind::Character { .. } | Kind::Block { .. } => {
            return Err(Failure::new(format!("`{}` is a device, and a cache holds none", source.display()))
                .hint("choose a `source=` without it"));
        }
        Kind::Fifo => mknodat(CWD, target, FileType::Fifo, Mode::RUSR, 0).on("make", target)?,
        Kind::Socket => return Ok(false),
    }
    lchown(target, Some(info.uid), Some(info.gid)).on("give away", target)?;
    if !matches!(info.kind, Kind::Symlink(_)) {
        fs::set_permissions(target, fs::Permissions::from_mode(info.mode)).on("set the mode of", target)?;
        for (name, value) in tree.attributes(source)? {
            lsetxattr(target, &*name, &value, XattrFlags::empty()).on("set an attribute of", target)?;
        }
    }
    Ok(info.is_directory())
}
