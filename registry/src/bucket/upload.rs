//! Uploads in a bucket: the [`UploadBackend`] half of [`BucketBackend`].
//!
//! An upload is a row of numbered progress objects, each put if absent by whoever goes on with it, or ends it: of two
//! processes that do so at the same time one fails, and nothing of what it has done is kept (`session.rs`).

use std::collections::HashSet;
use std::ops::Range;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use cfc_oci::{Algorithm, Digest, RepositoryName};
use uuid::Uuid;

use super::BucketBackend;
use super::blobs::{DATA, Pointer, data_key};
use super::multiparts::Multipart;
use super::parts::Writer;
use super::probe::{LISTS, RACES};
use super::session::{self, Ending, Progress, Session};
use super::store::{CLOCKS, Completed};
use crate::error::Chain;
use crate::frames::Frames;
use crate::metadata::key;
use crate::objects::ObjectBackend;
use crate::{AppendError, ByteStream, CommitError, Content, StorageError, UploadBackend, UploadStatus};

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
        let session = self.open_session(repository, id).await?;
        Ok(session.map(|session| UploadStatus { size: session.progress.size }))
    }

    async fn append(
        &self,
        repository: &RepositoryName,
        id: Uuid,
        expected: Option<Range<u64>>,
        body: Content<'_>,
    ) -> Result<u64, AppendError> {
        let session = self.open_session(repository, id).await?.ok_or(AppendError::Unknown)?;
        let mut writer = self.receive(session, expected, true, body).await?;
        writer.acknowledge().await
    }

    async fn commit(
        &self,
        repository: &RepositoryName,
        id: Uuid,
        expected: Option<Range<u64>>,
        body: Content<'_>,
        digest: &Digest,
    ) -> Result<u64, CommitError> {
        let session = self.session(repository, id).await?.ok_or(AppendError::Unknown)?;
        match &session.progress.ending {
            None => {}
            // Who began that has died, and the client asks again, or they meet.
            Some(Ending::Blob(ending)) if ending == digest => return self.take_over(session, digest).await,
            Some(_) => return Err(AppendError::Unknown.into()),
        }
        let writer = self.receive(session, expected, true, body).await?;
        self.finish(writer, digest).await
    }

    async fn push(&self, repository: &RepositoryName, body: Content<'_>, digest: &Digest) -> Result<u64, CommitError> {
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
        // As long as others go on with it.
        loop {
            let Some(session) = self.open_session(repository, id).await? else { return Ok(false) };
            if self.give_up(session).await? {
                return Ok(true);
            }
        }
    }
}

impl BucketBackend {
    /// Makes what was received the blob `digest`.
    async fn finish(&self, writer: Writer, digest: &Digest) -> Result<u64, CommitError> {
        let (size, found) = (writer.size(), writer.digest());
        let is_known = found.algorithm() == digest.algorithm();
        if is_known && found != *digest {
            return match self.give_up(writer.into_session()).await? {
                true => Err(CommitError::Mismatch { expected: digest.clone(), found, size }),
                false => Err(AppendError::Busy.into()),
            };
        }
        if is_known && self.is_kept(digest).await? {
            let session = writer.into_session();
            let id = session.id;
            return if self.give_up(session).await? { Ok(size) } else { self.join(id, digest).await };
        }
        let mut session = writer.upload().await?;
        if session.end(&self.store, Ending::Blob(digest.clone())).await? {
            return self.make_blob(&session, digest).await;
        }
        // What we have uploaded stays for the sweep: if the answer was lost that the number is ours, others may have gone
        // on with it.
        self.join(session.id, digest).await
    }

    /// Another request goes on with the upload, or ends it. If it makes the same blob of it, that is as good.
    async fn join(&self, id: Uuid, digest: &Digest) -> Result<u64, CommitError> {
        match Session::load(&self.store, id).await? {
            Some(session) if session.progress.ending.as_ref() == Some(&Ending::Blob(digest.clone())) => {
                self.take_over(session, digest).await
            }
            _ => Err(AppendError::Busy.into()),
        }
    }

    /// Does the rest of an upload that is to become a blob, whoever else may do so as well.
    async fn take_over(&self, session: Session, digest: &Digest) -> Result<u64, CommitError> {
        let progress = &session.progress;
        // It had been a blob, and was collected before its end was written down.
        if progress.multipart.is_none() && self.store.size(&data_key(progress.data)).await? != Some(progress.size) {
            session.close(&self.store).await?;
            return Err(AppendError::Unknown.into());
        }
        let size = self.make_blob(&session, digest).await?;
        // It may have been a blob for long, and be going.
        self.pointers.forget(digest);
        Ok(size)
    }

