//! [`Metadata`]: repositories as small objects in the bucket. Nothing else knows a key.

use bytes::{BufMut, Bytes, BytesMut};
use cfc_oci::{Descriptor, Digest, RepositoryName, Tag};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use std::sync::Arc;

use crate::StorageError;

/// Objects read at the same time when a list needs their content.
const READS_IN_FLIGHT: usize = 16;

/// Repositories, tags, manifests, referrers, and which repository holds which blob.
///
/// Every change is one object, put whole; a change of several objects is ordered so that a crash between them leaves
/// something that is merely unused.
pub(crate) struct Metadata {
    bucket: Arc<dyn ObjectStore>,
}

/// The layout. No component of a repository's name begins with `_`, so names cannot collide with what is below them.
///
/// ```text
/// registry/catalog/<name>/_repository                                  empty: the repository has a manifest
/// registry/repositories/<name>/_tags/<tag>                             JSON: descriptor of the manifest
/// registry/repositories/<name>/_manifests/<alg>/<hex>                  media type, line feed, the exact bytes
/// registry/repositories/<name>/_tagged/<alg>/<hex>/<tag>               empty: the tag once pointed at the manifest
/// registry/repositories/<name>/_referrers/<alg>/<hex>/<alg>/<hex>      JSON: descriptor of a referrer of the first
/// registry/links/<alg>/<hex>/<name>/_link                              empty: the repository holds the blob
/// ```
mod key {
    use super::{Digest, Path, RepositoryName, Tag};

    pub(super) fn catalog() -> Path {
        Path::from("registry/catalog")
    }

    pub(super) fn repository(name: &RepositoryName) -> Path {
        Path::from(format!("registry/catalog/{name}/_repository"))
    }

    pub(super) fn tags(name: &RepositoryName) -> Path {
        Path::from(format!("registry/repositories/{name}/_tags"))
    }

    pub(super) fn tag(name: &RepositoryName, tag: &Tag) -> Path {
        Path::from(format!("registry/repositories/{name}/_tags/{tag}"))
    }

    pub(super) fn manifests(name: &RepositoryName) -> Path {
        Path::from(format!("registry/repositories/{name}/_manifests"))
    }

    pub(super) fn manifest(name: &RepositoryName, digest: &Digest) -> Path {
        Path::from(format!("registry/repositories/{name}/_manifests/{}", pair(digest)))
    }

    pub(super) fn tagged(name: &RepositoryName, digest: &Digest) -> Path {
        Path::from(format!("registry/repositories/{name}/_tagged/{}", pair(digest)))
    }

    pub(super) fn tagged_by(name: &RepositoryName, digest: &Digest, tag: &Tag) -> Path {
        Path::from(format!("registry/repositories/{name}/_tagged/{}/{tag}", pair(digest)))
    }

    pub(super) fn referrers(name: &RepositoryName, subject: &Digest) -> Path {
        Path::from(format!("registry/repositories/{name}/_referrers/{}", pair(subject)))
    }

    pub(super) fn referrer(name: &RepositoryName, subject: &Digest, digest: &Digest) -> Path {
        Path::from(format!("registry/repositories/{name}/_referrers/{}/{}", pair(subject), pair(digest)))
    }

    pub(super) fn links(digest: &Digest) -> Path {
        Path::from(format!("registry/links/{}", pair(digest)))
    }

    pub(super) fn link(name: &RepositoryName, digest: &Digest) -> Path {
        Path::from(format!("registry/links/{}/{name}/_link", pair(digest)))
    }

    fn pair(digest: &Digest) -> String {
        format!("{}/{}", digest.algorithm().as_str(), digest.hex())
    }
}

impl Metadata {
    pub(crate) fn new(bucket: Arc<dyn ObjectStore>) -> Metadata {
        Metadata { bucket }
    }

    // Blobs of a repository.

    pub(crate) async fn has_blob(&self, name: &RepositoryName, digest: &Digest) -> Result<bool, StorageError> {
        self.exists(&key::link(name, digest)).await
    }

    pub(crate) async fn link_blob(&self, name: &RepositoryName, digest: &Digest) -> Result<(), StorageError> {
        self.put(&key::link(name, digest), Bytes::new()).await
    }

    /// False when the repository did not hold the blob.
    pub(crate) async fn unlink_blob(&self, name: &RepositoryName, digest: &Digest) -> Result<bool, StorageError> {
        self.delete(&key::link(name, digest)).await
    }

    /// Every repository that holds the blob.
    pub(crate) async fn holders(&self, digest: &Digest) -> Result<Vec<RepositoryName>, StorageError> {
        self.names_below(&key::links(digest), "/_link").await
    }

    // Manifests.

