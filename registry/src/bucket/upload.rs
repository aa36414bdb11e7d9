//! Uploads in a bucket: the [`UploadBackend`] half of [`BucketBackend`].
//!
//! An upload is a row of numbered progress objects, each put if absent by whoever goes on with it: of two processes that
//! do so at the same time one fails, and nothing of what it has done is kept.

use std::collections::HashSet;
use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use cfc_oci::{Algorithm, Digest, RepositoryName};
use uuid::Uuid;

use super::BucketBackend;
use super::blobs::{DATA, Pointer, data_key};
use super::parts::Writer;
use super::session::{self, Progress, Session};
use crate::frames::Frames;
use crate::metadata::key;
use crate::objects::ObjectBackend;
use crate::{AppendError, ByteStream, CommitError, StorageError, UploadBackend, UploadStatus};

/// Repositories that are asked to keep content which is there already.
const HOLDERS_ASKED: usize = 10;

#[async_trait]
impl UploadBackend for BucketBackend {
    async fn begin(&self, repository: &RepositoryName, algorithm: Algorithm) -> Result<Uuid, StorageError> {
        let mut session = Session::new(Progress::new(repository, algorithm));
        session.save(&self.store).await?;
        Ok(session.id)
    }

    async fn status(&self, repository: &RepositoryName, id: Uuid) -> Result<Option<UploadStatus>, StorageError> {
        let session = self.session(repository, id).await?;
        Ok(session.map(|session| UploadStatus { size: session.progress.size }))
    }

    async fn append(
        &self,
        repository: &RepositoryName,
        id: Uuid,
        expected: Option<Range<u64>>,
        body: ByteStream<'_>,
    ) -> Result<u64, AppendError> {
        let session = self.session(repository, id).await?.ok_or(AppendError::Unknown)?;
        let mut writer = self.receive(session, expected, true, body).await?;
        writer.acknowledge().await
    }

    async fn commit(
        &self,
        repository: &RepositoryName,
        id: Uuid,
        expected: Option<Range<u64>>,
        body: ByteStream<'_>,
        digest: &Digest,
    ) -> Result<u64, CommitError> {
        let session = self.session(repository, id).await?.ok_or(AppendError::Unknown)?;
        let writer = self.receive(session, expected, true, body).await?;
        self.finish(writer, digest).await
    }

    async fn push(
        &self,
        repository: &RepositoryName,
        body: ByteStream<'_>,
        digest: &Digest,
    ) -> Result<u64, CommitError> {
        let session = Session::new(Progress::new(repository, digest.algorithm()));
        let id = session.id;
        let pushed = match self.receive(session, None, false, body).await {
            Ok(writer) => self.finish(writer, digest).await,
            Err(error) => Err(error.into()),
        };
        if let Err(CommitError::Append(_)) = pushed {
            // Nobody knows the id, so nobody can go on with what was kept.
            self.abort(repository, id).await?;
        }
        pushed
    }

    fn expire(&self, expiry: Duration) -> Result<u64, StorageError> {
        self.store.wait(self.sweep(expiry))
    }

    async fn abort(&self, repository: &RepositoryName, id: Uuid) -> Result<bool, StorageError> {
        let Some(session) = self.session(repository, id).await? else { return Ok(false) };
        self.forget(&session).await?;
        Ok(true)
    }
}

impl BucketBackend {
    /// Makes what was received the blob `digest`.
    async fn finish(&self, mut writer: Writer, digest: &Digest) -> Result<u64, CommitError> {
        let id = writer.session().id;
        let (size, same_algorithm) = (writer.size(), writer.digest().algorithm() == digest.algorithm());
        if same_algorithm {
            self.require_digest(digest, writer.digest(), &mut writer).await?;
            if self.is_kept(digest).await? {
                writer.stop();
                self.forget(writer.session()).await?;
                return Ok(size);
            }
        }
        writer.complete().await?;
        let pointer = Pointer { upload: id, size };
        if !same_algorithm {
            let found = self.hash_data(pointer, digest.algorithm()).await?;
            let found = found.ok_or_else(|| StorageError::new("read", data_key(id), "it is not there"))?;
            self.require_digest(digest, found, &mut writer).await?;
        }
        self.point(digest, pointer).await?;
        writer.session().remove(&self.store).await?;
        Ok(size)
    }

    async fn session(&self, repository: &RepositoryName, id: Uuid) -> Result<Option<Session>, StorageError> {
        let session = Session::load(&self.store, id).await?;
        Ok(session.filter(|session| session.progress.repository == *repository))
    }

