//! [`Writer`]: bytes of an upload on their way into parts.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use object_store::PutPayload;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::blobs::data_key;
use super::memory::Memory;
use super::session::Session;
use super::store::Store;
use super::tail::Tail;
use crate::files::blocking;
use crate::hash::ResumableHasher;
use crate::{AppendError, StorageError};

const MIB: u64 = 1024 * 1024;

/// No store takes less than 5 MiB.
pub(super) const LEAST_PART_SIZE: u64 = 8 * MIB;
/// Stores take 5 GiB; we hold parts in memory.
const LARGEST_PART_SIZE: u64 = 128 * MIB;
/// No store takes more.
const MAX_PARTS: u64 = 10_000;
/// So many parts are of one size, which some stores (R2) want of all but the last; an upload that goes on, since nobody
/// knew how long it is, goes on with the largest.
const EQUAL_PARTS: u64 = MAX_PARTS / 2;

/// Parts of one upload on their way at the same time.
const PARTS_IN_FLIGHT: u64 = 3;
/// What one upload may hold in memory, with the part that is being received; all of them together are bounded by
/// [`Memory`].
const UPLOAD_MEMORY: u64 = 256 * MIB;

/// Bytes of the first parts of an upload that will have `total`, as far as anybody knows: so many that the first
/// [`EQUAL_PARTS`] are enough.
fn first_part_size(total: u64) -> u64 {
    total.div_ceil(EQUAL_PARTS).next_multiple_of(MIB).clamp(LEAST_PART_SIZE, LARGEST_PART_SIZE)
}

/// The sizes of an upload's parts.
#[derive(Clone, Copy)]
struct Sizes {
    first: u64,
    /// The store wants all parts but the last to be of one size.
    are_equal: bool,
}

impl Sizes {
    /// Bytes of a part, whose numbers begin with 0.
    fn of(self, number: usize) -> u64 {
        match self.are_equal || (number as u64) < EQUAL_PARTS {
            true => self.first,
            false => LARGEST_PART_SIZE,
        }
    }

    /// Bytes of all parts that there may be.
    fn total(self) -> u64 {
        let later = if self.are_equal { self.first } else { LARGEST_PART_SIZE };
        EQUAL_PARTS * self.first + (MAX_PARTS - EQUAL_PARTS) * later
    }

    /// How many may be on their way beside the part `number`.
    fn in_flight(self, number: usize) -> usize {
        (UPLOAD_MEMORY / self.of(number)).saturating_sub(1).clamp(1, PARTS_IN_FLIGHT) as usize
    }
}

/// An upload that is being written to.
pub(super) struct Writer {
    store: Arc<Store>,
    session: Session,
    hasher: ResumableHasher,
    /// What is not in a part yet.
    tail: Tail,
    /// How many bytes the upload will have, as far as it was told.
    told: Option<u64>,
    in_flight: VecDeque<Part>,
    /// Whether what has arrived stays although more was to come.
    keeps_pieces: bool,
}

/// A part on its way, and what the hash is after it.
struct Part {
    task: Task,
    hasher: ResumableHasher,
}

