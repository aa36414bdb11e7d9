//! [`Objects`]: small objects under keys, as files below one directory. Whole or not there, and synced before anybody
//! is told.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::StorageError;
use crate::files::{self, Staged, Unsynced, blocking};
use crate::quick::{self, Quick};

/// Larger objects are read on a blocking thread, since copying them takes as long as getting there.
const QUICK_BYTES: u64 = 256 * 1024;

/// The objects of one bucket. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Objects {
    root: Arc<PathBuf>,
    temporary: Arc<PathBuf>,
    /// An object that somebody relies on and that was not touched for this long is touched.
    refresh: Duration,
}

impl Objects {
    /// The objects below `root`; `temporary` is a directory on the same filesystem that nobody else uses.
    pub(crate) fn open(root: &Path, temporary: &Path, refresh: Duration) -> Result<Objects, StorageError> {
        for directory in [root, temporary] {
            std::fs::create_dir_all(directory).map_err(|e| StorageError::new("create", directory.display(), e))?;
        }
        Ok(Objects { root: Arc::new(root.to_path_buf()), temporary: Arc::new(temporary.to_path_buf()), refresh })
    }

    /// Removes what was being written when the process before ended.
    pub(crate) fn remove_temporary(&self) -> Result<(), StorageError> {
        let left = files::read_directory(&self.temporary)?;
        left.iter().try_for_each(|entry| files::remove_if_there(&entry.path()).map(|_| ()))
    }

    pub(crate) fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    /// Where files are written before they get their name.
    pub(crate) fn temporary(&self) -> Arc<PathBuf> {
        self.temporary.clone()
    }

    pub(crate) async fn get(&self, key: &str) -> Result<Option<Bytes>, StorageError> {
        Ok(self.find(key).await?.map(|(bytes, _)| bytes))
    }

    /// As [`get`](Self::get), and keeps what it finds from garbage collection for a while.
    pub(crate) async fn get_claimed(&self, key: &str) -> Result<Option<Bytes>, StorageError> {
        loop {
            let Some((bytes, touched)) = self.find(key).await? else { return Ok(None) };
            if self.is_fresh(touched) || self.touch(key).await? {
                return Ok(Some(bytes));
            }
        }
    }

    pub(crate) async fn exists(&self, key: &str) -> Result<bool, StorageError> {
        Ok(self.touched(key).await?.is_some())
    }

    /// Whether the object is there; if so, garbage collection keeps it for a while.
    pub(crate) async fn claim(&self, key: &str) -> Result<bool, StorageError> {
        loop {
            let Some(touched) = self.touched(key).await? else { return Ok(false) };
            if self.is_fresh(touched) || self.touch(key).await? {
                return Ok(true);
            }
        }
    }

    pub(crate) async fn put(&self, key: &str, bytes: Bytes) -> Result<(), StorageError> {
        let (path, temporary) = (self.path(key), self.temporary());
        blocking(move || Staged::write(&temporary, &bytes)?.publish(&path)?.sync()).await
    }

    /// Puts an object that has no content, or makes the one that is there as young as a new one.
    pub(crate) async fn put_marker(&self, key: &str) -> Result<(), StorageError> {
        let path = self.path(key);
        blocking(move || files::put_marker(&path)).await
    }

    /// Puts an object by `publish`, which gives it its name, or does not; says whether it did.
    pub(crate) async fn put_by(
        &self,
        key: &str,
        bytes: Bytes,
        publish: impl FnOnce(Staged, &Path) -> Result<Option<Unsynced>, StorageError> + Send + 'static,
    ) -> Result<bool, StorageError> {
        let (path, temporary) = (self.path(key), self.temporary());
        blocking(move || match publish(Staged::write(&temporary, &bytes)?, &path)? {
            Some(unsynced) => unsynced.sync().map(|()| true),
            None => Ok(false),
        })
        .await
    }

    /// False when there was no such object.
    pub(crate) async fn delete(&self, key: &str) -> Result<bool, StorageError> {
        let path = self.path(key);
        let root = self.root.clone();
        blocking(move || {
            let removed = files::remove_wherever(&path)?;
            if let Some(directory) = path.parent() {
                files::remove_empty(directory, &root);
            }
            Ok(removed)
        })
        .await
    }

