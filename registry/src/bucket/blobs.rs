//! Finished blobs in a bucket: the [`BlobBackend`] half of [`BucketBackend`].
//!
//! Nobody may rely on content without a link to it that he has made young: a collection deletes links first, and content
//! only when it finds no link then. Who pushes content that no link leads to relies on what he has uploaded himself.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use cfc_oci::Digest;
use futures::StreamExt;
use uuid::Uuid;

use super::BucketBackend;
use super::store::Listed;
use crate::hash::ResumableHasher;
use crate::{BlobBackend, BlobStream, StorageError};

const BLOBS: &str = "registry/blobs/";
/// What a pointer's place says while content is being removed; sorts before all pointers.
const GOING: &str = "!going-";
/// How long whoever links content believes that it is going. Who is slower in removing it has died.
const GOING_FOR: Duration = Duration::from_secs(60 * 60);
const QUARANTINE: &str = "registry/quarantine/";
pub(super) const DATA: &str = "registry/data/";

/// Content smaller than this is not worth another request of the client.
const REDIRECTED_BYTES: u64 = 64 * 1024;
/// How long a pointer is believed without asking the store.
const BELIEVED_FOR: Duration = Duration::from_secs(30);
const MAX_BELIEVED: usize = 100_000;

/// Where the content of a blob is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pointer {
    pub data: Uuid,
    pub size: u64,
}

/// Pointers whose content was there a moment ago. Content never changes, and whoever asks for it has found a link to it,
/// so one that is out of date shows when it is followed.
#[derive(Default)]
pub(super) struct Pointers(Mutex<HashMap<Digest, Believed>>);

struct Believed {
    pointer: Pointer,
    read: Instant,
    /// We have put it ourselves, so it is too young to go.
    is_ours: bool,
}

impl Pointers {
    fn get(&self, digest: &Digest) -> Option<Pointer> {
        let pointers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pointers.get(digest).filter(|believed| believed.read.elapsed() < BELIEVED_FOR).map(|believed| believed.pointer)
    }

    fn is_ours(&self, digest: &Digest) -> bool {
        let pointers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pointers.get(digest).is_some_and(|believed| believed.is_ours && believed.read.elapsed() < BELIEVED_FOR)
    }

    fn put(&self, digest: &Digest, pointer: Pointer, is_ours: bool) {
        let mut pointers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if pointers.len() >= MAX_BELIEVED {
            pointers.clear();
        }
        pointers.insert(digest.clone(), Believed { pointer, read: Instant::now(), is_ours });
    }

    pub(super) fn forget(&self, digest: &Digest) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(digest);
    }
}

pub(super) fn data_key(data: Uuid) -> String {
    format!("{DATA}{data}")
}

fn pointers_key(digest: &Digest) -> String {
    format!("{BLOBS}{}/{}/", digest.algorithm().as_str(), digest.hex())
}

/// The pointer that the last part of a key is.
fn parse_pointer(key: &str) -> Option<Pointer> {
    let (data, size) = key.rsplit('/').next()?.rsplit_once('-')?;
    Some(Pointer { data: data.parse().ok()?, size: size.parse().ok()? })
}

/// The blob and its pointer, of a key below [`BLOBS`].
fn parse_blob(key: &str) -> Option<(Digest, Pointer)> {
    let mut parts = key.strip_prefix(BLOBS)?.split('/');
    let digest = format!("{}:{}", parts.next()?, parts.next()?).parse().ok()?;
    Some((digest, parse_pointer(key)?))
}

impl BucketBackend {
    /// Makes content a blob's.
    pub(super) async fn point(&self, digest: &Digest, pointer: Pointer) -> Result<(), StorageError> {
        let key = format!("{}{}-{}", pointers_key(digest), pointer.data, pointer.size);
        self.store.put(&key, bytes::Bytes::new()).await?;
        self.pointers.put(digest, pointer, true);
        Ok(())
    }

    async fn listed_pointers(&self, digest: &Digest) -> Result<Vec<Listed>, StorageError> {
        self.store.list(&pointers_key(digest)).await
    }

    async fn pointers_of(&self, digest: &Digest) -> Result<Vec<Pointer>, StorageError> {
        let listed = self.listed_pointers(digest).await?;
        Ok(listed.iter().filter_map(|listed| parse_pointer(&listed.key)).collect())
    }

