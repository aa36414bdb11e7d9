//! What `COPY` and `WORKDIR` put into a layer, decided from names and metadata alone.
//!
//! The rules are those of BuildKit's copier: a directory's contents are copied, not itself; a file goes into a
//! directory that is there; links in the destination are followed inside the image; directories that are made belong
//! to the owner, with mode 0755.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use cfc_plan::Copy;
use cfc_store::DeviceKind;

use crate::entry::{Entries, Entry, EntryKind, SourceFile};
use crate::failure::{Failure, Result};
use crate::glob;
use crate::owner::Owner;
use crate::target::Target;
use crate::tree::{FileInfo, Kind, Last, Lookup, Tree, resolve};
use crate::view::View;

/// How files are copied.
pub(crate) struct Copier<'a> {
    source: &'a dyn Tree,
    target: Target<'a>,
    rules: Rules,
}

/// What becomes of a file's metadata.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// The owner of everything copied and made.
    pub(crate) owner: Option<Owner>,
    /// Permission bits of everything copied.
    pub(crate) mode: Option<u32>,
    /// Whether owners and hard links of the source mean something: they do in an image, not in a build context.
    pub(crate) keeps_owners: bool,
}

/// The entries of the layer that `copy` makes on top of `base`.
pub(crate) fn copy(copy: &Copy, source: &dyn Tree, base: &View, rules: Rules) -> Result<Entries> {
    let mut copier = Copier { source, target: Target::new(base), rules };
    if copy.paths.len() > 1 {
        copier.refuse_file_for_several(&copy.destination)?;
    }
    for path in &copy.paths {
        if glob::has_wildcard(path) {
            for path in glob::expand(source, path)? {
                copier.copy_into(&path, &copy.destination)?;
            }
        } else {
            copier.copy_into(Path::new(path), &copy.destination)?;
        }
    }
    Ok(copier.target.into_entries())
}

/// The entries of the layer that makes `directory` on top of `base`.
pub(crate) fn make_directory(directory: &str, owner: Owner, base: &View) -> Result<Entries> {
    let mut target = Target::new(base);
    let resolved = target.resolve(Path::new(directory))?;
    target.make_directories(&resolved, owner)?;
    Ok(target.into_entries())
}

/// The entries of a layer that shows `path` of `source` at the place that it has there, as root's.
pub(crate) fn part(source: &dyn Tree, path: &Path) -> Result<Entries> {
    let nothing = View::empty();
    let rules = Rules { owner: None, mode: None, keeps_owners: false };
    let mut copier = Copier { source, target: Target::new(&nothing), rules };
    let resolved = resolve(source, path, Last::Followed)?;
    let Some(info) = source.lookup(&resolved)? else { return Err(source.absent(path)) };
    if let Some(parent) = resolved.parent() {
        copier.target.make_directories(parent, Owner::default())?;
    }
    copier.copy_tree(&resolved, &info, resolved.clone())?;
    // What was asked for may be a link to what there is.
    if resolved != path {
        let link = Entry { kind: EntryKind::Symlink(resolved), ..Entry::directory(0o777, 0, 0) };
        copier.target.make_directories(path.parent().unwrap_or(Path::new("/")), Owner::default())?;
        copier.target.put(path, link)?;
    }
    Ok(copier.target.into_entries())
}

