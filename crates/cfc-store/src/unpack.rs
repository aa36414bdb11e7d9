//! [`unpack_layer`]: a layer's archive, which nobody vouches for, into a directory in the form that overlayfs wants.
//!
//! What is refused: names with `..` or deeper than 256 directories, links out of the layer, a character device 0:0 (it
//! would remove files behind the back of the layer's whiteouts), directories named like whiteouts, more entries or
//! bytes than the limits. Absolute names mean the layer's root. overlayfs's own attributes are dropped.

mod metadata;
mod name;
mod tar_reader;
pub(crate) mod tree;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use cfc_oci::{Algorithm, Digest};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, linkat, makedev, mkdirat, mknodat, openat, symlinkat};
use rustix::io::Errno;

pub(crate) use self::metadata::{is_overlay_xattr, is_portable_xattr};
use self::name::EntryName;
pub(crate) use self::tar_reader::{EntryKind, TarEntry, TarReader};
use self::tree::Tree;
use crate::StoreErrorKind;
use crate::decompress::LayerReader;

/// Bounds on what one layer may unpack to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnpackLimits {
    /// Files, directories and other entries, also those that only follow from the names of others.
    pub entries: u64,
    /// Bytes of the uncompressed archive.
    pub bytes: u64,
}

impl Default for UnpackLimits {
    /// A million entries and 32 GiB: the largest disk of an instance has 20 GB.
    fn default() -> UnpackLimits {
        UnpackLimits { entries: 1_000_000, bytes: 32 << 30 }
    }
}

impl UnpackLimits {
    /// These limits, lowered for a blob of `compressed_size` bytes that is unpacked where `free` bytes are left. No
    /// honest layer of more than 1 GiB shrinks to a thousandth, and gzip cannot make it.
    pub fn lowered_for(self, compressed_size: u64, free: u64) -> UnpackLimits {
        let plausible = compressed_size.saturating_mul(1100).max(1 << 30);
        UnpackLimits { bytes: self.bytes.min(plausible).min(free), ..self }
    }
}

/// Unpacks `compressed` (a tar, as it is or in gzip or zstd) into the empty directory `root`, and returns the digest of
/// the uncompressed bytes, to be compared with the layer's diff id. After an error, `root` holds a part.
pub fn unpack_layer(
    compressed: impl Read,
    root: &Path,
    algorithm: Algorithm,
    limits: &UnpackLimits,
) -> Result<Digest, StoreErrorKind> {
    unpack(compressed, root, algorithm, limits, true)
}

/// As [`unpack_layer`], for an archive that is no layer: names that would remove something in a layer are refused.
pub fn unpack_archive(compressed: impl Read, root: &Path, limits: &UnpackLimits) -> Result<(), StoreErrorKind> {
    unpack(compressed, root, Algorithm::Sha256, limits, false).map(drop)
}

/// Whether `compressed` (as it is, or in gzip or zstd) begins as a tar archive does. Bytes that cannot be decompressed do
/// not.
pub fn is_tar(compressed: impl Read) -> io::Result<bool> {
    let mut block = Vec::with_capacity(tar_reader::BLOCK);
    let reader = LayerReader::new(compressed, Algorithm::Sha256, u64::MAX)?;
    let _ = reader.take(tar_reader::BLOCK as u64).read_to_end(&mut block);
    Ok(tar_reader::is_header(&block))
}

fn unpack(
    compressed: impl Read,
    root: &Path,
    algorithm: Algorithm,
    limits: &UnpackLimits,
    is_layer: bool,
) -> Result<Digest, StoreErrorKind> {
    let reader = LayerReader::new(compressed, algorithm, limits.bytes)?;
    let mut unpacker = Unpacker {
        is_layer,
        tree: Tree::open(root)?,
        archive: TarReader::new(reader),
        directories: BTreeMap::new(),
        entries_left: limits.entries,
        privileged: metadata::may_give_away(),
    };
    tree::give_to_root(&unpacker.tree.root(), OsStr::new("."))?;
    let outcome = unpacker.run();
    let mut reader = unpacker.archive.into_inner();
    // What is behind the end of the archive belongs to the digest, too.
    let outcome = outcome.and_then(|()| Ok(reader.drain()?));
    if reader.is_exceeded() {
        return Err(StoreErrorKind::Limit(format!("it unpacks to more than {} bytes", limits.bytes)));
    }
    outcome?;
    Ok(reader.digest())
}

/// What a directory gets when everything in it is there.
#[derive(Clone, Copy)]
struct DirectoryStamp {
    mode: u32,
    mtime: (i64, u32),
}

/// A directory that no entry describes.
const IMPLICIT_DIRECTORY: DirectoryStamp = DirectoryStamp { mode: 0o755, mtime: (0, 0) };

