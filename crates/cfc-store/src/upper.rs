//! [`write_upper_as_layer`]: what a container changed, as a layer.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat, major, minor, openat, openat2, readlinkat};

use crate::error::Context;
use crate::unpack::tree::{self, MAX_DEPTH, OPAQUE_XATTR};
use crate::unpack::{is_overlay_xattr, is_portable_xattr};
use crate::{DeviceKind, LayerWriter, Metadata, Result};

/// The largest value of an extended attribute that Linux takes.
const MAX_XATTR_BYTES: usize = 64 << 10;

/// How an upper directory becomes a layer.
#[derive(Clone, Copy, Default)]
pub struct UpperOptions<'a> {
    /// The newest modification time that is written, in seconds since 1970; later ones become this one.
    pub clamp_mtime: Option<i64>,
    /// Paths (relative to the root) to leave out with everything below them.
    pub skip: Option<&'a dyn Fn(&Path) -> bool>,
}

/// Writes what a container changed to `writer`, sorted: the upper directory of an overlay, where a removed file is a
/// character device 0:0 and an opaque directory has the attribute `user.overlay.opaque`. Sockets are left out, and the
/// root directory itself. Returns the number of entries; 0 means that nothing changed.
pub fn write_upper_as_layer<W: Write>(
    upper: &Path,
    writer: &mut LayerWriter<W>,
    options: &UpperOptions<'_>,
) -> Result<u64> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, upper, flags, Mode::empty()).on("open", upper)?;
    let mut walk = Walk { root, writer, options, first_names: HashMap::new(), entries: 0 };
    let subject = |path: &Path| format!("cannot make a layer of `{}`", upper.join(path).display());
    let mut pending = vec![PathBuf::new()];
    while let Some(directory) = pending.pop() {
        let children = walk.directory(&directory).map_err(|(path, error)| (path, io_or_text(error)));
        let children = children.map_err(|(path, kind)| crate::StoreError::new(subject(&path), kind))?;
        // The last one pushed is the next one walked.
        pending.extend(children.into_iter().rev());
    }
    Ok(walk.entries)
}

fn io_or_text(error: io::Error) -> crate::StoreErrorKind {
    match error.kind() {
        io::ErrorKind::Unsupported => crate::StoreErrorKind::Unsupported(error.to_string()),
        _ => crate::StoreErrorKind::Io(error),
    }
}

struct Walk<'a, W: Write> {
    root: OwnedFd,
    writer: &'a mut LayerWriter<W>,
    options: &'a UpperOptions<'a>,
    /// Where a file with several names was written.
    first_names: HashMap<(u64, u64), PathBuf>,
    entries: u64,
}

/// Something in a directory.
struct Found {
    name: OsString,
    stat: Stat,
}

type WalkResult<T> = std::result::Result<T, (PathBuf, io::Error)>;

