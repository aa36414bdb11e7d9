//! [`LayoutBlobWriter`]: a blob that goes into an OCI layout without being in the store.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use cfc_oci::{Algorithm, Digest, Hasher};
use tempfile::NamedTempFile;

use crate::error::Context;
use crate::layout::{layout_path, persist_readable};
use crate::{Result, StoreError, StoreErrorKind};

/// A blob on its way into an OCI layout, hashed with SHA-256. Dropping it forgets the bytes.
pub struct LayoutBlobWriter {
    directory: PathBuf,
    file: NamedTempFile,
    hasher: Hasher,
    size: u64,
}

impl LayoutBlobWriter {
    /// One of the OCI layout `directory`, which is made where it is not there.
    pub fn new(directory: &Path) -> Result<LayoutBlobWriter> {
        let blobs = directory.join("blobs");
        fs::create_dir_all(&blobs).on("make the directory", &blobs)?;
        let file = NamedTempFile::new_in(&blobs).on("make a temporary file in", &blobs)?;
        let hasher = Hasher::new(Algorithm::Sha256);
        Ok(LayoutBlobWriter { directory: directory.to_path_buf(), file, hasher, size: 0 })
    }

    /// How many bytes were written so far.
    pub fn written(&self) -> u64 {
        self.size
    }

    /// Publishes the blob under its digest. When that is not `expected`, nothing is published.
    pub fn commit(self, expected: Option<&Digest>) -> Result<Digest> {
        let digest = self.hasher.finish();
        if let Some(expected) = expected.filter(|expected| **expected != digest) {
            let kind = StoreErrorKind::DigestMismatch { expected: expected.clone(), actual: digest };
            return Err(StoreError::new(format!("cannot write a blob of `{}`", self.directory.display()), kind));
        }
        let target = layout_path(&self.directory, &digest);
        let parent = target.parent().unwrap_or(&self.directory);
        fs::create_dir_all(parent).on("make the directory", parent)?;
        persist_readable(self.file, &target)?;
        Ok(digest)
    }
}

impl Write for LayoutBlobWriter {
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
