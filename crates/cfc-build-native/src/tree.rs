//! [`Tree`]: files to look at, wherever they are: the build context, or an image's layers one above the other.
//!
//! Paths are absolute below the tree's root. No method follows a symbolic link; [`resolve`] does, and never leaves the
//! root.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use crate::failure::{Failure, OnPath, Result};

/// More links in a row are a circle, as far as Linux is concerned.
const MAX_LINKS: usize = 40;

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink(PathBuf),
    Character { major: u32, minor: u32 },
    Block { major: u32, minor: u32 },
    Fifo,
    Socket,
}

/// What is known of a file without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileInfo {
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) links: u64,
    pub(crate) identity: Identity,
}

/// While these stay the same, so does a file's content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) size: u64,
    /// Nanoseconds since 1970.
    pub(crate) modified: i64,
    /// Nanoseconds since 1970.
    pub(crate) changed: i64,
}

impl FileInfo {
    pub(crate) fn is_directory(&self) -> bool {
        self.kind == Kind::Directory
    }

    /// A directory that is only known to exist.
    pub(crate) fn directory(mode: u32, uid: u32, gid: u32) -> FileInfo {
        FileInfo { kind: Kind::Directory, mode, uid, gid, size: 0, links: 1, identity: Identity::default() }
    }

    /// What `path`, a place outside any tree, is; none when nothing is there.
    pub(crate) fn read(path: &Path) -> Result<Option<FileInfo>> {
        let metadata = match path.symlink_metadata() {
            Ok(metadata) => metadata,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(error).on("look at", path),
        };
        FileInfo::from_metadata(path, &metadata).map(Some)
    }

    pub(crate) fn from_metadata(path: &Path, metadata: &Metadata) -> Result<FileInfo> {
        let file_type = metadata.file_type();
        let (major, minor) = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
        let kind = match file_type {
            kind if kind.is_file() => Kind::File,
            kind if kind.is_dir() => Kind::Directory,
            kind if kind.is_symlink() => Kind::Symlink(path.read_link().on("read the link", path)?),
            kind if kind.is_char_device() => Kind::Character { major, minor },
            kind if kind.is_block_device() => Kind::Block { major, minor },
            kind if kind.is_fifo() => Kind::Fifo,
            _ => Kind::Socket,
        };
        Ok(FileInfo {
            kind,
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            size: metadata.len(),
            links: metadata.nlink(),
            identity: Identity::of(metadata),
        })
    }
}

