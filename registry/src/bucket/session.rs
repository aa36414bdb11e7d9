//! [`Progress`]: how far an upload got, as it is written down for whoever goes on with it.
//!
//! Each request that changes an upload puts its progress under the next number, if absent: of two that do so at the same
//! time one wins, and the other has changed nothing. A number that was used stays used until the upload is forgotten: what
//! was written there is emptied, not deleted, so whoever comes late does not win an old number.
//!
//! Whoever ends an upload wins a number as well, with all that it takes to do the rest. What has begun to become a blob
//! becomes one, by anybody who finds that the winner has not finished; what was given up is never a blob. So nobody
//! touches content about which another one may have decided. When the rest is done, the last progress is emptied, too.

use std::time::SystemTime;

use bytes::Bytes;
use cfc_oci::{Algorithm, Digest, RepositoryName};
use object_store::PutPayload;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::parts::LEAST_PART_SIZE;
use super::store::{Listed, Store};
use crate::StorageError;
use crate::hash::ResumableHasher;

const UPLOADS: &str = "registry/uploads/";

/// How far an upload got: a line of JSON, then the bytes that are too few for a part.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Progress {
    /// Makes what one process writes different from what any other does.
    pub writer: String,
    pub repository: RepositoryName,
    pub algorithm: String,
    /// Bytes received, those of the tail included.
    pub size: u64,
    /// The saved hash of them, in hexadecimal.
    pub hash: String,
    /// What their content is named, or will be. Nobody else uses the name.
    #[serde(with = "uuid_text")]
    pub data: Uuid,
    /// The store's name of the multipart upload, from its first part on.
    pub multipart: Option<String>,
    /// Bytes of its first parts, chosen before it has any.
    #[serde(default = "least_part_size")]
    pub part_size: u64,
    /// The store's names of the parts.
    pub parts: Vec<String>,
    /// What becomes of it; `None` while it can go on.
    pub ending: Option<Ending>,
    /// When it is written down.
    #[serde(skip)]
    pub tail: PutPayload,
}

/// What becomes of an upload that can not go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Ending {
    /// It becomes this blob, if its bytes are such.
    Blob(Digest),
    /// Nothing stays of it.
    Nothing,
}

/// An upload of which something is written down.
pub(super) struct Found {
    pub id: Uuid,
    /// When somebody last went on with it.
    pub touched: SystemTime,
    /// Whether all is done that is to be done with it.
    pub is_over: bool,
    /// All that is written down, the last of it last.
    pub keys: Vec<String>,
}

/// An upload as its last progress tells it.
pub(super) struct Session {
    pub id: Uuid,
    /// The number of the progress that is written down; `None` before anything is.
    pub number: Option<u64>,
    pub progress: Progress,
    /// The tail that is written down.
    pub kept: Kept,
}

/// Bytes that are too few for a part.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kept {
    Here(Bytes),
    /// In an object, from `start` to its end.
    There {
        key: String,
        start: u64,
        size: u64,
    },
}

impl Default for Kept {
    fn default() -> Kept {
        Kept::Here(Bytes::new())
    }
}

pub(super) fn prefix(id: Uuid) -> String {
    format!("{UPLOADS}{id}/")
}

fn key(id: Uuid, number: u64) -> String {
    format!("{UPLOADS}{id}/{number:08}")
}

impl Progress {
    pub(super) fn new(repository: &RepositoryName, algorithm: Algorithm) -> Progress {
        let mut progress = Progress {
            writer: Uuid::new_v4().to_string(),
            repository: repository.clone(),
            algorithm: algorithm.as_str().to_string(),
            size: 0,
            hash: String::new(),
            data: Uuid::new_v4(),
            multipart: None,
            part_size: LEAST_PART_SIZE,
            parts: Vec::new(),
            ending: None,
            tail: PutPayload::default(),
        };
        progress.note_hash(&ResumableHasher::new(algorithm));
        progress
    }

    pub(super) fn note_hash(&mut self, hasher: &ResumableHasher) {
        self.size = hasher.hashed();
        self.hash = hasher.save().iter().map(|byte| format!("{byte:02x}")).collect();
    }

    /// The hash as it was left; `None` when another version of the registry wrote it, which must start again, since
    /// parts cannot be read before they are one object.
    pub(super) fn hasher(&self) -> Option<ResumableHasher> {
        let saved = (0..self.hash.len()).step_by(2).map(|at| u8::from_str_radix(self.hash.get(at..at + 2)?, 16).ok());
        let saved: Vec<u8> = saved.collect::<Option<_>>()?;
        let hasher = ResumableHasher::restore(self.algorithm.parse().ok()?, &saved)?;
        (hasher.hashed() == self.size).then_some(hasher)
    }

    fn to_payload(&self) -> PutPayload {
        let mut line = serde_json::to_vec(self).expect("strings and numbers are JSON");
        line.push(b'\n');
        [Bytes::from(line)].into_iter().chain(self.tail.clone()).collect()
    }

    /// Of an object's first bytes, as many at least as its line has; with where that ends.
    fn parse(bytes: &Bytes) -> Option<(Progress, usize)> {
        let line_end = bytes.iter().position(|byte| *byte == b'\n')?;
        Some((serde_json::from_slice(&bytes[..line_end]).ok()?, line_end + 1))
    }
}

