//! [`Tail`]: what has come of the part that is being received. Where memory is short and its client is slow, it is set aside
//! in the bucket, to be fetched when the part is whole.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use object_store::PutPayload;
use uuid::Uuid;

use super::blobs::data_key;
use super::memory::{Memory, Room};
use super::parts::LEAST_PART_SIZE;
use super::session::Kept;
use super::store::Store;
use crate::{AppendError, StorageError};

/// Less than this is not set aside, nor counted while its upload waits: it is what a connection takes anyway.
const LEAST_ASIDE: u64 = 512 * 1024;
/// Smaller pieces are copied into one: each costs memory beside its bytes, and may be a slice of much more.
const SMALL_BYTES: usize = 16 * 1024;

/// The bytes of a part, until it is sent.
pub(super) struct Tail {
    store: Arc<Store>,
    memory: Arc<Memory>,
    /// The first of it, in the order in which it came.
    aside: Vec<Aside>,
    /// The rest, and after it what is smaller than a piece.
    pieces: Vec<Bytes>,
    small: BytesMut,
    /// Bytes of that rest.
    here: u64,
    room: Option<Room>,
}

/// Bytes that are in the bucket.
struct Aside {
    store: Arc<Store>,
    key: String,
    /// Where they begin in the object.
    start: u64,
    size: u64,
    /// Whether the object is there for them only.
    is_own: bool,
}

impl Drop for Aside {
    /// What stays because this fails is content that nothing points at, which collections remove.
    fn drop(&mut self) {
        if self.is_own
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let (store, key) = (self.store.clone(), std::mem::take(&mut self.key));
            runtime.spawn(async move {
                if let Err(error) = store.delete(&key).await {
                    tracing::warn!(%error, "what was set aside of an upload is left to garbage collection");
                }
            });
        }
    }
}

impl Aside {
    async fn read(&self) -> Result<Bytes, AppendError> {
        let found = self.store.get(&self.key).await?.filter(|found| found.len() as u64 == self.start + self.size);
        // Progress that is gone was replaced by another request's; what is ours, by a collection, for its age.
        let gone = if self.is_own { AppendError::Unknown } else { AppendError::Busy };
        found.map(|found| found.slice(self.start as usize..)).ok_or(gone)
    }
}

impl Tail {
    /// With what earlier requests have left.
    pub(super) fn new(store: Arc<Store>, memory: Arc<Memory>, kept: Kept) -> Tail {
        let mut tail = Tail {
            store: store.clone(),
            memory,
            aside: Vec::new(),
            pieces: Vec::new(),
            small: BytesMut::new(),
            here: 0,
            room: None,
        };
        match kept {
            Kept::Here(bytes) => tail.add([bytes]),
            Kept::There { key, start, size } => tail.aside.push(Aside { store, key, start, size, is_own: false }),
        }
        tail
    }

    pub(super) fn size(&self) -> u64 {
        self.aside.iter().map(|aside| aside.size).sum::<u64>() + self.here
    }

    /// Has room for `more` bytes, and for more than that if it is likely that `likely` come.
    pub(super) async fn make_room(&mut self, more: u64, likely: u64) -> Result<(), StorageError> {
        let likely = likely.max(more);
        let wanted = |here: u64| (here + more).next_multiple_of(LEAST_PART_SIZE).min(here + likely);
        if self.room.as_ref().is_some_and(|room| room.is_for(self.here + more))
            || self.memory.try_grow(&mut self.room, wanted(self.here))
        {
            return Ok(());
        }
        self.set_aside().await?;
        self.room = Some(self.memory.take(wanted(self.here)).await);
        Ok(())
    }

    /// Adds bytes for which room was made.
    pub(super) fn add(&mut self, pieces: impl IntoIterator<Item = Bytes>) {
        for piece in pieces {
            self.here += piece.len() as u64;
            if piece.len() >= SMALL_BYTES {
                self.end_small();
                self.pieces.push(piece);
                continue;
            }
            if self.small.len() + piece.len() > self.small.capacity() {
                self.end_small();
                self.small.reserve(4 * SMALL_BYTES);
            }
            self.small.extend_from_slice(&piece);
        }
    }

    fn end_small(&mut self) {
        if !self.small.is_empty() {
            self.pieces.push(self.small.split().freeze());
        }
    }

    /// Returns when others want the memory that this holds, and it is their turn.
    pub(super) async fn is_wanted(&self) {
        match &self.room {
            Some(room) => self.memory.wants_back(room).await,
            None => std::future::pending().await,
        }
    }

    /// Holds no memory any more. What it has is the same if this is dropped or fails.
    pub(super) async fn set_aside(&mut self) -> Result<(), StorageError> {
        if self.here >= LEAST_ASIDE {
            let (size, key, store) = (self.here, data_key(Uuid::new_v4()), self.store.clone());
            let aside = Aside { store, key: key.clone(), start: 0, size, is_own: true };
            self.end_small();
            self.store.put(&key, self.pieces.iter().cloned().collect::<PutPayload>()).await?;
            (self.pieces, self.here) = (Vec::new(), 0);
            self.aside.push(aside);
        }
        self.room = None;
        Ok(())
    }

    /// Has all of it in memory. What it has is the same if this is dropped or fails.
    pub(super) async fn fetch(&mut self) -> Result<(), AppendError> {
        if self.aside.is_empty() {
            return Ok(());
        }
        let size = self.size();
        if !self.memory.try_grow(&mut self.room, size) {
            self.set_aside().await?;
            self.room = Some(self.memory.take(size).await);
        }
        let mut pieces = Vec::new();
        for aside in &self.aside {
            pieces.push(aside.read().await?);
        }
        self.end_small();
        pieces.append(&mut self.pieces);
        (self.pieces, self.here) = (pieces, size);
        self.aside.clear();
        Ok(())
    }

    /// The first `size` bytes, once all of it was [fetched](Self::fetch).
    pub(super) fn first(&mut self, size: u64) -> PutPayload {
        self.end_small();
        let mut left = size as usize;
        let first = self.pieces.iter().map(|piece| {
            let length = piece.len().min(left);
            left -= length;
            piece.slice(..length)
        });
        first.filter(|piece| !piece.is_empty()).collect()
    }

    /// All of it, once it was [fetched](Self::fetch), with the room that it takes.
    pub(super) fn take(&mut self) -> (PutPayload, Option<Room>) {
        let all = self.first(u64::MAX);
        (self.pieces, self.here) = (Vec::new(), 0);
        (all, self.room.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_comes_byte_by_byte_takes_hardly_more_than_its_bytes() {
        let location = "s3://a".parse().expect("a location");
        let store = Arc::new(Store::open(&location).expect("nobody is asked"));
        let mut tail = Tail::new(store, Arc::new(Memory::new(1)), Kept::Here(Bytes::from_static(b"0")));
        let mut all = b"0".to_vec();
        for number in 0..300_000 {
            let piece = vec![number as u8; if number % 100_000 == 7 { SMALL_BYTES } else { 1 }];
            all.extend_from_slice(&piece);
            tail.add([Bytes::from(piece)]);
        }
        assert_eq!(tail.size(), all.len() as u64);
        let bytes = |payload: PutPayload| payload.iter().flatten().copied().collect::<Vec<u8>>();
        assert!(bytes(tail.first(100_001)) == all[..100_001]);
        let (taken, _) = tail.take();
        assert!(taken.iter().count() < 20, "{} pieces", taken.iter().count());
        assert!(bytes(taken) == all && tail.size() == 0);
    }
}
