//! Images that a build or a run starts from: the store first, then the registry that the reference names.

use cfc_oci::{Descriptor, Platform, Reference};
use cfc_plan::{BaseImage, BaseImageError, BaseImages};
use cfc_store::{Store, StoreErrorKind};
use cfc_transfer::Options;

use crate::failure::Failure;
use crate::images::layout::LayoutImage;
use crate::images::push::Bars;
use crate::output;

/// Finds base images for builds.
pub struct StoreThenRegistry<'a> {
    pub store: &'a Store,
    /// How to speak to registries.
    pub options: Options,
    /// Whether they are asked although the store has an image. One that is called by no registry is only here.
    pub pulls: bool,
}

impl BaseImages for StoreThenRegistry<'_> {
    fn find(&self, reference: &str, platform: &Platform) -> Result<BaseImage, BaseImageError> {
        let failed = |failure: Failure| BaseImageError {
            message: failure.causes.iter().fold(failure.message, |text, cause| format!("{text}: {cause}")),
            hint: failure.hint,
            source: None,
        };
        let descriptor = match LayoutImage::parse(reference) {
            Some(image) => image.import(self.store).map_err(failed)?,
            None => {
                let parsed = Reference::parse(reference).map_err(|error| failed(error.into()))?;
                self.find_or_pull(&parsed, platform).map_err(failed)?
            }
        };
        let loaded = self.store.images().load_for(&descriptor, platform).map_err(|error| failed(error.into()))?;
        Ok(BaseImage { manifest: loaded.descriptor, config: loaded.config })
    }
}

impl StoreThenRegistry<'_> {
    fn find_or_pull(&self, reference: &Reference, platform: &Platform) -> Result<Descriptor, Failure> {
        let options = Options { platform: Some(platform.clone()), ..self.options.clone() };
        // What is called by no registry is only here, for whichever platform it is.
        if reference.registry.is_none()
            && let Some(found) = self.store.images().resolve(reference)?
        {
            return Ok(found);
        }
        if self.pulls && reference.digest.is_none() {
            return pull(self.store, reference, &options);
        }
        if let Some(found) = find_in_store(self.store, reference)?
            && has_platform(self.store, &found, platform)?
        {
            return Ok(found);
        }
        pull(self.store, reference, &options)
    }
}

/// Whether the store has the image for `platform` behind `descriptor`. A tag is that of the platform that was pulled last.
fn has_platform(store: &Store, descriptor: &Descriptor, platform: &Platform) -> Result<bool, Failure> {
    match store.images().load_for(descriptor, platform) {
        Ok(image) => Ok(image.config.os.is_empty() || image.config.platform().satisfies(platform)),
        Err(error) if matches!(error.kind, StoreErrorKind::Platform { .. } | StoreErrorKind::Missing) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The image called `reference`, pulled unless the store has it.
pub fn find(store: &Store, reference: &Reference, options: &Options) -> Result<Descriptor, Failure> {
    match find_in_store(store, reference)? {
        Some(found) => Ok(found),
        None => pull(store, reference, options),
    }
}

fn find_in_store(store: &Store, reference: &Reference) -> Result<Option<Descriptor>, Failure> {
    if let Some(found) = store.images().resolve(reference)? {
        return Ok(Some(found));
    }
    let remote = with_registry(reference)?;
    Ok(if remote != *reference { store.images().resolve(&remote)? } else { None })
}

fn pull(store: &Store, reference: &Reference, options: &Options) -> Result<Descriptor, Failure> {
    let remote = with_registry(reference)?;
    output::tell(format!("pulling {remote}"));
    let bars = Bars::default();
    let pulled = crate::commands::client_runtime()?.block_on(cfc_transfer::pull(store, &remote, options, &bars));
    pulled.map_err(|error| {
        let hint = error.kind.hint().map(str::to_string);
        let failure = Failure::from(error).maybe_hint(hint);
        match reference.registry {
            Some(_) => failure,
            None => failure
                .hint(format!("the store has no `{reference}` either; `cfc build CONTEXT -t {reference}` makes one")),
        }
    })
}

/// The reference with the registry that everybody means when none is written: Docker Hub, whose official images live
/// below `library/` (distribution's "familiar names").
fn with_registry(reference: &Reference) -> Result<Reference, Failure> {
    if reference.registry.is_some() {
        return Ok(reference.clone());
    }
    let name = reference.repository.as_str();
    let repository = if name.contains('/') { name.parse()? } else { format!("library/{name}").parse()? };
    Ok(Reference { registry: Some("docker.io".to_string()), repository, ..reference.clone() })
}