impl<W: Write> Walk<'_, W> {
    /// Writes everything in `directory` that is not a directory, and returns the directories to go on with. A
    /// directory's own entry is written when it is walked, so that an archive lists what belongs together in one place.
    fn directory(&mut self, directory: &Path) -> WalkResult<Vec<PathBuf>> {
        let here = |error| (directory.to_path_buf(), error);
        let handle = self.open_directory(directory).map_err(here)?;
        if !directory.as_os_str().is_empty() {
            self.directory_itself(directory, &handle).map_err(here)?;
        }
        let mut found = Vec::new();
        for name in tree::names(&handle).map_err(here)? {
            let path = directory.join(&name);
            if self.options.skip.is_some_and(|skip| skip(&path)) {
                continue;
            }
            let stat = tree::status(&handle, &name).map_err(here)?;
            found.extend(stat.map(|stat| Found { name, stat }));
        }
        // Whiteouts come before their siblings (image-spec, "Whiteouts").
        found.sort_by(|left, right| left.order().cmp(&right.order()));
        let mut directories = Vec::new();
        for Found { name, stat } in found {
            let path = directory.join(&name);
            match tree::is_directory(&stat) {
                true => directories.push(path),
                false => self.leaf(&path, &handle, &name, &stat).map_err(|error| (path, error))?,
            }
        }
        Ok(directories)
    }

    fn directory_itself(&mut self, path: &Path, handle: &OwnedFd) -> io::Result<()> {
        if path.components().count() >= MAX_DEPTH {
            return Err(tree::too_deep());
        }
        let stat = rustix::fs::fstat(handle)?;
        let xattrs = read_xattrs(&tree::handle_path(handle))?;
        let is_opaque = xattrs.get(OsStr::new(OPAQUE_XATTR)).is_some_and(|value| value == b"y");
        let metadata = self.metadata(&stat, xattrs)?;
        self.writer.directory(path, &metadata)?;
        self.entries += 1;
        if is_opaque {
            self.writer.opaque(path, metadata.mtime)?;
            self.entries += 1;
        }
        Ok(())
    }

    fn leaf(&mut self, path: &Path, parent: &OwnedFd, name: &OsStr, stat: &Stat) -> io::Result<()> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Socket {
            return Ok(());
        }
        self.entries += 1;
        if tree::is_whiteout(stat) {
            return self.writer.whiteout(path, self.clamp(stat.st_mtime));
        }
        let metadata = self.metadata(stat, read_xattrs(&tree::handle_path(parent).join(name))?)?;
        if stat.st_nlink > 1 {
            let identity = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.first_names.get(&identity) {
                return self.writer.hard_link(path, first, &metadata);
            }
            self.first_names.insert(identity, path.to_path_buf());
        }
        let device = (major(stat.st_rdev), minor(stat.st_rdev));
        match kind {
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let mut file = File::from(openat(parent, name, flags, Mode::empty())?);
                self.writer.file(path, &metadata, stat.st_size as u64, &mut file)
            }
            FileType::Symlink => {
                let target = readlinkat(parent, name, Vec::new())?;
                let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                self.writer.symlink(path, &target, &metadata)
            }
            FileType::Fifo => self.writer.fifo(path, &metadata),
            FileType::CharacterDevice => self.writer.device(path, &metadata, DeviceKind::Character, device.0, device.1),
            FileType::BlockDevice => self.writer.device(path, &metadata, DeviceKind::Block, device.0, device.1),
            _ => Err(io::Error::new(io::ErrorKind::Unsupported, "a file of unknown type")),
        }
    }

    fn metadata(&self, stat: &Stat, xattrs: BTreeMap<OsString, Vec<u8>>) -> io::Result<Metadata> {
        let moved = |key: &OsString| matches!(key.as_bytes(), b"user.overlay.redirect" | b"user.overlay.metacopy");
        if xattrs.keys().any(moved) {
            let text = "the overlay was mounted with redirect_dir or metacopy, which layers cannot express";
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        let xattrs = xattrs.into_iter().filter(|(key, _)| is_portable_xattr(key) && !is_overlay_xattr(key));
        Ok(Metadata {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: self.clamp(stat.st_mtime),
            xattrs: xattrs.map(|(key, value)| (key.clone(), plain_capability(&key, value))).collect(),
        })
    }

    fn clamp(&self, mtime: i64) -> i64 {
        self.options.clamp_mtime.map_or(mtime, |newest| mtime.min(newest))
    }

    fn open_directory(&self, path: &Path) -> io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        Ok(openat2(&self.root, path, flags, Mode::empty(), resolve)?)
    }
}

impl Found {
    fn order(&self) -> (bool, &OsStr) {
        (!tree::is_whiteout(&self.stat), &self.name)
    }
}

/// All extended attributes of what `path` names itself.
fn read_xattrs(path: &Path) -> io::Result<BTreeMap<OsString, Vec<u8>>> {
    let mut xattrs = BTreeMap::new();
    let mut names = vec![0; MAX_XATTR_BYTES];
    // Of `/proc/self/fd/N` itself we want the directory behind it, of a name in it the thing itself.
    let is_handle = path.parent() == Some(Path::new("/proc/self/fd"));
    let listed = match is_handle {
        true => rustix::fs::listxattr(path, &mut names),
        false => rustix::fs::llistxattr(path, &mut names),
    };
    let length = match listed {
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(xattrs),
        other => other?,
    };
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = OsStr::from_bytes(name);
        let mut value = vec![0; MAX_XATTR_BYTES];
        let length = match is_handle {
            true => rustix::fs::getxattr(path, name, &mut value)?,
            false => rustix::fs::lgetxattr(path, name, &mut value)?,
        };
        value.truncate(length);
        xattrs.insert(name.to_os_string(), value);
    }
    Ok(xattrs)
}

/// File capabilities that were set in a user namespace name that namespace's root (revision 3). In an image they are
/// the image's root's, which is what revision 2 says.
fn plain_capability(key: &OsStr, mut value: Vec<u8>) -> Vec<u8> {
    const REVISION_2: u8 = 2;
    const REVISION_3: u8 = 3;
    if key == "security.capability" && value.len() == 24 && value[3] == REVISION_3 {
        value[3] = REVISION_2;
        value.truncate(20);
    }
    value
}
