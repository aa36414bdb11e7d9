//! Images that a build or a run starts from: the store first, then the registry that the reference names.

use cfc_oci::{Descriptor, Platform, Reference};
use cfc_plan::{BaseImage, BaseImageError, BaseImages};
use cfc_store::Store;
use cfc_transfer::Options;

use crate::failure::Failure;
use crate::images::push::Bars;
use crate::output;

/// Finds base images for builds.
pub struct StoreThenRegistry<'a> {
    pub store: &'a Store,
}

impl BaseImages for StoreThenRegistry<'_> {
    fn find(&self, reference: &str, platform: &Platform) -> Result<BaseImage, BaseImageError> {
        let failed = |failure: Failure| BaseImageError {
            message: failure.causes.iter().fold(failure.message, |text, cause| format!("{text}: {cause}")),
            hint: failure.hint,
            source: None,
        };
        let parsed = Reference::parse(reference).map_err(|error| failed(error.into()))?;
        let descriptor = find(self.store, &parsed, Some(platform)).map_err(failed)?;
        let loaded = self.store.images().load_for(&descriptor, platform).map_err(|error| failed(error.into()))?;
        Ok(BaseImage { manifest: loaded.descriptor, config: loaded.config })
    }
}

/// The image called `reference`, pulled unless the store has it.
pub fn find(store: &Store, reference: &Reference, platform: Option<&Platform>) -> Result<Descriptor, Failure> {
    if let Some(found) = store.images().resolve(reference)? {
        return Ok(found);
    }
    if let Some(digest) = &reference.digest
        && let Some(found) = store.images().describe(digest)?
    {
        return Ok(found);
    }
    let remote = with_registry(reference)?;
    if remote != *reference
        && let Some(found) = store.images().resolve(&remote)?
    {
        return Ok(found);
    }
    output::tell(format!("pulling {remote}"));
    let options = Options { platform: platform.cloned(), ..Options::default() };
    let bars = Bars::default();
    let pulled = crate::commands::client_runtime()?.block_on(cfc_transfer::pull(store, &remote, &options, &bars));
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
