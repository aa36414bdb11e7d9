//! [`LayerCache`]: which layer an operation made, by what decides its result.

use std::path::Path;
use std::sync::Arc;

use cfc_oci::Digest;
use cfc_plan::{Op, Run};
use cfc_store::{Encoding, KeyLock, Store};
use serde::Serialize;

use crate::failure::{Failure, Result};
use crate::layer::Layer;
use crate::run::Running;
use crate::shared_cache::SharedCache;

/// Changes when the same operation would make another layer than before.
const VERSION: u32 = 3;

/// Finished layers by key.
pub(crate) struct LayerCache {
    store: Store,
    shared: Arc<SharedCache>,
    /// Whether what is known is used.
    reads: bool,
}

/// What decides the layer of an operation; serialised, its digest is the key.
#[derive(Serialize)]
struct Key<'a> {
    version: u32,
    mtime: i64,
    what: What<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
enum What<'a> {
    /// A layer with this content.
    Content(&'a Digest),
    /// A layer with this content that no image gets.
    Internal(&'a Digest),
    /// A program run on these layers, with those mounted.
    Run { run: &'a Run, base: Vec<&'a Digest>, mounted: Vec<Vec<&'a Digest>> },
    /// A `COPY` of this content on top of these layers.
    Copy { op: &'a Op, base: Vec<&'a Digest>, content: &'a Digest },
    /// An operation that reads these layers and changes those.
    Operation { op: &'a Op, base: Vec<&'a Digest>, source: Vec<&'a Digest> },
}

impl LayerCache {
    /// The cache in `store`. With `reads` false it only learns.
    pub(crate) fn new(store: Store, reads: bool, shared: Arc<SharedCache>) -> LayerCache {
        LayerCache { store, shared, reads }
    }

    /// Whether what is known is used.
    pub(crate) fn reads(&self) -> bool {
        self.reads
    }

    /// What others made, and may use.
    pub(crate) fn shared(&self) -> &SharedCache {
        &self.shared
    }

    /// The key of what a `COPY` from a context makes on top of `base`, where `content` is what it copies: for those who do
    /// not want to look into `base`.
    pub(crate) fn copy_key(op: &Op, base: &[Layer], content: &Digest, mtime: i64) -> String {
        key(What::Copy { op, base: diff_ids(base), content }, mtime)
    }

    /// The key of the layer with this content.
    pub(crate) fn content_key(content: &Digest, mtime: i64) -> String {
        key(What::Content(content), mtime)
    }

    /// The key of the layer with this content that only this builder uses.
    pub(crate) fn internal_key(content: &Digest, mtime: i64) -> String {
        key(What::Internal(content), mtime)
    }

    /// The key of `run` on top of `base`, with the layers of each filesystem that it mounts.
    pub(crate) fn run_key(run: &Run, base: &[Layer], mounted: &[&[Layer]], mtime: i64) -> String {
        let mounted = mounted.iter().map(|layers| diff_ids(layers)).collect();
        key(What::Run { run, base: diff_ids(base), mounted }, mtime)
    }

    /// The key of `op` on top of `base`, reading `source`.
    pub(crate) fn operation_key(op: &Op, base: &[Layer], source: &[Layer], mtime: i64) -> String {
        key(What::Operation { op, base: diff_ids(base), source: diff_ids(source) }, mtime)
    }

    /// The key of a layer in an encoding.
    pub(crate) fn encoding_key(diff_id: &Digest, encoding: Encoding) -> String {
        format!("layer-{}-{encoding}-{VERSION}", diff_id.hex())
    }

    /// The key of the layer that `op` made last for the context in `directory`.
    pub(crate) fn lineage_key(op: &Op, directory: &Path, encoding: Encoding) -> String {
        let bytes = serde_json::to_vec(&(VERSION, op, directory.as_os_str().as_encoded_bytes(), encoding));
        format!("lineage-{}", Digest::of(&bytes.expect("an operation has only string keys")).hex())
    }

    /// The layer that was made for `key`: here, if its blob is still there, or by others, whose blob may have to be brought.
    pub(crate) fn get(&self, key: &str) -> Result<Option<Layer>> {
        match self.get_own(key)? {
            Some(layer) => Ok(Some(layer)),
            None if self.reads => Ok(self.shared.find(key)),
            None => Ok(None),
        }
    }

    /// The layer that was made here for `key`, if its blob is still there.
    pub(crate) fn get_own(&self, key: &str) -> Result<Option<Layer>> {
        if !self.reads {
            return Ok(None);
        }
        let bytes = self.store.cache().get_to_use(key)?;
        let layer: Option<Layer> = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Ok(layer.filter(|layer| self.store.blobs().contains(&layer.blob.digest)))
    }

    /// What [`LayerCache::get`] gives, after waiting for another process that makes it just now; else the lock that keeps
    /// others waiting for us. Neither, when nothing is read.
    pub(crate) fn get_or_lock(&self, key: &str, running: &Running) -> Result<(Option<Layer>, Option<KeyLock>)> {
        let known = self.get(key)?;
        if known.is_some() || !self.reads {
            return Ok((known, None));
        }
        let lock = self.store.cache().lock(key, &|| !running.is_stopped())?;
        if lock.is_none() {
            return Err(Failure::new("the build was stopped while another made the same"));
        }
        Ok((self.get(key)?, lock))
    }

    /// Remembers `layer`.
    pub(crate) fn put(&self, key: &str, layer: &Layer) -> Result<()> {
        let bytes = serde_json::to_vec(layer).expect("a layer has only string keys");
        Ok(self.store.cache().put(key, &bytes)?)
    }
}

fn key(what: What<'_>, mtime: i64) -> String {
    let key = Key { version: VERSION, mtime, what };
    let bytes = serde_json::to_vec(&key).expect("a key has only string keys");
    format!("layer-{}", Digest::of(&bytes).hex())
}

fn diff_ids(layers: &[Layer]) -> Vec<&Digest> {
    layers.iter().map(|layer| &layer.diff_id).collect()
}
