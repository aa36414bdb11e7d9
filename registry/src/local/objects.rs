//! [`DirectoryObjects`]: objects as files below one directory, their keys as paths.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;

use super::lists::{self, Lists};
use crate::StorageError;
use crate::files::{self, Staged, blocking};
use crate::objects::{Entry, MayReplace, ObjectBackend, Seen};
use crate::quick::{self, Quick};

/// Larger objects are read on a blocking thread, since copying them takes as long as getting there.
const QUICK_BYTES: u64 = 256 * 1024;

/// Objects below one directory. Cheap to clone.
#[derive(Clone)]
pub(crate) struct DirectoryObjects {
    root: Arc<PathBuf>,
    temporary: Arc<PathBuf>,
    lists: Arc<Lists>,
    /// An object that somebody relies on and that was not touched for this long is touched.
    refresh: Duration,
}

impl DirectoryObjects {
    /// The objects below `root`; `temporary` is a directory on the same filesystem that nobody else uses.
    pub(crate) fn open(root: &Path, temporary: &Path, refresh: Duration) -> Result<DirectoryObjects, StorageError> {
        for directory in [root, temporary] {
            std::fs::create_dir_all(directory).map_err(|e| StorageError::new("create", directory.display(), e))?;
        }
        let (root, temporary) = (Arc::new(root.to_path_buf()), Arc::new(temporary.to_path_buf()));
        Ok(DirectoryObjects { root, temporary, lists: Arc::default(), refresh })
    }

    /// Removes what was being written when the process before ended.
    pub(crate) fn remove_temporary(&self) -> Result<(), StorageError> {
        let left = files::read_directory(&self.temporary)?;
        left.iter().try_for_each(|entry| files::remove_if_there(&entry.path()).map(|_| ()))
    }

    fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    fn is_fresh(&self, touched: SystemTime) -> bool {
        SystemTime::now().duration_since(touched).is_ok_and(|age| age < self.refresh)
    }