impl Identity {
    pub(crate) fn of(metadata: &Metadata) -> Identity {
        let nanoseconds = |seconds: i64, rest: i64| seconds.wrapping_mul(1_000_000_000).wrapping_add(rest);
        Identity {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            changed: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

/// Says what is at a path.
pub(crate) trait Lookup {
    /// What `path` is; none when nothing is there.
    fn lookup(&self, path: &Path) -> Result<Option<FileInfo>>;
}

/// Files that can be walked and read.
pub(crate) trait Tree: Lookup + Sync {
    /// What is in `directory`, sorted by name.
    fn list(&self, directory: &Path) -> Result<Vec<(OsString, FileInfo)>>;

    /// Opens the regular file `path` for reading.
    fn open(&self, path: &Path) -> Result<File>;

    /// The failure of somebody who looked for `path` and did not find it.
    fn absent(&self, path: &Path) -> Failure;

    /// The extended attributes of `path` that belong into an image.
    fn attributes(&self, path: &Path) -> Result<BTreeMap<OsString, Vec<u8>>>;
}

/// `path` with the symbolic links in it followed, below the root of `tree`, whatever they point to. With `Last::Kept`
/// the last part is not followed. Parts that are not there stay as they are written.
pub(crate) fn resolve(tree: &dyn Lookup, path: &Path, last: Last) -> Result<PathBuf> {
    let mut resolved = PathBuf::from("/");
    let mut rest: VecDeque<OsString> = parts(path);
    let mut links = 0;
    while let Some(part) = rest.pop_front() {
        if part == ".." {
            resolved.pop();
            continue;
        }
        let next = resolved.join(&part);
        let is_kept = rest.is_empty() && last == Last::Kept;
        let target = match tree.lookup(&next)? {
            Some(FileInfo { kind: Kind::Symlink(target), .. }) if !is_kept => target,
            _ => {
                resolved = next;
                continue;
            }
        };
        links += 1;
        if links > MAX_LINKS {
            return Err(Failure::new(format!("`{}` goes through too many symbolic links", path.display())));
        }
        if target.is_absolute() {
            resolved = PathBuf::from("/");
        }
        for part in parts(&target).into_iter().rev() {
            rest.push_front(part);
        }
    }
    Ok(resolved)
}

/// Whether [`resolve`] follows the last part of a path.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Last {
    Followed,
    Kept,
}

fn parts(path: &Path) -> VecDeque<OsString> {
    let part = |component: Component<'_>| match component {
        Component::Normal(part) => Some(part.to_os_string()),
        Component::ParentDir => Some(OsString::from("..")),
        _ => None,
    };
    path.components().filter_map(part).collect()
}

/// The path below the root, without the leading slash.
pub(crate) fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

/// Reads the extended attributes of a file that lies outside any tree, without following it.
pub(crate) fn read_attributes(path: &Path) -> Result<BTreeMap<OsString, Vec<u8>>> {
    let mut names = vec![0; 4096];
    let length = loop {
        match rustix::fs::llistxattr(path, &mut names) {
            Ok(0) => return Ok(BTreeMap::new()),
            Ok(length) => break length,
            Err(rustix::io::Errno::RANGE) => names.resize(names.len() * 4, 0),
            // No attributes on this file system.
            Err(rustix::io::Errno::NOTSUP) => return Ok(BTreeMap::new()),
            Err(error) => return Err(error).on("list the attributes of", path),
        }
    };
    let mut attributes = BTreeMap::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| belongs_into_image(name)) {
        let name = OsStr::from_bytes(name);
        // The kernel's own bound on a value.
        let mut value = vec![0; 64 << 10];
        let length = rustix::fs::lgetxattr(path, name, &mut value).on("read an attribute of", path)?;
        value.truncate(length);
        attributes.insert(name.to_os_string(), value);
    }
    Ok(attributes)
}

/// Labels of this machine's security modules and of overlayfs itself say nothing about the image.
fn belongs_into_image(name: &[u8]) -> bool {
    name == b"security.capability" || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    struct Links(HashMap<&'static str, &'static str>);

    impl Lookup for Links {
        fn lookup(&self, path: &Path) -> Result<Option<FileInfo>> {
            let target = path.to_str().and_then(|path| self.0.get(path));
            let info = FileInfo::directory(0o755, 0, 0);
            Ok(target.map(|target| FileInfo { kind: Kind::Symlink(PathBuf::from(target)), ..info }))
        }
    }

    fn resolved(links: &[(&'static str, &'static str)], path: &str, last: Last) -> String {
        let links = Links(links.iter().copied().collect());
        resolve(&links, Path::new(path), last).expect("resolves").display().to_string()
    }

    #[test]
    fn links_stay_below_the_root() {
        let links = [("/out", "../../../../etc"), ("/absolute", "/srv/x"), ("/srv/x", "y")];
        assert_eq!(resolved(&links, "/out/passwd", Last::Followed), "/etc/passwd");
        assert_eq!(resolved(&links, "/absolute/z", Last::Followed), "/srv/y/z");
        assert_eq!(resolved(&links, "/absolute", Last::Kept), "/absolute");
        assert_eq!(resolved(&links, "/a/../../b", Last::Followed), "/b");
    }

    #[test]
    fn a_circle_is_an_error() {
        let links = Links([("/a", "b"), ("/b", "a")].into_iter().collect());
        let error = resolve(&links, Path::new("/a"), Last::Followed).expect_err("a circle");
        assert!(error.message.contains("too many"), "{}", error.message);
    }
}
