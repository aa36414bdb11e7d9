//! [`View`]: the layers of a filesystem seen as one, without a mount.
//!
//! The rules are overlayfs's: a character device 0:0 removes a name of the layers below, a directory with the attribute
//! `user.overlay.opaque` hides theirs, and anything that is not a directory hides everything below it.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use cfc_store::Store;

use crate::failure::{Failure, OnPath, Result};
use crate::layer::{Layer, LayerIndex};
use crate::tree::{FileInfo, Kind, Lookup, Tree, read_attributes, relative};

const OPAQUE: &str = "user.overlay.opaque";

/// The layers of a filesystem, topmost first.
pub(crate) struct View {
    layers: Vec<Source>,
}

/// Where a layer is looked at.
enum Source {
    Directory(PathBuf),
    Index(LayerIndex),
}

/// What one layer says about a name.
enum Said {
    Nothing,
    Removed,
    Found { info: FileInfo, is_opaque: bool },
}

/// The layers in which a path is to be found, and what it is.
struct Found {
    info: FileInfo,
    layers: Vec<usize>,
}

impl View {
    /// A view that can look names up. Layers are unpacked only where nothing else knows what is in them.
    pub(crate) fn for_lookup(store: &Store, layers: &[Layer]) -> Result<View> {
        let source = |layer: &Layer| {
            if store.layers().contains(&layer.diff_id) {
                return Ok(Source::Directory(store.layers().path(&layer.diff_id)));
            }
            match LayerIndex::load(store, &layer.diff_id)? {
                Some(index) => Ok(Source::Index(index)),
                None => Ok(Source::Directory(store.layers().unpack(&layer.diff_id, &layer.blob)?)),
            }
        };
        Ok(View { layers: layers.iter().rev().map(source).collect::<Result<_>>()? })
    }

    /// A filesystem with nothing in it.
    pub(crate) fn empty() -> View {
        View { layers: Vec::new() }
    }

    /// A view that can walk and read too: every layer is unpacked.
    pub(crate) fn for_reading(store: &Store, layers: &[Layer]) -> Result<View> {
        let directories = unpacked(store, layers)?;
        Ok(View { layers: directories.into_iter().map(Source::Directory).collect() })
    }

    fn root(&self) -> Found {
        let directory = self.layers.iter().find_map(|layer| match layer {
            Source::Directory(path) => FileInfo::read(path).ok().flatten(),
            Source::Index(_) => None,
        });
        let info = directory.unwrap_or_else(|| FileInfo::directory(0o755, 0, 0));
        Found { info, layers: (0..self.layers.len()).collect() }
    }

    fn find(&self, path: &Path) -> Result<Option<Found>> {
        let mut found = self.root();
        let mut reached = PathBuf::new();
        for part in relative(path) {
            if !found.info.is_directory() {
                return Ok(None);
            }
            reached.push(part);
            match self.find_in(&found.layers, &reached)? {
                Some(next) => found = next,
                None => return Ok(None),
            }
        }
        Ok(Some(found))
    }

    /// What the relative `path` is in `layers`, which are those that have its directory.
    fn find_in(&self, layers: &[usize], path: &Path) -> Result<Option<Found>> {
        let mut found: Option<Found> = None;
        for &layer in layers {
            match self.ask(layer, path)? {
                Said::Nothing => continue,
                Said::Removed => break,
                Said::Found { info, is_opaque } => {
                    let is_directory = info.is_directory();
                    match &mut found {
                        // What is below a directory and is none is hidden by it.
                        Some(_) if !is_directory => break,
                        Some(found) => found.layers.push(layer),
                        None => found = Some(Found { info, layers: vec![layer] }),
                    }
                    if !is_directory || is_opaque {
                        break;
                    }
                }
            }
        }
        Ok(found)
    }

    fn ask(&self, layer: usize, path: &Path) -> Result<Said> {
        let directory = match &self.layers[layer] {
            Source::Index(index) => {
                let info = index.lookup(&Path::new("/").join(path));
                return Ok(info.map_or(Said::Nothing, |info| Said::Found { info, is_opaque: false }));
            }
            Source::Directory(directory) => directory,
        };
        let real = directory.join(path);
        let Some(info) = FileInfo::read(&real)? else { return Ok(Said::Nothing) };
        Ok(match info.kind {
            Kind::Character { major: 0, minor: 0 } => Said::Removed,
            Kind::Directory => Said::Found { is_opaque: is_opaque(&real), info },
            _ => Said::Found { info, is_opaque: false },
        })
    }

    /// Where the topmost layer that has `path` keeps it.
    fn real_path(&self, path: &Path) -> Result<Option<PathBuf>> {
        let found = self.find(path)?;
        Ok(found.and_then(|found| match &self.layers[*found.layers.first()?] {
            Source::Directory(directory) => Some(directory.join(relative(path))),
            Source::Index(_) => None,
        }))
    }
}

