//! [`Stubs`]: mount points that the image lacked, made in the overlay for the sandbox and removed after it.
//!
//! They must not end up in a layer that is made from the upper directory.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps};
use serde::{Deserialize, Serialize};

/// What was made, and how the directories around it were before. Paths are relative to the root.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stubs {
    made: Vec<(PathBuf, bool)>,
    parents: BTreeMap<PathBuf, Parent>,
}

/// A directory as it was before something was made below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Parent {
    mode: u32,
    uid: u32,
    gid: u32,
    modified: (i64, i64),
    /// Otherwise making something in it has copied it from a lower directory.
    was_in_upper: bool,
}

impl Stubs {
    /// Notes that `name` is about to be made in `parent`.
    pub(crate) fn record(
        &mut self,
        upper: &OwnedFd,
        root: &OwnedFd,
        parent: &Path,
        name: &Path,
        is_directory: bool,
    ) -> rustix::io::Result<()> {
        for ancestor in parent.ancestors() {
            if self.parents.contains_key(ancestor) || self.made.iter().any(|(path, _)| path == ancestor) {
                continue;
            }
            let path = if ancestor.as_os_str().is_empty() { Path::new(".") } else { ancestor };
            let stat = rustix::fs::statat(root, path, AtFlags::SYMLINK_NOFOLLOW)?;
            let was_in_upper = rustix::fs::statat(upper, path, AtFlags::SYMLINK_NOFOLLOW).is_ok();
            self.parents.insert(ancestor.to_owned(), Parent::new(&stat, was_in_upper));
        }
        self.made.push((parent.join(name), is_directory));
        Ok(())
    }
}

impl Parent {
    fn new(stat: &Stat, was_in_upper: bool) -> Parent {
        let modified = (stat.st_mtime, stat.st_mtime_nsec as i64);
        Parent { mode: stat.st_mode, uid: stat.st_uid, gid: stat.st_gid, modified, was_in_upper }
    }

    fn has_same_owner_and_mode(&self, stat: &Stat) -> bool {
        (self.mode, self.uid, self.gid) == (stat.st_mode, stat.st_uid, stat.st_gid)
    }
}

/// Removes from `upper` what `stubs` says was made and is still empty, and puts the directories around it back.
///
/// To be called when no process of the sandbox is left. Nothing depends on its success.
pub(crate) fn remove_stubs(upper: &Path, stubs: &Stubs) {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(upper) = rustix::fs::open(upper, flags, Mode::empty()) else { return };
    for (path, is_directory) in stubs.made.iter().rev() {
        let _ = remove_stub(&upper, path, *is_directory);
    }
    // The deepest first.
    for (path, parent) in stubs.parents.iter().rev() {
        let _ = put_back(&upper, path, parent);
    }
}

fn remove_stub(upper: &OwnedFd, path: &Path, is_directory: bool) -> rustix::io::Result<()> {
    let (parent, name) = open_parent(upper, path)?;
    if is_directory {
        return rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR);
    }
    let is_untouched = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?.st_size == 0;
    if is_untouched { rustix::fs::unlinkat(&parent, name, AtFlags::empty()) } else { Ok(()) }
}

fn put_back(upper: &OwnedFd, path: &Path, before: &Parent) -> rustix::io::Result<()> {
    if !before.was_in_upper {
        let (parent, name) = open_parent(upper, path)?;
        let stat = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        // Fails when something else is in it: then it belongs to the layer.
        if before.has_same_owner_and_mode(&stat) && rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR).is_ok() {
            return Ok(());
        }
    }
    let directory = open_beneath(upper, path, OFlags::RDONLY)?;
    let (tv_sec, tv_nsec) = before.modified;
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        last_modification: Timespec { tv_sec, tv_nsec },
    };
    rustix::fs::futimens(&directory, &times)
}

fn open_parent<'p>(upper: &OwnedFd, path: &'p Path) -> rustix::io::Result<(OwnedFd, &'p Path)> {
    let name = path.file_name().ok_or(rustix::io::Errno::INVAL)?;
    let parent = path.parent().unwrap_or(Path::new(""));
    Ok((open_beneath(upper, parent, OFlags::PATH)?, Path::new(name)))
}

fn open_beneath(upper: &OwnedFd, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = flags | OFlags::DIRECTORY;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    crate::inside::open_inside(upper, path, flags, resolve)
}