impl Copier<'_> {
    /// Several sources copied onto one file would leave only the last.
    fn refuse_file_for_several(&self, destination: &str) -> Result<()> {
        if destination.ends_with('/') {
            return Ok(());
        }
        let resolved = self.target.resolve(Path::new(destination))?;
        if self.target.lookup(&resolved)?.is_some_and(|info| info.is_directory()) {
            return Ok(());
        }
        let failure = Failure::new(format!("several sources need a directory, and `{destination}` is none"));
        Err(failure.hint(format!("end the destination in a slash: `{destination}/`")))
    }

    /// Copies one source, which has no wildcards any more.
    fn copy_into(&mut self, path: &Path, destination: &str) -> Result<()> {
        let source = resolve(self.source, path, Last::Followed)?;
        let Some(info) = self.source.lookup(&source)? else { return Err(self.source.absent(path)) };
        let made_by = self.rules.owner.unwrap_or_default();
        if destination.ends_with('/') {
            let directory = self.target.resolve(Path::new(destination))?;
            self.target.make_directories(&directory, made_by)?;
        }
        let mut to = self.target.resolve(Path::new(destination))?;
        let existing = self.target.lookup(&to)?;
        let is_into_directory = existing.as_ref().is_some_and(|existing| existing.is_directory());
        if is_into_directory && !info.is_directory() {
            to.push(path.file_name().unwrap_or(OsStr::new("")));
        }
        let directory = match &existing {
            None if info.is_directory() => to.as_path(),
            _ => to.parent().unwrap_or(Path::new("/")),
        };
        self.target.make_directories(directory, made_by)?;
        self.copy_tree(&source, &info, to)
    }

    /// Copies `source` and what is in it. A stack of our own: the depth is up to whoever made the files.
    fn copy_tree(&mut self, source: &Path, info: &FileInfo, to: PathBuf) -> Result<()> {
        // The directory that was named keeps its place's metadata if it is there; those in it overwrite theirs.
        let mut pending = vec![(source.to_path_buf(), info.clone(), to, false)];
        while let Some((source, info, to, overwrites)) = pending.pop() {
            if !info.is_directory() {
                self.copy_file(&source, &info, &to)?;
                continue;
            }
            self.copy_directory(&source, &info, &to, overwrites)?;
            for (name, info) in self.source.list(&source)? {
                pending.push((source.join(&name), info, to.join(&name), true));
            }
        }
        Ok(())
    }

    fn copy_directory(&mut self, source: &Path, info: &FileInfo, to: &Path, overwrites: bool) -> Result<()> {
        match self.target.lookup(to)? {
            Some(existing) if !existing.is_directory() => {
                Err(Failure::new(format!("cannot copy a directory onto `{}`, which is none", to.display())))
            }
            Some(_) if !overwrites => Ok(()),
            _ => {
                let entry = self.entry(source, info, EntryKind::Directory)?;
                self.target.put(to, entry)
            }
        }
    }

    fn copy_file(&mut self, source: &Path, info: &FileInfo, to: &Path) -> Result<()> {
        if self.target.lookup(to)?.is_some_and(|existing| existing.is_directory()) {
            return Err(Failure::new(format!("cannot copy a file onto the directory `{}`", to.display())));
        }
        let kind = match &info.kind {
            Kind::File => EntryKind::File(self.source_file(source, info)),
            Kind::Symlink(target) => EntryKind::Symlink(target.clone()),
            Kind::Character { major, minor } => {
                EntryKind::Device { kind: DeviceKind::Character, major: *major, minor: *minor }
            }
            Kind::Block { major, minor } => EntryKind::Device { kind: DeviceKind::Block, major: *major, minor: *minor },
            Kind::Fifo => EntryKind::Fifo,
            // A socket is nothing without the process that listens.
            Kind::Socket | Kind::Directory => return Ok(()),
        };
        let entry = self.entry(source, info, kind)?;
        self.target.put(to, entry)
    }

    fn source_file(&self, source: &Path, info: &FileInfo) -> SourceFile {
        let is_shared = self.rules.keeps_owners && info.links > 1;
        SourceFile {
            path: source.to_path_buf(),
            size: info.size,
            identity: info.identity,
            digest: [0; 32],
            shared: is_shared.then_some((info.identity.device, info.identity.inode)),
        }
    }

    fn entry(&self, source: &Path, info: &FileInfo, kind: EntryKind) -> Result<Entry> {
        let own = if self.rules.keeps_owners { Owner { uid: info.uid, gid: info.gid } } else { Owner::default() };
        let owner = self.rules.owner.unwrap_or(own);
        let is_symlink = matches!(kind, EntryKind::Symlink(_));
        let mode = if is_symlink { 0o777 } else { self.rules.mode.unwrap_or(info.mode) };
        let attributes = if is_symlink { Default::default() } else { self.source.attributes(source)? };
        Ok(Entry { kind, mode, uid: owner.uid, gid: owner.gid, attributes })
    }
}
