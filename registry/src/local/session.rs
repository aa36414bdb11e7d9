//! [`Session`]: one upload's files, opened by whoever holds its lock. Everything here blocks.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use cfc_oci::{Algorithm, Digest, RepositoryName};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::UploadLock;
use super::room::Room;
use crate::files::{remove_if_there, sync_directory, write_new};
use crate::hash::ResumableHasher;
use crate::{CommitError, StorageError};

const READ_BYTES: usize = 1024 * 1024;

/// Bytes of one write: hashed while they are in the processor's cache. For much larger ones ext4 asks for folios so large
/// that the kernel compacts its memory to find them.
const WRITE_BYTES: usize = 128 * 1024;

/// What `<id>.json` holds.
#[derive(Serialize, Deserialize)]
struct Record {
    repository: RepositoryName,
    algorithm: String,
}

/// The paths of one upload.
#[derive(Clone)]
pub(super) struct SessionPaths {
    directory: PathBuf,
    id: Uuid,
}

impl SessionPaths {
    pub(super) fn new(directory: PathBuf, id: Uuid) -> SessionPaths {
        SessionPaths { directory, id }
    }

    fn file(&self, extension: &str) -> PathBuf {
        self.directory.join(format!("{}.{extension}", self.id))
    }

    /// What was received.
    pub(super) fn data(&self) -> PathBuf {
        self.file("data")
    }

    /// Creates an empty upload. It is synced with its first bytes; before that, nothing would be lost with it.
    pub(super) fn create(&self, repository: &RepositoryName, algorithm: Algorithm) -> Result<(), StorageError> {
        let record = Record { repository: repository.clone(), algorithm: algorithm.as_str().to_string() };
        let record = serde_json::to_vec(&record).expect("two strings are JSON");
        write_new(&self.data(), b"")?;
        write_new(&self.file("json"), &record)?;
        Ok(())
    }

    /// The algorithm of the upload, or `None` when `repository` has no such upload.
    fn record(&self, repository: &RepositoryName) -> Result<Option<Algorithm>, StorageError> {
        let record = self.read_record()?.filter(|record| record.repository == *repository);
        Ok(record.and_then(|record| record.algorithm.parse().ok()))
    }

    /// The repository that the upload is in, or `None` when there is no such upload.
    pub(super) fn repository(&self) -> Result<Option<RepositoryName>, StorageError> {
        Ok(self.read_record()?.map(|record| record.repository))
    }

