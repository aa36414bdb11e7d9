//! The registry in an S3 bucket, shared by as many processes as one likes, with nothing between them but the bucket.
//!
//! ```text
//! registry/blobs/<alg>/<hex>/<data>-<size>       empty: where the content of the blob is
//! registry/blobs/<alg>/<hex>/!going-<id>         empty: somebody is removing all pointers that he has seen before
//! registry/data/<data>                           content; complete, never changed, and never there again once it is gone
//! registry/uploads/<upload>/<number>             how far an upload got; the highest number wins, others are empty; when
//!                                                it is empty, too, the upload is over
//! registry/quarantine/<alg>-<hex>/<data>-<size>  a pointer whose content turned out to be other
//! registry/token-key                             what tokens are signed with
//! registry/_format/<number>                      who was the first to store things by these rules; the highest holds
//! registry/…                                     objects of metadata, under their keys
//! <key of a kept object>/!<version>              the object; any of its versions will do
//! <key of a kept object>/!<version>.<id>         the same, made young
//! <key of a kept object>/!new-<id>               somebody is about to do that
//! <key of a kept object>/!gone-<version>         it was deleted, and whatever is made of it is, too
//! <key of a tag>!<version>                       the tag; the last of its versions is what is there
//! ```
//!
//! It asks one thing of the store beyond strong consistency: `If-None-Match: *`, of which at most one process is told
//! that its object is the first. Nothing relies on `If-Match`, nor on conditions when a multipart upload completes.
//! Whatever garbage collection removes has a name of its own that is never used again, so a removal that comes late hits
//! nothing new. How that makes up for locks is in `kept.rs` and `lists.rs`; no copy is ever made of what was uploaded.

mod blobs;
mod format;
mod kept;
mod lists;
mod location;
mod memory;
mod multiparts;
mod objects;
mod owners;
mod parts;
mod probe;
mod session;
mod store;
mod tail;
mod upload;

use std::sync::Arc;
use std::time::Duration;

use crate::StorageError;

pub(crate) use format::UnknownFormat;
pub use location::{BucketError, BucketKeys, BucketLocation, EndpointError, check_endpoint};
use memory::Memory;
pub(crate) use objects::BucketObjects;
use store::Store;

const TOKEN_KEY: &str = "registry/token-key";

impl BucketLocation {
    /// The key with which all registries of this bucket sign their tokens, 64 hexadecimal digits: in the bucket, made by
    /// whoever is the first there.
    pub async fn token_key(&self) -> Result<String, StorageError> {
        let store = Store::open(self)?;
        store.require_credentials(self).await?;
        loop {
            if let Some(bytes) = store.get(TOKEN_KEY).await? {
                return Ok(String::from_utf8_lossy(&bytes).into_owned());
            }
            let key = format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
            store.create(TOKEN_KEY, key).await?;
        }
    }
}

/// How long what is in a bucket counts, by the store's clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Periods {
    /// An object that somebody relies on and that was not touched for this long is touched.
    pub refresh: Duration,
    /// How long it is known at least that something was removed. Longer than a request can be under way to the store.
    pub remembered: Duration,
}

/// The parts of a registry that are in a bucket.
pub(crate) struct Bucket {
    pub objects: Arc<BucketObjects>,
    pub blobs: Arc<BucketBackend>,
}

/// Blobs and uploads in a bucket.
pub(crate) struct BucketBackend {
    store: Arc<Store>,
    objects: Arc<BucketObjects>,
    pointers: blobs::Pointers,
    /// What uploads hold until it is in the bucket.
    memory: Arc<Memory>,
    /// For how long clients may fetch content from the store itself; `None` when they get it from us.
    redirect: Option<Duration>,
}

impl Bucket {
    /// Opens the bucket. Uploads hold `upload_memory` bytes at most until those are in the bucket.
    ///
    /// # Errors
    /// When the store cannot be used, and when a later version of the registry stores things here in another way.
    pub(crate) async fn open(
        location: &BucketLocation,
        periods: Periods,
        upload_memory: u64,
    ) -> Result<Bucket, StorageError> {
        let store = Arc::new(Store::open(location)?);
        store.require_credentials(location).await?;
        let objects = Arc::new(BucketObjects::new(store.clone(), periods));
        objects.format.require_known(&store).await?;
        store.read_clock().await?;
        let redirect = location.redirect;
        let (pointers, memory) = (blobs::Pointers::default(), Arc::new(Memory::new(upload_memory)));
        let blobs = BucketBackend { store, objects: objects.clone(), pointers, memory, redirect };
        Ok(Bucket { objects, blobs: Arc::new(blobs) })
    }

    /// Fails when the store's lists are late, and when it lets more than one process be the first, unless the location
    /// says that there is only one. Then says by which rules things are stored here from now on.
    pub(crate) async fn require_fit(&self, location: &BucketLocation) -> Result<(), StorageError> {
        let (store, other) = (&self.blobs.store, Store::open(location)?);
        let race = async {
            match location.single_replica {
                true => Ok(()),
                false => probe::race(store).await,
            }
        };
        // Both to their end: neither leaves anything behind.
        let (lists, race) = futures::join!(probe::compare_lists(store, &other), race);
        lists.and(race)?;
        self.objects.format.mark(store).await
    }
}