    /// Every key below `prefix` and how long its object is, in no order. What a collection that was killed had put aside
    /// is brought back. Blocks.
    pub(crate) fn walk(&self, prefix: &str, each: &mut dyn FnMut(&str, u64)) -> Result<(), StorageError> {
        let mut pending = vec![prefix.to_string()];
        while let Some(directory) = pending.pop() {
            for entry in files::read_directory(&self.path(&directory))? {
                let name = entry.file_name();
                let Some(name) = name.to_str() else { continue };
                let key = format!("{directory}/{}", files::in_place(name));
                if files::is_aside(name) {
                    let path = self.path(&key);
                    files::rescue(&path).map_err(|e| StorageError::new("bring back", path.display(), e))?;
                }
                match self.path(&key).symlink_metadata() {
                    Ok(metadata) if metadata.is_dir() => pending.push(key),
                    Ok(metadata) => each(&key, metadata.len()),
                    // Deleted meanwhile.
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                    Err(e) => return Err(StorageError::new("read", entry.path().display(), e)),
                }
            }
        }
        Ok(())
    }

    /// Every key below `prefix`, in no order.
    pub(crate) async fn keys(&self, prefix: &str) -> Result<Vec<String>, StorageError> {
        let (objects, prefix) = (self.clone(), prefix.to_string());
        blocking(move || {
            let mut keys = Vec::new();
            objects.walk(&prefix, &mut |key, _| keys.push(key.to_string()))?;
            Ok(keys)
        })
        .await
    }

    /// The names directly below `prefix`, in no order. Blocks.
    pub(crate) fn names(&self, prefix: &str) -> Result<Vec<String>, StorageError> {
        let entries = files::read_directory(&self.path(prefix))?;
        let names = entries.into_iter().filter_map(|entry| entry.file_name().into_string().ok());
        Ok(names.filter(|name| !files::is_aside(name)).collect())
    }

    /// Whether anything is below `prefix`, objects that were put aside included. Blocks.
    pub(crate) fn has_any(&self, prefix: &str) -> Result<bool, StorageError> {
        let mut pending = vec![self.path(prefix)];
        while let Some(directory) = pending.pop() {
            for entry in files::read_directory(&directory)? {
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => pending.push(entry.path()),
                    _ => return Ok(true),
                }
            }
        }
        Ok(false)
    }

    /// Removes an object as [`files::remove_if_stale`] does, with directories that are empty then. Blocks.
    pub(crate) fn remove_if_stale(
        &self,
        key: &str,
        cutoff: SystemTime,
        is_wanted: impl Fn() -> Result<bool, StorageError>,
    ) -> Result<bool, StorageError> {
        let path = self.path(key);
        let removed = files::remove_if_stale(&path, cutoff, is_wanted)?;
        if removed && let Some(directory) = path.parent() {
            files::remove_empty(directory, &self.root);
        }
        Ok(removed)
    }

    fn is_fresh(&self, touched: SystemTime) -> bool {
        SystemTime::now().duration_since(touched).is_ok_and(|age| age < self.refresh)
    }

    async fn touch(&self, key: &str) -> Result<bool, StorageError> {
        let path = self.path(key);
        blocking(move || files::touch(&path).map_err(|e| StorageError::new("touch", path.display(), e))).await
    }

    async fn find(&self, key: &str) -> Result<Option<(Bytes, SystemTime)>, StorageError> {
        let path = self.path(key);
        if let Quick::Known((bytes, touched)) = quick::read(&path, QUICK_BYTES) {
            return Ok(Some((bytes.into(), touched)));
        }
        blocking(move || {
            let error = |e| StorageError::new("read", path.display(), e);
            let read = || {
                let mut file = std::fs::File::open(&path)?;
                let touched = file.metadata()?.modified()?;
                let mut bytes = Vec::new();
                std::io::Read::read_to_end(&mut file, &mut bytes)?;
                Ok((bytes.into(), touched))
            };
            or_rescued(&path, read).map_err(error)
        })
        .await
    }

    async fn touched(&self, key: &str) -> Result<Option<SystemTime>, StorageError> {
        let path = self.path(key);
        if let Quick::Known((touched, _)) = quick::stat(&path) {
            return Ok(Some(touched));
        }
        blocking(move || {
            let look = || path.metadata().and_then(|metadata| metadata.modified());
            or_rescued(&path, look).map_err(|e| StorageError::new("read", path.display(), e))
        })
        .await
    }
}

/// Looks at a file, a second time if it had been put aside.
pub(crate) fn or_rescued<T>(path: &Path, look: impl Fn() -> std::io::Result<T>) -> std::io::Result<Option<T>> {
    let found = |looked: std::io::Result<T>| match looked {
        Ok(found) => Ok(Some(found)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    };
    match found(look())? {
        Some(found) => Ok(Some(found)),
        None if files::rescue(path)? => found(look()),
        // A collection may have put it back between the two.
        None => found(look()),
    }
}
