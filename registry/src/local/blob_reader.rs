//! Reading blobs: the [`BlobBackend`] half of [`LocalBackend`].

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::PathBuf;

use async_trait::async_trait;
use bytes::Bytes;
use cfc_oci::Digest;
use futures::StreamExt;

use super::{LocalBackend, blocking, list_blobs, remove_if_there, sync_directory};
use crate::{BlobBackend, BlobStream, StorageError};

/// Bytes handed to the socket at a time. Large enough that the hop to a blocking thread does not count, small enough
/// that many pulls at once stay small.
const FRAME_BYTES: u64 = 512 * 1024;

#[async_trait]
impl BlobBackend for LocalBackend {
    async fn stat(&self, digest: &Digest) -> Result<Option<u64>, StorageError> {
        let path = self.blob(digest);
        blocking(move || match path.metadata() {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(StorageError::new("read", path.display(), e)),
        })
        .await
    }

    async fn read(&self, digest: &Digest, range: Range<u64>) -> Result<Option<BlobStream>, StorageError> {
        let path = self.blob(digest);
        let opened = blocking(move || open_at(path, range)).await?;
        let Some((first, rest)) = opened else { return Ok(None) };
        let first = futures::stream::iter([Ok(first)]);
        Ok(Some(first.chain(frames(rest)).boxed()))
    }

    async fn delete(&self, digest: &Digest) -> Result<(), StorageError> {
        let path = self.blob(digest);
        blocking(move || {
            let removed = remove_if_there(&path)?;
            match path.parent() {
                Some(directory) if removed => sync_directory(directory),
                _ => Ok(()),
            }
        })
        .await
    }

    async fn list(&self) -> Result<Vec<(Digest, u64)>, StorageError> {
        let root = self.root.clone();
        blocking(move || list_blobs(&root)).await
    }

    fn local_path(&self, digest: &Digest) -> Option<PathBuf> {
        let path = self.blob(digest);
        path.is_file().then_some(path)
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
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(StorageError::new("open", path.display(), e)),
    };
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
