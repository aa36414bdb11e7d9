//! [`PreparedImages`]: what starts need of images, read once.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use cfc_oci::{ContainerConfig, Descriptor, Digest};
use cfc_sandbox::ResolvedUser;
use cfc_store::Store;

use crate::error::RuntimeErrorKind;

/// How many images are remembered: those that were started last.
const REMEMBERED: usize = 32;

/// An image as far as a start needs it.
pub(crate) struct PreparedImage {
    pub config: ContainerConfig,
    /// The directories of its layers, topmost first.
    pub lowers: Vec<PathBuf>,
    /// Who `config.user` is in it.
    pub user: ResolvedUser,
}

impl PreparedImage {
    /// Reads the image, and unpacks what of it is not unpacked.
    pub fn of(store: &Store, image: &Descriptor) -> Result<PreparedImage, RuntimeErrorKind> {
        let image = store.images().load(image)?;
        let lowers = store.unpack_image(&image)?;
        let config = image.config.config;
        let user = cfc_sandbox::resolve_user(&lowers, &config.user)?;
        Ok(PreparedImage { config, lowers, user })
    }
}

/// The images that were started last. An image never changes, since its digest names it; but its layers may be gone.
#[derive(Default)]
pub(crate) struct PreparedImages(Mutex<Vec<(Digest, Arc<PreparedImage>)>>);

impl PreparedImages {
    /// The image, read now unless it is remembered and its layers are there.
    pub fn get(&self, store: &Store, image: &Descriptor) -> Result<Arc<PreparedImage>, RuntimeErrorKind> {
        let known = self.recall(&image.digest).filter(|known| known.lowers.iter().all(|lower| lower.is_dir()));
        let prepared = match known {
            Some(known) => known,
            None => Arc::new(PreparedImage::of(store, image)?),
        };
        let mut images = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        images.retain(|(digest, _)| *digest != image.digest);
        images.push((image.digest.clone(), prepared.clone()));
        let surplus = images.len().saturating_sub(REMEMBERED);
        images.drain(..surplus);
        Ok(prepared)
    }

    fn recall(&self, digest: &Digest) -> Option<Arc<PreparedImage>> {
        let images = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        images.iter().find(|(known, _)| known == digest).map(|(_, image)| image.clone())
    }
}