    async fn is_sound(&self, pointer: Pointer) -> Result<bool, StorageError> {
        Ok(self.store.size(&data_key(pointer.data)).await? == Some(pointer.size))
    }

    /// A pointer whose content is there.
    async fn pointer(&self, digest: &Digest) -> Result<Option<Pointer>, StorageError> {
        if let Some(pointer) = self.pointers.get(digest) {
            return Ok(Some(pointer));
        }
        for pointer in self.pointers_of(digest).await? {
            if self.is_sound(pointer).await? {
                self.pointers.put(digest, pointer, false);
                return Ok(Some(pointer));
            }
        }
        Ok(None)
    }

    /// Whether the content is there, as the store tells it now. Pointers that lead nowhere are removed: content never
    /// comes back to where it was.
    pub(super) async fn has_content(&self, digest: &Digest) -> Result<bool, StorageError> {
        self.pointers.forget(digest);
        if self.pointer(digest).await?.is_some() {
            return Ok(true);
        }
        for listed in self.listed_pointers(digest).await? {
            let pointer = parse_pointer(&listed.key);
            if let Some(pointer) = pointer
                && self.store.size(&data_key(pointer.data)).await?.is_none()
            {
                tracing::error!(%digest, pointer = listed.key, "the content of a blob is gone");
                self.store.delete(&listed.key).await?;
            }
        }
        Ok(false)
    }

    /// Whether somebody is removing the content that was there before.
    pub(super) async fn is_going(&self, digest: &Digest) -> Result<bool, StorageError> {
        let is_young =
            |listed: &Listed| self.store.now().duration_since(listed.put).map_or(true, |age| age < GOING_FOR);
        let listed = self.listed_pointers(digest).await?;
        Ok(listed.iter().any(|listed| listed.key.contains(GOING) && is_young(listed)))
    }

