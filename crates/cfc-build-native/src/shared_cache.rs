//! What builds of other machines made: records of keys and layers that an import brings and an export takes.
//!
//! A record is believed as an image is: who imports from a place trusts what is there. What it names is verified, though:
//! a blob by its digest and size when it is brought, and that it holds the layer it is said to hold.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cfc_oci::{Descriptor, Digest};
use cfc_store::{Encoding, Store};
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, Result};
use crate::layer::Layer;

/// The media type of a shared cache's records, which are the config of its manifest.
pub const CACHE_CONFIG_TYPE: &str = "application/vnd.cfc.buildcache.config.v1+json";
/// The annotation of an image's manifest that holds the records of its own layers. Not in the config: that is what
/// identifies an image to Docker, and it should not change with how the image was built.
pub const INLINE_ANNOTATION: &str = "dev.cfc.buildcache.v1";
const VERSION: u32 = 1;
/// More operations than any Dockerfile has.
const MAX_RECORDS: usize = 100_000;

/// Layers by the keys of the operations that make them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheRecords {
    version: u32,
    layers: BTreeMap<String, Layer>,
}

impl CacheRecords {
    /// Reads what [`CacheRecords::to_bytes`] wrote; the text says why it is something else.
    pub fn parse(bytes: &[u8]) -> std::result::Result<CacheRecords, String> {
        let records: CacheRecords =
            serde_json::from_slice(bytes).map_err(|error| format!("its records are malformed: {error}"))?;
        match records.version {
            VERSION if records.layers.len() <= MAX_RECORDS => Ok(records),
            VERSION => Err(format!("it has more than {MAX_RECORDS} records")),
            other => Err(format!("its records have the version {other}, and this cfc reads {VERSION}")),
        }
    }

    /// As JSON; the same records give the same bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("records have only string keys")
    }

    pub(crate) fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.layers.values()
    }

    /// These and those of `others`, of builds for other platforms say: the key of a layer says all that it depends on.
    pub fn merged(mut self, others: CacheRecords) -> CacheRecords {
        self.layers.extend(others.layers);
        self
    }

    /// The same with the layers in `encoding`, of which the store then has the blobs; those that did not come of a step here
    /// only when `all` is set. The text says why not.
    pub fn encoded(
        mut self,
        store: &Store,
        encoding: Encoding,
        all: bool,
    ) -> std::result::Result<CacheRecords, cfc_store::StoreError> {
        // A layer may have several keys.
        let mut done: BTreeMap<Digest, Layer> = BTreeMap::new();
        for layer in self.layers.values_mut() {
            let stays = layer.encoding.map_or(!all, |known| known == encoding);
            if stays {
                continue;
            }
            let known = done.get(&layer.diff_id).cloned();
            let encoded = match known {
                Some(known) => known,
                None => Layer::made(store.encode_layer(&layer.diff_id, &layer.blob, encoding)?, encoding),
            };
            done.insert(layer.diff_id.clone(), encoded.clone());
            *layer = encoded;
        }
        Ok(self)
    }

    /// The blobs that are named, each once.
    pub fn blobs(&self) -> Vec<Descriptor> {
        let mut seen = BTreeSet::new();
        let blobs = self.layers.values().map(|layer| &layer.blob);
        blobs.filter(|blob| seen.insert(blob.digest.clone())).cloned().collect()
    }
}

/// A place where another build's records and layers are.
pub trait CacheSource: Send + Sync {
    /// What it is called in messages.
    fn name(&self) -> &str;
    /// Its records.
    fn records(&self) -> &CacheRecords;
    /// Brings a blob into the store, verified by digest and size. The text says why it cannot.
    fn fetch(&self, store: &Store, blob: &Descriptor) -> std::result::Result<(), String>;
}

/// What a build may use of others', and what others may use of it.
#[derive(Default)]
pub(crate) struct SharedCache {
    sources: Vec<Box<dyn CacheSource>>,
    /// A source did not keep what it promised: none is asked any more.
    is_broken: AtomicBool,
    learned: Mutex<BTreeMap<String, Layer>>,
    /// The layers that records gave and nobody has looked at: their diff ids, and the digests of their blobs.
    doubtful: Mutex<BTreeSet<(Digest, Digest)>>,
    /// Whether somebody wants to know what was learned.
    is_exported: bool,
}

impl SharedCache {
    pub(crate) fn new(sources: Vec<Box<dyn CacheSource>>, is_exported: bool) -> SharedCache {
        SharedCache { sources, is_exported, ..SharedCache::default() }
    }