    /// Writes `body` to the end of an upload. A chunk whose length is known is kept whole or not at all; of one that is
    /// not, pieces may be kept.
    async fn receive(
        &self,
        session: Session,
        expected: Option<Range<u64>>,
        keeps_pieces: bool,
        body: ByteStream<'_>,
    ) -> Result<Writer, AppendError> {
        let size = session.progress.size;
        if let Some(range) = expected.as_ref().filter(|range| range.start != size) {
            return Err(AppendError::OutOfOrder { size, start: range.start });
        }
        let keeps_pieces = keeps_pieces && expected.is_none();
        let writer = Writer::new(self.store.clone(), session, keeps_pieces).ok_or(AppendError::Unknown)?;
        let mut receiving = Receiving(Some(writer));
        match receiving.all(expected.map(|range| range.end - range.start), body).await {
            Ok(()) => Ok(receiving.0.take().expect("taken once")),
            Err(error) => {
                receiving.keep_pieces().await;
                Err(error)
            }
        }
    }

    /// Ends the upload when its bytes are not what was promised.
    async fn require_digest(&self, expected: &Digest, found: Digest, writer: &mut Writer) -> Result<(), CommitError> {
        if found == *expected {
            return Ok(());
        }
        writer.stop();
        self.forget(writer.session()).await?;
        Err(CommitError::Mismatch { expected: expected.clone(), found, size: writer.size() })
    }

    /// Whether the content is there already and stays: a repository holds it, and does so for a while.
    async fn is_kept(&self, digest: &Digest) -> Result<bool, StorageError> {
        let mut names = HashSet::new();
        for listed in self.store.list_some(&format!("{}/", key::links(digest)), None, HOLDERS_ASKED).await? {
            let Some((name, _)) = super::kept::parse_version(&listed.key).and_then(|(key, _)| key::parse_link(key))
            else {
                continue;
            };
            if names.insert(name.clone()) && self.objects.claim(&key::link(&name, digest)).await? {
                self.pointers.forget(digest);
                return Ok(self.pointer(digest).await?.is_some());
            }
        }
        Ok(false)
    }

    /// Forgets an upload and what it has uploaded.
    async fn forget(&self, session: &Session) -> Result<(), StorageError> {
        let data = data_key(session.id);
        if let Some(multipart) = &session.progress.multipart {
            self.store.abort_multipart(&data, multipart).await?;
        }
        if session.number.is_some() {
            self.store.delete(&data).await?;
        }
        session.remove(&self.store).await
    }

    /// Forgets uploads that nobody went on with, and content that nothing points at, since who was about to make it a
    /// blob has died.
    async fn sweep(&self, expiry: Duration) -> Result<u64, StorageError> {
        let cutoff = self.store.now().checked_sub(expiry).unwrap_or(std::time::UNIX_EPOCH);
        // In this order: content becomes a blob's before its upload is forgotten.
        let data = self.store.list(DATA).await?;
        let uploads = session::all(&self.store).await?;
        let pointed_at: HashSet<Uuid> = self.pointed_at().await?.into_iter().collect();
        let mut ended = 0;
        for (id, _) in uploads.iter().filter(|(_, touched)| *touched <= cutoff) {
            match Session::load(&self.store, *id).await? {
                // A crash after the content became a blob's.
                Some(session) if pointed_at.contains(id) => session.remove(&self.store).await?,
                Some(session) => self.forget(&session).await?,
                None => {
                    self.store
                        .delete_all(self.store.list(&session::prefix(*id)).await?.into_iter().map(|l| l.key))
                        .await?
                }
            }
            ended += 1;
        }
        let alive: HashSet<Uuid> = uploads.iter().map(|(id, _)| *id).collect();
        let is_lost = |id: &Uuid| !alive.contains(id) && !pointed_at.contains(id);
        let lost = data.iter().filter(|listed| listed.put <= cutoff);
        let lost = lost.filter_map(|listed| listed.key.strip_prefix(DATA)?.parse().ok()).filter(is_lost);
        self.store.delete_all(lost.map(data_key)).await?;
        Ok(ended)
    }
}

/// A writer that receives. When this is dropped because the client is gone, what has arrived is kept all the same.
struct Receiving(Option<Writer>);

impl Receiving {
    async fn all(&mut self, length: Option<u64>, body: ByteStream<'_>) -> Result<(), AppendError> {
        let writer = self.0.as_mut().expect("taken at the end");
        let mut body = Frames::new(body, length);
        while let Some(frames) = body.batch().await? {
            body.gather_during(writer.write(frames)).await?;
        }
        Ok(())
    }

    /// Writes down what has arrived, whether anybody waits for it or not.
    async fn keep_pieces(&mut self) {
        if let Some(writer) = self.0.take().filter(Writer::has_pieces) {
            let _ = tokio::spawn(keep(writer)).await;
        }
    }
}

async fn keep(mut writer: Writer) {
    if let Err(error) = writer.acknowledge().await {
        tracing::warn!(upload = %writer.session().id, %error, "what arrived of an upload is lost");
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        if let Some(writer) = self.0.take().filter(Writer::has_pieces)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(keep(writer));
        }
    }
}