impl Session {
    /// A new upload, of which nobody else knows.
    pub(super) fn new(progress: Progress) -> Session {
        Session { id: Uuid::new_v4(), number: None, progress, kept: Kept::default() }
    }

    /// The upload as it is now; `None` when there is none, or it is over.
    pub(super) async fn load(store: &Store, id: Uuid) -> Result<Option<Session>, StorageError> {
        loop {
            let Some(last) = store.list(&prefix(id)).await?.pop() else { return Ok(None) };
            if last.size == 0 {
                return Ok(None);
            }
            // Somebody may write the next progress, and empty this one, right now.
            let bytes = match store.get_line(&last.key).await? {
                Some(bytes) if !bytes.is_empty() => bytes,
                _ => continue,
            };
            let number = last.key.rsplit('/').next().and_then(|number| number.parse().ok());
            let (Some(number), Some((progress, start))) = (number, Progress::parse(&bytes)) else { return Ok(None) };
            let kept = match last.size.saturating_sub(start as u64) {
                size if (bytes.len() - start) as u64 == size => Kept::Here(bytes.slice(start..)),
                size => Kept::There { key: last.key, start: start as u64, size },
            };
            return Ok(Some(Session { id, number: Some(number), progress, kept }));
        }
    }

    /// Writes down how far it got; false when another process has done so meanwhile, who goes on with it then.
    pub(super) async fn save(&mut self, store: &Store) -> Result<bool, StorageError> {
        self.progress.writer = Uuid::new_v4().to_string();
        let next = self.number.map_or(0, |number| number + 1);
        if !store.create(&key(self.id, next), self.progress.to_payload()).await? {
            return Ok(false);
        }
        if let Some(number) = self.number.replace(next) {
            store.put(&key(self.id, number), Bytes::new()).await?;
        }
        Ok(true)
    }

    /// Writes down what becomes of the upload; false when another process goes on with it, or has ended it.
    pub(super) async fn end(&mut self, store: &Store, ending: Ending) -> Result<bool, StorageError> {
        self.progress.ending = Some(ending);
        self.progress.tail = PutPayload::default();
        // Of an upload that is written down nowhere, nobody else knows.
        if self.number.is_none() { Ok(true) } else { self.save(store).await }
    }

    /// Writes down that all is done. Nobody goes on with the upload any more.
    pub(super) async fn close(&self, store: &Store) -> Result<(), StorageError> {
        match self.number {
            Some(number) => store.put(&key(self.id, number), Bytes::new()).await,
            None => Ok(()),
        }
    }
}

impl Found {
    /// Forgets the upload. The last goes last: nothing comes to light that is older than it.
    pub(super) async fn forget(mut self, store: &Store) -> Result<(), StorageError> {
        let last = self.keys.pop();
        store.delete_all(self.keys).await?;
        store.delete_all(last).await
    }
}

/// Every upload of which something is written down.
pub(super) async fn all(store: &Store) -> Result<Vec<Found>, StorageError> {
    let mut uploads: Vec<Found> = Vec::new();
    let id = |listed: &Listed| listed.key.strip_prefix(UPLOADS)?.split('/').next()?.parse().ok();
    for listed in store.list(UPLOADS).await? {
        let Some(id) = id(&listed) else { continue };
        if uploads.last().is_none_or(|last| last.id != id) {
            uploads.push(Found { id, touched: listed.put, is_over: false, keys: Vec::new() });
        }
        let last = uploads.last_mut().expect("pushed if there was none");
        last.touched = listed.put.max(last.touched);
        last.is_over = listed.size == 0;
        last.keys.push(listed.key);
    }
    Ok(uploads)
}

/// Of uploads that an earlier version of the registry began.
fn least_part_size() -> u64 {
    LEAST_PART_SIZE
}

mod uuid_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use uuid::Uuid;

    pub(super) fn serialize<S: Serializer>(id: &Uuid, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(id)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Uuid, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_as_it_was_written() {
        let mut hasher = ResumableHasher::new(Algorithm::Sha256);
        hasher.update(b"some bytes\n and more");
        let mut progress = Progress::new(&"a/b".parse().expect("a name"), Algorithm::Sha256);
        progress.note_hash(&hasher);
        progress.multipart = Some("id".to_string());
        progress.parts = vec!["\"etag\"".to_string()];
        progress.ending = Some(Ending::Blob(Digest::of(b"x")));
        progress.tail = [Bytes::from_static(b"\n\n and"), Bytes::from_static(b" more")].into_iter().collect();
        let written = Bytes::from(progress.to_payload().iter().flatten().copied().collect::<Vec<u8>>());
        let (read, tail) = Progress::parse(&written).expect("just written");
        assert_eq!((read.size, &written[tail..], &read.parts), (20, &b"\n\n and more"[..], &progress.parts));
        assert_eq!((read.data, &read.ending), (progress.data, &progress.ending));
        assert_eq!(read.hasher().expect("just saved").finish(), Digest::of(b"some bytes\n and more"));
    }
}
