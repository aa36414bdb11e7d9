//! [`Live`]: what of a store somebody needs.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use cfc_oci::{Descriptor, Digest};
use serde::Deserialize;

use crate::Result;
use crate::error::Context;
use crate::image::ImageStore;
use crate::uses::Used;

/// Indexes in indexes.
const MAX_DEPTH: usize = 4;
/// Far above any honest manifest or config.
const MAX_JSON_BYTES: u64 = 64 << 20;

/// What an image consists of, or several.
#[derive(Clone, Debug, Default)]
pub(super) struct Parts {
    pub(super) blobs: HashSet<Digest>,
    /// Diff ids.
    pub(super) layers: HashSet<Digest>,
}

/// What somebody needs. To be taken with the store's lock held exclusively.
#[derive(Debug)]
pub(super) struct Live {
    /// What processes noted.
    pub(super) used_blobs: HashSet<Digest>,
    /// Unpacked layers that processes noted, and those of images that the platform keeps.
    pub(super) used_layers: HashSet<Digest>,
    /// Layers of images that the platform keeps: those stay unpacked, too.
    pub(super) kept_layers: HashSet<Digest>,
    /// What stays in any case: images that the platform keeps, and those with a name that no registry has.
    pub(super) pinned: Parts,
    /// The same, with what all names name that are left.
    pub(super) named: Parts,
    /// Pulled images, by where their names are recorded; empty where those are as good as others.
    pulled: BTreeMap<PathBuf, Descriptor>,
}

impl Live {
    /// `used` is what processes noted. Unless `all`, the names of pulled images are as good as others.
    pub(super) fn of(root: &Path, used: HashSet<Used>, all: bool) -> Result<Live> {
        let (mut used_blobs, mut used_layers) = (HashSet::new(), HashSet::new());
        for used in used {
            match used {
                Used::Blob(digest) => used_blobs.insert(digest),
                Used::Layer(diff_id) => used_layers.insert(diff_id),
            };
        }
        let mut pinned = Parts::default();
        for image in ImageStore::kept(root)? {
            pinned.add(root, &image.digest, MAX_DEPTH)?;
        }
        let kept_layers = pinned.layers.clone();
        used_layers.extend(kept_layers.iter().cloned());
        let mut pulled = BTreeMap::new();
        for name in ImageStore::names(root)? {
            match name.pulled && all {
                true => drop(pulled.insert(name.path, name.manifest)),
                false => pinned.add(root, &name.manifest.digest, MAX_DEPTH)?,
            }
        }
        let mut live = Live { used_blobs, used_layers, kept_layers, named: pinned.clone(), pinned, pulled };
        live.name_again(root)?;
        Ok(live)
    }

    /// Whether at `path` a name of `image` is recorded, which was pulled.
    pub(super) fn is_pulled(&self, path: &Path, image: &Descriptor) -> bool {
        self.pulled.get(path).is_some_and(|pulled| pulled.digest == image.digest)
    }

    /// The pulled image whose name is recorded at `path` has it no more.
    pub(super) fn forget_name(&mut self, root: &Path, path: &Path) -> Result<()> {
        self.pulled.remove(path);
        self.name_again(root)
    }

    fn name_again(&mut self, root: &Path) -> Result<()> {
        self.named = self.pinned.clone();
        for image in self.pulled.values() {
            self.named.add(root, &image.digest, MAX_DEPTH)?;
        }
        Ok(())
    }
}

/// A manifest, an index or a config, as far as it matters here.
#[derive(Default, Deserialize)]
struct Document {
    #[serde(default)]
    manifests: Vec<Named>,
    config: Option<Named>,
    #[serde(default)]
    layers: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    digest: Digest,
}

#[derive(Default, Deserialize)]
struct Config {
    #[serde(default)]
    rootfs: RootFilesystem,
}

#[derive(Default, Deserialize)]
struct RootFilesystem {
    #[serde(default)]
    diff_ids: Vec<Digest>,
}

impl Parts {
    /// Adds the manifest or index `digest` and what it names.
    pub(super) fn add(&mut self, root: &Path, digest: &Digest, depth: usize) -> Result<()> {
        if !self.blobs.insert(digest.clone()) || depth == 0 {
            return Ok(());
        }
        let document: Document = read(root, digest)?.unwrap_or_default();
        for manifest in &document.manifests {
            self.add(root, &manifest.digest, depth - 1)?;
        }
        self.blobs.extend(document.layers.into_iter().map(|layer| layer.digest));
        if let Some(config) = document.config {
            let config_digest = config.digest;
            let config: Config = read(root, &config_digest)?.unwrap_or_default();
            self.layers.extend(config.rootfs.diff_ids);
            self.blobs.insert(config_digest);
        }
        Ok(())
    }
}

/// The small blob `digest`; none when it is not there or something else.
pub(super) fn read<T: for<'de> Deserialize<'de>>(root: &Path, digest: &Digest) -> Result<Option<T>> {
    let path = root.join("blobs").join(digest.algorithm().as_str()).join(digest.hex());
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).on("open", &path),
    };
    let mut bytes = Vec::new();
    file.take(MAX_JSON_BYTES).read_to_end(&mut bytes).on("read", &path)?;
    Ok(serde_json::from_slice(&bytes).ok())
}
