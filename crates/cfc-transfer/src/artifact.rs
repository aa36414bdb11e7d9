//! [`RemoteArtifact`]: a manifest of a registry whose blobs are fetched one by one, as somebody needs them.

use std::sync::atomic::AtomicU64;

use cfc_oci::{Descriptor, Manifest, ManifestOrIndex, Platform, Reference};
use cfc_store::Store;

use crate::download::Download;
use crate::endpoint::Endpoint;
use crate::registry::{Access, Registry};
use crate::{Options, PullError, TransferErrorKind};

/// A manifest and the registry that has its blobs.
pub struct RemoteArtifact {
    reference: Reference,
    registry: Registry,
    manifest: Manifest,
}

impl RemoteArtifact {
    /// Reads the manifest that `reference` names; of an index that for `platform`.
    pub async fn open(
        reference: &Reference,
        platform: &Platform,
        options: &Options,
    ) -> Result<RemoteArtifact, PullError> {
        let error = |kind| PullError { reference: Box::new(reference.clone()), kind };
        let open = async {
            let endpoint = Endpoint::of(reference, options)?;
            let registry = Registry::new(endpoint, Access::Pull, options).await?;
            let manifest = manifest(&registry, reference, platform).await?;
            Ok(RemoteArtifact { reference: reference.clone(), registry, manifest })
        };
        open.await.map_err(error)
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Brings a blob into the store, verified by digest and size.
    pub async fn fetch(&self, store: &Store, blob: &Descriptor) -> Result<(), PullError> {
        let received = AtomicU64::new(0);
        let download = Download { registry: &self.registry, store, blob, received: &received };
        download.run().await.map_err(|kind| PullError { reference: Box::new(self.reference.clone()), kind })
    }
}

async fn manifest(
    registry: &Registry,
    reference: &Reference,
    platform: &Platform,
) -> Result<Manifest, TransferErrorKind> {
    let malformed = |error| TransferErrorKind::Malformed(format!("its manifest: {error}"));
    let (descriptor, bytes) = registry.get_manifest(&reference.manifest_name(), reference.digest.as_ref()).await?;
    let index = match ManifestOrIndex::parse(&descriptor.media_type, &bytes).map_err(malformed)? {
        ManifestOrIndex::Manifest(manifest) => return Ok(manifest),
        ManifestOrIndex::Index(index) => index,
    };
    let missing = || TransferErrorKind::NotFound { subject: format!("image for {platform}") };
    let digest = &index.for_platform(platform).ok_or_else(missing)?.digest;
    let (descriptor, bytes) = registry.get_manifest(&digest.to_string(), Some(digest)).await?;
    match ManifestOrIndex::parse(&descriptor.media_type, &bytes).map_err(malformed)? {
        ManifestOrIndex::Manifest(manifest) => Ok(manifest),
        ManifestOrIndex::Index(_) => Err(TransferErrorKind::Malformed("its index names another index".to_string())),
    }
}