struct Unpacker<R: Read> {
    /// Whether names that begin with `.wh.` mean that something is removed.
    is_layer: bool,
    tree: Tree,
    archive: TarReader<R>,
    directories: BTreeMap<PathBuf, DirectoryStamp>,
    entries_left: u64,
    /// Whether we may give files away; else all files are ours, as rootless tools do it.
    privileged: bool,
}

impl<R: Read> Unpacker<R> {
    fn run(&mut self) -> Result<(), StoreErrorKind> {
        self.directories.insert(PathBuf::new(), IMPLICIT_DIRECTORY);
        while let Some(entry) = self.archive.next_entry()? {
            let shown = String::from_utf8_lossy(&entry.path).into_owned();
            self.count_entry()?;
            self.entry(&entry).map_err(|error| match error.kind() {
                io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
                    StoreErrorKind::Malformed(format!("entry `{shown}`: {error}"))
                }
                kind => StoreErrorKind::Io(io::Error::new(kind, format!("entry `{shown}`: {error}"))),
            })?;
        }
        self.stamp_directories()?;
        Ok(())
    }

    fn count_entry(&mut self) -> Result<(), StoreErrorKind> {
        let left = self.entries_left.checked_sub(1);
        self.entries_left = left.ok_or_else(|| StoreErrorKind::Limit("it has too many entries".to_string()))?;
        Ok(())
    }

    fn entry(&mut self, entry: &TarEntry) -> io::Result<()> {
        match EntryName::parse(&entry.path)? {
            EntryName::Root => self.root(entry),
            EntryName::Ignored | EntryName::Opaque { .. } | EntryName::Whiteout { .. } if !self.is_layer => {
                Err(invalid("its name means in an image that something is removed"))
            }
            EntryName::Ignored => Ok(()),
            EntryName::Opaque { directory } => {
                let directory = self.make_parent(&directory)?;
                tree::set_opaque(&directory)
            }
            EntryName::Whiteout { parent, name } => {
                let parent = self.make_parent(&parent)?;
                whiteout(entry, &parent, &name)
            }
            EntryName::Plain { parent, name } => {
                let handle = self.make_parent(&parent)?;
                self.plain(entry, &parent, &handle, &name)
            }
        }
    }

    fn root(&mut self, entry: &TarEntry) -> io::Result<()> {
        if entry.kind != EntryKind::Directory {
            return Err(invalid("the root of a layer must be a directory"));
        }
        self.finish_directory(entry, Path::new(""), &self.tree.root(), OsStr::new("."))
    }

    fn plain(&mut self, entry: &TarEntry, parent: &Path, handle: &Rc<OwnedFd>, name: &OsStr) -> io::Result<()> {
        match entry.kind {
            EntryKind::Directory => self.directory(entry, &parent.join(name), handle, name),
            EntryKind::File => self.file(entry, handle, name),
            EntryKind::HardLink => self.hard_link(entry, handle, name),
            EntryKind::Symlink => {
                self.place(handle, name, || Ok(symlinkat(entry.link.as_slice(), handle, name)?))?;
                self.finish_node(entry, handle, name)
            }
            EntryKind::Fifo | EntryKind::Character | EntryKind::Block => self.node(entry, handle, name),
        }
    }

    fn directory(&mut self, entry: &TarEntry, path: &Path, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
        let present = tree::status(parent, name)?;
        let is_whiteout = present.as_ref().is_some_and(tree::is_whiteout);
        if !present.as_ref().is_some_and(tree::is_directory) {
            self.place(parent, name, || Ok(mkdirat(parent, name, Mode::RWXU)?))?;
        }
        if is_whiteout {
            // The layer removed something here and then put a directory in its place.
            tree::set_opaque(&openat(parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)?;
        }
        self.finish_directory(entry, path, parent, name)
    }

    fn finish_directory(&mut self, entry: &TarEntry, path: &Path, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
        metadata::set_owner(entry, parent, name, self.privileged)?;
        metadata::set_xattrs(entry, parent, name, self.privileged)?;
        // A directory that its owner may not write to must wait until we, when we are only its owner, have filled it.
        if self.privileged {
            metadata::set_mode(entry.mode, parent, name)?;
        }
        self.directories.insert(path.to_path_buf(), DirectoryStamp { mode: entry.mode, mtime: entry.mtime });
        Ok(())
    }

    fn file(&mut self, entry: &TarEntry, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file: File =
            self.place(parent, name, || Ok(openat(parent, name, flags, Mode::RUSR | Mode::WUSR)?))?.into();
        let copied = io::copy(&mut self.archive, &mut file)?;
        if copied != entry.size {
            return Err(invalid("the archive ends in the middle of it"));
        }
        metadata::finish_file(entry, &file, self.privileged)
    }

    fn hard_link(&mut self, entry: &TarEntry, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
        let shown = String::from_utf8_lossy(&entry.link).into_owned();
        let EntryName::Plain { parent: target_parent, name: target_name } = EntryName::parse(&entry.link)? else {
            return Err(invalid(&format!("it is a hard link to `{shown}`, which is no file of a layer")));
        };
        let missing = || invalid(&format!("it is a hard link to `{shown}`, which is not in the layer"));
        let target_handle = self.tree.directory(&target_parent).map_err(|_| missing())?;
        let target = tree::status(&target_handle, &target_name)?.ok_or_else(missing)?;
        if tree::is_directory(&target) || tree::is_whiteout(&target) {
            return Err(invalid(&format!("it is a hard link to `{shown}`, which is not a file")));
        }
        let present = tree::status(parent, name)?;
        if present.is_some_and(|present| (present.st_dev, present.st_ino) == (target.st_dev, target.st_ino)) {
            return Ok(());
        }
        self.place(parent, name, || Ok(linkat(&target_handle, &target_name, parent, name, AtFlags::empty())?))
    }

    fn node(&mut self, entry: &TarEntry, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
        let kind = match entry.kind {
            EntryKind::Character => FileType::CharacterDevice,
            EntryKind::Block => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        let number = |number: u64| u32::try_from(number).map_err(|_| invalid("a device number that no device has"));
        let (major, minor) = (number(entry.device.0)?, number(entry.device.1)?);
        if kind == FileType::CharacterDevice && (major, minor) == (0, 0) {
            return Err(invalid("a character device 0:0 is a whiteout of overlayfs, which a layer may not bring"));
        }
        if kind != FileType::Fifo && !self.privileged {
            return self.leave_out(entry);
        }
        let device = makedev(major, minor);
        let made = self.place(parent, name, || Ok(mknodat(parent, name, kind, Mode::RUSR | Mode::WUSR, device)?));
        if is_refused(&made) && kind != FileType::Fifo {
            return self.leave_out(entry);
        }
        made?;
        self.finish_node(entry, parent, name)?;
        metadata::set_mode(entry.mode, parent, name)
    }

    /// Nobody but the machine's root can make devices, and a sandbox mounts its own /dev.
    fn leave_out(&self, entry: &TarEntry) -> io::Result<()> {
        tracing::debug!(entry = %String::from_utf8_lossy(&entry.path), "left out a device node");
        Ok(())
    }

    fn finish_node(&self, entry: &TarEntry, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
        metadata::set_owner(entry, parent, name, self.privileged)?;
        metadata::set_xattrs(entry, parent, name, self.privileged)?;
        metadata::set_mtime(entry.mtime, parent, name)
    }

    /// Does `make`, which makes `name` in `parent`; what an earlier entry put there gives way.
    fn place<T>(&mut self, parent: &OwnedFd, name: &OsStr, make: impl Fn() -> io::Result<T>) -> io::Result<T> {
        match make() {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.tree.remove(parent, name)?;
                make()
            }
            other => other,
        }
    }

    fn make_parent(&mut self, path: &Path) -> io::Result<Rc<OwnedFd>> {
        let Unpacker { tree, directories, entries_left, .. } = self;
        tree.directory_or_make(path, &mut |made| {
            *entries_left = entries_left.checked_sub(1).ok_or_else(|| invalid("the layer has too many entries"))?;
            directories.insert(made.to_path_buf(), IMPLICIT_DIRECTORY);
            Ok(())
        })
    }

    /// Sets what filling the directories would have changed. A directory that a later entry replaced is skipped.
    fn stamp_directories(&mut self) -> io::Result<()> {
        for (path, stamp) in std::mem::take(&mut self.directories).into_iter().rev() {
            let handle = match self.tree.directory(&path) {
                Ok(handle) => handle,
                Err(error) if is_gone(&error) => continue,
                Err(error) => return Err(error),
            };
            if !self.privileged {
                metadata::set_mode(stamp.mode, &handle, OsStr::new("."))?;
            }
            metadata::set_mtime(stamp.mtime, &handle, OsStr::new("."))?;
        }
        Ok(())
    }
}

fn is_refused<T>(outcome: &io::Result<T>) -> bool {
    outcome.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

fn is_gone(error: &io::Error) -> bool {
    let is_loop = error.raw_os_error() == Some(Errno::LOOP.raw_os_error());
    is_loop || matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Hides `name` of the lower layers. What this layer itself has of that name stays, whatever the order of the entries.
fn whiteout(entry: &TarEntry, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match tree::status(parent, name)? {
        None => {
            tree::make_whiteout(parent, name)?;
            metadata::set_mtime(entry.mtime, parent, name)
        }
        Some(stat) if tree::is_directory(&stat) => {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            tree::set_opaque(&openat(parent, name, flags, Mode::empty())?)
        }
        Some(_) => Ok(()),
    }
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}
