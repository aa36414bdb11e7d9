//! What `COPY`, `ADD` and `WORKDIR` put into a layer, decided from names and metadata alone.
//!
//! The rules are those of BuildKit's copier: a directory's contents are copied, not itself; a file goes into a
//! directory that is there; links in the destination are followed inside the image; directories that are made belong
//! to the owner, with mode 0755.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use cfc_dockerfile::IgnoreFile;
use cfc_dockerfile::ignore::DirectoryMatches;
use cfc_plan::ModeChange;
use cfc_store::DeviceKind;

use crate::entry::{Entries, Entry, EntryKind, SourceFile};
use crate::failure::{Failure, Result};
use crate::glob;
use crate::owner::Owner;
use crate::target::Target;
use crate::tree::{FileInfo, Kind, Last, Lookup, Tree, resolve};
use crate::view::View;

/// Files on their way into one layer.
pub(crate) struct Copier<'a> {
    target: Target<'a>,
    /// The owner of everything copied and made.
    owner: Option<Owner>,
    /// What becomes of the permission bits of everything copied.
    mode: Option<&'a ModeChange>,
    /// What is left out, seen from what is copied.
    exclude: &'a IgnoreFile,
}

/// Where files come from.
#[derive(Clone, Copy)]
pub(crate) struct From<'a> {
    pub(crate) tree: &'a dyn Tree,
    /// The tree's place among those that the layer is written from.
    pub(crate) number: usize,
    /// Whether owners mean something: they do in an image, not in a build context.
    pub(crate) keeps_owners: bool,
    /// Whether times mean something: they do where they come from an archive or a server.
    pub(crate) keeps_times: bool,
}

/// What a copy goes through: the directories that were named keep their place's metadata if they are there, those in
/// them overwrite theirs.
struct Pending {
    source: PathBuf,
    info: FileInfo,
    to: PathBuf,
    /// The path below what was named, with `/` between its parts; empty for that itself.
    inner: String,
    above: DirectoryMatches,
}

/// The entries of the layer that makes `directory` on top of `base`.
pub(crate) fn make_directory(directory: &str, owner: Owner, base: &View) -> Result<Entries> {
    let mut target = Target::new(base);
    let resolved = target.resolve(Path::new(directory))?;
    target.make_directories(&resolved, owner)?;
    Ok(target.into_entries())
}

/// The entries of a layer that shows `path` of `tree` at the place that it has there, as root's.
pub(crate) fn part(tree: &dyn Tree, path: &Path) -> Result<Entries> {
    let (nothing, exclude) = (View::empty(), IgnoreFile::default());
    let mut copier = Copier::new(&nothing, None, None, &exclude);
    let from = From { tree, number: 0, keeps_owners: false, keeps_times: false };
    let resolved = resolve(tree, path, Last::Followed)?;
    let Some(info) = tree.lookup(&resolved)? else { return Err(tree.absent(path)) };
    if let Some(parent) = resolved.parent() {
        copier.target.make_directories(parent, Owner::default())?;
    }
    copier.copy_tree(from, &resolved, &info, resolved.clone())?;
    // What was asked for may be a link to what there is.
    if resolved != path {
        let link = Entry { kind: EntryKind::Symlink(resolved), ..Entry::directory(0o777, 0, 0) };
        copier.target.make_directories(path.parent().unwrap_or(Path::new("/")), Owner::default())?;
        copier.target.put(path, link)?;
    }
    Ok(copier.into_entries())
}