    fn read_record(&self) -> Result<Option<Record>, StorageError> {
        let path = self.file("json");
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(StorageError::new("read", path.display(), e)),
        };
        // A record torn by a power cut belongs to an upload none of whose bytes were acknowledged.
        Ok(serde_json::from_slice(&bytes).ok())
    }

    /// Number of bytes on stable storage, or `None` when `repository` has no such upload.
    pub(super) fn durable_size(&self, repository: &RepositoryName) -> Result<Option<u64>, StorageError> {
        if self.record(repository)?.is_none() {
            return Ok(None);
        }
        let path = self.data();
        let error = |e| StorageError::new("sync", path.display(), e);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(error(e)),
        };
        let size = file.metadata().map_err(error)?.len();
        self.sync(&file)?;
        Ok(Some(size))
    }

    /// Puts what the upload's file holds on stable storage, or ends the upload: the kernel tells of lost bytes once, and
    /// whoever opens the file later is told that all is well (`Documentation/core-api/errseq.rst`).
    pub(super) fn sync(&self, file: &File) -> Result<(), StorageError> {
        let Err(error) = file.sync_data() else { return Ok(()) };
        let data = self.data();
        tracing::error!(data = %data.display(), %error, "an upload cannot be put on the disk, and ends");
        if let Err(error) = self.discard() {
            tracing::error!(data = %data.display(), %error, "cannot remove an upload that is lost");
        }
        Err(StorageError::new("sync", data.display(), error))
    }

    /// Removes the upload; false when `repository` has no such upload.
    pub(super) fn remove(&self, repository: &RepositoryName) -> Result<bool, StorageError> {
        if self.record(repository)?.is_none() {
            return Ok(false);
        }
        self.discard()?;
        Ok(true)
    }

    /// Removes an upload of which nothing stays, and frees its room on the disk although somebody may be reading it.
    pub(super) fn discard(&self) -> Result<(), StorageError> {
        let path = self.data();
        let data = File::options().write(true).open(&path);
        self.remove_files()?;
        // What has no name any more is no blob's, and cannot become one.
        let free = |file: File| if file.metadata()?.nlink() == 0 { file.set_len(0) } else { Ok(()) };
        match data.and_then(free) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(StorageError::new("empty", path.display(), e)),
            _ => Ok(()),
        }
    }

    /// The record goes first: without it the rest is unreachable, and swept later if we die in between.
    pub(super) fn remove_files(&self) -> Result<(), StorageError> {
        for extension in ["json", "hash", "data"] {
            remove_if_there(&self.file(extension))?;
        }
        Ok(())
    }

    /// Opens the upload for writing, its hash brought up to date; `None` when `repository` has no such upload.
    pub(super) fn open(self, repository: &RepositoryName, lock: UploadLock) -> Result<Option<Session>, StorageError> {
        let Some(algorithm) = self.record(repository)? else { return Ok(None) };
        let path = self.data();
        let error = |e| StorageError::new("open", path.display(), e);
        let file = match std::fs::OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            // It became a blob, or was lost, and whoever saw to that died before the record went.
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(error(e)),
        };
        let size = file.metadata().map_err(error)?.len();
        let saved = std::fs::read(self.file("hash")).ok();
        let is_durable = saved.is_some();
        let restored = saved.and_then(|saved| ResumableHasher::restore(algorithm, &saved));
        let hasher = restored.filter(|hasher| hasher.hashed() <= size);
        let mut hasher = hasher.unwrap_or_else(|| ResumableHasher::new(algorithm));
        hash_rest(&file, &path, &mut hasher)?;
        Ok(Some(Session {
            paths: self,
            room: Room::new(&file, size),
            file,
            size: hasher.hashed(),
            hasher,
            is_durable,
            chunk_start: None,
            _lock: lock,
        }))
    }
}

/// An upload open for writing.
pub(super) struct Session {
    paths: SessionPaths,
    file: File,
    room: Room,
    size: u64,
    hasher: ResumableHasher,
    /// Whether the record and the directory entries are on stable storage; the saved hash is written after them.
    is_durable: bool,
    /// Where the data ended before a chunk that is not complete yet.
    chunk_start: Option<u64>,
    _lock: UploadLock,
}

impl Drop for Session {
    /// Forgets a chunk that did not become complete. If this fails, the next request finds more than it expects and
    /// says so; the saved hash was not touched.
    fn drop(&mut self) {
        let forgotten = match self.chunk_start {
            Some(size) => self.file.set_len(size),
            None => self.room.give_back(&self.file, self.size),
        };
        if let Err(error) = forgotten {
            tracing::warn!(upload = %self.paths.id, %error, "cannot forget a part of a chunk");
        }
    }
}

impl Session {
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn paths(&self) -> &SessionPaths {
        &self.paths
    }

    /// No more than `length` bytes will come.
    pub(super) fn expect(&mut self, length: u64) {
        self.room.expect(self.size.saturating_add(length));
    }

    /// The next bytes are kept only when [`keep_chunk`](Self::keep_chunk) is called.
    pub(super) fn begin_chunk(&mut self) {
        self.chunk_start = Some(self.size);
    }

    pub(super) fn keep_chunk(&mut self) {
        self.chunk_start = None;
    }

