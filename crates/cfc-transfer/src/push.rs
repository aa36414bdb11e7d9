//! [`push`]: from the store to a registry.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use cfc_oci::{Descriptor, Digest, Reference, media_type};
use cfc_store::Store;
use futures::{StreamExt, TryStreamExt};

use crate::endpoint::Endpoint;
use crate::progress::watch;
use crate::registry::{Access, Registry};
use crate::upload::Upload;
use crate::{Options, Outcome, Progress, PushError, TransferErrorKind};

/// Uploads `image` (a manifest or index of the store) and everything it consists of to `destination`: only the blobs
/// that the repository lacks, then the manifest, under the tag of `destination` (`latest` without one) or, where
/// `destination` has a digest, under that alone. Returns the manifest's digest.
pub async fn push(
    store: &Store,
    image: &Descriptor,
    destination: &Reference,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Digest, PushError> {
    let error = |kind| PushError { reference: Box::new(destination.clone()), kind };
    push_image(store, image, destination, options, progress).await.map_err(error)
}

async fn push_image(
    store: &Store,
    image: &Descriptor,
    destination: &Reference,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Digest, TransferErrorKind> {
    if let Some(expected) = destination.digest.as_ref().filter(|digest| **digest != image.digest) {
        let (subject, actual) = ("the image".to_string(), image.digest.clone());
        return Err(TransferErrorKind::DigestMismatch { subject, expected: expected.clone(), actual });
    }
    let endpoint = Endpoint::of(destination, options)?;
    let registry = Registry::new(endpoint, Access::Push, options).await?;
    let (manifests, blobs): (Vec<_>, Vec<_>) = store.blobs_of(image)?.into_iter().partition(is_manifest);
    // A layer that only its maker may distribute is named by the manifest, and need not be anywhere.
    let is_ours = |blob: &Descriptor| store.blobs().contains(&blob.digest) || blob.urls.is_empty();
    // A list first: a closure inside the stream would keep the whole future from being `Send`.
    let ours = blobs.iter().filter(|blob| is_ours(blob));
    let transfers: Vec<_> = ours.map(|blob| push_blob(store, blob, &registry, options, progress)).collect();
    futures::stream::iter(transfers).buffer_unordered(options.parallel.max(1)).try_collect::<()>().await?;
    for manifest in &manifests {
        let bytes = store.blobs().read(&manifest.digest)?;
        let name = match manifest.digest == image.digest {
            true => destination.manifest_name(),
            false => manifest.digest.to_string(),
        };
        progress.blob_started(manifest);
        registry.put_manifest(&name, &manifest.media_type, &manifest.digest, &bytes).await?;
        progress.blob_finished(&manifest.digest, Outcome::Uploaded);
    }
    Ok(image.digest.clone())
}

async fn push_blob(
    store: &Store,
    blob: &Descriptor,
    registry: &Registry,
    options: &Options,
    progress: &dyn Progress,
) -> Result<(), TransferErrorKind> {
    let size = store.blobs().size(&blob.digest)?;
    if size != blob.size {
        let text = format!("blob `{}` has {size} bytes, its manifest says {}", blob.digest, blob.size);
        return Err(TransferErrorKind::Malformed(text));
    }
    progress.blob_started(blob);
    let sent = Arc::new(AtomicU64::new(0));
    let path = store.blobs().path(&blob.digest);
    let upload = Upload {
        registry,
        blob,
        path: &path,
        mount_from: options.mount_from.as_ref(),
        chunk_bytes: options.chunk_bytes,
        sent: sent.clone(),
    };
    let outcome = watch(upload.run(), &sent, &blob.digest, progress).await?;
    progress.blob_finished(&blob.digest, outcome);
    Ok(())
}

fn is_manifest(descriptor: &Descriptor) -> bool {
    media_type::is_manifest(&descriptor.media_type) || media_type::is_index(&descriptor.media_type)
}
