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
                let options = Options { platform: Some(platform.clone()), ..self.options.clone() };
                find(self.store, &parsed, &options, self.pulls).map_err(failed)?
            }
        };
        let loaded = self.store.images().load_for(&descriptor, platform).map_err(|error| failed(error.into()))?;
        Ok(BaseImage { manifest: loaded.descriptor, config: loaded.config })
    }
}

/// The image called `reference`: what the store has of it for the platform of `options`, else what its registry has; with
/// `pulls`, what its registry has in any case.
pub fn find(store: &Store, reference: &Reference, options: &Options, pulls: bool) -> Result<Descriptor, Failure> {
    // What is called by no registry is only here, for whichever platform it is.
    if reference.registry.is_none()
        && let Some(found) = store.images().resolve(reference)?
    {
        return Ok(found);
    }
    if pulls && reference.digest.is_none() {
        return pull(store, reference, options);
    }
    let platform = options.platform.clone().unwrap_or_else(Platform::host);
    match find_in_store(store, reference)? {
        Some(found) if has_platform(store, &found, &platform)? => Ok(found),
        _ => pull(store, reference, options),
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