    /// Adds `bytes` at the end, without syncing.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        for slice in bytes.chunks(WRITE_BYTES) {
            self.room.make(&self.file, self.size);
            let written = self.file.write_all_at(slice, self.size);
            written.map_err(|e| StorageError::new("write", self.paths.data().display(), e))?;
            self.hasher.update(slice);
            self.size += slice.len() as u64;
        }
        Ok(())
    }

    fn give_back_room(&mut self) -> Result<(), StorageError> {
        let given = self.room.give_back(&self.file, self.size);
        given.map_err(|e| StorageError::new("end", self.paths.data().display(), e))
    }

    /// Puts everything written so far on stable storage, and writes the hash down for the next request. The hash is
    /// only a convenience, so it is neither synced nor replaced atomically. Returns the size.
    pub(super) fn acknowledge(&mut self) -> Result<u64, StorageError> {
        self.give_back_room()?;
        self.paths.sync(&self.file)?;
        if !self.is_durable {
            let record = self.paths.file("json");
            let synced = File::open(&record).and_then(|file| file.sync_all());
            synced.map_err(|e| StorageError::new("sync", record.display(), e))?;
            sync_directory(&self.paths.directory)?;
            self.is_durable = true;
        }
        let path = self.paths.file("hash");
        std::fs::write(&path, self.hasher.save()).map_err(|e| StorageError::new("write", path.display(), e))?;
        Ok(self.size)
    }

    /// Publishes the data as `blob` if it hashes to `expected`, and ends the upload either way.
    pub(super) fn commit(&mut self, expected: &Digest, blob: &Path) -> Result<u64, CommitError> {
        let found = self.digest(expected.algorithm())?;
        if found != *expected {
            self.paths.discard()?;
            return Err(CommitError::Mismatch { expected: expected.clone(), found, size: self.size });
        }
        self.give_back_room()?;
        self.paths.sync(&self.file)?;
        publish(&self.paths.data(), blob)?;
        self.paths.remove_files()?;
        Ok(self.size)
    }

    /// The digest by `algorithm`. Only when that became known just now are the bytes read once more.
    fn digest(&self, algorithm: Algorithm) -> Result<Digest, StorageError> {
        if algorithm == self.hasher.algorithm() {
            return Ok(self.hasher.clone().finish());
        }
        let mut hasher = ResumableHasher::new(algorithm);
        hash_rest(&self.file, &self.paths.data(), &mut hasher)?;
        Ok(hasher.finish())
    }
}

/// Hashes what follows the bytes that `hasher` has seen.
fn hash_rest(mut file: &File, path: &Path, hasher: &mut ResumableHasher) -> Result<(), StorageError> {
    let error = |e| StorageError::new("read", path.display(), e);
    let length = file.metadata().map_err(error)?.len();
    if hasher.hashed() == length {
        return Ok(());
    }
    file.seek(SeekFrom::Start(hasher.hashed())).map_err(error)?;
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => hasher.update(&buffer[..read]),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(error(e)),
        }
    }
}

/// Links `data`, already synced, to `blob`. What was published before as the same content gives way: it may have been
/// damaged since, and this was read just now.
fn publish(data: &Path, blob: &Path) -> Result<(), StorageError> {
    let directory = blob.parent().expect("a blob's path has a parent");
    create_directory(directory)?;
    let linked = match std::fs::hard_link(data, blob) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => std::fs::rename(data, blob),
        linked => linked,
    };
    linked.map_err(|e| StorageError::new("link", blob.display(), e))?;
    let locked = std::fs::set_permissions(blob, PermissionsExt::from_mode(0o444));
    locked.map_err(|e| StorageError::new("protect", blob.display(), e))?;
    sync_directory(directory)
}

/// Creates `directory` with its parents and syncs each into its parent.
fn create_directory(directory: &Path) -> Result<(), StorageError> {
    if directory.is_dir() {
        return Ok(());
    }
    let parent = directory.parent().expect("created below an existing root");
    create_directory(parent)?;
    match std::fs::create_dir(directory) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(StorageError::new("create", directory.display(), e)),
        _ => sync_directory(parent),
    }
}
