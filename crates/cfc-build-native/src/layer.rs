//! [`Layer`]: a finished layer of the store; [`LayerIndex`]: what one holds, known without unpacking it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use cfc_oci::{Descriptor, Digest};
use cfc_store::{Encoding, LayerBlob, Store};
use serde::{Deserialize, Serialize};

use crate::entry::{Entries, EntryKind};
use crate::failure::Result;
use crate::tree::{FileInfo, Kind};

/// A layer whose blob is in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layer {
    /// Digest of the uncompressed bytes.
    pub(crate) diff_id: Digest,
    /// The blob.
    pub(crate) blob: Descriptor,
    /// How it is encoded; none for one of an image, which stays as it came.
    #[serde(default = "usual")]
    pub(crate) encoding: Option<Encoding>,
}

/// That of layers which were made before there was a choice.
fn usual() -> Option<Encoding> {
    Some(Encoding::default())
}

impl Layer {
    /// One that was made here.
    pub(crate) fn made(blob: LayerBlob, encoding: Encoding) -> Layer {
        Layer { diff_id: blob.diff_id, blob: blob.descriptor, encoding: Some(encoding) }
    }

    /// Remembers that this layer was copied rather than made by a program, here or on another machine. The record names
    /// the layer, so that it is pruned with it.
    pub(crate) fn note_copied(&self, store: &Store) -> Result<()> {
        let key = copied_key(&self.diff_id);
        if store.cache().get(&key)?.is_some() {
            return Ok(());
        }
        let bytes = serde_json::to_vec(self).expect("a layer has only string keys");
        Ok(store.cache().put(&key, &bytes)?)
    }

    /// Whether it was copied. That is also known of what was copied before that was noted.
    pub(crate) fn is_copied(&self, store: &Store) -> Result<bool> {
        let cache = store.cache();
        Ok(cache.get(&copied_key(&self.diff_id))?.is_some() || cache.get(&key(&self.diff_id))?.is_some())
    }
}

/// The names in a layer that `COPY` made and what they are, so that the next `COPY` need not unpack it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct LayerIndex {
    names: HashMap<PathBuf, IndexedFile>,
}

#[derive(Debug, Serialize, Deserialize)]
struct IndexedFile {
    kind: IndexedKind,
    mode: u32,
    uid: u32,
    gid: u32,
}

#[derive(Debug, Serialize, Deserialize)]
enum IndexedKind {
    #[serde(rename = "d")]
    Directory,
    #[serde(rename = "l")]
    Symlink(PathBuf),
    #[serde(rename = "f")]
    Other,
}

impl LayerIndex {
    /// The index of a layer that consists of `entries`.
    pub(crate) fn of(entries: &Entries) -> LayerIndex {
        let indexed = |kind: &EntryKind| match kind {
            EntryKind::Directory => IndexedKind::Directory,
            EntryKind::Symlink(target) => IndexedKind::Symlink(target.clone()),
            _ => IndexedKind::Other,
        };
        let names = entries.iter().map(|(path, entry)| {
            let file = IndexedFile { kind: indexed(&entry.kind), mode: entry.mode, uid: entry.uid, gid: entry.gid };
            (path.clone(), file)
        });
        LayerIndex { names: names.collect() }
    }

    /// What `path` is in this layer.
    pub(crate) fn lookup(&self, path: &Path) -> Option<FileInfo> {
        let file = self.names.get(path)?;
        let kind = match &file.kind {
            IndexedKind::Directory => Kind::Directory,
            IndexedKind::Symlink(target) => Kind::Symlink(target.clone()),
            IndexedKind::Other => Kind::File,
        };
        Some(FileInfo { kind, ..FileInfo::directory(file.mode, file.uid, file.gid) })
    }

    /// Remembers the index of the layer `diff_id`. Names that are no text cannot be remembered: such a layer is
    /// unpacked when somebody asks.
    pub(crate) fn save(&self, store: &Store, diff_id: &Digest) -> Result<()> {
        let Ok(bytes) = serde_json::to_vec(self) else { return Ok(()) };
        Ok(store.cache().put(&key(diff_id), &bytes)?)
    }

    /// The index of the layer `diff_id`, when it is remembered.
    pub(crate) fn load(store: &Store, diff_id: &Digest) -> Result<Option<LayerIndex>> {
        let bytes = store.cache().get(&key(diff_id))?;
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }
}

fn copied_key(diff_id: &Digest) -> String {
    format!("layer-copied-{}", diff_id.hex())
}

fn key(diff_id: &Digest) -> String {
    format!("layer-index-{}", diff_id.hex())
}
