//! [`BlobBackend`] and [`UploadBackend`]: where blob content lives. The seam between the API and a local directory
//! or S3; repositories, tags and manifests are not its business.

use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use cfc_oci::{Algorithm, Digest, RepositoryName};
use futures::stream::BoxStream;
use tokio::sync::watch;
use uuid::Uuid;

use crate::StorageError;

/// Content on its way to a client.
pub type BlobStream = BoxStream<'static, Result<Bytes, StorageError>>;

/// Content on its way from a client; an error means that the client went away or spoke badly.
pub type ByteStream<'a> = BoxStream<'a, Result<Bytes, String>>;

/// A body on its way from whoever sends it.
pub struct Content<'a> {
    /// How many bytes it is said to have; `None` when nobody says.
    pub length: Option<u64>,
    /// What comes of it.
    pub bytes: ByteStream<'a>,
}

/// Finished blobs, addressed by digest. A blob is there completely or not at all, and never changes.
#[async_trait]
pub trait BlobBackend: Send + Sync {
    /// Size in bytes, or `None` when there is no such blob.
    async fn stat(&self, digest: &Digest) -> Result<Option<u64>, StorageError>;

    /// The bytes of `range`, which lies within the blob, in large frames; `None` when there is no such blob.
    async fn read(&self, digest: &Digest, range: Range<u64>) -> Result<Option<BlobStream>, StorageError>;

    /// Removes the content unless somebody wants it; true when it is gone now. `is_wanted` is asked when nobody who
    /// relies on the content can miss it any more without saying so. Content that came after `cutoff` stays where
    /// other processes may be about to say that they want it. Blocks.
    fn remove_unless(
        &self,
        digest: &Digest,
        cutoff: SystemTime,
        is_wanted: &dyn Fn() -> Result<bool, StorageError>,
    ) -> Result<bool, StorageError>;

    /// Whether content stays that somebody has just linked and that was there before: not when it is being removed by
    /// another process, which has not seen the link. A hold says as much to this process.
    async fn stays(&self, _digest: &Digest) -> Result<bool, StorageError> {
        Ok(true)
    }

    /// Takes the content away, to where a person can look at it. Blocks.
    fn quarantine(&self, digest: &Digest) -> Result<(), StorageError>;

    /// Every blob with its size, in no order. Blocks.
    fn list(&self) -> Result<Vec<(Digest, u64)>, StorageError>;

    /// How many blobs there are, and how many bytes they have. Blocks.
    fn total(&self) -> Result<(u64, u64), StorageError> {
        let blobs = self.list()?;
        Ok((blobs.len() as u64, blobs.iter().map(|(_, size)| size).sum()))
    }

    /// Whether there is such a blob. Blocks.
    fn has(&self, digest: &Digest) -> Result<bool, StorageError>;

    /// The digest of the bytes that are kept as `digest`; `None` when there are none. Blocks.
    fn hash(&self, digest: &Digest) -> Result<Option<Digest>, StorageError>;

    /// The file that holds the blob, where the backend has files.
    fn local_path(&self, _digest: &Digest) -> Option<PathBuf> {
        None
    }

    /// A URL by which a client can fetch the blob from elsewhere, and for how long, where that is wanted.
    async fn url(&self, _digest: &Digest) -> Result<Option<(String, Duration)>, StorageError> {
        Ok(None)
    }

    /// The blob as an open file that is ready to be sent, where the backend has files; `None` also when there is none.
    async fn open(&self, _digest: &Digest) -> Result<Option<File>, StorageError> {
        Ok(None)
    }
}

/// Uploads: content that grows until it is committed.
///
/// The life of one: [`begin`](Self::begin) gives an id; [`append`](Self::append) adds bytes, as often as the client
/// likes, on this process or on the next; [`commit`](Self::commit) turns it into a blob, or [`abort`](Self::abort)
/// forgets it. Bytes for which `append` returned are on stable storage. Ids are unguessable, and an upload is found
/// only in the repository it began in.
#[async_trait]
pub trait UploadBackend: Send + Sync {
    /// Starts an upload whose bytes are hashed with `algorithm` as they arrive.
    async fn begin(&self, repository: &RepositoryName, algorithm: Algorithm) -> Result<Uuid, StorageError>;

    /// How far an upload got; `None` when `repository` has no such upload.
    async fn status(&self, repository: &RepositoryName, id: Uuid) -> Result<Option<UploadStatus>, StorageError>;

