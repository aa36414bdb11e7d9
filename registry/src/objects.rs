//! [`ObjectBackend`]: small objects under keys, of which repositories, tags and manifests are made. The seam between
//! [`Metadata`](crate::metadata::Metadata) and a directory or a bucket.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;

use crate::StorageError;
use crate::files::blocking;

/// The objects of one registry.
pub(crate) type Objects = Arc<dyn ObjectBackend>;

/// An object found on a walk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub key: String,
    /// When it was put, or somebody last relied on it, as far as that keeps it.
    pub touched: SystemTime,
}

/// An object of a list, as somebody has found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub bytes: Bytes,
    pub put: SystemTime,
    /// What tells it from any other that is put in its place, where its time does not.
    pub version: String,
    /// What it had replaced and was still there, which is removed with it.
    pub before: Vec<String>,
}

/// Objects under keys: whole or not there, and on stable storage before anybody is told.
///
/// Some are *kept*: garbage collection removes one when nobody needs it and nobody has relied on it for a while. Whoever
/// finds one by `claim` or `get_kept` can rely on it for seven eighths of that time; those who only look around use
/// `peek` and `touched_at`. A key is either that of a kept object or not, always.
///
/// What is put into a *list* is found again by page, in the order of names, and is reached by the functions for lists
/// only.
#[async_trait]
pub(crate) trait ObjectBackend: Send + Sync {
    /// Fails when a later version of the registry stores things here in a way that this one does not know; then nothing
    /// may be changed.
    async fn require_known_format(&self) -> Result<(), StorageError> {
        Ok(())
    }

    /// Fails when nothing can be changed at present, as on a disk that the kernel has stopped writing to after errors.
    async fn require_writable(&self) -> Result<(), StorageError> {
        Ok(())
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, StorageError>;

    async fn exists(&self, key: &str) -> Result<bool, StorageError>;

    async fn put(&self, key: &str, bytes: Bytes) -> Result<(), StorageError>;

    /// False when there was no such object, kept or not.
    async fn delete(&self, key: &str) -> Result<bool, StorageError>;

    /// Puts a kept object, or makes the one that is there as young as a new one.
    async fn put_kept(&self, key: &str, bytes: Bytes) -> Result<(), StorageError>;

    /// A kept object, which goes on being there for a while.
    async fn get_kept(&self, key: &str) -> Result<Option<Bytes>, StorageError>;

    /// Whether a kept object is there; if so, it goes on being there for a while.
    async fn claim(&self, key: &str) -> Result<bool, StorageError>;

    /// An object of a list.
    async fn get_listed(&self, list: &str, name: &str) -> Result<Option<Bytes>, StorageError>;

    /// An object of a list, as it can be removed. Blocks.
    fn peek_listed(&self, list: &str, name: &str) -> Result<Option<Seen>, StorageError>;

    /// Puts an object under `name` into a list; with `may_replace`, in the place of another one only if that says so.
    /// Says whether the object is there now.
    async fn put_listed(
        &self,
        list: &str,
        name: &str,
        bytes: Bytes,
        may_replace: Option<MayReplace>,
    ) -> Result<bool, StorageError>;

    /// Removes an object from a list; false when it is not there any more, or another one is in its place.
    async fn remove_listed(&self, list: &str, name: &str, seen: &Seen) -> Result<bool, StorageError>;

    /// At most `limit` names of a list after `after`, sorted bytewise.
    async fn page(&self, list: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>, StorageError>;

    /// Every object below `prefix`, in no order. Blocks.
    fn walk(&self, prefix: &str, each: &mut dyn FnMut(Entry)) -> Result<(), StorageError>;

    /// The names directly below `prefix`, in no order. Blocks.
    fn names(&self, prefix: &str) -> Result<Vec<String>, StorageError>;

    /// At most `limit` names after `after`, sorted bytewise, that have an object called `leaf` below `prefix`; costs what the
    /// page is long. Blocks.
    fn page_of_owners(
        &self,
        prefix: &str,
        leaf: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<String>, StorageError>;

    /// Whether anything is below `prefix`, or may be there again in a moment. Blocks.
    fn has_any(&self, prefix: &str) -> Result<bool, StorageError>;

    /// When an object was put, or somebody last relied on a kept one. Blocks.
    fn touched_at(&self, key: &str) -> Result<Option<SystemTime>, StorageError>;

    /// An object, kept or not, without keeping it from anything. Blocks.
    fn peek(&self, key: &str) -> Result<Option<Bytes>, StorageError>;

    /// Removes a kept object that nobody has relied on since `cutoff`, unless `is_wanted`; true when it is gone now.
    /// Either it is gone for everybody, or nobody has missed it. Blocks.
    fn remove_if_stale(
        &self,
        key: &str,
        cutoff: SystemTime,
        is_wanted: &dyn Fn() -> Result<bool, StorageError>,
    ) -> Result<bool, StorageError>;

    /// Moves a kept object to where nobody looks for it but a person. Blocks.
    fn set_aside(&self, key: &str, target: &str) -> Result<(), StorageError>;

    /// What time it is where objects are given theirs. Blocks.
    fn now(&self) -> Result<SystemTime, StorageError>;
}

/// Decides whether an object that is in a list may be replaced. Reads its bytes.
pub(crate) type MayReplace = Box<dyn Fn(&[u8]) -> bool + Send + Sync>;

/// Every key below `prefix`, in no order.
pub(crate) async fn keys(objects: &Objects, prefix: &str) -> Result<Vec<String>, StorageError> {
    let (objects, prefix) = (objects.clone(), prefix.to_string());
    blocking(move || {
        let mut keys = Vec::new();
        objects.walk(&prefix, &mut |entry| keys.push(entry.key))?;
        Ok(keys)
    })
    .await
}
