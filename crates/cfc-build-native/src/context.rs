//! [`ContextTree`]: the build context, with what `.dockerignore` leaves out not being there.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use cfc_dockerfile::IgnoreFile;
use cfc_dockerfile::ignore::DirectoryMatches;
use cfc_plan::Ignore;
use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::failure::{Failure, OnPath, Result};
use crate::tree::{FileInfo, Lookup, Tree, read_attributes, relative};

/// The build context.
pub(crate) struct ContextTree<'a> {
    root: PathBuf,
    handle: OwnedFd,
    ignore: Option<&'a IgnoreFile>,
    ignore_path: Option<&'a Path>,
}

impl<'a> ContextTree<'a> {
    /// The files of `directory`, without those that `ignore` leaves out.
    pub(crate) fn open(directory: &Path, ignore: Option<&'a Ignore>) -> Result<ContextTree<'a>> {
        let root = fs::canonicalize(directory).on("find the build context", directory)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle = rustix::fs::open(&root, flags, Mode::empty()).on("open the build context", &root)?;
        let ignore = ignore.filter(|ignore| !ignore.file.is_empty());
        Ok(ContextTree {
            root,
            handle,
            ignore: ignore.map(|ignore| &ignore.file),
            ignore_path: ignore.map(|ignore| ignore.path.as_path()),
        })
    }

    /// All of `directory`, which is no build context but holds what is copied.
    pub(crate) fn of_directory(directory: &Path) -> Result<ContextTree<'static>> {
        let root = fs::canonicalize(directory).on("find", directory)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle = rustix::fs::open(&root, flags, Mode::empty()).on("open", &root)?;
        Ok(ContextTree { root, handle, ignore: None, ignore_path: None })
    }

    /// Where the context is.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    fn real(&self, path: &Path) -> PathBuf {
        self.root.join(relative(path))
    }

    /// What the patterns say about `directory` itself, for asking about what is in it.
    fn matches_of(&self, ignore: &IgnoreFile, directory: &Path) -> DirectoryMatches {
        let mut matches = DirectoryMatches::default();
        let mut reached = PathBuf::new();
        for part in relative(directory) {
            reached.push(part);
            matches = ignore.is_ignored_below(&reached.to_string_lossy(), &matches).1;
        }
        matches
    }

    /// Whether the patterns let `path` be seen; `above` are the matches of its directory. An ignored directory is seen
    /// when something in it is taken back in.
    fn is_visible(&self, ignore: &IgnoreFile, path: &Path, info: &FileInfo, above: &DirectoryMatches) -> Result<bool> {
        let name = relative(path).to_string_lossy();
        let (is_ignored, matches) = ignore.is_ignored_below(&name, above);
        if !is_ignored {
            return Ok(true);
        }
        if !info.is_directory() || !ignore.may_contain_reincluded(&name) {
            return Ok(false);
        }
        for (name, info) in self.list_all(path)? {
            if self.is_visible(ignore, &path.join(name), &info, &matches)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn list_all(&self, directory: &Path) -> Result<Vec<(OsString, FileInfo)>> {
        let real = self.real(directory);
        let mut entries = Vec::new();
        for entry in fs::read_dir(&real).on("list", &real)? {
            let entry = entry.on("list", &real)?;
            // One that disappeared in the meantime was never there.
            if let Some(info) = FileInfo::read(&entry.path())? {
                entries.push((entry.file_name(), info));
            }
        }
        entries.sort_by(|(left, _), (right, _)| left.cmp(right));
        Ok(entries)
    }
}

impl Lookup for ContextTree<'_> {
    fn lookup(&self, path: &Path) -> Result<Option<FileInfo>> {
        let Some(info) = FileInfo::read(&self.real(path))? else { return Ok(None) };
        let (Some(ignore), Some(parent)) = (self.ignore, path.parent()) else { return Ok(Some(info)) };
        let above = self.matches_of(ignore, parent);
        Ok(self.is_visible(ignore, path, &info, &above)?.then_some(info))
    }
}

impl Tree for ContextTree<'_> {
    fn list(&self, directory: &Path) -> Result<Vec<(OsString, FileInfo)>> {
        let mut entries = self.list_all(directory)?;
        let Some(ignore) = self.ignore else { return Ok(entries) };
        let above = self.matches_of(ignore, directory);
        let mut failure = None;
        entries.retain(|(name, info)| {
            self.is_visible(ignore, &directory.join(name), info, &above).unwrap_or_else(|error| {
                failure.get_or_insert(error);
                false
            })
        });
        failure.map_or(Ok(entries), Err)
    }

    fn open(&self, path: &Path) -> Result<File> {
        // Links were resolved before; whoever puts one in place now gets an error instead of a file of the host.
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = rustix::fs::openat2(&self.handle, relative(path), flags, Mode::empty(), resolve);
        Ok(File::from(file.on("open", &self.real(path))?))
    }

    fn absent(&self, path: &Path) -> Failure {
        let name = relative(path).display();
        let failure = Failure::new(format!("there is no `{name}` in the build context `{}`", self.root.display()));
        match self.ignore_path {
            Some(ignore) if self.real(path).symlink_metadata().is_ok() => {
                failure.hint(format!("`{}` leaves it out", ignore.display()))
            }
            _ => failure.hint("sources are relative to the build context, not to the Dockerfile"),
        }
    }

    fn attributes(&self, path: &Path) -> Result<BTreeMap<OsString, Vec<u8>>> {
        read_attributes(&self.real(path))
    }
}
