//! Finished blobs: the [`BlobBackend`] half of [`LocalBackend`].

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::PathBuf;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use cfc_oci::{Algorithm, Digest};
use futures::StreamExt;

use super::LocalBackend;
use super::objects::or_rescued;
use crate::files::{blocking, in_place, is_aside, read_directory, remove_if_stale, rescue, sync_directory};
use crate::hash::ResumableHasher;
use crate::quick::{self, Quick};
use crate::{BlobBackend, BlobStream, StorageError};

/// Bytes handed to the socket at a time. Large enough that the hop to a blocking thread does not count, small enough
/// that many pulls at once stay small.
const FRAME_BYTES: u64 = 256 * 1024;

/// A blob up to this size is read on the spot if the kernel has it in memory.
const QUICK_BYTES: u64 = 64 * 1024;

const HASH_BYTES: usize = 1024 * 1024;

#[async_trait]
impl BlobBackend for LocalBackend {
    async fn stat(&self, digest: &Digest) -> Result<Option<u64>, StorageError> {
        let path = self.blob(digest);
        if let Quick::Known((_, size)) = quick::stat(&path) {
            return Ok(Some(size));
        }
        blocking(move || {
            let size = or_rescued(&path, || path.metadata().map(|metadata| metadata.len()));
            size.map_err(|e| StorageError::new("read", path.display(), e))
        })
        .await
    }

    async fn read(&self, digest: &Digest, range: Range<u64>) -> Result<Option<BlobStream>, StorageError> {
        let path = self.blob(digest);
        if let Some(bytes) = read_quickly(&path, &range) {
            return Ok(Some(futures::stream::iter([Ok(bytes)]).boxed()));
        }
        let opened = blocking(move || open_at(path, range)).await?;
        let Some((first, rest)) = opened else { return Ok(None) };
        let first = futures::stream::iter([Ok(first)]);
        Ok(Some(first.chain(frames(rest)).boxed()))
    }

    fn remove_unless(
        &self,
        digest: &Digest,
        _cutoff: SystemTime,
        is_wanted: &dyn Fn() -> Result<bool, StorageError>,
    ) -> Result<bool, StorageError> {
        let path = self.blob(digest);
        // Who wants a blob says so by a link or a hold; its age says nothing. Its time is left as it is, since the
        // file may be one with the image store's.
        let removed = remove_if_stale(&path, SystemTime::now() + AGES, is_wanted)?;
        match path.parent() {
            Some(directory) if removed => sync_directory(directory).map(|()| true),
            _ => Ok(removed),
        }
    }

    fn quarantine(&self, digest: &Digest) -> Result<(), StorageError> {
        let directory = self.root.join("quarantine");
        std::fs::create_dir_all(&directory).map_err(|e| StorageError::new("create", directory.display(), e))?;
        let path = self.blob(digest);
        let target = directory.join(format!("{}-{}", digest.algorithm().as_str(), digest.hex()));
        match std::fs::rename(&path, &target) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(StorageError::new("move", path.display(), e)),
            _ => Ok(()),
        }
    }

    fn list(&self) -> Result<Vec<(Digest, u64)>, StorageError> {
        let mut blobs = Vec::new();
        self.each(|digest, size| blobs.push((digest, size)))?;
        Ok(blobs)
    }

    fn total(&self) -> Result<(u64, u64), StorageError> {
        let mut total = (0, 0);
        self.each(|_, size| total = (total.0 + 1, total.1 + size))?;
        Ok(total)
    }

    fn hash(&self, digest: &Digest) -> Result<Option<Digest>, StorageError> {
        let path = self.blob(digest);
        let error = |e| StorageError::new("read", path.display(), e);
        let Some(mut file) = or_rescued(&path, || File::open(&path)).map_err(error)? else { return Ok(None) };
        let mut hasher = ResumableHasher::new(digest.algorithm());
        let mut buffer = vec![0; HASH_BYTES];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(Some(hasher.finish())),
                Ok(read) => hasher.update(&buffer[..read]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(error(e)),
            }
        }
    }

    fn has(&self, digest: &Digest) -> Result<bool, StorageError> {
        Ok(self.local_path(digest).is_some())
    }

    fn local_path(&self, digest: &Digest) -> Option<PathBuf> {
        let path = self.blob(digest);
        let is_file = or_rescued(&path, || path.metadata().map(|metadata| metadata.is_file()));
        is_file.ok().flatten().unwrap_or_default().then_some(path)
    }

    async fn open(&self, digest: &Digest) -> Result<Option<File>, StorageError> {
        let path = self.blob(digest);
        if let Quick::Known(file) = quick::open(&path) {
            return Ok(Some(file));
        }
        blocking(move || {
            or_rescued(&path, || File::open(&path)).map_err(|e| StorageError::new("open", path.display(), e))
        })
        .await
    }
}

