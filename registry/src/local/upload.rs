//! Writing uploads: the [`UploadBackend`] half of [`LocalBackend`].

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use cfc_oci::{Algorithm, Digest, RepositoryName};
use futures::StreamExt;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::session::{Session, SessionPaths};
use super::{LocalBackend, UploadLock, blocking};
use crate::{AppendError, ByteStream, CommitError, StorageError, UploadBackend, UploadStatus};

/// Frames on their way from the socket to the disk. Bounds what one upload holds in memory.
const FRAMES_IN_FLIGHT: usize = 16;

/// What the socket tells the writer.
enum Message {
    Data(Bytes),
    /// The body ended as it should.
    End,
}

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
        let size = blocking(move || paths.size(&repository)).await?;
        Ok(size.map(|size| UploadStatus { size }))
    }

    async fn append(
        &self,
        repository: &RepositoryName,
        id: Uuid,
        expected: Option<Range<u64>>,
        body: ByteStream<'_>,
    ) -> Result<u64, AppendError> {
        let (session, lock) = self.open_session(repository, id, &expected).await?;
        let keep_part = expected.is_none();
        receive(expected, body, move |receiver| {
            let _lock = lock;
            let (mut session, _) = write_frames(session, receiver, keep_part)?;
            session.acknowledge()?;
            Ok(session.size())
        })
        .await
    }

    async fn commit(
        &self,
        repository: &RepositoryName,
        id: Uuid,
        expected: Option<Range<u64>>,
        body: ByteStream<'_>,
        digest: &Digest,
    ) -> Result<u64, CommitError> {
        let (session, lock) = self.open_session(repository, id, &expected).await?;
        let keep_part = expected.is_none();
        let (digest, blob) = (digest.clone(), self.blob(digest));
        let committed = receive(expected, body, move |receiver| {
            let _lock = lock;
            let (mut session, ended) = write_frames(session, receiver, keep_part)?;
            if ended {
                return Ok(session.commit(&digest, &blob));
            }
            session.acknowledge()?;
            Ok(Ok(session.size()))
        });
        committed.await?
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
    ) -> Result<(Session, UploadLock), AppendError> {
        let lock = self.lock(id).await.ok_or(AppendError::Busy)?;
        let paths = self.session(id);
        let repository = repository.clone();
        let session = blocking(move || paths.open(&repository)).await?.ok_or(AppendError::Unknown)?;
        match expected {
            Some(range) if range.start != session.size() => {
                Err(AppendError::OutOfOrder { size: session.size(), start: range.start })
            }
            _ => Ok((session, lock)),
        }
    }
}

/// Sends `body` to `write`, which runs on a blocking thread and outlives this future: it is dropped when the client
/// goes away, and what arrived until then must still find its place.
async fn receive<T: Send + 'static>(
    expected: Option<Range<u64>>,
    body: ByteStream<'_>,
    write: impl FnOnce(mpsc::Receiver<Message>) -> Result<T, StorageError> + Send + 'static,
) -> Result<T, AppendError> {
    let (sender, receiver) = mpsc::channel(FRAMES_IN_FLIGHT);
    let length = expected.map(|range| range.end - range.start);
    let writer = blocking(move || write(receiver));
    let (sent, written) = futures::join!(send_frames(body, sender, length), writer);
    let written = written?;
    sent?;
    Ok(written)
}

/// Hands the body to the writer, frame by frame, and says at the end whether it was what `length` promised.
async fn send_frames(
    mut body: ByteStream<'_>,
    sender: mpsc::Sender<Message>,
    length: Option<u64>,
) -> Result<(), AppendError> {
    let mut found = 0;
    while let Some(frame) = body.next().await {
        let frame = frame.map_err(AppendError::Body)?;
        found += frame.len() as u64;
        if let Some(expected) = length
            && found > expected
        {
            return Err(AppendError::Length { expected, found });
        }
        // A writer that is gone has its own error to tell.
        if sender.send(Message::Data(frame)).await.is_err() {
            return Ok(());
        }
    }
    match length {
        Some(expected) if found < expected => Err(AppendError::Length { expected, found }),
        _ => {
            let _ = sender.send(Message::End).await;
            Ok(())
        }
    }
}

/// Writes and hashes frames until the sender is gone, and says whether the body ended well. If it did not, what came
/// of it is kept only with `keep_part`.
fn write_frames(
    mut session: Session,
    mut receiver: mpsc::Receiver<Message>,
    keep_part: bool,
) -> Result<(Session, bool), StorageError> {
    let mark = session.mark();
    let mut ended = false;
    let mut written = Ok(());
    while let Some(message) = receiver.blocking_recv() {
        match message {
            Message::Data(bytes) => written = session.write(&bytes),
            Message::End => ended = true,
        }
        if written.is_err() {
            break;
        }
    }
    let ended_well = ended && written.is_ok();
    if !ended_well && !keep_part {
        session.roll_back(mark)?;
    }
    written?;
    Ok((session, ended))
}
