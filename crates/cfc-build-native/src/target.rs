//! [`Target`]: the filesystem that files are copied into: the layers so far, and the entries of the layer being made.

use std::path::{Path, PathBuf};

use crate::entry::{Entries, Entry, EntryKind};
use crate::failure::{Failure, Result};
use crate::owner::Owner;
use crate::tree::{FileInfo, Kind, Last, Lookup, Tree, resolve};
use crate::view::View;

/// A filesystem with a layer being put on top.
pub(crate) struct Target<'a> {
    base: &'a View,
    entries: Entries,
}

impl<'a> Target<'a> {
    /// Nothing on top of `base` yet.
    pub(crate) fn new(base: &'a View) -> Target<'a> {
        Target { base, entries: Entries::new() }
    }

    /// The layer.
    pub(crate) fn into_entries(self) -> Entries {
        self.entries
    }

    /// `path` with its links followed inside this filesystem.
    pub(crate) fn resolve(&self, path: &Path) -> Result<PathBuf> {
        resolve(self, path, Last::Followed)
    }

    /// Makes the directory `path`, a resolved path, and what is missing above it.
    pub(crate) fn make_directories(&mut self, path: &Path, owner: Owner) -> Result<()> {
        let mut reached = PathBuf::from("/");
        for part in path.components().skip(1) {
            reached.push(part);
            match self.lookup(&reached)? {
                Some(info) if info.is_directory() => {}
                Some(_) => {
                    return Err(Failure::new(format!("`{}` is not a directory in the image", reached.display())));
                }
                None => self.put(&reached, Entry::directory(0o755, owner.uid, owner.gid))?,
            }
        }
        Ok(())
    }

    /// Puts `entry` at `path`, a resolved path, in place of what was there.
    pub(crate) fn put(&mut self, path: &Path, entry: Entry) -> Result<()> {
        if let Some(parent) = path.parent() {
            self.repeat_directories(parent)?;
        }
        // The root is in every image and in no layer.
        if path != Path::new("/") {
            self.entries.insert(path.to_path_buf(), entry);
        }
        Ok(())
    }

    /// A layer repeats the directories above its files: one that names a file alone would, unpacked by itself, give the
    /// directory a mode of the unpacker's choice, and hide the one below.
    fn repeat_directories(&mut self, path: &Path) -> Result<()> {
        let mut ancestor = path;
        while ancestor != Path::new("/") && !self.entries.contains_key(ancestor) {
            if let Some(info) = self.base.lookup(ancestor)? {
                let attributes = self.base.attributes(ancestor)?;
                let entry = Entry { attributes, ..Entry::directory(info.mode, info.uid, info.gid) };
                self.entries.insert(ancestor.to_path_buf(), entry);
            }
            ancestor = ancestor.parent().unwrap_or(Path::new("/"));
        }
        Ok(())
    }
}

impl Lookup for Target<'_> {
    fn lookup(&self, path: &Path) -> Result<Option<FileInfo>> {
        let Some(entry) = self.entries.get(path) else { return self.base.lookup(path) };
        let kind = match &entry.kind {
            EntryKind::Directory => Kind::Directory,
            EntryKind::Symlink(target) => Kind::Symlink(target.clone()),
            _ => Kind::File,
        };
        Ok(Some(FileInfo { kind, ..FileInfo::directory(entry.mode, entry.uid, entry.gid) }))
    }
}
