//! [`StoreImages`]: base images that are in the store already.

use cfc_oci::Platform;
use cfc_plan::{BaseImage, BaseImageError, BaseImages};
use cfc_store::Store;

/// Finds base images in the store, and nowhere else.
pub struct StoreImages {
    store: Store,
}

impl StoreImages {
    /// The images of `store`.
    pub fn new(store: Store) -> StoreImages {
        StoreImages { store }
    }
}

impl BaseImages for StoreImages {
    fn find(&self, reference: &str, platform: &Platform) -> Result<BaseImage, BaseImageError> {
        let _ = (reference, platform, &self.store);
        todo!()
    }
}
