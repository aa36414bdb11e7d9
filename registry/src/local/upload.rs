//! Writing uploads: the [`UploadBackend`] half of [`LocalBackend`].

use std::fs::File;
use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use cfc_oci::{Algorithm, Digest, RepositoryName};
use tokio::sync::watch;
use uuid::Uuid;

use super::LocalBackend;
use super::session::{Session, SessionPaths};
use super::writeback::Writeback;
use crate::files::blocking;
use crate::frames::Frames;
use crate::{AppendError, CommitError, Content, Growing, StorageError, UploadBackend, UploadStatus};

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
        body: Content<'_>,
    ) -> Result<u64, AppendError> {
        let session = self.open_session(repository, id, &expected).await?;
        let mut session = receive(session, expected, body, self.followers(id)).await?;
        Ok(blocking(move || session.acknowledge()).await?)
    }

    async fn commit(
        &self,
        repository: &RepositoryName,
        id: Uuid,
        expected: Option<Range<u64>>,
        body: Content<'_>,
        digest: &Digest,
    ) -> Result<u64, CommitError> {
        let session = self.open_session(repository, id, &expected).await?;
        let mut session = receive(session, expected, body, self.followers(id)).await?;
        let (digest, blob) = (digest.clone(), self.blob(digest));
        blocking(move || session.commit(&digest, &blob)).await
    }

    async fn growing(&self, id: Uuid) -> Result<Option<Growing>, StorageError> {
        let path = self.session(id).data();
        let open = move || File::open(&path).map_err(|e| StorageError::new("open", path.display(), e));
        Ok(Some(Growing { file: blocking(open).await?, written: self.follow(id) }))
    }

    fn forget(&self, is_over: &dyn Fn(&RepositoryName) -> bool) -> Result<u64, StorageError> {
        self.forget_uploads(is_over)
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
    body: Content<'_>,
    followers: Option<watch::Sender<u64>>,
) -> Result<Session, AppendError> {
    let length = expected.map(|range| range.end - range.start);
    if length.is_some() {
        session.begin_chunk();
    }
    if let Some(length) = length.or(body.length) {
        session.expect(length);
    }
    let mut body = Frames::new(body.bytes, length);
    let mut writeback = Writeback::new(session.paths().clone(), session.size());
    while let Some(frames) = body.batch().await? {
        let writing = blocking(move || frames.iter().try_for_each(|frame| session.write(frame)).map(|()| session));
        session = body.gather_during(writing).await?;
        writeback.note(session.size());
        if let Some(followers) = &followers {
            followers.send_replace(session.size());
        }
    }
    session.keep_chunk();
    Ok(session)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use bytes::Bytes;
    use futures::StreamExt;

    use super::*;
    use crate::local::room::EXT4;

    #[tokio::test]
    async fn a_request_that_tells_its_length_is_given_room_for_that_and_no_more() {
        const LENGTH: usize = (4 << 20) + 8192;
        let directory = tempfile::tempdir().expect("a directory");
        let is_ext4 = rustix::fs::statfs(directory.path()).is_ok_and(|fs| fs.f_type as u64 == EXT4);
        if !is_ext4 {
            eprintln!("skipped: temporary files are not on ext4");
            return;
        }
        let backend = LocalBackend::open(directory.path()).expect("opens");
        let name = "a".parse().expect("a name");
        for is_told in [false, true] {
            let id = backend.begin(&name, Algorithm::Sha256).await.expect("begins");
            let data = backend.session(id).data();
            let blocks = || data.metadata().expect("is there").blocks() * 512;
            // The last byte comes when the others are written.
            let (sender, last) = tokio::sync::oneshot::channel();
            let first = futures::stream::iter([Ok(Bytes::from(vec![1; LENGTH - 1]))]);
            let last = futures::stream::once(async { last.await.map_err(|_| "gone".to_string()) });
            let body = Content { length: is_told.then_some(LENGTH as u64), bytes: first.chain(last).boxed() };
            let look = async {
                while data.metadata().expect("is there").len() < LENGTH as u64 - 1 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                let taken = blocks();
                sender.send(Bytes::from_static(b"1")).expect("it waits");
                taken
            };
            let (appended, taken) = tokio::join!(backend.append(&name, id, None, body), look);
            assert_eq!(appended.expect("appends"), LENGTH as u64);
            let least = LENGTH.next_multiple_of(4096) as u64;
            assert_eq!((taken == least, blocks() == least), (is_told, true), "{taken} of {least}");
        }
    }
}