/// Ends when nobody waits for it any more.
struct Task(JoinHandle<Result<Option<String>, StorageError>>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Writer {
    /// `None` when the upload cannot go on.
    pub(super) fn new(
        store: Arc<Store>,
        memory: Arc<Memory>,
        mut session: Session,
        keeps_pieces: bool,
    ) -> Option<Writer> {
        let hasher = session.progress.hasher()?;
        let tail = Tail::new(store.clone(), memory, std::mem::take(&mut session.kept));
        Some(Writer { store, session, hasher, tail, told: None, in_flight: VecDeque::new(), keeps_pieces })
    }

    pub(super) fn size(&self) -> u64 {
        self.hasher.hashed()
    }

    /// Is told how many bytes will come, if anybody knows, before any of them does. Parts have their size from the first
    /// time that this is more than one of them, whoever goes on with the upload.
    pub(super) fn expect(&mut self, more: Option<u64>) -> Result<(), AppendError> {
        let total = self.size().saturating_add(more.unwrap_or(0));
        self.told = more.map(|_| total);
        let progress = &mut self.session.progress;
        if progress.multipart.is_none() {
            // What is kept for the next part may be as much already.
            progress.part_size = progress.part_size.max(first_part_size(total));
        }
        self.require_room(total)
    }

    fn sizes(&self) -> Sizes {
        Sizes { first: self.session.progress.part_size, are_equal: self.store.wants_equal_parts() }
    }

    fn require_room(&self, size: u64) -> Result<(), AppendError> {
        let limit = self.sizes().total();
        if size > limit { Err(AppendError::TooLarge { limit, size }) } else { Ok(()) }
    }

    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    /// Adds bytes, and sends those that fill a part on their way. The last part is never empty: one is sent when there is
    /// a byte for the next.
    pub(super) async fn write(&mut self, frames: Vec<Bytes>) -> Result<(), AppendError> {
        self.require_room(self.size() + frames.iter().map(|frame| frame.len() as u64).sum::<u64>())?;
        let mut pieces = Vec::new();
        let mut left = self.left();
        for mut frame in frames {
            while !frame.is_empty() {
                if left == 0 {
                    self.take(std::mem::take(&mut pieces)).await?;
                    self.send_part().await?;
                    left = self.left();
                }
                let piece = frame.split_to(frame.len().min(left as usize));
                left -= piece.len() as u64;
                pieces.push(piece);
            }
        }
        self.take(pieces).await
    }

    /// What the part that is being received lacks.
    fn left(&self) -> u64 {
        self.sizes().of(self.n_parts()).saturating_sub(self.tail.size())
    }

    async fn take(&mut self, pieces: Vec<Bytes>) -> Result<(), AppendError> {
        if pieces.is_empty() {
            return Ok(());
        }
        let likely = self.told.map_or(u64::MAX, |told| told.saturating_sub(self.size())).min(self.left());
        self.tail.make_room(pieces.iter().map(|piece| piece.len() as u64).sum(), likely).await?;
        let (mut hasher, hashed) = (self.hasher.clone(), pieces.clone());
        self.hasher = blocking(move || {
            hashed.iter().for_each(|piece| hasher.update(piece));
            hasher
        })
        .await;
        self.tail.add(pieces);
        Ok(())
    }

    /// Returns when others have waited for the memory that this holds, while it waits for its client.
    pub(super) async fn is_wanted(&self) {
        self.tail.is_wanted().await;
    }

    /// Lets others have the memory.
    pub(super) async fn give_way(&mut self) -> Result<(), AppendError> {
        Ok(self.tail.set_aside().await?)
    }

    /// Parts that are there or on their way.
    fn n_parts(&self) -> usize {
        self.session.progress.parts.len() + self.in_flight.len()
    }

    async fn send_part(&mut self) -> Result<(), AppendError> {
        while self.in_flight.len() >= self.sizes().in_flight(self.n_parts()) {
            self.await_part().await?;
            if self.keeps_pieces {
                self.save().await?;
            }
        }
        self.tail.fetch().await?;
        let multipart = self.multipart().await?;
        let (number, (payload, room)) = (self.n_parts(), self.tail.take());
        let (store, key) = (self.store.clone(), data_key(self.session.progress.data));
        let upload = async move {
            let _room = room;
            store.put_part(&key, &multipart, number, payload).await
        };
        self.in_flight.push_back(Part { task: Task(tokio::spawn(upload)), hasher: self.hasher.clone() });
        Ok(())
    }

    /// The store's name of the multipart upload. Written down before it has parts: whoever is not the first to do so
    /// uploads none.
    async fn multipart(&mut self) -> Result<String, AppendError> {
        if let Some(multipart) = &self.session.progress.multipart {
            return Ok(multipart.clone());
        }
        let data = Uuid::new_v4();
        let multipart = self.store.begin_multipart(&data_key(data)).await?;
        self.session.progress.data = data;
        self.session.progress.multipart = Some(multipart.clone());
        // The progress itself is as it was, with the tail that was there.
        self.session.progress.tail = self.tail.first(self.session.progress.size);
        if let Err(error) = self.save().await {
            // If the answer was lost that the number is ours, others may have gone on with it.
            let session = Session::load(&self.store, self.session.id).await?;
            if session.is_some_and(|session| session.progress.data != data) {
                self.store.abort_multipart(&data_key(data), &multipart).await?;
            }
            return Err(error);
        }
        self.session.progress.tail = PutPayload::default();
        Ok(multipart)
    }

    /// Waits for the part that was sent first. Of what came after one that failed nothing can be kept.
    async fn await_part(&mut self) -> Result<(), AppendError> {
        // It stays the first when this is dropped.
        let Some(part) = self.in_flight.front_mut() else { return Ok(()) };
        let put = (&mut part.task.0).await;
        let Some(part) = self.in_flight.pop_front() else { return Ok(()) };
        let keeps_pieces = std::mem::take(&mut self.keeps_pieces);
        let etag = put.map_err(|e| StorageError::new("write", self.session.id, e))??;
        // Another request has ended the upload.
        let etag = etag.ok_or(AppendError::Unknown)?;
        self.keeps_pieces = keeps_pieces;
        self.session.progress.parts.push(etag);
        self.session.progress.tail = PutPayload::default();
        self.session.progress.note_hash(&part.hasher);
        Ok(())
    }

    async fn save(&mut self) -> Result<(), AppendError> {
        match self.session.save(&self.store).await? {
            true => Ok(()),
            false => Err(AppendError::Busy),
        }
    }

    /// Waits until all parts are there, and writes down how far the upload got, with what is too little for a part.
    /// Returns the size.
    pub(super) async fn acknowledge(&mut self) -> Result<u64, AppendError> {
        self.keeps_pieces = false;
        while !self.in_flight.is_empty() {
            self.await_part().await?;
        }
        self.tail.fetch().await?;
        self.session.progress.note_hash(&self.hasher);
        self.session.progress.tail = self.tail.first(u64::MAX);
        self.save().await?;
        Ok(self.size())
    }

    /// The digest of everything received, by the algorithm of the upload.
    pub(super) fn digest(&self) -> cfc_oci::Digest {
        self.hasher.clone().finish()
    }

    /// Uploads all that was received: as content under a name that nobody else knows, or as the last of the parts.
    pub(super) async fn upload(mut self) -> Result<Session, AppendError> {
        if self.session.progress.multipart.is_none() {
            self.tail.fetch().await?;
            self.session.progress.data = Uuid::new_v4();
            let (payload, _room) = self.tail.take();
            self.store.put(&data_key(self.session.progress.data), payload).await?;
        } else if self.tail.size() > 0 {
            self.send_part().await?;
        }
        while !self.in_flight.is_empty() {
            self.await_part().await?;
        }
        self.session.progress.note_hash(&self.hasher);
        Ok(self.session)
    }

    /// Lets go of what was received, and of parts that are on their way.
    pub(super) fn into_session(self) -> Session {
        self.session
    }

    /// Whether something has arrived that would be lost with this.
    pub(super) fn has_pieces(&self) -> bool {
        self.keeps_pieces && self.size() > self.session.progress.size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_thousand_parts_are_enough_for_any_layer() {
        const GIB: u64 = 1024 * MIB;
        for (told, of_equal_parts, of_any) in
            [(0, 78, 664), (39 * GIB, 78, 664), (100 * GIB, 205, 727), (625 * GIB, 1250, 1250)]
        {
            for are_equal in [true, false] {
                let sizes = Sizes { first: first_part_size(told), are_equal };
                let all: Vec<u64> = (0..MAX_PARTS as usize).map(|number| sizes.of(number)).collect();
                assert_eq!(all.iter().sum::<u64>(), sizes.total());
                assert_eq!(sizes.total() / GIB, if are_equal { of_equal_parts } else { of_any }, "{told}");
                // What was told fits into parts of one size, in any store.
                assert!(all.iter().take_while(|size| **size == sizes.first).sum::<u64>() >= told);
                assert!(
                    [0, 4999, 5000, 9999]
                        .into_iter()
                        .all(|part| (sizes.in_flight(part) as u64 + 1) * sizes.of(part) <= UPLOAD_MEMORY)
                );
            }
        }
        assert_eq!(first_part_size(u64::MAX), LARGEST_PART_SIZE);
    }
}
