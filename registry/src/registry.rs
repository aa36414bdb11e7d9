//! [`Registry`]: a registry that is open, and what other parts of cfc ask it without HTTP.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cfc_oci::{Descriptor, Digest, RepositoryName, Tag};
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;

use crate::local::LocalBackend;
use crate::metadata::Metadata;
use crate::route::ManifestName;
use crate::{Authorizer, BlobBackend, StorageError, UploadBackend};

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
pub struct Registry {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub metadata: Metadata,
    pub blobs: Arc<dyn BlobBackend>,
    pub uploads: Arc<dyn UploadBackend>,
    pub options: Options,
}

impl Registry {
    /// Opens the registry whose metadata are in `bucket` below `registry/`, and whose blobs are files in
    /// `local_root`/registry. `bucket` must sync what it writes before it answers. Blocks on the disk for a moment.
    pub fn open(
        bucket: Arc<dyn ObjectStore>,
        local_root: Option<PathBuf>,
        options: Options,
    ) -> Result<Registry, StorageError> {
        let root = local_root.ok_or_else(|| {
            StorageError::new("open", "registry", "blobs can only be kept in a local directory; name one")
        })?;
        let local = Arc::new(LocalBackend::open(&root.join("registry"), options.upload_expiry)?);
        Ok(Registry::with_backends(bucket, local.clone(), local, options))
    }

    /// Opens the registry in the directory `root`, which also becomes the bucket.
    pub fn open_directory(root: &Path, options: Options) -> Result<Registry, StorageError> {
        std::fs::create_dir_all(root).map_err(|e| StorageError::new("create", root.display(), e))?;
        let bucket = LocalFileSystem::new_with_prefix(root);
        let bucket = bucket.map_err(|e| StorageError::new("open", root.display(), e))?.with_fsync(true);
        Registry::open(Arc::new(bucket), Some(root.to_path_buf()), options)
    }

    /// A registry over other backends than the local directory.
    pub fn with_backends(
        bucket: Arc<dyn ObjectStore>,
        blobs: Arc<dyn BlobBackend>,
        uploads: Arc<dyn UploadBackend>,
        options: Options,
    ) -> Registry {
        let metadata = Metadata::new(bucket);
        Registry { inner: Arc::new(Inner { metadata, blobs, uploads, options }) }
    }

    /// Everything below `/v2/`.
    pub fn router(&self) -> axum::Router {
        crate::api::router(self.clone())
    }

    /// The file of a blob, for the runtime to link; `None` when there is no such blob, or no such file.
    pub fn blob_path(&self, digest: &Digest) -> Option<PathBuf> {
        self.inner.blobs.local_path(digest)
    }

    /// A manifest by tag or digest, exactly as it was pushed.
    pub async fn manifest(
        &self,
        repository: &RepositoryName,
        reference: &str,
    ) -> Result<Option<(Descriptor, Bytes)>, StorageError> {
        let name = match (reference.parse(), reference.parse()) {
            (Ok(tag), _) => ManifestName::Tag(tag),
            (_, Ok(digest)) => ManifestName::Digest(digest),
            _ => return Ok(None),
        };
        self.inner.manifest(repository, &name).await
    }

    /// All repositories that hold a manifest, sorted.
    pub async fn repositories(&self) -> Result<Vec<RepositoryName>, StorageError> {
        self.inner.metadata.repositories().await
    }

    /// The tags of a repository, sorted.
    pub async fn tags(&self, repository: &RepositoryName) -> Result<Vec<Tag>, StorageError> {
        let tags = self.inner.metadata.tags(repository, None).await?;
        Ok(tags.into_iter().filter_map(|tag| tag.parse().ok()).collect())
    }
}

impl Inner {
    pub(crate) async fn manifest(
        &self,
        repository: &RepositoryName,
        name: &ManifestName,
    ) -> Result<Option<(Descriptor, Bytes)>, StorageError> {
        let digest = match name {
            ManifestName::Digest(digest) => digest.clone(),
            ManifestName::Tag(tag) => match self.metadata.tag(repository, tag).await? {
                Some(descriptor) => descriptor.digest,
                None => return Ok(None),
            },
            ManifestName::Impossible(_) => return Ok(None),
        };
        let Some((media_type, bytes)) = self.metadata.manifest(repository, &digest).await? else { return Ok(None) };
        Ok(Some((Descriptor::new(&media_type, digest, bytes.len() as u64), bytes)))
    }
}
