//! [`Progress`]: how far an upload got, as it is written down for whoever goes on with it.

use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use cfc_oci::{Algorithm, RepositoryName};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

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
    /// The store's name of the multipart upload, from its first part on.
    pub multipart: Option<String>,
    /// The store's names of the parts.
    pub parts: Vec<String>,
    #[serde(skip)]
    pub tail: Bytes,
}

/// An upload as its last progress tells it.
pub(super) struct Session {
    pub id: Uuid,
    /// The number of the progress that is written down; `None` before anything is.
    pub number: Option<u64>,
    pub progress: Progress,
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
            multipart: None,
            parts: Vec::new(),
            tail: Bytes::new(),
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

    fn to_bytes(&self) -> Bytes {
        let mut bytes = BytesMut::from(&serde_json::to_vec(self).expect("strings and numbers are JSON")[..]);
        bytes.extend_from_slice(b"\n");
        bytes.extend_from_slice(&self.tail);
        bytes.freeze()
    }

    fn parse(mut bytes: Bytes) -> Option<Progress> {
        let line_end = bytes.iter().position(|byte| *byte == b'\n')?;
        let mut progress: Progress = serde_json::from_slice(&bytes.split_to(line_end)).ok()?;
        progress.tail = bytes.slice(1..);
        Some(progress)
    }
}

impl Session {
    /// A new upload, of which nobody else knows.
    pub(super) fn new(progress: Progress) -> Session {
        Session { id: Uuid::new_v4(), number: None, progress }
    }

    /// The upload as it is now; `None` when there is none.
    pub(super) async fn load(store: &Store, id: Uuid) -> Result<Option<Session>, StorageError> {
        loop {
            let Some(last) = store.list(&prefix(id)).await?.pop() else { return Ok(None) };
            // Somebody may write the next progress, and remove this one, right now.
            let Some(bytes) = store.get(&last.key).await? else { continue };
            let number = last.key.rsplit('/').next().and_then(|number| number.parse().ok());
            let (Some(number), Some(progress)) = (number, Progress::parse(bytes)) else { return Ok(None) };
            return Ok(Some(Session { id, number: Some(number), progress }));
        }
    }

    /// Writes down how far it got; false when another process has done so meanwhile, who goes on with it then.
    pub(super) async fn save(&mut self, store: &Store) -> Result<bool, StorageError> {
        self.progress.writer = Uuid::new_v4().to_string();
        let next = self.number.map_or(0, |number| number + 1);
        if !store.create(&key(self.id, next), self.progress.to_bytes()).await? {
            return Ok(false);
        }
        if let Some(number) = self.number.replace(next) {
            store.delete(&key(self.id, number)).await?;
        }
        Ok(true)
    }

    /// Forgets the upload. The last progress goes last: what is left of a session is never older than it.
    pub(super) async fn remove(&self, store: &Store) -> Result<(), StorageError> {
        if self.number.is_none() {
            return Ok(());
        }
        let mut listed = store.list(&prefix(self.id)).await?;
        let last = listed.pop();
        store.delete_all(listed.into_iter().map(|listed| listed.key)).await?;
        store.delete_all(last.map(|listed| listed.key)).await
    }
}

/// Every upload, and when somebody last went on with it.
pub(super) async fn all(store: &Store) -> Result<Vec<(Uuid, SystemTime)>, StorageError> {
    let mut uploads: Vec<(Uuid, SystemTime)> = Vec::new();
    let id = |listed: &Listed| listed.key.strip_prefix(UPLOADS)?.split('/').next()?.parse().ok();
    for listed in store.list(UPLOADS).await? {
        let Some(id) = id(&listed) else { continue };
        match uploads.last_mut() {
            Some((last, touched)) if *last == id => *touched = listed.put.max(*touched),
            _ => uploads.push((id, listed.put)),
        }
    }
    Ok(uploads)
}

#[cfg(test)]
mod tests {
    use cfc_oci::Digest;

    use super::*;

    #[test]
    fn progress_is_read_as_it_was_written() {
        let mut hasher = ResumableHasher::new(Algorithm::Sha256);
        hasher.update(b"some bytes\n and more");
        let mut progress = Progress::new(&"a/b".parse().expect("a name"), Algorithm::Sha256);
        progress.note_hash(&hasher);
        progress.multipart = Some("id".to_string());
        progress.parts = vec!["\"etag\"".to_string()];
        progress.tail = Bytes::from_static(b"\n\n and more");
        let read = Progress::parse(progress.to_bytes()).expect("just written");
        assert_eq!((read.size, &read.tail, &read.parts), (20, &progress.tail, &progress.parts));
        assert_eq!(read.hasher().expect("just saved").finish(), Digest::of(b"some bytes\n and more"));
    }
}
