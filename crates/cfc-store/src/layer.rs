//! [`LayerStore`]: unpacked layers by diff id.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use cfc_oci::{Descriptor, Digest};

use crate::error::Context;
use crate::uses::Used;
use crate::{Image, Result, Store, StoreError, StoreErrorKind, UnpackLimits, unpack_layer};

/// overlayfs takes no more lower directories.
const MAX_LAYERS: usize = 500;

/// Unpacked layers, in the form that overlayfs wants below each other. They are made whole by a rename, which survives
/// a crash of any process; their files are not synced one by one, so after a power cut remove `layers/` and let them be
/// unpacked again from the blobs, which are.
#[derive(Clone, Debug)]
pub struct LayerStore {
    store: Store,
}

impl LayerStore {
    pub(crate) fn new(store: Store) -> LayerStore {
        LayerStore { store }
    }

    /// Where the layer is, or would be.
    pub fn path(&self, diff_id: &Digest) -> PathBuf {
        self.store.root().join("layers").join(format!("{}-{}", diff_id.algorithm().as_str(), diff_id.hex()))
    }

    /// Whether the layer is there; if so, it is whole, and stays for as long as this process lives.
    pub fn contains(&self, diff_id: &Digest) -> bool {
        self.find(diff_id).unwrap_or_else(|error| {
            tracing::debug!(%diff_id, %error, "taken for missing");
            false
        })
    }

    fn find(&self, diff_id: &Digest) -> Result<bool> {
        self.store.finds(Used::Layer(diff_id.clone()), &self.path(diff_id))
    }

    /// Unpacks `blob`, a layer of the blob store in any compression, unless it is there already. Bytes whose digest is
    /// not `diff_id`, and archives that reach out of their layer, are refused and leave nothing behind.
    pub fn unpack(&self, diff_id: &Digest, blob: &Descriptor) -> Result<PathBuf> {
        self.unpack_within(diff_id, blob, &UnpackLimits::default())
    }

    /// As [`LayerStore::unpack`], with bounds of the caller's.
    pub fn unpack_within(&self, diff_id: &Digest, blob: &Descriptor, limits: &UnpackLimits) -> Result<PathBuf> {
        let target = self.path(diff_id);
        if self.find(diff_id)? {
            return Ok(target);
        }
        let temporary = self.store.temp_dir()?;
        let root = temporary.path().join("layer");
        fs::create_dir(&root).on("make the directory", &root)?;
        self.unpack_to(&root, diff_id, blob, limits)?;
        self.adopt_directory(diff_id, root)
    }

    /// As [`LayerStore::unpack`], into `directory`, which is empty and the caller's.
    pub fn unpack_into(&self, directory: &Path, diff_id: &Digest, blob: &Descriptor) -> Result<()> {
        self.unpack_to(directory, diff_id, blob, &UnpackLimits::default())
    }

    fn unpack_to(&self, root: &Path, diff_id: &Digest, blob: &Descriptor, limits: &UnpackLimits) -> Result<()> {
        let subject = || format!("cannot unpack layer `{}`", blob.digest);
        let compressed = self.store.blobs().open(&blob.digest)?;
        let compressed_size = compressed.metadata().context(subject)?.len();
        let free = rustix::fs::fstatvfs(&compressed).context(subject)?;
        let limits = limits.lowered_for(compressed_size, free.f_bavail.saturating_mul(free.f_frsize));
        let actual = unpack_layer(compressed, root, diff_id.algorithm(), &limits)
            .map_err(|kind| StoreError::new(subject(), kind))?;
        if actual != *diff_id {
            let kind = StoreErrorKind::DigestMismatch { expected: diff_id.clone(), actual };
            return Err(StoreError::new(format!("{}, uncompressed", subject()), kind));
        }
        Ok(())
    }

    /// Takes in `directory`, a finished unpacked layer on the store's file system, by renaming it. When another process
    /// was faster, its layer stays and `directory` is left to the caller (who made it below [`Store::temp_dir`]).
    pub fn adopt_directory(&self, diff_id: &Digest, directory: PathBuf) -> Result<PathBuf> {
        let target = self.path(diff_id);
        let guard = self.store.uses().guard()?;
        self.store.uses().note(&guard, Used::Layer(diff_id.clone()))?;
        match fs::rename(&directory, &target) {
            Ok(()) => Ok(target),
            Err(error) if is_taken(&error) => Ok(target),
            Err(error) => Err(error).context(|| format!("cannot take in the layer `{}`", directory.display())),
        }
    }
}

/// A rename onto a directory that has something in it. One onto an empty directory succeeds, which is as good: then
/// both are the same empty layer.
fn is_taken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists)
}

impl Store {
    /// Unpacks what is missing of `image` and returns its layers' directories, topmost first, as overlayfs takes them.
    /// Of a layer that occurs twice only the upper occurrence is returned (the lower one cannot be seen, and overlayfs
    /// refuses duplicates); an image without layers gives one empty directory.
    pub fn unpack_image(&self, image: &Image) -> Result<Vec<PathBuf>> {
        let subject = || format!("cannot unpack image `{}`", image.descriptor.digest);
        let layers = &image.manifest.layers;
        let diff_ids = &image.config.rootfs.diff_ids;
        if layers.len() != diff_ids.len() {
            let text = format!("its manifest has {} layers, its config {}", layers.len(), diff_ids.len());
            return Err(StoreError::new(subject(), StoreErrorKind::Malformed(text)));
        }
        if layers.len() > MAX_LAYERS {
            let text = format!("it has {} layers, more than the {MAX_LAYERS} that overlayfs takes", layers.len());
            return Err(StoreError::new(subject(), StoreErrorKind::Limit(text)));
        }
        let mut directories: Vec<PathBuf> = Vec::with_capacity(layers.len());
        for (diff_id, blob) in diff_ids.iter().zip(layers).rev() {
            let directory = self.layers().unpack(diff_id, blob)?;
            if !directories.contains(&directory) {
                directories.push(directory);
            }
        }
        if directories.is_empty() {
            directories.push(self.empty_layer());
        }
        Ok(directories)
    }

    /// A directory that is always empty.
    fn empty_layer(&self) -> PathBuf {
        Path::join(self.root(), "empty")
    }
}
