//! [`BlobStore`]: content by digest.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use cfc_oci::{Algorithm, Digest, Hasher};
use tempfile::NamedTempFile;

use crate::error::Context;
use crate::hashed_file::{HashedFile, verify};
use crate::uses::Used;
use crate::{Result, Store, StoreError, StoreErrorKind};

/// The largest blob that [`BlobStore::read`] takes into memory: manifests and configs are far below it.
const MAX_READ_BYTES: u64 = 64 << 20;

/// Content by digest. A blob that is there is whole and was verified when it was written.
#[derive(Clone, Debug)]
pub struct BlobStore {
    store: Store,
}

impl BlobStore {
    pub(crate) fn new(store: Store) -> BlobStore {
        BlobStore { store }
    }

    /// Where the blob is, or would be.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.store.root().join("blobs").join(digest.algorithm().as_str()).join(digest.hex())
    }

    /// Whether the blob is there; if so, it stays for as long as this process lives.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.find(digest).unwrap_or_else(|error| {
            // What cannot be noted might be gone the next moment.
            tracing::debug!(%digest, %error, "taken for missing");
            false
        })
    }

    fn find(&self, digest: &Digest) -> Result<bool> {
        self.store.finds(Used::Blob(digest.clone()), &self.path(digest))
    }

    /// The blob's size in bytes.
    pub fn size(&self, digest: &Digest) -> Result<u64> {
        Ok(self.open(digest)?.metadata().context(|| format!("cannot stat blob `{digest}`"))?.len())
    }

    /// Opens the blob for reading.
    pub fn open(&self, digest: &Digest) -> Result<File> {
        self.find(digest)?;
        File::open(self.path(digest)).map_err(|error| {
            let kind = match error.kind() {
                io::ErrorKind::NotFound => StoreErrorKind::Missing,
                _ => StoreErrorKind::Io(error),
            };
            StoreError::new(format!("cannot open blob `{digest}`"), kind)
        })
    }

    /// All bytes of a small blob; an error above 64 MiB.
    pub fn read(&self, digest: &Digest) -> Result<Vec<u8>> {
        let subject = || format!("cannot read blob `{digest}`");
        let mut bytes = Vec::new();
        self.open(digest)?.take(MAX_READ_BYTES + 1).read_to_end(&mut bytes).context(subject)?;
        if bytes.len() as u64 > MAX_READ_BYTES {
            let kind = StoreErrorKind::Limit(format!("it is larger than {MAX_READ_BYTES} bytes"));
            return Err(StoreError::new(subject(), kind));
        }
        Ok(bytes)
    }

    /// Writes `bytes` and returns their SHA-256 digest.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        if self.contains(&digest) {
            return Ok(digest);
        }
        let mut writer = self.writer()?;
        writer.write_all(bytes).context(|| format!("cannot write blob `{digest}`"))?;
        Ok(writer.commit(Some(&digest))?.0)
    }

    /// A blob to be written, hashed with SHA-256.
    pub fn writer(&self) -> Result<BlobWriter> {
        self.writer_with(Algorithm::Sha256)
    }

    /// A blob to be written, hashed with `algorithm`.
    pub fn writer_with(&self, algorithm: Algorithm) -> Result<BlobWriter> {
        let session = self.store.session_directory();
        Ok(BlobWriter { blobs: self.clone(), file: HashedFile::new_in(session, algorithm)? })
    }

    /// Takes in the file at `path`, whose digest must be `digest`: a hard link where the file system allows it, else a
    /// copy. The caller promises not to write to the file any more.
    pub fn link_from(&self, path: &Path, digest: &Digest) -> Result<()> {
        if self.contains(digest) {
            return Ok(());
        }
        let mut file = File::open(path).on("open", path)?;
        let mut hasher = Hasher::new(digest.algorithm());
        io::copy(&mut file, &mut hasher).on("read", path)?;
        verify(digest, hasher.finish(), || format!("cannot take in `{}`", path.display()))?;
        self.link_from_trusted(path, digest)
    }

    /// As [`BlobStore::link_from`], for a file that the caller has verified already (another content store's).
    pub fn link_from_trusted(&self, path: &Path, digest: &Digest) -> Result<()> {
        let target = self.path(digest);
        let guard = self.store.uses().guard()?;
        self.store.uses().note(&guard, Used::Blob(digest.clone()))?;
        let linked = fs::hard_link(path, &target);
        drop(guard);
        match linked {
            Ok(()) => sync_directory_of(&target),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            // Another file system, one without links, or (fs.protected_hardlinks) somebody else's file.
            Err(_) => self.copy_from(path, digest),
        }
    }

    fn copy_from(&self, path: &Path, digest: &Digest) -> Result<()> {
        let mut file = File::open(path).on("open", path)?;
        let mut writer = self.writer_with(digest.algorithm())?;
        io::copy(&mut file, &mut writer).on("copy", path)?;
        writer.commit(Some(digest)).map(drop)
    }
}

/// A blob on its way into the store. Dropping it forgets the bytes.
pub struct BlobWriter {
    blobs: BlobStore,
    file: HashedFile,
}

impl BlobWriter {
    /// How many bytes were written so far.
    pub fn written(&self) -> u64 {
        self.file.written()
    }

    /// Publishes the blob and returns its digest and its size in bytes. When the digest is not `expected`, nothing is
    /// published.
    pub fn commit(self, expected: Option<&Digest>) -> Result<(Digest, u64)> {
        self.seal(expected)?.publish()
    }

    /// Ends the blob. When the digest is not `expected`, nothing is left of it.
    pub(crate) fn seal(self, expected: Option<&Digest>) -> Result<SealedBlob> {
        let BlobWriter { blobs, file } = self;
        let size = file.written();
        let refused = || expected.map(|expected| format!("cannot store blob `{expected}`")).unwrap_or_default();
        let (file, digest) = file.finish(expected, refused)?;
        Ok(SealedBlob { blobs, file, digest, size })
    }
}

/// A blob that has all its bytes and is not in the store yet. Dropping it forgets them.
pub(crate) struct SealedBlob {
    blobs: BlobStore,
    file: NamedTempFile,
    digest: Digest,
    size: u64,
}

impl SealedBlob {
    pub(crate) fn digest(&self) -> &Digest {
        &self.digest
    }

    /// In bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Waits until it is on the disk, and publishes it. Returns its digest and its size in bytes.
    pub(crate) fn publish(self) -> Result<(Digest, u64)> {
        let SealedBlob { blobs, file, digest, size } = self;
        let target = blobs.path(&digest);
        if blobs.find(&digest)? {
            return Ok((digest, size));
        }
        let subject = || format!("cannot store blob `{digest}` as `{}`", target.display());
        file.as_file().set_permissions(fs::Permissions::from_mode(0o644)).context(subject)?;
        file.as_file().sync_all().context(subject)?;
        let guard = blobs.store.uses().guard()?;
        blobs.store.uses().note(&guard, Used::Blob(digest.clone()))?;
        file.persist(&target).map_err(|error| error.error).context(subject)?;
        drop(guard);
        sync_directory_of(&target)?;
        Ok((digest, size))
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Makes a published name survive a power cut.
pub(crate) fn sync_directory_of(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    File::open(parent).and_then(|directory| directory.sync_all()).on("sync", parent)
}
