//! [`Coming`]: a blob that is being fetched, for those who want it meanwhile.
//!
//! What has come is read from the file that it is written to. In a bucket there is none to read: there the last of it is in
//! memory ([`Window`]), and who does not keep up with the upstream goes on when the blob is there. Nobody who reads is
//! ever waited for. When the fetch fails, so does every answer, at once: what was fetched is gone, and no slow client keeps
//! its room on the disk. The end of each answer is held back until the blob has its digest and is kept, so that nobody takes
//! another one for it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use cfc_oci::Digest;
use futures::StreamExt;
use http::{HeaderMap, header};
use tokio::sync::watch;
use uuid::Uuid;

use super::window::Window;
use crate::files::blocking;
use crate::range::{Wanted, wanted_by};
use crate::registry::Inner;
use crate::sendfile::FileQueue;
use crate::{BlobBackend, BlobStream, ByteStream, StorageError, quick};

/// What is held back of an answer. One that is no longer begins when the blob is there, so that what went wrong can still
/// be said.
const HELD_BYTES: u64 = 64 * 1024;
const PIECE_BYTES: u64 = 256 * 1024;
/// The end of a blob whose length nobody knows yet.
const UNKNOWN: u64 = u64::MAX;

/// A blob that is being fetched.
pub(crate) struct Coming {
    digest: Digest,
    /// What the upstream promises.
    pub(super) length: Option<u64>,
    place: Place,
    blobs: Arc<dyn BlobBackend>,
    /// How many bytes of it are in their place.
    come: watch::Receiver<u64>,
    /// How many bytes it has, once it is kept. Nobody can tell that any more when it has broken off.
    kept: watch::Receiver<Option<u64>>,
}

/// Where what has come is read.
enum Place {
    File(Arc<File>),
    Window(Arc<Window>),
}

/// The other end, of whoever fetches. One that is dropped has broken off.
pub(super) struct Feed {
    coming: Arc<Coming>,
    come: watch::Sender<u64>,
    kept: watch::Sender<Option<u64>>,
}

impl Feed {
    /// For an upload that has nothing yet.
    pub(super) async fn open(
        registry: &Inner,
        id: Uuid,
        digest: &Digest,
        length: Option<u64>,
    ) -> Result<Feed, StorageError> {
        let (come, mut has_come) = watch::channel(0);
        let (kept, is_kept) = watch::channel(None);
        let place = match registry.uploads.growing(id).await? {
            Some(growing) => {
                has_come = growing.written;
                Place::File(Arc::new(growing.file))
            }
            None => Place::Window(Arc::default()),
        };
        let (digest, blobs) = (digest.clone(), registry.blobs.clone());
        let coming = Coming { digest, length, place, blobs, come: has_come, kept: is_kept };
        Ok(Feed { coming: Arc::new(coming), come, kept })
    }

    pub(super) fn coming(&self) -> Arc<Coming> {
        self.coming.clone()
    }

    /// The bytes on their way to the upload, seen by those who follow where nobody can read what was uploaded.
    pub(super) fn pass<'a>(&self, bytes: ByteStream<'a>) -> ByteStream<'a> {
        let Place::Window(window) = &self.coming.place else { return bytes };
        let (window, come) = (window.clone(), self.come.clone());
        let see = move |frame: &Result<Bytes, String>| {
            if let Ok(frame) = frame {
                come.send_replace(window.push(frame));
            }
        };
        bytes.inspect(see).boxed()
    }

    /// The blob is there, and has so many bytes.
    pub(super) fn kept(self, size: u64) {
        self.kept.send_replace(Some(size));
    }
}

impl Drop for Feed {
    /// A client that is slow may follow for hours.
    fn drop(&mut self) {
        if let Place::Window(window) = &self.coming.place {
            window.close();
        }
    }
}

/// What a request is answered with while the blob is fetched.
pub(crate) struct Portion {
    /// The size of the blob, where that is known.
    pub size: Option<u64>,
    /// The part that the client has asked for.
    pub part: Option<Range<u64>>,
    bytes: Following,
}

impl Portion {
    /// The bytes as they come, through the connection's `queue` if it can send files. Of a blob that turns out to be
    /// another the end is missing.
    pub(crate) fn into_body(self, queue: Option<&FileQueue>) -> Body {
        // The length of what is sent as a file is that of the answer.
        let queue = queue.filter(|_| self.size.is_some()).cloned();
        let next = |(mut bytes, queue): (Following, Option<FileQueue>)| async move {
            let piece = bytes.next(queue.as_ref()).await?;
            Ok::<_, io::Error>(piece.map(|piece| (piece, (bytes, queue))))
        };
        Body::from_stream(futures::stream::try_unfold((self.bytes, queue), next))
    }
}

