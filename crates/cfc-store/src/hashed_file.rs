//! [`HashedFile`]: a temporary file and the digest of what was written to it.

use std::io::{self, Write};
use std::path::Path;

use cfc_oci::{Algorithm, Digest, Hasher};
use tempfile::NamedTempFile;

use crate::error::Context;
use crate::{Result, StoreError, StoreErrorKind};

/// Bytes on their way to a name that is their digest. Dropping it forgets them.
pub(crate) struct HashedFile {
    file: NamedTempFile,
    hasher: Hasher,
    size: u64,
}

impl HashedFile {
    /// An empty one in `directory`.
    pub(crate) fn new_in(directory: &Path, algorithm: Algorithm) -> Result<HashedFile> {
        let file = NamedTempFile::new_in(directory).on("make a temporary file in", directory)?;
        Ok(HashedFile { file, hasher: Hasher::new(algorithm), size: 0 })
    }

    /// How many bytes were written so far.
    pub(crate) fn written(&self) -> u64 {
        self.size
    }

    /// The file and its digest, which must be `expected` where that is said.
    pub(crate) fn finish(
        self,
        expected: Option<&Digest>,
        subject: impl FnOnce() -> String,
    ) -> Result<(NamedTempFile, Digest)> {
        let digest = self.hasher.finish();
        if let Some(expected) = expected {
            verify(expected, digest.clone(), subject)?;
        }
        Ok((self.file, digest))
    }
}

impl Write for HashedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Fails unless what was found is what was expected; `subject` says what could not be done.
pub(crate) fn verify(expected: &Digest, actual: Digest, subject: impl FnOnce() -> String) -> Result<()> {
    if actual == *expected {
        return Ok(());
    }
    Err(StoreError::new(subject(), StoreErrorKind::DigestMismatch { expected: expected.clone(), actual }))
}
