//! [`pull`]: from a registry to the store.

use std::sync::atomic::AtomicU64;

use cfc_oci::{Descriptor, Digest, Manifest, ManifestOrIndex, Platform, Reference};
use cfc_store::Store;
use futures::{StreamExt, TryStreamExt};

use crate::download::Download;
use crate::endpoint::Endpoint;
use crate::progress::watch;
use crate::registry::{Access, Registry};
use crate::{Options, Outcome, Progress, PullError, TransferErrorKind};

/// An index may name an index.
const MAX_INDEX_DEPTH: usize = 4;

/// Downloads the image that `source` names for the wanted platform: only the blobs that the store lacks. Where `source`
/// has no digest, tags the image in the store as `source`. Returns the descriptor of the platform's manifest.
///
/// Mirrors are asked first. `progress` hears of those that do not have it, the error is that of the registry itself.
pub async fn pull(
    store: &Store,
    source: &Reference,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Descriptor, PullError> {
    let error = |kind| PullError { reference: Box::new(source.clone()), kind };
    pull_image(store, source, options, progress).await.map_err(error)
}

async fn pull_image(
    store: &Store,
    source: &Reference,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Descriptor, TransferErrorKind> {
    let upstream = Endpoint::of(source, options)?;
    for mirror in options.registries.mirrored(source, &upstream.repository)? {
        let pulled = pull_from(store, source, Endpoint::of(&mirror, options)?, options, progress).await;
        match pulled {
            Ok(descriptor) => return Ok(descriptor),
            // What is wrong here is not better elsewhere.
            Err(error @ TransferErrorKind::Store(_)) => return Err(error),
            Err(error) => progress.mirror_failed(&mirror, &error),
        }
    }
    pull_from(store, source, upstream, options, progress).await
}

async fn pull_from(
    store: &Store,
    source: &Reference,
    endpoint: Endpoint,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Descriptor, TransferErrorKind> {
    let registry = Registry::new(endpoint, Access::Pull, options).await?;
    let platform = options.platform.clone().unwrap_or_else(Platform::host);
    let mut found = Finder { registry: &registry, platform, manifests: Vec::new() };
    let (descriptor, manifest) = found.find(source).await?;
    let mut blobs: Vec<&Descriptor> = Vec::new();
    for blob in std::iter::once(&manifest.config).chain(&manifest.layers) {
        if !blobs.iter().any(|present| present.digest == blob.digest) {
            blobs.push(blob);
        }
    }
    // A list first: a closure inside the stream would keep the whole future from being `Send`.
    let transfers: Vec<_> = blobs.into_iter().map(|blob| pull_blob(store, blob, &registry, progress)).collect();
    futures::stream::iter(transfers).buffer_unordered(options.parallel.max(1)).try_collect::<()>().await?;
    // Manifests come last: one that is in the store has all its blobs there.
    for (digest, bytes) in found.manifests.into_iter().rev() {
        put_manifest(store, &digest, &bytes)?;
    }
    if source.digest.is_none() {
        store.images().tag_pulled(source, &descriptor)?;
    }
    Ok(descriptor)
}

/// Follows a reference to the manifest for a platform.
struct Finder<'a> {
    registry: &'a Registry,
    platform: Platform,
    /// What was met on the way, the outermost first.
    manifests: Vec<(Digest, Vec<u8>)>,
}

impl Finder<'_> {
    async fn find(&mut self, source: &Reference) -> Result<(Descriptor, Manifest), TransferErrorKind> {
        let (mut descriptor, mut bytes) =
            self.registry.get_manifest(&source.manifest_name(), source.digest.as_ref()).await?;
        for _ in 0..MAX_INDEX_DEPTH {
            self.manifests.push((descriptor.digest.clone(), bytes.clone()));
            let malformed = |error| TransferErrorKind::Malformed(format!("manifest `{}`: {error}", descriptor.digest));
            let index = match ManifestOrIndex::parse(&descriptor.media_type, &bytes).map_err(malformed)? {
                ManifestOrIndex::Manifest(manifest) => return Ok((descriptor, manifest)),
                ManifestOrIndex::Index(index) => index,
            };
            let digest = match index.for_platform(&self.platform) {
                Some(manifest) => manifest.digest.clone(),
                None => return Err(self.no_platform(&index)),
            };
            (descriptor, bytes) = self.registry.get_manifest(&digest.to_string(), Some(&digest)).await?;
        }
        let text = format!("its indexes are nested deeper than {MAX_INDEX_DEPTH} levels");
        Err(TransferErrorKind::Malformed(text))
    }

    fn no_platform(&self, index: &cfc_oci::Index) -> TransferErrorKind {
        let offered = index.manifests.iter().filter_map(|manifest| manifest.platform.as_ref());
        let offered: Vec<String> = offered.map(Platform::to_string).collect();
        TransferErrorKind::NotFound {
            subject: format!("image for {} (it has images for {})", self.platform, offered.join(", ")),
        }
    }
}

async fn pull_blob(
    store: &Store,
    blob: &Descriptor,
    registry: &Registry,
    progress: &dyn Progress,
) -> Result<(), TransferErrorKind> {
    progress.blob_started(blob);
    if store.blobs().contains(&blob.digest) {
        progress.blob_finished(&blob.digest, Outcome::Existed);
        return Ok(());
    }
    let received = AtomicU64::new(0);
    let download = Download { registry, store, blob, received: &received };
    watch(download.run(), &received, &blob.digest, progress).await?;
    progress.blob_finished(&blob.digest, Outcome::Downloaded);
    Ok(())
}

fn put_manifest(store: &Store, digest: &Digest, bytes: &[u8]) -> Result<(), TransferErrorKind> {
    use std::io::Write;
    let mut writer = store.blobs().writer_with(digest.algorithm())?;
    let failed = |error| TransferErrorKind::Malformed(format!("cannot write to the store: {error}"));
    writer.write_all(bytes).map_err(failed)?;
    writer.commit(Some(digest))?;
    Ok(())
}
