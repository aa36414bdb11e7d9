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

mod blob_reader;
mod session;
mod upload;

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use cfc_oci::{Algorithm, Digest};
use uuid::Uuid;

use crate::StorageError;

/// How long a request waits for another one that writes to the same upload.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// Blobs and uploads below one directory.
pub(crate) struct LocalBackend {
    root: PathBuf,
    locks: Mutex<HashMap<Uuid, Arc<tokio::sync::Mutex<()>>>>,
}

/// Held by whoever writes to an upload.
type UploadLock = tokio::sync::OwnedMutexGuard<()>;

impl LocalBackend {
    /// Opens `root`, creates what is missing, and removes uploads that were not touched for `upload_expiry`.
    pub(crate) fn open(root: &Path, upload_expiry: Duration) -> Result<LocalBackend, StorageError> {
        let backend = LocalBackend { root: root.to_path_buf(), locks: Mutex::default() };
        for directory in [backend.root.join("blobs"), backend.uploads()] {
            std::fs::create_dir_all(&directory).map_err(|e| StorageError::new("create", directory.display(), e))?;
        }
        backend.sweep_uploads(upload_expiry)?;
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

    /// An upload is as old as its last byte, and its other files with it.
    fn sweep_uploads(&self, expiry: Duration) -> Result<(), StorageError> {
        let modified = |path: &Path| path.metadata().and_then(|metadata| metadata.modified());
        let mut stale = Vec::new();
        for entry in read_directory(&self.uploads())? {
            let path = entry.path();
            let touched = modified(&path.with_extension("data")).or_else(|_| modified(&path));
            let touched = touched.map_err(|e| StorageError::new("read", path.display(), e))?;
            if SystemTime::now().duration_since(touched).unwrap_or_default() >= expiry {
                stale.push(path);
            }
        }
        stale.iter().try_for_each(|path| remove_if_there(path).map(|_| ()))
    }
}

/// The blobs below `root/blobs`, for a scan.
fn list_blobs(root: &Path) -> Result<Vec<(Digest, u64)>, StorageError> {
    let mut blobs = Vec::new();
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let directory = root.join("blobs").join(algorithm.as_str());
        for fan in read_directory(&directory)? {
            for entry in read_directory(&fan.path())? {
                let name = format!("{}:{}", algorithm.as_str(), entry.file_name().to_string_lossy());
                let Ok(digest) = name.parse() else { continue };
                let metadata = entry.metadata().map_err(|e| StorageError::new("read", entry.path().display(), e))?;
                blobs.push((digest, metadata.len()));
            }
        }
    }
    Ok(blobs)
}

fn read_directory(directory: &Path) -> Result<Vec<std::fs::DirEntry>, StorageError> {
    let error = |e| StorageError::new("list", directory.display(), e);
    match std::fs::read_dir(directory) {
        Ok(entries) => entries.collect::<Result<_, _>>().map_err(error),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(error(e)),
    }
}

/// Runs `work`, which blocks on the disk or hashes, off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only a runtime that is shutting down cancels blocking work; nobody is left to read an answer then.
            Err(_) => std::future::pending().await,
        },
    }
}

fn remove_if_there(path: &Path) -> Result<bool, StorageError> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(StorageError::new("remove", path.display(), e)),
    }
}

fn sync_directory(directory: &Path) -> Result<(), StorageError> {
    File::open(directory)
        .and_then(|file| file.sync_all())
        .map_err(|e| StorageError::new("sync", directory.display(), e))
}

/// Writes a new file; the caller decides when it is synced.
fn write_new(path: &Path, bytes: &[u8]) -> Result<File, StorageError> {
    let error = |e| StorageError::new("write", path.display(), e);
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path).map_err(error)?;
    file.write_all(bytes).map_err(error)?;
    Ok(file)
}
