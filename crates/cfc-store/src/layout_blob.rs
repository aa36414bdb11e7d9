//! [`LayoutBlobWriter`]: a blob that goes into an OCI layout without being in the store.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use cfc_oci::{Algorithm, Digest};

use crate::Result;
use crate::error::Context;
use crate::hashed_file::HashedFile;
use crate::layout::{layout_path, persist_readable};

/// A blob on its way into an OCI layout, hashed with SHA-256. Dropping it forgets the bytes.
pub struct LayoutBlobWriter {
    directory: PathBuf,
    file: HashedFile,
}

impl LayoutBlobWriter {
    /// One of the OCI layout `directory`, which is made where it is not there.
    pub fn new(directory: &Path) -> Result<LayoutBlobWriter> {
        let blobs = directory.join("blobs");
        fs::create_dir_all(&blobs).on("make the directory", &blobs)?;
        let file = HashedFile::new_in(&blobs, Algorithm::Sha256)?;
        Ok(LayoutBlobWriter { directory: directory.to_path_buf(), file })
    }

    /// How many bytes were written so far.
    pub fn written(&self) -> u64 {
        self.file.written()
    }

    /// Publishes the blob under its digest. When that is not `expected`, nothing is published.
    pub fn commit(self, expected: Option<&Digest>) -> Result<Digest> {
        let refused = || format!("cannot write a blob of `{}`", self.directory.display());
        let (file, digest) = self.file.finish(expected, refused)?;
        let target = layout_path(&self.directory, &digest);
        let parent = target.parent().unwrap_or(&self.directory);
        fs::create_dir_all(parent).on("make the directory", parent)?;
        persist_readable(file, &target)?;
        Ok(digest)
    }
}

impl Write for LayoutBlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