impl Coming {
    /// What a request with these headers is answered with now; `None` where that is better done by whoever finds the blob
    /// here. So are short answers, those about what the client has already, and parts of what has no known length.
    pub(super) async fn portion(self: &Arc<Self>, headers: &HeaderMap) -> Option<Portion> {
        if headers.contains_key(header::IF_NONE_MATCH) {
            return None;
        }
        let (range, part) = match self.length {
            Some(size) => match wanted_by(headers, &self.digest, size) {
                Wanted::Whole => (0..size, None),
                Wanted::Part(range) => (range.clone(), Some(range)),
                Wanted::Unsatisfiable => return None,
            },
            None if headers.contains_key(header::RANGE) => return None,
            None => (0..UNKNOWN, None),
        };
        let is_short = range.end - range.start <= HELD_BYTES;
        if is_short || (self.length.is_none() && !self.exceeds(HELD_BYTES).await) {
            return None;
        }
        if self.is_broken() || !self.has(range.start) {
            return None;
        }
        let bytes =
            Following { coming: self.clone(), come: self.come.clone(), kept: self.kept.clone(), range, rest: None };
        Some(Portion { size: self.length, part, bytes })
    }

    /// Whether it ended without being kept.
    pub(super) fn is_broken(&self) -> bool {
        self.kept.has_changed().is_err() && self.kept.borrow().is_none()
    }

    /// Whether more than `size` bytes come before it ends.
    async fn exceeds(&self, size: u64) -> bool {
        let (mut come, mut kept) = (self.come.clone(), self.kept.clone());
        tokio::select! {
            biased;
            _ = kept.wait_for(Option::is_some) => false,
            exceeds = come.wait_for(|come| *come > size) => exceeds.is_ok(),
        }
    }

    fn has(&self, offset: u64) -> bool {
        match &self.place {
            Place::File(_) => true,
            Place::Window(window) => window.has(offset),
        }
    }

    /// The first bytes of `range`, which have come; `None` when they are in no place but the store.
    async fn read(&self, range: Range<u64>, queue: Option<&FileQueue>) -> io::Result<Option<Bytes>> {
        let file = match &self.place {
            Place::Window(window) => return Ok(window.read(range.start, range.end)),
            Place::File(file) => file,
        };
        if let Some(queue) = queue {
            return Ok(Some(queue.piece(file, range)));
        }
        let (file, start, length) = (file.clone(), range.start, (range.end - range.start).min(PIECE_BYTES) as usize);
        if let Some(bytes) = quick::read_at(&file, start, length) {
            return Ok(Some(bytes.into()));
        }
        let read = move || {
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, start).map(|()| Some(bytes.into()))
        };
        blocking(read).await
    }

    /// The bytes of `range`, from the store.
    async fn open(&self, range: Range<u64>) -> io::Result<BlobStream> {
        let opened = self.blobs.read(&self.digest, range).await.map_err(io::Error::other)?;
        opened.ok_or_else(|| io::Error::other("the blob is not there any more"))
    }
}

/// One who takes the bytes of `range` as they come.
struct Following {
    coming: Arc<Coming>,
    come: watch::Receiver<u64>,
    kept: watch::Receiver<Option<u64>>,
    /// What is still to be sent.
    range: Range<u64>,
    /// That, from the store.
    rest: Option<BlobStream>,
}

impl Following {
    /// The next bytes; `None` when all were sent.
    async fn next(&mut self, queue: Option<&FileQueue>) -> io::Result<Option<Bytes>> {
        loop {
            if let Some(rest) = &mut self.rest {
                return rest.next().await.transpose().map_err(io::Error::other);
            }
            let (limit, is_kept) = self.limit()?;
            if self.range.is_empty() {
                return Ok(None);
            }
            let is_there = self.range.start < limit;
            if is_there && let Some(piece) = self.coming.read(self.range.start..limit, queue).await? {
                self.range.start += piece.len() as u64;
                return Ok(Some(piece));
            }
            match is_kept {
                true => self.rest = Some(self.coming.open(self.range.clone()).await?),
                // What is no longer in memory comes no more before the end.
                false => self.wait(!is_there).await,
            }
        }
    }

    /// Up to where bytes may be sent now, and whether the blob is kept. Fails when it has broken off.
    fn limit(&mut self) -> io::Result<(u64, bool)> {
        let nobody_tells = self.kept.has_changed().is_err();
        let (kept, come) = (*self.kept.borrow_and_update(), *self.come.borrow_and_update());
        let Some(size) = kept else {
            let end = if self.range.end == UNKNOWN { come } else { self.range.end };
            let broken = || io::Error::other("the upstream did not give the rest of the blob");
            return if nobody_tells { Err(broken()) } else { Ok((come.min(end.saturating_sub(HELD_BYTES)), false)) };
        };
        if self.range.end == UNKNOWN {
            self.range.end = size;
        }
        match self.range.end <= size {
            true => Ok((self.range.end, true)),
            false => Err(io::Error::other("the blob is shorter than the upstream has said")),
        }
    }

    /// Waits for the end, or for more to come.
    async fn wait(&mut self, for_more: bool) {
        let more = async {
            if !for_more || self.come.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = more => {}
            // Whether it is kept or broken is looked at next.
            _ = self.kept.changed() => {}
        }
    }
}
