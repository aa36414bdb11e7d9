//! [`LocalBackend`]: blob content in a directory of this machine.
//!
//! ```text
//! <root>/blobs/<algorithm>/<first 2 digits>/<hex>   finished blobs, read-only, never changed
//! <root>/uploads/<id>.data                          what has arrived
//! <root>/uploads/<id>.json                          repository and algorithm of the upload
//! <root>/uploads/<id>.hash                          saved hash of a prefix of the data; may be missing or torn
//! ```
//!
//! The size of an upload is the length of its data file, so nothing has to agree with anything after a crash: a hash
//! that lags behind is brought up to date from the data, and the final digest is checked in any case. Exactly one
//! process uses a root at a time; its owner holds a lock elsewhere.

mod blobs;
mod lists;
mod objects;
mod room;
mod session;
mod tree;
mod upload;
mod writeback;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use cfc_oci::{Digest, RepositoryName};
use tokio::sync::watch;
use uuid::Uuid;

use crate::StorageError;
use crate::files::{read_directory, remove_if_there};
pub(crate) use objects::DirectoryObjects;
use session::SessionPaths;

/// How long a request waits for another one that writes to the same upload.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// Blobs and uploads below one directory.
pub(crate) struct LocalBackend {
    root: PathBuf,
    locks: Mutex<HashMap<Uuid, Arc<tokio::sync::Mutex<()>>>>,
    /// Who is told how far uploads got that somebody reads while they grow.
    followed: Mutex<HashMap<Uuid, watch::Sender<u64>>>,
}

/// Held by whoever writes to an upload.
type UploadLock = tokio::sync::OwnedMutexGuard<()>;

impl LocalBackend {
    /// Opens `root` and creates what is missing.
    pub(crate) fn open(root: &Path) -> Result<LocalBackend, StorageError> {
        let backend = LocalBackend { root: root.to_path_buf(), locks: Mutex::default(), followed: Mutex::default() };
        for directory in [backend.root.join("blobs"), backend.uploads()] {
            std::fs::create_dir_all(&directory).map_err(|e| StorageError::new("create", directory.display(), e))?;
        }
        Ok(backend)
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.root.join("blobs").join(digest.algorithm().as_str()).join(&hex[..2]).join(hex)
    }

    fn uploads(&self) -> PathBuf {
        self.root.join("uploads")
    }

    /// Waits a while for other requests on the same upload; `None` when they take too long.
    async fn lock(&self, id: Uuid) -> Option<UploadLock> {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            locks.entry(id).or_default().clone()
        };
        tokio::time::timeout(LOCK_PATIENCE, lock.lock_owned()).await.ok()
    }

    /// Tells from now on how far an upload got.
    fn follow(&self, id: Uuid) -> watch::Receiver<u64> {
        let (sender, written) = watch::channel(0);
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        followed.retain(|_, sender| sender.receiver_count() > 0);
        followed.insert(id, sender);
        written
    }

    fn followers(&self, id: Uuid) -> Option<watch::Sender<u64>> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// Removes the uploads of some repositories.
    fn forget_uploads(&self, is_over: &dyn Fn(&RepositoryName) -> bool) -> Result<u64, StorageError> {
        let mut forgotten = 0;
        for entry in read_directory(&self.uploads())? {
            let path = entry.path();
            let id = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
            let Some(id) = id.filter(|_| path.extension().is_some_and(|extension| extension == "json")) else {
                continue;
            };
            let paths = SessionPaths::new(self.uploads(), id);
            if paths.repository()?.is_some_and(|name| is_over(&name)) {
                paths.remove_files()?;
                forgotten += 1;
            }
        }
        Ok(forgotten)
    }

    /// Removes uploads that were not touched for `expiry`. An upload is as old as its last byte, and its other files
    /// with it.
    fn sweep_uploads(&self, expiry: Duration) -> Result<u64, StorageError> {
        let modified = |path: &Path| path.metadata().and_then(|metadata| metadata.modified());
        let mut stale = Vec::new();
        for entry in read_directory(&self.uploads())? {
            let path = entry.path();
            let touched = match modified(&path.with_extension("data")).or_else(|_| modified(&path)) {
                Ok(touched) => touched,
                // It ended meanwhile.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(StorageError::new("read", path.display(), e)),
            };
            if SystemTime::now().duration_since(touched).unwrap_or_default() >= expiry {
                stale.push(path);
            }
        }
        // The record goes first: without it nobody goes on with what is left.
        stale.sort_by_key(|path| path.extension().is_none_or(|extension| extension != "json"));
        stale.iter().try_for_each(|path| remove_if_there(path).map(|_| ()))?;
        Ok(stale.iter().filter(|path| path.extension().is_some_and(|extension| extension == "data")).count() as u64)
    }
}
