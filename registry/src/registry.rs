//! [`Registry`]: a registry that is open, and what other parts of cfc ask it without HTTP.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cfc_oci::{Descriptor, Digest, RepositoryName, Tag};
use object_store::ObjectStore;

use crate::{Authorizer, StorageError};

/// How a registry behaves.
#[derive(Clone)]
pub struct Options {
    /// Who may do what; `None` lets everybody do everything.
    pub authorizer: Option<Arc<dyn Authorizer>>,
    /// Manifests above this many bytes are refused with 413.
    pub max_manifest_bytes: usize,
    /// Uploads untouched for this long are removed when the registry opens.
    pub upload_expiry: Duration,
    /// Accept manifests and indexes although content they name is missing.
    pub accept_sparse: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            authorizer: None,
            max_manifest_bytes: 4 * 1024 * 1024,
            upload_expiry: Duration::from_secs(24 * 60 * 60),
            accept_sparse: false,
        }
    }
}

/// A registry over one bucket. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Registry;

impl Registry {
    /// Opens the registry whose metadata are in `bucket` below `registry/`, and whose blobs are files in
    /// `local_root`/registry. `bucket` must sync what it writes before it answers.
    pub fn open(
        _bucket: Arc<dyn ObjectStore>,
        _local_root: Option<PathBuf>,
        _options: Options,
    ) -> Result<Registry, StorageError> {
        todo!()
    }

    /// Opens the registry in the directory `root`, which also becomes the bucket.
    pub fn open_directory(_root: &Path, _options: Options) -> Result<Registry, StorageError> {
        todo!()
    }

    /// Everything below `/v2/`.
    pub fn router(&self) -> axum::Router {
        todo!()
    }

    /// The file of a blob, for the runtime to link.
    pub fn blob_path(&self, _digest: &Digest) -> Option<PathBuf> {
        todo!()
    }

    /// A manifest by tag or digest, exactly as it was pushed.
    pub async fn manifest(
        &self,
        _repository: &RepositoryName,
        _reference: &str,
    ) -> Result<Option<(Descriptor, Bytes)>, StorageError> {
        todo!()
    }

    /// All repositories that hold a manifest, sorted.
    pub async fn repositories(&self) -> Result<Vec<RepositoryName>, StorageError> {
        todo!()
    }

    /// The tags of a repository, sorted.
    pub async fn tags(&self, _repository: &RepositoryName) -> Result<Vec<Tag>, StorageError> {
        todo!()
    }
}

/// Answers the API on `listener` until the process ends.
pub async fn serve(_listener: tokio::net::TcpListener, _registry: Registry) -> std::io::Result<()> {
    todo!()
}

/// Answers the API on `listener` until `shutdown` is ready, then lets running requests finish.
pub async fn serve_until(
    _listener: tokio::net::TcpListener,
    _registry: Registry,
    _shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    todo!()
}