/// The directories of `layers`, topmost first, each once, as overlayfs takes them.
pub(crate) fn unpacked(store: &Store, layers: &[Layer]) -> Result<Vec<PathBuf>> {
    let mut directories = Vec::new();
    for layer in layers.iter().rev() {
        let directory = store.layers().unpack(&layer.diff_id, &layer.blob)?;
        if !directories.contains(&directory) {
            directories.push(directory);
        }
    }
    Ok(directories)
}

fn is_opaque(directory: &Path) -> bool {
    let mut value = [0; 8];
    matches!(rustix::fs::lgetxattr(directory, OPAQUE, &mut value), Ok(length) if &value[..length] == b"y")
}

impl Lookup for View {
    fn lookup(&self, path: &Path) -> Result<Option<FileInfo>> {
        Ok(self.find(path)?.map(|found| found.info))
    }
}

impl Tree for View {
    fn list(&self, directory: &Path) -> Result<Vec<(OsString, FileInfo)>> {
        let Some(found) = self.find(directory)? else { return Ok(Vec::new()) };
        let mut seen = HashSet::new();
        let mut entries = Vec::new();
        for &layer in &found.layers {
            let Source::Directory(root) = &self.layers[layer] else { continue };
            let real = root.join(relative(directory));
            for entry in fs::read_dir(&real).on("list", &real)? {
                let entry = entry.on("list", &real)?;
                let name = entry.file_name();
                if !seen.insert(name.clone()) {
                    continue;
                }
                match FileInfo::read(&entry.path())? {
                    Some(FileInfo { kind: Kind::Character { major: 0, minor: 0 }, .. }) | None => {}
                    Some(info) => entries.push((name, info)),
                }
            }
        }
        entries.sort_by(|(left, _), (right, _)| left.cmp(right));
        Ok(entries)
    }

    fn open(&self, path: &Path) -> Result<File> {
        let real = self.real_path(path)?;
        let real = real.ok_or_else(|| Failure::new(format!("there is no file `{}`", path.display())))?;
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC;
        let file = rustix::fs::open(&real, flags, rustix::fs::Mode::empty()).on("open", &real)?;
        Ok(File::from(file))
    }

    fn absent(&self, path: &Path) -> Failure {
        Failure::new(format!("there is no `{}` in what is copied from", path.display()))
    }

    fn attributes(&self, path: &Path) -> Result<BTreeMap<OsString, Vec<u8>>> {
        match self.real_path(path)? {
            Some(real) => read_attributes(&real),
            None => Ok(BTreeMap::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, FileType, Mode, XattrFlags};

    use super::*;

    fn view(root: &Path, layers: &[&str]) -> View {
        View { layers: layers.iter().map(|layer| Source::Directory(root.join(layer))).collect() }
    }

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("has a parent")).expect("mkdir");
        fs::write(path, text).expect("write");
    }

    fn names(view: &View, directory: &str) -> Vec<String> {
        let entries = view.list(Path::new(directory)).expect("lists");
        entries.into_iter().map(|(name, _)| name.into_string().expect("text")).collect()
    }

    #[test]
    fn upper_layers_add_replace_and_hide() {
        let root = tempfile::tempdir().expect("a directory");
        write(root.path(), "low/a/one", "1");
        write(root.path(), "low/a/two", "2");
        write(root.path(), "low/gone/x", "x");
        write(root.path(), "low/hidden/x", "x");
        write(root.path(), "high/a/three", "3");
        write(root.path(), "high/a/one", "one");
        write(root.path(), "high/hidden/y", "y");
        let whiteout = root.path().join("high/gone");
        if rustix::fs::mknodat(CWD, &whiteout, FileType::CharacterDevice, Mode::empty(), 0).is_err() {
            eprintln!("skipped: making a whiteout needs the right to make device nodes");
            return;
        }
        let opaque = root.path().join("high/hidden");
        if rustix::fs::setxattr(&opaque, OPAQUE, b"y", XattrFlags::empty()).is_err() {
            eprintln!("skipped: the temporary directory has no user attributes");
            return;
        }

        let view = view(root.path(), &["high", "low"]);
        assert_eq!(names(&view, "/"), ["a", "hidden"]);
        assert_eq!(names(&view, "/a"), ["one", "three", "two"]);
        assert_eq!(names(&view, "/hidden"), ["y"]);
        assert!(view.lookup(Path::new("/gone/x")).expect("looks").is_none());
        assert!(view.lookup(Path::new("/hidden/x")).expect("looks").is_none());
        assert!(view.lookup(Path::new("/a/one/deeper")).expect("looks").is_none());
        let text = std::io::read_to_string(view.open(Path::new("/a/one")).expect("opens")).expect("reads");
        assert_eq!(text, "one");
    }
}