    /// Does `follow` with where the content is, or may be.
    async fn followed<T, F: Future<Output = Result<Option<T>, StorageError>>>(
        &self,
        digest: &Digest,
        follow: impl Fn(Pointer) -> F,
    ) -> Result<Option<T>, StorageError> {
        if let Some(pointer) = self.pointers.get(digest) {
            if let Some(found) = follow(pointer).await? {
                return Ok(Some(found));
            }
            self.pointers.forget(digest);
        }
        for pointer in self.pointers_of(digest).await? {
            if let Some(found) = follow(pointer).await? {
                self.pointers.put(digest, pointer, false);
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The digest of the content, of which there may be several: that of the first that is other than it should be.
    async fn hash_content(&self, digest: &Digest) -> Result<Option<Digest>, StorageError> {
        let mut hashed = None;
        for pointer in self.pointers_of(digest).await? {
            hashed = self.hash_data(pointer, digest.algorithm()).await?.or(hashed);
            if hashed.as_ref().is_some_and(|hashed| hashed != digest) {
                break;
            }
        }
        Ok(hashed)
    }

    pub(super) async fn hash_data(
        &self,
        pointer: Pointer,
        algorithm: cfc_oci::Algorithm,
    ) -> Result<Option<Digest>, StorageError> {
        let opened = self.store.stream(&data_key(pointer.data), 0..pointer.size).await?;
        let Some(mut frames) = opened else { return Ok(None) };
        let mut hasher = ResumableHasher::new(algorithm);
        while let Some(frame) = frames.next().await {
            let frame = frame?;
            hasher = crate::files::blocking(move || {
                hasher.update(&frame);
                hasher
            })
            .await;
        }
        Ok(Some(hasher.finish()))
    }

    /// All content that something points at. Forgets what was said to be going before `cutoff`.
    pub(super) async fn pointed_at(&self, cutoff: SystemTime) -> Result<Vec<Uuid>, StorageError> {
        let mut listed = self.store.list(BLOBS).await?;
        let is_over = |listed: &&Listed| listed.put <= cutoff && listed.key.contains(GOING);
        self.store.delete_all(listed.iter().filter(is_over).map(|listed| listed.key.clone())).await?;
        listed.extend(self.store.list(QUARANTINE).await?);
        Ok(listed.iter().filter_map(|listed| parse_pointer(&listed.key)).map(|pointer| pointer.data).collect())
    }

    /// Takes every pointer to other content away, and every pointer to none.
    async fn move_to_quarantine(&self, digest: &Digest) -> Result<(), StorageError> {
        self.pointers.forget(digest);
        let directory = format!("{QUARANTINE}{}-{}", digest.algorithm().as_str(), digest.hex());
        for listed in self.listed_pointers(digest).await? {
            let Some(pointer) = parse_pointer(&listed.key) else { continue };
            let found = self.hash_data(pointer, digest.algorithm()).await?;
            if found.as_ref() == Some(digest) {
                continue;
            }
            if found.is_some() {
                let name = listed.key.rsplit('/').next().unwrap_or_default();
                self.store.put(&format!("{directory}/{name}"), bytes::Bytes::new()).await?;
            }
            self.store.delete(&listed.key).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl BlobBackend for BucketBackend {
    async fn stat(&self, digest: &Digest) -> Result<Option<u64>, StorageError> {
        Ok(self.pointer(digest).await?.map(|pointer| pointer.size))
    }

    async fn read(&self, digest: &Digest, range: Range<u64>) -> Result<Option<BlobStream>, StorageError> {
        let open = |pointer: Pointer| {
            let range = range.clone();
            async move { self.store.stream(&data_key(pointer.data), range).await }
        };
        self.followed(digest, open).await
    }

    fn remove_unless(
        &self,
        digest: &Digest,
        cutoff: SystemTime,
        is_wanted: &dyn Fn() -> Result<bool, StorageError>,
    ) -> Result<bool, StorageError> {
        let mut listed = self.store.wait(self.listed_pointers(digest))?;
        listed.retain(|listed| parse_pointer(&listed.key).is_some());
        if listed.is_empty() || listed.iter().any(|pointer| pointer.put > cutoff) || is_wanted()? {
            return Ok(false);
        }
        // Whoever links it from now on sees that it is going; who did so before is seen.
        let going = format!("{}{GOING}{}", pointers_key(digest), Uuid::new_v4());
        self.store.wait(self.store.put(&going, bytes::Bytes::new()))?;
        let is_wanted = is_wanted()?;
        self.pointers.forget(digest);
        self.store.wait(async {
            for pointer in listed.iter().filter(|_| !is_wanted) {
                self.store.delete(&pointer.key).await?;
                if let Some(Pointer { data, .. }) = parse_pointer(&pointer.key) {
                    self.store.delete(&data_key(data)).await?;
                }
            }
            self.store.delete(&going).await?;
            Ok(!is_wanted)
        })
    }

    async fn stays(&self, digest: &Digest) -> Result<bool, StorageError> {
        if self.pointers.is_ours(digest) {
            return Ok(true);
        }
        self.pointers.forget(digest);
        Ok(!self.is_going(digest).await? && self.pointer(digest).await?.is_some())
    }

    fn quarantine(&self, digest: &Digest) -> Result<(), StorageError> {
        self.store.wait(self.move_to_quarantine(digest))
    }

    fn list(&self) -> Result<Vec<(Digest, u64)>, StorageError> {
        let listed = self.store.wait(self.store.list(BLOBS))?;
        let blobs = listed.iter().filter_map(|listed| parse_blob(&listed.key));
        let blobs: BTreeMap<Digest, u64> = blobs.map(|(digest, pointer)| (digest, pointer.size)).collect();
        Ok(blobs.into_iter().collect())
    }

    fn has(&self, digest: &Digest) -> Result<bool, StorageError> {
        Ok(self.store.wait(self.listed_pointers(digest))?.iter().any(|listed| parse_pointer(&listed.key).is_some()))
    }

    fn hash(&self, digest: &Digest) -> Result<Option<Digest>, StorageError> {
        self.store.wait(self.hash_content(digest))
    }

    async fn url(&self, digest: &Digest) -> Result<Option<(String, Duration)>, StorageError> {
        let Some(lifetime) = self.redirect else { return Ok(None) };
        match self.pointer(digest).await? {
            Some(pointer) if pointer.size >= REDIRECTED_BYTES => {
                Ok(Some((self.store.url(&data_key(pointer.data), lifetime).await?, lifetime)))
            }
            _ => Ok(None),
        }
    }
}
