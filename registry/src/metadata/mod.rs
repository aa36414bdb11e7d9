//! [`Metadata`]: repositories as small objects. Nothing else knows a key.

mod deletion;
pub(crate) mod key;
mod needed;
mod publication;
mod referrers;
mod sweep;
mod tags;

use bytes::{BufMut, Bytes, BytesMut};
use cfc_oci::{Descriptor, Digest, RepositoryName, Tag};

use crate::StorageError;
use crate::objects::{Objects, keys};
pub(crate) use deletion::Deletion;
pub(crate) use key::is_kept;
pub(crate) use publication::{IsImmutable, Publication};
pub(crate) use sweep::Found;
pub(crate) use tags::SeenTag;

/// Objects read at the same time when a list needs their content.
const READS_IN_FLIGHT: usize = 16;

/// Repositories, tags, manifests, referrers, and which repository holds which blob.
///
/// Every change is one object, put whole; a change of several objects is ordered so that a crash between them leaves
/// something that is merely unused.
#[derive(Clone)]
pub(crate) struct Metadata {
    objects: Objects,
}

impl Metadata {
    pub(crate) fn new(objects: Objects) -> Metadata {
        Metadata { objects }
    }

    /// Fails when nothing may be changed here, since a later version of the registry stores things in another way.
    pub(crate) async fn require_known_format(&self) -> Result<(), StorageError> {
        self.objects.require_known_format().await
    }

    /// Fails when nothing can be changed here at present.
    pub(crate) async fn require_writable(&self) -> Result<(), StorageError> {
        self.objects.require_writable().await
    }

    /// Puts an object that has no content.
    async fn put_marker(&self, key: &str) -> Result<(), StorageError> {
        self.objects.put(key, Bytes::new()).await
    }

    // Blobs of a repository.

    /// Whether the repository holds the blob; if so, it goes on doing so for a while.
    pub(crate) async fn claim_blob(&self, name: &RepositoryName, digest: &Digest) -> Result<bool, StorageError> {
        self.objects.claim(&key::link(name, digest)).await
    }

    pub(crate) async fn link_blob(&self, name: &RepositoryName, digest: &Digest) -> Result<(), StorageError> {
        self.objects.put_kept(&key::link(name, digest), Bytes::new()).await
    }

    /// False when the repository did not hold the blob.
    pub(crate) async fn unlink_blob(&self, name: &RepositoryName, digest: &Digest) -> Result<bool, StorageError> {
        self.objects.delete(&key::link(name, digest)).await
    }

    /// Every repository that holds the blob, sorted.
    pub(crate) async fn holders(&self, digest: &Digest) -> Result<Vec<RepositoryName>, StorageError> {
        self.names_below(&key::links(digest), "/_link").await
    }

    // Manifests.

    /// Media type and exact bytes. Garbage collection keeps the manifest for a while.
    pub(crate) async fn manifest(
        &self,
        name: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<(String, Bytes)>, StorageError> {
        let key = key::manifest(name, digest);
        self.objects.get_kept(&key).await?.map(|object| split_manifest(&key, object)).transpose()
    }

    /// Whether the repository has the manifest; if so, it goes on doing so for a while.
    pub(crate) async fn claim_manifest(&self, name: &RepositoryName, digest: &Digest) -> Result<bool, StorageError> {
        self.objects.claim(&key::manifest(name, digest)).await
    }

    /// Stores a manifest, then lists its repository.
    async fn put_manifest(
        &self,
        name: &RepositoryName,
        digest: &Digest,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<(), StorageError> {
        self.objects.put_kept(&key::manifest(name, digest), join_manifest(media_type, bytes)).await?;
        let repository = key::repository(name);
        if self.objects.exists(&repository).await? { Ok(()) } else { self.put_marker(&repository).await }
    }

    /// Has the catalog list a repository if there is a manifest, and not otherwise.
    pub(crate) async fn relist(&self, name: &RepositoryName) -> Result<(), StorageError> {
        match self.has_manifests(name).await? {
            true => self.put_marker(&key::repository(name)).await,
            false => self.unlist_if_empty(name).await,
        }
    }

    async fn unlist_if_empty(&self, name: &RepositoryName) -> Result<(), StorageError> {
        if self.has_manifests(name).await? {
            return Ok(());
        }
        self.objects.delete(&key::repository(name)).await?;
        // A push in between has listed the repository before we did away with it.
        if self.has_manifests(name).await? { self.put_marker(&key::repository(name)).await } else { Ok(()) }
    }

    async fn has_manifests(&self, name: &RepositoryName) -> Result<bool, StorageError> {
        let (objects, prefix) = (self.objects.clone(), key::manifests(name));
        crate::files::blocking(move || objects.has_any(&prefix)).await
    }

    /// The tags that point at a manifest, or once did.
    async fn tags_noted(&self, name: &RepositoryName, digest: &Digest) -> Result<Vec<Tag>, StorageError> {
        let (objects, prefix) = (self.objects.clone(), key::tagged(name, digest));
        let names = crate::files::blocking(move || objects.names(&prefix)).await?;
        Ok(names.into_iter().filter_map(|tag| tag.parse().ok()).collect())
    }

    // The catalog.

    /// Whether the repository holds a manifest.
    pub(crate) async fn has_repository(&self, name: &RepositoryName) -> Result<bool, StorageError> {
        self.objects.exists(&key::repository(name)).await
    }

    /// Every repository that holds a manifest, sorted.
    pub(crate) async fn repositories(&self) -> Result<Vec<RepositoryName>, StorageError> {
        self.names_below(key::CATALOG, "/_repository").await
    }

    /// At most `limit` repositories that hold a manifest, after `after`, sorted bytewise.
    pub(crate) async fn page_of_repositories(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<String>, StorageError> {
        let (objects, after) = (self.objects.clone(), after.map(str::to_string));
        crate::files::blocking(move || objects.page_of_owners(key::CATALOG, "_repository", after.as_deref(), limit))
            .await
    }

    /// The names between `prefix` and `suffix`, sorted.
    async fn names_below(&self, prefix: &str, suffix: &str) -> Result<Vec<RepositoryName>, StorageError> {
        let name = |key: String| {
            let rest = key.strip_prefix(prefix)?.strip_prefix('/')?.strip_suffix(suffix)?;
            rest.parse().ok()
        };
        let mut names: Vec<RepositoryName> = keys(&self.objects, prefix).await?.into_iter().filter_map(name).collect();
        names.sort();
        Ok(names)
    }
}

/// The object of a manifest.
fn join_manifest(media_type: &str, bytes: &[u8]) -> Bytes {
    let mut object = BytesMut::with_capacity(media_type.len() + 1 + bytes.len());
    object.put(media_type.as_bytes());
    object.put_u8(b'\n');
    object.put(bytes);
    object.freeze()
}

/// Takes the object of a manifest apart.
fn split_manifest(key: &str, mut object: Bytes) -> Result<(String, Bytes), StorageError> {
    let line_end = object.iter().position(|byte| *byte == b'\n');
    let line_end = line_end.ok_or_else(|| StorageError::new("read", key, "the media type is missing"))?;
    let media_type = String::from_utf8_lossy(&object.split_to(line_end)).into_owned();
    Ok((media_type, object.slice(1..)))
}

fn to_json(descriptor: &Descriptor) -> Bytes {
    serde_json::to_vec(descriptor).expect("a descriptor has only string keys").into()
}