    /// Whether there is anybody to share with.
    pub(crate) fn is_used(&self) -> bool {
        self.is_exported || !self.sources.is_empty()
    }

    /// The layer that another build made for `key`. Its blob may have to be brought.
    pub(crate) fn find(&self, key: &str) -> Option<Layer> {
        if self.is_broken.load(Ordering::Relaxed) {
            return None;
        }
        let layer = self.sources.iter().find_map(|source| source.records().layers.get(key)).cloned()?;
        lock(&self.doubtful).insert(pair(&layer));
        Some(layer)
    }

    /// Whether only another's record says that the blob of `layer` holds it.
    pub(crate) fn is_doubtful(&self, layer: &Layer) -> bool {
        lock(&self.doubtful).contains(&pair(layer))
    }

    /// Notes which layer belongs to `key`.
    pub(crate) fn learn(&self, key: &str, layer: &Layer) {
        if self.is_exported {
            lock(&self.learned).insert(key.to_string(), layer.clone());
        }
    }

    /// What was learned; of `only`, if given, and then as these layers are encoded.
    pub(crate) fn records(&self, only: Option<&[Layer]>) -> CacheRecords {
        let mut layers = lock(&self.learned).clone();
        if let Some(only) = only {
            let of = |diff_id: &Digest| only.iter().find(|layer| layer.diff_id == *diff_id).cloned();
            layers = layers.into_iter().filter_map(|(key, layer)| Some((key, of(&layer.diff_id)?))).collect();
        }
        CacheRecords { version: VERSION, layers }
    }

    /// Brings the blobs of `layers` that the store lacks, and looks once whether they hold what records say, also those that
    /// were there.
    pub(crate) fn fetch<'l>(&self, store: &Store, layers: impl IntoIterator<Item = &'l Layer>) -> Result<()> {
        layers.into_iter().try_for_each(|layer| self.fetch_one(store, layer))
    }

    fn fetch_one(&self, store: &Store, layer: &Layer) -> Result<()> {
        let is_here = store.blobs().contains(&layer.blob.digest);
        if self.sources.is_empty() || (is_here && !self.is_doubtful(layer)) {
            return Ok(());
        }
        let has_it = |source: &dyn CacheSource| {
            source.records().layers.values().any(|other| other.blob.digest == layer.blob.digest)
        };
        // Whoever has no record of it is not asked; the error is told when it is missed.
        let Some(source) = self.sources.iter().find(|source| has_it(source.as_ref())) else { return Ok(()) };
        let failed = |why: String| {
            self.is_broken.store(true, Ordering::Relaxed);
            Failure::new(format!("the cache `{}` does not give the layer `{}`: {why}", source.name(), layer.diff_id))
        };
        if !is_here {
            source.fetch(store, &layer.blob).map_err(failed)?;
        }
        let held = held(store, &layer.blob)?;
        if held != layer.diff_id {
            return Err(failed(format!("its blob `{}` holds `{held}`", layer.blob.digest)));
        }
        lock(&self.doubtful).remove(&pair(layer));
        Ok(())
    }

    /// Whether a source failed, so that a second attempt without them may succeed.
    pub(crate) fn is_broken(&self) -> bool {
        self.is_broken.load(Ordering::Relaxed)
    }
}

/// The layer that `blob` holds. Who has unpacked it once remembers it, in a record that is pruned with the layer.
fn held(store: &Store, blob: &Descriptor) -> Result<Digest> {
    let key = format!("layer-held-{}", blob.digest.hex());
    let known = store.cache().get(&key)?.and_then(|bytes| serde_json::from_slice::<Layer>(&bytes).ok());
    if let Some(known) = known.filter(|known| known.blob.digest == blob.digest) {
        return Ok(known.diff_id);
    }
    let diff_id = store.diff_id_of(&blob.digest)?;
    let layer = Layer { diff_id, blob: blob.clone(), encoding: None };
    store.cache().put(&key, &serde_json::to_vec(&layer).expect("a layer has only string keys"))?;
    Ok(layer.diff_id)
}

fn pair(layer: &Layer) -> (Digest, Digest) {
    (layer.diff_id.clone(), layer.blob.digest.clone())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_record_is_refused_with_the_reason() {
        let reason = |text: &str| CacheRecords::parse(text.as_bytes()).expect_err(text);
        assert!(reason("[]").contains("malformed"));
        assert!(reason(r#"{"version":9,"layers":{}}"#).contains("version 9"));
        let empty = CacheRecords { version: VERSION, ..CacheRecords::default() };
        assert_eq!(CacheRecords::parse(&empty.to_bytes()), Ok(empty));
    }
}