/// Farther in the future than any file's time.
const AGES: std::time::Duration = std::time::Duration::from_secs(100 * 365 * 24 * 60 * 60);

impl LocalBackend {
    /// Every blob with its size, in no order.
    fn each(&self, mut found: impl FnMut(Digest, u64)) -> Result<(), StorageError> {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let directory = self.root.join("blobs").join(algorithm.as_str());
            for fan in read_directory(&directory)? {
                for entry in read_directory(&fan.path())? {
                    let name = entry.file_name().to_string_lossy().into_owned();
                    let Ok(digest) = format!("{}:{}", algorithm.as_str(), in_place(&name)).parse() else { continue };
                    if let Some((digest, size)) = self.listed(digest, is_aside(&name))? {
                        found(digest, size);
                    }
                }
            }
        }
        Ok(())
    }

    /// An entry of the directory of blobs. What a collection that was killed had put aside is brought back.
    fn listed(&self, digest: Digest, is_aside: bool) -> Result<Option<(Digest, u64)>, StorageError> {
        let path = self.blob(&digest);
        let look = || {
            if is_aside {
                rescue(&path)?;
            }
            path.metadata()
        };
        match look() {
            Ok(metadata) => Ok(Some((digest, metadata.len()))),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            // Whoever reads it says so.
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "cannot look at a blob");
                Ok(Some((digest, 0)))
            }
        }
    }
}

fn read_quickly(path: &std::path::Path, range: &Range<u64>) -> Option<Bytes> {
    let length = range.end - range.start;
    if length > QUICK_BYTES {
        return None;
    }
    match quick::open(path) {
        Quick::Known(file) => quick::read_at(&file, range.start, length as usize).map(Bytes::from),
        _ => None,
    }
}

/// A file that still has `left` bytes to send.
struct OpenBlob {
    path: PathBuf,
    file: File,
    left: u64,
}

/// Opens the file and reads the first frame in the same hop, which is all there is for a small blob.
fn open_at(path: PathBuf, range: Range<u64>) -> Result<Option<(Bytes, OpenBlob)>, StorageError> {
    let opened = or_rescued(&path, || File::open(&path)).map_err(|e| StorageError::new("open", path.display(), e))?;
    let Some(mut file) = opened else { return Ok(None) };
    file.seek(SeekFrom::Start(range.start)).map_err(|e| StorageError::new("read", path.display(), e))?;
    let mut blob = OpenBlob { path, file, left: range.end - range.start };
    let first = blob.next_frame()?;
    Ok(Some((first, blob)))
}

impl OpenBlob {
    fn next_frame(&mut self) -> Result<Bytes, StorageError> {
        let length = self.left.min(FRAME_BYTES);
        let mut frame = Vec::with_capacity(length as usize);
        let read = (&self.file).take(length).read_to_end(&mut frame);
        read.map_err(|e| StorageError::new("read", self.path.display(), e))?;
        if (frame.len() as u64) < length {
            return Err(StorageError::new("read", self.path.display(), "the file is shorter than it was"));
        }
        self.left -= length;
        Ok(frame.into())
    }
}

fn frames(blob: OpenBlob) -> impl futures::Stream<Item = Result<Bytes, StorageError>> + Send {
    futures::stream::try_unfold(blob, |mut blob| async move {
        if blob.left == 0 {
            return Ok(None);
        }
        blocking(move || blob.next_frame().map(|frame| Some((frame, blob)))).await
    })
}