    /// Media type and exact bytes.
    pub(crate) async fn manifest(
        &self,
        name: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<(String, Bytes)>, StorageError> {
        let key = key::manifest(name, digest);
        let Some(mut object) = self.get(&key).await? else { return Ok(None) };
        let line_end = object.iter().position(|byte| *byte == b'\n');
        let line_end = line_end.ok_or_else(|| StorageError::new("read", &key, "the media type is missing"))?;
        let media_type = String::from_utf8_lossy(&object.split_to(line_end)).into_owned();
        Ok(Some((media_type, object.slice(1..))))
    }

    pub(crate) async fn has_manifest(&self, name: &RepositoryName, digest: &Digest) -> Result<bool, StorageError> {
        self.exists(&key::manifest(name, digest)).await
    }

    /// Stores a manifest, then lists its repository.
    pub(crate) async fn put_manifest(
        &self,
        name: &RepositoryName,
        digest: &Digest,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<(), StorageError> {
        let mut object = BytesMut::with_capacity(media_type.len() + 1 + bytes.len());
        object.put(media_type.as_bytes());
        object.put_u8(b'\n');
        object.put(bytes);
        self.put(&key::manifest(name, digest), object.freeze()).await?;
        let repository = key::repository(name);
        if self.exists(&repository).await? { Ok(()) } else { self.put(&repository, Bytes::new()).await }
    }

    /// Removes a manifest and every tag that points at it; false when there was none. The repository leaves the
    /// catalog with its last manifest.
    pub(crate) async fn delete_manifest(&self, name: &RepositoryName, digest: &Digest) -> Result<bool, StorageError> {
        for tag in self.leaves(&key::tagged(name, digest), None).await? {
            let Ok(tag) = tag.parse::<Tag>() else { continue };
            if self.tag(name, &tag).await?.is_some_and(|descriptor| descriptor.digest == *digest) {
                self.delete(&key::tag(name, &tag)).await?;
            }
            self.delete(&key::tagged_by(name, digest, &tag)).await?;
        }
        let deleted = self.delete(&key::manifest(name, digest)).await?;
        if deleted && self.is_empty(&key::manifests(name)).await? {
            self.delete(&key::repository(name)).await?;
            // A push in between has listed the repository before we did away with it.
            if !self.is_empty(&key::manifests(name)).await? {
                self.put(&key::repository(name), Bytes::new()).await?;
            }
        }
        Ok(deleted)
    }

    // Tags.

    pub(crate) async fn tag(&self, name: &RepositoryName, tag: &Tag) -> Result<Option<Descriptor>, StorageError> {
        let key = key::tag(name, tag);
        let Some(object) = self.get(&key).await? else { return Ok(None) };
        serde_json::from_slice(&object).map(Some).map_err(|e| StorageError::new("read", &key, e))
    }

    /// Points a tag at a manifest. The note for [`delete_manifest`](Self::delete_manifest) comes first: without its
    /// tag it does no harm.
    pub(crate) async fn put_tag(
        &self,
        name: &RepositoryName,
        tag: &Tag,
        manifest: &Descriptor,
    ) -> Result<(), StorageError> {
        self.put(&key::tagged_by(name, &manifest.digest, tag), Bytes::new()).await?;
        self.put(&key::tag(name, tag), to_json(manifest)).await
    }

    /// False when there was no such tag.
    pub(crate) async fn delete_tag(&self, name: &RepositoryName, tag: &Tag) -> Result<bool, StorageError> {
        let Some(manifest) = self.tag(name, tag).await? else { return Ok(false) };
        let deleted = self.delete(&key::tag(name, tag)).await?;
        self.delete(&key::tagged_by(name, &manifest.digest, tag)).await?;
        Ok(deleted)
    }

    /// The tags after `after`, sorted.
    pub(crate) async fn tags(&self, name: &RepositoryName, after: Option<&str>) -> Result<Vec<String>, StorageError> {
        self.leaves(&key::tags(name), after).await
    }

    // Referrers.

    pub(crate) async fn put_referrer(
        &self,
        name: &RepositoryName,
        subject: &Digest,
        referrer: &Descriptor,
    ) -> Result<(), StorageError> {
        self.put(&key::referrer(name, subject, &referrer.digest), to_json(referrer)).await
    }

    pub(crate) async fn delete_referrer(
        &self,
        name: &RepositoryName,
        subject: &Digest,
        digest: &Digest,
    ) -> Result<(), StorageError> {
        self.delete(&key::referrer(name, subject, digest)).await.map(|_| ())
    }

    /// Descriptors of the manifests that refer to `subject`, sorted by digest.
    pub(crate) async fn referrers(
        &self,
        name: &RepositoryName,
        subject: &Digest,
    ) -> Result<Vec<Descriptor>, StorageError> {
        let prefix = key::referrers(name, subject);
        let keys = self.keys(&prefix).await?;
        let read = |key: Path| async move {
            let Some(object) = self.get(&key).await? else { return Ok(None) };
            serde_json::from_slice(&object).map(Some).map_err(|e| StorageError::new("read", &key, e))
        };
        let descriptors = futures::stream::iter(keys).map(read).buffered(READS_IN_FLIGHT);
        let mut descriptors: Vec<Descriptor> = descriptors.try_filter_map(|d| async { Ok(d) }).try_collect().await?;
        descriptors.sort_by(|a, b| a.digest.cmp(&b.digest));
        Ok(descriptors)
    }

    // The catalog.

    /// Whether the repository holds a manifest.
    pub(crate) async fn has_repository(&self, name: &RepositoryName) -> Result<bool, StorageError> {
        self.exists(&key::repository(name)).await
    }

    /// Every repository that holds a manifest, sorted.
    pub(crate) async fn repositories(&self) -> Result<Vec<RepositoryName>, StorageError> {
        self.names_below(&key::catalog(), "/_repository").await
    }

    // Objects.

    async fn get(&self, key: &Path) -> Result<Option<Bytes>, StorageError> {
        let result = match self.bucket.get(key).await {
            Ok(found) => found.bytes().await,
            Err(error) => Err(error),
        };
        match result {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(StorageError::new("read", key, error)),
        }
    }

    async fn exists(&self, key: &Path) -> Result<bool, StorageError> {
        match self.bucket.head(key).await {
            Ok(_) => Ok(true),
            Err(error) if is_absent(&error) => Ok(false),
            Err(error) => Err(StorageError::new("read", key, error)),
        }
    }

    async fn put(&self, key: &Path, bytes: Bytes) -> Result<(), StorageError> {
        self.bucket.put(key, bytes.into()).await.map(|_| ()).map_err(|e| StorageError::new("write", key, e))
    }

    /// False when there was nothing. S3 does not say whether there was, so we look first.
    async fn delete(&self, key: &Path) -> Result<bool, StorageError> {
        if !self.exists(key).await? {
            return Ok(false);
        }
        match self.bucket.delete(key).await {
            Ok(()) => Ok(true),
            Err(error) if is_absent(&error) => Ok(false),
            Err(error) => Err(StorageError::new("delete", key, error)),
        }
    }

    async fn is_empty(&self, prefix: &Path) -> Result<bool, StorageError> {
        let first = self.bucket.list(Some(prefix)).next().await.transpose();
        first.map(|first| first.is_none()).map_err(|e| StorageError::new("list", prefix, e))
    }

    async fn keys(&self, prefix: &Path) -> Result<Vec<Path>, StorageError> {
        let keys = self.bucket.list(Some(prefix)).map_ok(|object| object.location).try_collect().await;
        keys.map_err(|e| StorageError::new("list", prefix, e))
    }

    /// The last components of the keys directly below `prefix` and after `after`, sorted bytewise.
    async fn leaves(&self, prefix: &Path, after: Option<&str>) -> Result<Vec<String>, StorageError> {
        // Only what is certainly not re-encoded on its way to a key can be left to the store.
        let offset = after.and_then(|after| after.parse::<Tag>().ok());
        let listing = match offset {
            Some(offset) => self.bucket.list_with_offset(Some(prefix), &prefix.clone().join(offset.as_str())),
            None => self.bucket.list(Some(prefix)),
        };
        let leaves = listing.map_ok(|object| object.location.filename().unwrap_or_default().to_string());
        let leaves: Vec<String> = leaves.try_collect().await.map_err(|e| StorageError::new("list", prefix, e))?;
        let mut leaves: Vec<String> =
            leaves.into_iter().filter(|leaf| after.is_none_or(|a| leaf.as_str() > a)).collect();
        leaves.sort_unstable();
        Ok(leaves)
    }

    /// The names between `prefix` and `suffix`, sorted.
    async fn names_below(&self, prefix: &Path, suffix: &str) -> Result<Vec<RepositoryName>, StorageError> {
        let name = |key: Path| {
            let rest = key.as_ref().strip_prefix(prefix.as_ref())?.strip_prefix('/')?.strip_suffix(suffix)?;
            rest.parse().ok()
        };
        let mut names: Vec<RepositoryName> = self.keys(prefix).await?.into_iter().filter_map(name).collect();
        names.sort();
        Ok(names)
    }
}

fn is_absent(error: &object_store::Error) -> bool {
    matches!(error, object_store::Error::NotFound { .. })
}

fn to_json(descriptor: &Descriptor) -> Bytes {
    serde_json::to_vec(descriptor).expect("a descriptor has only string keys").into()
}