impl<'a> Copier<'a> {
    /// Nothing copied on top of `base` yet.
    pub(crate) fn new(
        base: &'a View,
        owner: Option<Owner>,
        mode: Option<&'a ModeChange>,
        exclude: &'a IgnoreFile,
    ) -> Copier<'a> {
        Copier { target: Target::new(base), owner, mode, exclude }
    }

    /// The layer.
    pub(crate) fn into_entries(self) -> Entries {
        self.target.into_entries()
    }

    /// Several sources copied onto one file would leave only the last.
    pub(crate) fn refuse_file_for_several(&self, destination: &str) -> Result<()> {
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

    /// The paths of `from` that `path` means: itself, or what its wildcards match.
    pub(crate) fn matches(from: From<'_>, path: &str) -> Result<Vec<PathBuf>> {
        if glob::has_wildcard(path) { glob::expand(from.tree, path) } else { Ok(vec![PathBuf::from(path)]) }
    }

    /// Copies one source, which has no wildcards any more; `was_matched` when it had.
    pub(crate) fn copy_into(
        &mut self,
        from: From<'_>,
        path: &Path,
        destination: &str,
        was_matched: bool,
    ) -> Result<()> {
        let source = resolve(from.tree, path, Last::Followed)?;
        let Some(info) = from.tree.lookup(&source)? else { return Err(from.tree.absent(path)) };
        let name = path.file_name().unwrap_or(OsStr::new(""));
        if was_matched && self.exclude.is_ignored(&name.to_string_lossy()) {
            return Ok(());
        }
        let made_by = self.owner.unwrap_or_default();
        if destination.ends_with('/') {
            let directory = self.target.resolve(Path::new(destination))?;
            self.target.make_directories(&directory, made_by)?;
        }
        let mut to = self.target.resolve(Path::new(destination))?;
        let existing = self.target.lookup(&to)?;
        let is_into_directory = existing.as_ref().is_some_and(|existing| existing.is_directory());
        if is_into_directory && !info.is_directory() {
            to.push(name);
        }
        let directory = match &existing {
            None if info.is_directory() => to.as_path(),
            _ => to.parent().unwrap_or(Path::new("/")),
        };
        self.target.make_directories(directory, made_by)?;
        self.copy_tree(from, &source, &info, to)
    }

    /// Copies what is in the directory `path` into `destination`, which is made a directory: an archive's content.
    pub(crate) fn copy_contents(&mut self, from: From<'_>, path: &Path, destination: &str) -> Result<()> {
        let to = self.target.resolve(Path::new(destination))?;
        self.target.make_directories(&to, self.owner.unwrap_or_default())?;
        let Some(info) = from.tree.lookup(path)? else { return Err(from.tree.absent(path)) };
        self.copy_tree(from, path, &info, to)
    }

    /// `COPY --parents`: what `pattern` matches below `pivot`, at the place that it has there, below the directory
    /// `destination`.
    pub(crate) fn copy_with_parents(
        &mut self,
        from: From<'_>,
        pivot: &str,
        pattern: &str,
        destination: &str,
    ) -> Result<()> {
        let directory = self.target.resolve(Path::new(destination))?;
        self.target.make_directories(&directory, self.owner.unwrap_or_default())?;
        let text = pattern.trim_matches('/');
        // Included is what an ignore file of this one pattern would leave out; the other one tells where to look.
        let parse = |text: &str| {
            IgnoreFile::parse(text.as_bytes()).map_err(|problem| Failure::new(format!("`{pattern}`: {problem}")))
        };
        let escaped = if text.starts_with(['#', '!']) { format!("./{text}") } else { text.to_string() };
        let (include, search) = (parse(&escaped)?, parse(&format!("!{escaped}"))?);
        let mut found_any = false;
        for pivot in Copier::matches(from, pivot)? {
            let root = resolve(from.tree, &pivot, Last::Followed)?;
            let Some(info) = from.tree.lookup(&root)? else { return Err(from.tree.absent(&pivot)) };
            if !info.is_directory() {
                continue;
            }
            if text.is_empty() || text == "." {
                found_any = true;
                self.copy_tree(from, &root, &info, directory.clone())?;
                continue;
            }
            let mut pending = vec![(root.clone(), directory.clone(), String::new())];
            while let Some((source, to, inner)) = pending.pop() {
                for (name, info) in from.tree.list(&source)? {
                    let inner = joined(&inner, &name);
                    let (source, to) = (source.join(&name), to.join(&name));
                    if include.is_ignored(&inner) {
                        if self.exclude.is_ignored(&inner) {
                            continue;
                        }
                        found_any = true;
                        self.make_parents(from, &root, &directory, &inner)?;
                        self.copy_tree_at(from, &source, &info, to, inner)?;
                    } else if info.is_directory() && search.may_contain_reincluded(&inner) {
                        pending.push((source, to, inner));
                    }
                }
            }
        }
        if !found_any && !glob::has_wildcard(pattern) && !glob::has_wildcard(pivot) {
            return Err(from.tree.absent(&Path::new(pivot).join(text)));
        }
        Ok(())
    }

    /// Makes the directories above `inner`, with the metadata of those below `root`.
    fn make_parents(&mut self, from: From<'_>, root: &Path, directory: &Path, inner: &str) -> Result<()> {
        let parents: Vec<&Path> = Path::new(inner).ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()).collect();
        for parent in parents.into_iter().rev() {
            let (source, to) = (root.join(parent), directory.join(parent));
            if self.target.lookup(&to)?.is_none()
                && let Some(info) = from.tree.lookup(&source)?
            {
                self.copy_directory(from, &source, &info, &to, true)?;
            }
        }
        Ok(())
    }

    fn copy_tree(&mut self, from: From<'_>, source: &Path, info: &FileInfo, to: PathBuf) -> Result<()> {
        self.copy_tree_at(from, source, info, to, String::new())
    }

    /// Copies `source` and what is in it. A stack of our own: the depth is up to whoever made the files.
    fn copy_tree_at(
        &mut self,
        from: From<'_>,
        source: &Path,
        info: &FileInfo,
        to: PathBuf,
        inner: String,
    ) -> Result<()> {
        let first =
            Pending { source: source.to_path_buf(), info: info.clone(), to, inner, above: DirectoryMatches::default() };
        let mut pending = vec![(first, false)];
        while let Some((Pending { source, info, to, inner, above }, overwrites)) = pending.pop() {
            if !info.is_directory() {
                self.copy_file(from, &source, &info, &to)?;
                continue;
            }
            self.copy_directory(from, &source, &info, &to, overwrites)?;
            for (name, info) in from.tree.list(&source)? {
                let inner = joined(&inner, &name);
                let (is_excluded, matches) = self.exclude.is_ignored_below(&inner, &above);
                let may_hold_more = info.is_directory() && self.exclude.may_contain_reincluded(&inner);
                if is_excluded && !may_hold_more {
                    continue;
                }
                let next = Pending { source: source.join(&name), info, to: to.join(&name), inner, above: matches };
                pending.push((next, true));
            }
        }
        Ok(())
    }

    fn copy_directory(
        &mut self,
        from: From<'_>,
        source: &Path,
        info: &FileInfo,
        to: &Path,
        overwrites: bool,
    ) -> Result<()> {
        match self.target.lookup(to)? {
            Some(existing) if !existing.is_directory() => {
                Err(Failure::new(format!("cannot copy a directory onto `{}`, which is none", to.display())))
            }
            Some(_) if !overwrites => Ok(()),
            _ => {
                let entry = self.entry(from, source, info, EntryKind::Directory)?;
                self.target.put(to, entry)
            }
        }
    }

    fn copy_file(&mut self, from: From<'_>, source: &Path, info: &FileInfo, to: &Path) -> Result<()> {
        if self.target.lookup(to)?.is_some_and(|existing| existing.is_directory()) {
            return Err(Failure::new(format!("cannot copy a file onto the directory `{}`", to.display())));
        }
        let kind = match &info.kind {
            Kind::File => EntryKind::File(source_file(from, source, info)),
            Kind::Symlink(target) => EntryKind::Symlink(target.clone()),
            Kind::Character { major, minor } => {
                EntryKind::Device { kind: DeviceKind::Character, major: *major, minor: *minor }
            }
            Kind::Block { major, minor } => EntryKind::Device { kind: DeviceKind::Block, major: *major, minor: *minor },
            Kind::Fifo => EntryKind::Fifo,
            // A socket is nothing without the process that listens.
            Kind::Socket | Kind::Directory => return Ok(()),
        };
        let entry = self.entry(from, source, info, kind)?;
        self.target.put(to, entry)
    }

    fn entry(&self, from: From<'_>, source: &Path, info: &FileInfo, kind: EntryKind) -> Result<Entry> {
        let own = if from.keeps_owners { Owner { uid: info.uid, gid: info.gid } } else { Owner::default() };
        let owner = self.owner.unwrap_or(own);
        let is_symlink = matches!(kind, EntryKind::Symlink(_));
        let changed = self.mode.map_or(info.mode, |change| change.apply(info.mode, info.is_directory()));
        let mode = if is_symlink { 0o777 } else { changed };
        let attributes = if is_symlink { Default::default() } else { from.tree.attributes(source)? };
        let mtime = from.keeps_times.then_some(info.identity.modified.div_euclid(1_000_000_000));
        Ok(Entry { kind, mode, uid: owner.uid, gid: owner.gid, attributes, mtime })
    }
}

fn source_file(from: From<'_>, source: &Path, info: &FileInfo) -> SourceFile {
    let is_shared = info.links > 1;
    SourceFile {
        tree: from.number,
        path: source.to_path_buf(),
        size: info.size,
        identity: info.identity,
        digest: [0; 32],
        shared: is_shared.then_some((info.identity.device, info.identity.inode)),
    }
}

fn joined(inner: &str, name: &OsStr) -> String {
    let name = name.to_string_lossy();
    if inner.is_empty() { name.into_owned() } else { format!("{inner}/{name}") }
}