    /// Makes an upload the blob that it is to become. All of it can be done twice, also at the same time.
    async fn make_blob(&self, session: &Session, digest: &Digest) -> Result<u64, CommitError> {
        let progress = &session.progress;
        let (key, size) = (data_key(progress.data), progress.size);
        let pointer = Pointer { data: progress.data, size };
        if let Some(multipart) = &progress.multipart {
            let problem = match self.store.complete_multipart(&key, multipart, &progress.parts, size).await? {
                Completed::Whole => None,
                Completed::Gone => Some(AppendError::Unknown),
                Completed::Unequal => Some(AppendError::UnequalParts),
            };
            if let Some(problem) = problem {
                self.clean(session).await?;
                return Err(problem.into());
            }
        }
        if progress.algorithm != digest.algorithm().as_str() {
            let found = self.hash_data(pointer, digest.algorithm()).await?;
            let found = found.ok_or_else(|| StorageError::new("read", &key, "it is not there"))?;
            if found != *digest {
                self.store.delete(&key).await?;
                session.close(&self.store).await?;
                return Err(CommitError::Mismatch { expected: digest.clone(), found, size });
            }
        }
        self.point(digest, pointer).await?;
        session.close(&self.store).await?;
        Ok(size)
    }

    async fn session(&self, repository: &RepositoryName, id: Uuid) -> Result<Option<Session>, StorageError> {
        let session = Session::load(&self.store, id).await?;
        Ok(session.filter(|session| session.progress.repository == *repository))
    }

    /// An upload that can go on.
    async fn open_session(&self, repository: &RepositoryName, id: Uuid) -> Result<Option<Session>, StorageError> {
        Ok(self.session(repository, id).await?.filter(|session| session.progress.ending.is_none()))
    }

