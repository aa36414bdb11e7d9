//! [`Cache`]: small records by key, which may disappear at any time.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cfc_oci::Digest;
use rustix::fs::{FlockOperation, flock};
use tempfile::NamedTempFile;

use crate::error::Context;
use crate::image::touch;
use crate::{Result, Store};

/// Between two looks at a lock that somebody else holds.
const POLL: Duration = Duration::from_millis(10);

/// While this lives, no other process makes the same.
pub struct KeyLock {
    path: PathBuf,
    _file: File,
}

impl Drop for KeyLock {
    fn drop(&mut self) {
        // Who has opened it already looks whether it is still there.
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes the locks that nobody holds: of processes that died.
pub(crate) fn sweep_locks(root: &Path) {
    for entry in fs::read_dir(root.join("making")).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(file) = File::options().append(true).open(&path) else { continue };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() && is_at(&file, &path) {
            let _ = fs::remove_file(&path);
        }
    }
}

/// Whether `path` still names `file`: a file that is locked and removed again is another's no more.
pub fn is_at(file: &File, path: &Path) -> bool {
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let here = path.metadata().ok().map(identity);
    here.is_some() && here == file.metadata().ok().map(identity)
}

/// Small records by key. Those that name a layer, as an object with `diff_id` and `blob` in its JSON, are pruned with the
/// layer; keys that begin with `layer-index-` and a diff id's hex likewise. A record is read whole or not at all, but it is
/// only a cache: nothing is synced to the disk, and a reader must take one that does not parse for one that is not there.
#[derive(Clone, Debug)]
pub struct Cache {
    store: Store,
}

impl Cache {
    pub(crate) fn new(store: Store) -> Cache {
        Cache { store }
    }

    /// The record's bytes.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let path = self.path(key);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).on("read", &path),
        }
    }

    /// The record's bytes, which were used now: the limit of the cache takes the others first.
    pub fn get_to_use(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let bytes = self.get(key)?;
        if bytes.is_some() {
            touch(&self.path(key));
        }
        Ok(bytes)
    }

    /// Makes or replaces the record.
    pub fn put(&self, key: &str, value: &[u8]) -> Result<()> {
        let path = self.path(key);
        let mut file = NamedTempFile::new_in(self.store.session_directory()).on("write", &path)?;
        file.write_all(value).on("write", &path)?;
        file.persist(&path).map_err(|error| error.error).on("write", &path)?;
        Ok(())
    }

    /// Waits until no process makes what `key` is about, so that it is made once; then it is up to the caller, until the lock
    /// is dropped. None when `may_wait` says no while somebody else makes it.
    pub fn lock(&self, key: &str, may_wait: &dyn Fn() -> bool) -> Result<Option<KeyLock>> {
        let name = self.path(key).file_stem().unwrap_or_default().to_owned();
        let path = self.store.root().join("making").join(name);
        loop {
            let file = File::options().create(true).append(true).open(&path).on("open", &path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if is_at(&file, &path) => return Ok(Some(KeyLock { path, _file: file })),
                // Its holder removed it between our opening and our locking it.
                Ok(()) => continue,
                Err(rustix::io::Errno::WOULDBLOCK) if may_wait() => std::thread::sleep(POLL),
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(error).on("lock", &path),
            }
        }
    }

    /// Forgets the record; it is no error when there is none.
    pub fn remove(&self, key: &str) -> Result<()> {
        let path = self.path(key);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).on("remove", &path),
            _ => Ok(()),
        }
    }

    /// A key that is a plain file name keeps its name, any other is hashed.
    fn path(&self, key: &str) -> PathBuf {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let name = match !key.is_empty() && key.len() <= 200 && key.bytes().all(is_plain) {
            true => format!("{key}.json"),
            false => format!("sha256.{}.json", Digest::of(key.as_bytes()).hex()),
        };
        self.store.root().join("cache").join(name)
    }
}
