//! [`Entries`]: a layer before it is written: every name in it and what is there, except for the contents of files.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use cfc_oci::{Algorithm, Digest, Hasher};
use cfc_store::DeviceKind;

use crate::tree::Identity;

/// The entries of a layer by absolute path: parents come first, and the order is the same everywhere.
pub(crate) type Entries = BTreeMap<PathBuf, Entry>;

/// One entry of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) kind: EntryKind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) attributes: BTreeMap<OsString, Vec<u8>>,
    /// Its own time, in seconds since 1970; the image's where that is earlier or this is none.
    pub(crate) mtime: Option<i64>,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    Directory,
    File(SourceFile),
    Symlink(PathBuf),
    Device { kind: DeviceKind, major: u32, minor: u32 },
    Fifo,
}

/// Where a file's content comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SourceFile {
    /// The tree it is in, among those that the layer is written from.
    pub(crate) tree: usize,
    /// The file in that tree.
    pub(crate) path: PathBuf,
    pub(crate) size: u64,
    /// What the file was when it was looked at.
    pub(crate) identity: Identity,
    /// SHA-256 of the content; all zeros until [`hash`](crate::hash) fills it in.
    pub(crate) digest: [u8; 32],
    /// Device and inode, where the file has several names that stay one file.
    pub(crate) shared: Option<(u64, u64)>,
}

impl Entry {
    /// A directory of this owner.
    pub(crate) fn directory(mode: u32, uid: u32, gid: u32) -> Entry {
        Entry { kind: EntryKind::Directory, mode, uid, gid, attributes: BTreeMap::new(), mtime: None }
    }
}

/// The digest of everything that decides a layer's bytes. Two equal ones make equal layers, wherever their files are.
pub(crate) fn content_digest(entries: &Entries, mtime: i64) -> Digest {
    let mut hasher = KeyHasher(Hasher::new(Algorithm::Sha256));
    hasher.text(b"cfc layer 2");
    hasher.number(mtime as u64);
    let mut groups: BTreeMap<(u64, u64), &Path> = BTreeMap::new();
    for (path, entry) in entries {
        hasher.text(path.as_os_str().as_bytes());
        for number in [entry.mode, entry.uid, entry.gid] {
            hasher.number(u64::from(number));
        }
        hasher.number(entry.mtime.map_or(mtime, |own| own.min(mtime)) as u64);
        hasher.number(entry.attributes.len() as u64);
        for (name, value) in &entry.attributes {
            hasher.text(name.as_bytes());
            hasher.text(value);
        }
        match &entry.kind {
            EntryKind::Directory => hasher.text(b"directory"),
            EntryKind::Fifo => hasher.text(b"fifo"),
            EntryKind::Symlink(target) => {
                hasher.text(b"symlink");
                hasher.text(target.as_os_str().as_bytes());
            }
            EntryKind::Device { kind, major, minor } => {
                hasher.text(if *kind == DeviceKind::Block { b"block" } else { b"character" });
                hasher.number(u64::from(*major));
                hasher.number(u64::from(*minor));
            }
            EntryKind::File(file) => {
                hasher.text(b"file");
                hasher.number(file.size);
                hasher.text(&file.digest);
                // Which names are one file matters, the inode's number does not.
                let first = file.shared.map(|group| *groups.entry(group).or_insert(path));
                hasher.text(first.map_or(b"", |first| first.as_os_str().as_bytes()));
            }
        }
    }
    hasher.0.finish()
}

/// Puts the length in front of each text, so that no two lists of texts hash the same.
struct KeyHasher(Hasher);

impl KeyHasher {
    fn text(&mut self, text: &[u8]) {
        self.number(text.len() as u64);
        self.0.update(text);
    }

    fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }
}