    /// False when there is no such object any more. Where nothing can be changed nothing can be collected either, so what is
    /// there stays without being touched.
    async fn touch(&self, key: &str) -> Result<bool, StorageError> {
        let path = self.path(key);
        let touch = move || {
            match files::touch(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::ReadOnlyFilesystem => path.try_exists(),
                touched => touched,
            }
            .map_err(|e| StorageError::new("touch", path.display(), e))
        };
        blocking(touch).await
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

#[async_trait]
impl ObjectBackend for DirectoryObjects {
    async fn require_writable(&self) -> Result<(), StorageError> {
        let temporary = self.temporary.clone();
        blocking(move || Staged::new(&temporary).map(drop)).await
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, StorageError> {
        Ok(self.find(key).await?.map(|(bytes, _)| bytes))
    }

    async fn exists(&self, key: &str) -> Result<bool, StorageError> {
        Ok(self.touched(key).await?.is_some())
    }

    async fn put(&self, key: &str, bytes: Bytes) -> Result<(), StorageError> {
        let (path, temporary) = (self.path(key), self.temporary.clone());
        blocking(move || match bytes.is_empty() {
            true => files::put_marker(&path),
            false => Staged::write(&temporary, &bytes)?.publish(&path)?.sync(),
        })
        .await
    }

    async fn delete(&self, key: &str) -> Result<bool, StorageError> {
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

    async fn put_kept(&self, key: &str, bytes: Bytes) -> Result<(), StorageError> {
        self.put(key, bytes).await
    }

    async fn get_kept(&self, key: &str) -> Result<Option<Bytes>, StorageError> {
        loop {
            let Some((bytes, touched)) = self.find(key).await? else { return Ok(None) };
            if self.is_fresh(touched) || self.touch(key).await? {
                return Ok(Some(bytes));
            }
        }
    }

    async fn claim(&self, key: &str) -> Result<bool, StorageError> {
        loop {
            let Some(touched) = self.touched(key).await? else { return Ok(false) };
            if self.is_fresh(touched) || self.touch(key).await? {
                return Ok(true);
            }
        }
    }

    async fn get_listed(&self, list: &str, name: &str) -> Result<Option<Bytes>, StorageError> {
        self.get(&format!("{list}/{name}")).await
    }

    fn peek_listed(&self, list: &str, name: &str) -> Result<Option<Seen>, StorageError> {
        lists::see(&self.path(list).join(name))
    }

    async fn put_listed(
        &self,
        list: &str,
        name: &str,
        bytes: Bytes,
        may_replace: Option<MayReplace>,
    ) -> Result<bool, StorageError> {
        let (path, temporary) = (self.path(list).join(name), self.temporary.clone());
        let (names, name) = (self.lists.of(list), name.to_string());
        blocking(move || {
            let staged = Staged::write(&temporary, &bytes)?;
            match names.put(staged, &path, name, may_replace)? {
                Some(unsynced) => unsynced.sync().map(|()| true),
                None => Ok(false),
            }
        })
        .await
    }

    async fn remove_listed(&self, list: &str, name: &str, seen: &Seen) -> Result<bool, StorageError> {
        let (names, path, name) = (self.lists.of(list), self.path(list).join(name), name.to_string());
        let seen = seen.clone();
        blocking(move || names.remove(&path, &name, &seen)).await
    }

    async fn page(&self, list: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>, StorageError> {
        let names = self.lists.of(list);
        if let Some(page) = names.known_page(after, limit) {
            return Ok(page);
        }
        let (objects, key, after) = (self.clone(), list.to_string(), after.map(str::to_string));
        let page = blocking(move || names.page(after.as_deref(), limit, || objects.names(&key))).await;
        self.lists.shrink(list);
        page
    }

    /// What a collection that was killed had put aside is brought back.
    fn walk(&self, prefix: &str, each: &mut dyn FnMut(Entry)) -> Result<(), StorageError> {
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
                let look = self.path(&key).symlink_metadata();
                match look.and_then(|metadata| Ok((metadata.is_dir(), metadata.modified()?))) {
                    Ok((true, _)) => pending.push(key),
                    Ok((false, touched)) => each(Entry { key, touched }),
                    // Deleted meanwhile.
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                    // Whoever reads it says so, and nobody takes it for something that may go.
                    Err(error) => {
                        tracing::error!(path = %entry.path().display(), %error, "cannot look at an object");
                        each(Entry { key, touched: SystemTime::now() });
                    }
                }
            }
        }
        Ok(())
    }

    fn names(&self, prefix: &str) -> Result<Vec<String>, StorageError> {
        let entries = files::read_directory(&self.path(prefix))?;
        let names = entries.into_iter().filter_map(|entry| entry.file_name().into_string().ok());
        Ok(names.filter(|name| !files::is_aside(name)).collect())
    }

    fn page_of_owners(
        &self,
        prefix: &str,
        leaf: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<String>, StorageError> {
        super::tree::page(leaf, after, limit, |directory| match directory {
            "" => self.names(prefix),
            directory => self.names(&format!("{prefix}/{directory}")),
        })
    }

    /// Objects that were put aside count.
    fn has_any(&self, prefix: &str) -> Result<bool, StorageError> {
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

    fn touched_at(&self, key: &str) -> Result<Option<SystemTime>, StorageError> {
        let path = self.path(key);
        match path.metadata().and_then(|metadata| metadata.modified()) {
            Ok(touched) => Ok(Some(touched)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(StorageError::new("read", path.display(), e)),
        }
    }

    fn peek(&self, key: &str) -> Result<Option<Bytes>, StorageError> {
        let path = self.path(key);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(StorageError::new("read", path.display(), e)),
        }
    }

    /// As [`files::remove_if_stale`] does, with directories that are empty then.
    fn remove_if_stale(
        &self,
        key: &str,
        cutoff: SystemTime,
        is_wanted: &dyn Fn() -> Result<bool, StorageError>,
    ) -> Result<bool, StorageError> {
        let path = self.path(key);
        let removed = files::remove_if_stale(&path, cutoff, is_wanted)?;
        if removed && let Some(directory) = path.parent() {
            files::remove_empty(directory, &self.root);
        }
        Ok(removed)
    }

    fn set_aside(&self, key: &str, target: &str) -> Result<(), StorageError> {
        let (path, target) = (self.path(key), self.path(target));
        let directory = target.parent().expect("below the root");
        std::fs::create_dir_all(directory).map_err(|e| StorageError::new("create", directory.display(), e))?;
        std::fs::rename(&path, &target).map_err(|e| StorageError::new("move", path.display(), e))
    }

    fn now(&self) -> Result<SystemTime, StorageError> {
        Ok(SystemTime::now())
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
