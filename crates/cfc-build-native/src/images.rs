//! [`StoreImages`]: base images that are in the store already.

use cfc_oci::{Descriptor, Digest, ImageConfig, Platform, Reference, media_type};
use cfc_plan::{BaseImage, BaseImageError, BaseImages};
use cfc_store::Store;

/// Finds base images in the store, and nowhere else. A caller with a registry asks this one first.
#[derive(Clone, Debug)]
pub struct StoreImages {
    store: Store,
}

impl StoreImages {
    /// The images of `store`.
    pub fn new(store: Store) -> StoreImages {
        StoreImages { store }
    }

    /// The image called `reference` for `platform`; none when the store knows no such reference.
    pub fn find_in_store(&self, reference: &str, platform: &Platform) -> Result<Option<BaseImage>, BaseImageError> {
        let failed = |message: String, source: Box<dyn std::error::Error + Send + Sync>| BaseImageError {
            message,
            hint: None,
            source: Some(source),
        };
        let parsed = Reference::parse(reference)
            .map_err(|error| failed("the reference is malformed".to_string(), Box::new(error)))?;
        let unreadable = |error: cfc_store::StoreError| failed(error.subject.clone(), Box::new(error.kind));
        let images = self.store.images();
        let Some(descriptor) = images.resolve(&parsed).map_err(unreadable)? else { return Ok(None) };
        let image = images.load_for(&descriptor, platform).map_err(unreadable)?;
        Ok(Some(BaseImage { manifest: image.descriptor, config: image.config }))
    }
}

/// Knows what the store knows, and takes every other image for one without a config: for those who ask about a Dockerfile
/// and build nothing, which must not take a download.
#[derive(Clone, Debug)]
pub struct KnownImages(pub StoreImages);

impl BaseImages for KnownImages {
    fn find(&self, reference: &str, platform: &Platform) -> Result<BaseImage, BaseImageError> {
        // What has a scheme is no name of the store's.
        if !reference.contains("://")
            && let Some(known) = self.0.find_in_store(reference, platform)?
        {
            return Ok(known);
        }
        let config = ImageConfig {
            os: platform.os.clone(),
            architecture: platform.architecture.clone(),
            variant: platform.variant.clone(),
            ..ImageConfig::default()
        };
        Ok(BaseImage { manifest: Descriptor::new(media_type::MANIFEST, Digest::of(reference.as_bytes()), 0), config })
    }
}

impl BaseImages for StoreImages {
    fn find(&self, reference: &str, platform: &Platform) -> Result<BaseImage, BaseImageError> {
        self.find_in_store(reference, platform)?.ok_or_else(|| BaseImageError {
            message: "it is not in the store".to_string(),
            hint: Some(
                "build it first with `-t`, or name it with its registry: `registry.example/name:tag`".to_string(),
            ),
            source: None,
        })
    }
}