    /// Adds `body` at the end and returns the new size. With `expected`, the bytes must be exactly that range of the
    /// blob; if they are not, nothing is added. Without it, what arrived before the client went away stays.
    async fn append(
        &self,
        repository: &RepositoryName,
        id: Uuid,
        expected: Option<Range<u64>>,
        body: Content<'_>,
    ) -> Result<u64, AppendError>;

    /// Adds `body` as [`append`](Self::append) does, then makes the bytes the blob `digest` and ends the upload;
    /// returns the size. When they hash to something else the upload is gone and no blob appears.
    async fn commit(
        &self,
        repository: &RepositoryName,
        id: Uuid,
        expected: Option<Range<u64>>,
        body: Content<'_>,
        digest: &Digest,
    ) -> Result<u64, CommitError>;

    /// Makes `body`, which comes in one request, the blob `digest`; returns the size. Of what does not hash to it, or
    /// breaks off, nothing stays.
    async fn push(&self, repository: &RepositoryName, body: Content<'_>, digest: &Digest) -> Result<u64, CommitError> {
        let id = self.begin(repository, digest.algorithm()).await?;
        let pushed = self.commit(repository, id, None, body, digest).await;
        if pushed.is_err() {
            // Nobody knows the id, so nobody can go on.
            self.abort(repository, id).await?;
        }
        pushed
    }

    /// The bytes of an upload that has none yet, as a file that grows while they are appended; `None` where the backend has no
    /// files.
    async fn growing(&self, _id: Uuid) -> Result<Option<Growing>, StorageError> {
        Ok(None)
    }

    /// Forgets the uploads of the repositories for which `is_over` is true, where no other process can be at work on them, and
    /// says how many. Blocks.
    fn forget(&self, _is_over: &dyn Fn(&RepositoryName) -> bool) -> Result<u64, StorageError> {
        Ok(0)
    }

    /// Forgets uploads that were not touched for `expiry`, and says how many. Blocks.
    fn expire(&self, expiry: Duration) -> Result<u64, StorageError>;

    /// Forgets an upload; false when `repository` has no such upload.
    async fn abort(&self, repository: &RepositoryName, id: Uuid) -> Result<bool, StorageError>;
}

/// An upload's bytes, for who reads them while more are appended.
pub struct Growing {
    /// What they are written to, open for reading. Its bytes stay readable unless nothing stays of the upload: then it is
    /// empty.
    pub file: File,
    /// How many of them are in the file.
    pub written: watch::Receiver<u64>,
}

/// How far an upload got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UploadStatus {
    /// Number of bytes received and kept.
    pub size: u64,
}

/// Why bytes were not added.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// No such upload in this repository.
    #[error("no such upload")]
    Unknown,
    /// Another request is writing to this upload right now.
    #[error("another request is writing to this upload")]
    Busy,
    /// The chunk does not begin where the upload ends.
    #[error("the next byte is {size}, the chunk begins at {start}")]
    OutOfOrder {
        /// Number of bytes the upload has.
        size: u64,
        /// Where the chunk would have begun.
        start: u64,
    },
    /// The body is not as long as its range says.
    #[error("the range promises {expected} bytes, the body has {found}")]
    Length {
        /// Bytes promised.
        expected: u64,
        /// Bytes that came (the first too many included).
        found: u64,
    },
    /// The store cannot take an upload as large as this.
    #[error(
        "the store takes {limit} bytes of this upload, which has {size} at least: split it, or where the limit is lower than \
         for others, push it in one request that tells its length"
    )]
    TooLarge {
        /// Bytes that it can have.
        limit: u64,
        /// Bytes that it has, or is said to have, or was about to have.
        size: u64,
    },
    /// The store wants parts of one size, and was not known to.
    #[error("the store wants all parts of an upload to be of one size, which was not known before: push it once more")]
    UnequalParts,
    /// The client went away or spoke badly.
    #[error("the body ended early: {0}")]
    Body(String),
    /// Our own fault.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Why an upload did not become a blob.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The last bytes were not added; the upload goes on.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The bytes are not what was promised.
    #[error("expected {expected}, the {size} bytes received hash to {found}")]
    Mismatch {
        /// The digest the client gave.
        expected: Digest,
        /// The digest of the bytes.
        found: Digest,
        /// How many bytes there were.
        size: u64,
    },
}

impl From<StorageError> for CommitError {
    fn from(error: StorageError) -> CommitError {
        CommitError::Append(error.into())
    }
}