    /// Writes `body` to the end of an upload. A chunk whose length is known is kept whole or not at all; of one that is
    /// not, pieces may be kept.
    async fn receive(
        &self,
        session: Session,
        expected: Option<Range<u64>>,
        keeps_pieces: bool,
        body: Content<'_>,
    ) -> Result<Writer, AppendError> {
        let size = session.progress.size;
        if let Some(range) = expected.as_ref().filter(|range| range.start != size) {
            return Err(AppendError::OutOfOrder { size, start: range.start });
        }
        let keeps_pieces = keeps_pieces && expected.is_none();
        let writer = Writer::new(self.store.clone(), self.memory.clone(), session, keeps_pieces);
        let mut writer = writer.ok_or(AppendError::Unknown)?;
        let length = expected.map(|range| range.end - range.start);
        writer.expect(length.or(body.length))?;
        let mut receiving = Receiving(Some(writer));
        match receiving.all(length, body.bytes).await {
            Ok(()) => Ok(receiving.0.take().expect("taken once")),
            // Nobody could go on with it.
            Err(error @ AppendError::TooLarge { .. }) => {
                let writer = receiving.0.take().expect("taken once");
                self.give_up(writer.into_session()).await?;
                Err(error)
            }
            Err(error) => {
                receiving.keep_pieces().await;
                Err(error)
            }
        }
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
                // Who was removing it may have died since; then nobody else's content is relied on for a while.
                return Ok(self.has_content(digest).await? && !self.is_going(digest).await?);
            }
        }
        Ok(false)
    }

    /// Ends an upload of which nothing stays; false when another request goes on with it, or has ended it.
    async fn give_up(&self, mut session: Session) -> Result<bool, StorageError> {
        let is_ours = session.end(&self.store, Ending::Nothing).await?;
        if is_ours {
            self.clean(&session).await?;
        }
        Ok(is_ours)
    }

    /// Does away with what a given up upload has uploaded.
    async fn clean(&self, session: &Session) -> Result<(), StorageError> {
        if let Some(multipart) = &session.progress.multipart {
            self.store.abort_multipart(&data_key(session.progress.data), multipart).await?;
        }
        session.close(&self.store).await
    }

    /// Ends uploads that nobody went on with, forgets those that have been over for as long, and removes content that
    /// nothing points at and parts that no upload names, since who was about to say so has died.
    async fn sweep(&self, expiry: Duration) -> Result<u64, StorageError> {
        let cutoff = self.store.now().checked_sub(expiry).unwrap_or(std::time::UNIX_EPOCH);
        // In this order: content becomes a blob's before its upload is over, and parts an upload's before they are many.
        let mut multiparts = self.old_multiparts(cutoff).await;
        let data = self.store.list(DATA).await?;
        let (mut ended, mut alive, mut failure) = (0, Vec::new(), None);
        for found in session::all(&self.store).await? {
            let id = found.id;
            if found.touched > cutoff {
                alive.extend((!found.is_over).then_some(id));
                continue;
            }
            let done = match found.is_over {
                true => found.forget(&self.store).await.map(|()| false),
                false => self.settle(found).await,
            };
            match done {
                Ok(is_ended) => ended += u64::from(is_ended),
                Err(error) => {
                    tracing::error!(upload = %id, error = %Chain(&error), "an upload cannot be ended");
                    alive.push(id);
                    failure.get_or_insert(error);
                }
            }
        }
        let pointed_at: HashSet<Uuid> = self.pointed_at(cutoff).await?.into_iter().collect();
        let old = data.iter().filter(|listed| listed.put <= cutoff);
        let mut lost: HashSet<Uuid> = old.filter_map(|listed| parse_data(&listed.key)).collect();
        lost.retain(|data| !pointed_at.contains(data));
        if !lost.is_empty() || !multiparts.is_empty() {
            for id in alive {
                let Some(session) = Session::load(&self.store, id).await? else { continue };
                lost.remove(&session.progress.data);
                multiparts.retain(|multipart| parse_data(&multipart.key) != Some(session.progress.data));
            }
        }
        if !lost.is_empty() {
            // What is over by now had become a blob's before.
            let pointed_at: HashSet<Uuid> = self.pointed_at(cutoff).await?.into_iter().collect();
            lost.retain(|data| !pointed_at.contains(data));
        }
        self.store.delete_all(lost.into_iter().map(data_key)).await?;
        self.sweep_questions(cutoff).await?;
        for multipart in multiparts {
            if let Err(error) = self.store.abort_multipart(&multipart.key, &multipart.id).await {
                failure.get_or_insert(error);
            }
        }
        failure.map_or(Ok(ended), Err)
    }

    /// Removes what somebody has put to find out something about the store, who has died since.
    async fn sweep_questions(&self, cutoff: SystemTime) -> Result<(), StorageError> {
        let listed = self.store.list("registry/_").await?;
        let is_question = |key: &str| [RACES, LISTS, CLOCKS].iter().any(|questions| key.starts_with(questions));
        let old = listed.into_iter().filter(|listed| listed.put <= cutoff && is_question(&listed.key));
        self.store.delete_all(old.map(|listed| listed.key)).await
    }

    /// Multipart uploads that were begun before `cutoff`. Not every store lists them.
    async fn old_multiparts(&self, cutoff: SystemTime) -> Vec<Multipart> {
        let listed = self.store.old_multiparts(DATA, cutoff).await;
        let mut multiparts = listed.unwrap_or_else(|error| {
            tracing::warn!(error = %Chain(&error), "cannot look for parts of uploads that nobody goes on with");
            Vec::new()
        });
        multiparts.retain(|multipart| parse_data(&multipart.key).is_some());
        multiparts
    }

    /// Ends an upload that nobody went on with, or does the rest of one that had been ended; false when somebody has done
    /// so meanwhile.
    async fn settle(&self, found: session::Found) -> Result<bool, StorageError> {
        let Some(session) = Session::load(&self.store, found.id).await? else {
            // It is over now, or another version of the registry has written what we cannot read.
            let last = self.store.list(&session::prefix(found.id)).await?.pop();
            if last.is_some_and(|last| last.size > 0) {
                found.forget(&self.store).await?;
            }
            return Ok(false);
        };
        let digest = match &session.progress.ending {
            None => return self.give_up(session).await,
            Some(Ending::Nothing) => return self.clean(&session).await.map(|()| true),
            Some(Ending::Blob(digest)) => digest.clone(),
        };
        // Nobody was told, so no repository holds it; collection takes it for what it is.
        match self.take_over(session, &digest).await {
            Err(CommitError::Append(AppendError::Storage(error))) => Err(error),
            _ => Ok(true),
        }
    }
}

/// The content of which `key` is the key.
fn parse_data(key: &str) -> Option<Uuid> {
    key.strip_prefix(DATA)?.parse().ok()
}

/// A writer that receives. When this is dropped because the client is gone, what has arrived is kept all the same.
struct Receiving(Option<Writer>);

impl Receiving {
    async fn all(&mut self, length: Option<u64>, body: ByteStream<'_>) -> Result<(), AppendError> {
        let writer = self.0.as_mut().expect("taken at the end");
        let mut body = Frames::new(body, length);
        loop {
            let batch = tokio::select! {
                biased;
                batch = body.batch() => batch?,
                () = writer.is_wanted() => {
                    writer.give_way().await?;
                    continue;
                }
            };
            let Some(frames) = batch else { return Ok(()) };
            body.gather_during(writer.write(frames)).await?;
        }
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
