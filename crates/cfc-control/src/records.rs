//! [`Records`]: values in the bucket that change, as sequences of revisions that do not.
//!
//! A revision is created if absent and never overwritten; the newest number is the value. This is all the concurrency
//! control there is, and every object store has it. Older ones may be removed. Nothing here knows what is recorded.

use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Reads and writes the revisions of one kind of value:
///
/// ```text
/// <root>/
///   <key>/
///     00000000000000000001.json    {"writer": "…", "value": {…}}
///     00000000000000000002.json
///     00000000000000000003.json    {"writer": "…", "value": null}     deleted
/// ```
#[derive(Clone)]
pub(crate) struct Records {
    bucket: Arc<dyn ObjectStore>,
    root: Path,
}

/// A value as of one revision.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Revision<T> {
    /// From 1; 0 where nothing was ever written.
    pub number: u64,
    /// `None` where there is none, or it was deleted.
    pub value: Option<T>,
}

#[derive(Serialize, Deserialize)]
struct Body<T> {
    /// Differs for every write, so that a writer whose request was sent twice recognises its own revision.
    writer: Uuid,
    value: Option<T>,
}

impl Records {
    pub fn new(bucket: Arc<dyn ObjectStore>, root: &str) -> Records {
        Records { bucket, root: Path::from(root) }
    }

    /// The keys that ever had a value, deleted ones included, in order.
    pub async fn keys(&self) -> Result<Vec<String>, RecordError> {
        let listing = self.bucket.list_with_delimiter(Some(&self.root)).await;
        let listing = listing.map_err(|source| self.error(&self.root, source))?;
        let keys = listing.common_prefixes.iter().filter_map(|prefix| prefix.filename().map(str::to_string));
        let mut keys: Vec<String> = keys.collect();
        keys.sort();
        Ok(keys)
    }

    /// The newest revision of `key`.
    pub async fn newest<T: DeserializeOwned>(&self, key: &str) -> Result<Revision<T>, RecordError> {
        let folder = self.root.clone().join(key);
        let objects: Vec<_> =
            self.bucket.list(Some(&folder)).try_collect().await.map_err(|source| self.error(&folder, source))?;
        let numbers = objects.iter().filter_map(|object| revision_number(&object.location));
        match numbers.max() {
            None => Ok(Revision { number: 0, value: None }),
            Some(number) => Ok(Revision { number, value: self.read::<T>(key, number).await?.value }),
        }
    }

    /// All newest revisions, in the order of their keys. One that is not what a record looks like is an error of its own.
    pub async fn all<T: DeserializeOwned>(
        &self,
    ) -> Result<Vec<(String, Result<Revision<T>, RecordError>)>, RecordError> {
        let mut all = Vec::new();
        for key in self.keys().await? {
            let revision = match self.newest(&key).await {
                Err(RecordError { kind: kind @ (RecordErrorKind::Store(_) | RecordErrorKind::Conflict), path }) => {
                    return Err(RecordError { path, kind });
                }
                revision => revision,
            };
            all.push((key, revision));
        }
        Ok(all)
    }

    /// Writes revision `number` of `key`, unless someone else did: then [`RecordErrorKind::Conflict`]. `None` deletes.
    pub async fn create<T: Serialize>(&self, key: &str, number: u64, value: Option<&T>) -> Result<(), RecordError> {
        let writer = Uuid::new_v4();
        let path = self.path(key, number);
        let bytes = serde_json::to_vec(&Body { writer, value }).map_err(|source| malformed(&path, source))?;
        let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let Err(failure) = self.bucket.put_opts(&path, Bytes::from(bytes).into(), create).await else { return Ok(()) };
        // A store's client repeats a request whose answer was lost, and an answer can be lost for good: in both cases
        // the revision is there and our own.
        let written = self.read::<serde_json::Value>(key, number).await;
        match (written, failure) {
            (Ok(written), _) if written.writer == writer => Ok(()),
            (_, object_store::Error::AlreadyExists { .. }) => {
                Err(RecordError { path: path.to_string(), kind: RecordErrorKind::Conflict })
            }
            (_, source) => Err(self.error(&path, source)),
        }
    }

    /// Removes the revisions of `key` that are older than `number`.
    pub async fn remove_before(&self, key: &str, number: u64) -> Result<(), RecordError> {
        let folder = self.root.clone().join(key);
        let objects: Vec<_> =
            self.bucket.list(Some(&folder)).try_collect().await.map_err(|source| self.error(&folder, source))?;
        let is_older = |path: &Path| revision_number(path).is_some_and(|other| other < number);
        for path in objects.into_iter().map(|object| object.location).filter(is_older) {
            match self.bucket.delete(&path).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(source) => return Err(self.error(&path, source)),
            }
        }
        Ok(())
    }

    async fn read<T: DeserializeOwned>(&self, key: &str, number: u64) -> Result<Body<T>, RecordError> {
        let path = self.path(key, number);
        let object = self.bucket.get(&path).await.map_err(|source| self.error(&path, source))?;
        let bytes = object.bytes().await.map_err(|source| self.error(&path, source))?;
        serde_json::from_slice(&bytes).map_err(|source| malformed(&path, source))
    }

    fn path(&self, key: &str, number: u64) -> Path {
        self.root.clone().join(key).join(format!("{number:020}.json"))
    }

    fn error(&self, path: &Path, source: object_store::Error) -> RecordError {
        RecordError { path: path.to_string(), kind: RecordErrorKind::Store(source) }
    }
}

fn revision_number(path: &Path) -> Option<u64> {
    path.filename()?.strip_suffix(".json")?.parse().ok()
}

fn malformed(path: &Path, source: serde_json::Error) -> RecordError {
    RecordError { path: path.to_string(), kind: RecordErrorKind::Malformed(source) }
}

/// A record that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("record `{path}` of the bucket")]
pub struct RecordError {
    /// The object's key.
    pub path: String,
    /// What went wrong.
    #[source]
    pub kind: RecordErrorKind,
}

/// What went wrong with a record.
#[derive(Debug, thiserror::Error)]
pub enum RecordErrorKind {
    /// Another writer made this revision first.
    #[error("another writer was first")]
    Conflict,
    /// The object is not what a record looks like.
    #[error("not in the form of a record: {0}")]
    Malformed(serde_json::Error),
    /// The object store failed.
    #[error("{0}")]
    Store(object_store::Error),
}

#[cfg(test)]
#[path = "records_tests.rs"]
mod tests;
