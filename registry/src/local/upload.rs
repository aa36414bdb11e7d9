//! Writing uploads: the [`UploadBackend`] half of [`LocalBackend`].

use std::ops::Range;
use std::pin::pin;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cfc_oci::{Algorithm, Digest, RepositoryName};
use futures::StreamExt;
use uuid::Uuid;

use super::LocalBackend;
use super::session::{Session, SessionPaths};
use crate::files::blocking;
use crate::{AppendError, ByteStream, CommitError, StorageError, UploadBackend, UploadStatus};

/// What an upload holds of a body in memory while what came before is written.
const BATCH_MAX: usize = 4 << 20;
/// From this size on, a batch is written at once. Every hand-over to another thread costs two wake-ups.
const BATCH_ENOUGH: usize = 1 << 20;
/// What a frame costs beside its bytes, and more: a client may send them one by one.
const FRAME_COST: usize = 512;
/// How long a smaller batch waits for more. No thread ever waits for a client.
const LINGER: Duration = Duration::from_millis(2);

#[async_trait]
impl UploadBackend for LocalBackend {
    async fn begin(&self, repository: &RepositoryName, algorithm: Algorithm) -> Result<Uuid, StorageError> {
        let id = Uuid::new_v4();
        let paths = self.session(id);
        let repository = repository.clone();
        blocking(move || paths.create(&repository, algorithm)).await?;
        Ok(id)
    }

    async fn status(&self, repository: &RepositoryName, id: Uuid) -> Result<Option<UploadStatus>, StorageError> {
        // A request whose client has gone may still be writing what it had received; its end is worth a wait.
        let _lock = self.lock(id).await;
        let paths = self.session(id);
        let repository = repository.clone();
        let size = blocking(move || paths.durable_size(&repository)).await?;
        Ok(size.map(|size| UploadStatus { size }))
    }

    async fn append(
        &self,
        repository: &RepositoryName,
        id: Uuid,
        expected: Option<Range<u64>>,
        body: ByteStream<'_>,
    ) -> Result<u64, AppendError> {
        let session = self.open_session(repository, id, &expected).await?;
        let mut session = receive(session, expected, body).await?;
        Ok(blocking(move || session.acknowledge()).await?)
    }

    async fn commit(
        &self,
        repository: &RepositoryName,
        id: Uuid,
        expected: Option<Range<u64>>,
        body: ByteStream<'_>,
        digest: &Digest,
    ) -> Result<u64, CommitError> {
        let session = self.open_session(repository, id, &expected).await?;
        let mut session = receive(session, expected, body).await?;
        let (digest, blob) = (digest.clone(), self.blob(digest));
        blocking(move || session.commit(&digest, &blob)).await
    }

    fn expire(&self, expiry: Duration) -> Result<u64, StorageError> {
        self.sweep_uploads(expiry)
    }

    async fn abort(&self, repository: &RepositoryName, id: Uuid) -> Result<bool, StorageError> {
        let _lock = self.lock(id).await;
        let paths = self.session(id);
        let repository = repository.clone();
        blocking(move || paths.remove(&repository)).await
    }
}

impl LocalBackend {
    fn session(&self, id: Uuid) -> SessionPaths {
        SessionPaths::new(self.uploads(), id)
    }

    /// Opens an upload for the chunk `expected`, and keeps other requests away from it.
    async fn open_session(
        &self,
        repository: &RepositoryName,
        id: Uuid,
        expected: &Option<Range<u64>>,
    ) -> Result<Session, AppendError> {
        let lock = self.lock(id).await.ok_or(AppendError::Busy)?;
        let paths = self.session(id);
        let repository = repository.clone();
        let session = blocking(move || paths.open(&repository, lock)).await?.ok_or(AppendError::Unknown)?;
        match expected {
            Some(range) if range.start != session.size() => {
                Err(AppendError::OutOfOrder { size: session.size(), start: range.start })
            }
            _ => Ok(session),
        }
    }
}

/// Writes `body` to the end of an upload. While some frames are hashed and written, the next ones are received.
///
/// A chunk whose length is known is kept whole or not at all. This future is dropped when the client goes away; the
/// session then goes back, or not, by itself.
async fn receive(
    mut session: Session,
    expected: Option<Range<u64>>,
    body: ByteStream<'_>,
) -> Result<Session, AppendError> {
    let length = expected.map(|range| range.end - range.start);
    if length.is_some() {
        session.begin_chunk();
    }
    let mut found = 0;
    let mut body = Frames { body, gathered: Vec::new(), size: 0, cost: 0, ended: None };
    while let Some((frames, size)) = body.batch().await {
        found += size as u64;
        if let Some(expected) = length.filter(|length| found > *length) {
            return Err(AppendError::Length { expected, found });
        }
        let writing = blocking(move || frames.iter().try_for_each(|frame| session.write(frame)).map(|()| session));
        session = body.gather_during(writing).await?;
    }
    if let Some(Err(reason)) = body.ended {
        return Err(AppendError::Body(reason));
    }
    if let Some(expected) = length.filter(|length| found < *length) {
        return Err(AppendError::Length { expected, found });
    }
    session.keep_chunk();
    Ok(session)
}

/// A body, gathered into batches.
struct Frames<'a> {
    body: ByteStream<'a>,
    gathered: Vec<Bytes>,
    /// Bytes gathered.
    size: usize,
    /// What they are counted as.
    cost: usize,
    /// How the body ended, once it has.
    ended: Option<Result<(), String>>,
}

impl Frames<'_> {
    /// Receives one frame. May be dropped at any time without a loss.
    async fn receive(&mut self) {
        match self.body.next().await {
            Some(Ok(frame)) => {
                self.size += frame.len();
                self.cost += frame.len().max(FRAME_COST);
                self.gathered.push(frame);
            }
            Some(Err(reason)) => self.ended = Some(Err(reason)),
            None => self.ended = Some(Ok(())),
        }
    }

    /// The next frames, of which there is at least one, and their size; `None` at the body's end.
    async fn batch(&mut self) -> Option<(Vec<Bytes>, usize)> {
        if self.gathered.is_empty() && self.ended.is_none() {
            self.receive().await;
        }
        let _ = tokio::time::timeout(LINGER, async {
            while self.cost < BATCH_ENOUGH && self.ended.is_none() {
                self.receive().await;
            }
        })
        .await;
        let frames = std::mem::take(&mut self.gathered);
        self.cost = 0;
        (!frames.is_empty()).then(|| (frames, std::mem::take(&mut self.size)))
    }

    /// Receives until `writing` is done.
    async fn gather_during<T>(&mut self, writing: impl Future<Output = T>) -> T {
        let mut writing = pin!(writing);
        loop {
            let may_receive = self.cost < BATCH_MAX && self.ended.is_none();
            tokio::select! {
                biased;
                written = &mut writing => return written,
                () = self.receive(), if may_receive => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_of_single_bytes_is_held_back_while_it_cannot_be_written() {
        let body = Box::pin(futures::stream::repeat_with(|| Ok(Bytes::from_static(b"x"))));
        let mut body = Frames { body, gathered: Vec::new(), size: 0, cost: 0, ended: None };
        let may_come = BATCH_MAX / FRAME_COST;
        let mut polls = 2 * may_come;
        let writing = std::future::poll_fn(|context| {
            polls -= 1;
            context.waker().wake_by_ref();
            if polls == 0 { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        });
        body.gather_during(writing).await;
        assert_eq!(body.gathered.len(), may_come);
        assert_eq!(body.batch().await.map(|(frames, size)| (frames.len(), size)), Some((may_come, may_come)));
    }
}
