//! Making an image ready to start: into the store, unpacked.

use cfc_control::{PrepareError, PrepareErrorKind};
use cfc_oci::{Descriptor, Digest, ManifestOrIndex, Platform, Reference, RepositoryName};
use cfc_registry::Registry;
use cfc_store::Store;

/// Brings an image of our own registry into the store. Its blobs are hard links to the registry's files: on one machine
/// what was pushed is launched from where it lies.
pub async fn from_own_registry(
    store: &Store,
    registry: &Registry,
    reference: &Reference,
) -> Result<Descriptor, PrepareErrorKind> {
    let repository = &reference.repository;
    let (mut descriptor, mut bytes) = manifest(registry, repository, &reference.manifest_name()).await?;
    if let ManifestOrIndex::Index(index) = parse(&descriptor, &bytes)? {
        let host = Platform::host();
        let chosen = index.for_platform(&host).ok_or_else(|| PrepareErrorKind::WrongPlatform {
            expected: host.to_string(),
            found: platforms(&index.manifests),
        })?;
        (descriptor, bytes) = manifest(registry, repository, &chosen.digest.to_string()).await?;
    }
    let ManifestOrIndex::Manifest(manifest) = parse(&descriptor, &bytes)? else {
        return Err(PrepareErrorKind::Other("the index names another index instead of an image".to_string()));
    };
    let blobs: Vec<Digest> =
        std::iter::once(&manifest.config).chain(&manifest.layers).map(|blob| blob.digest.clone()).collect();
    let paths = blobs.into_iter().map(|digest| (registry.blob_path(&digest), digest)).collect::<Vec<_>>();
    let store = store.clone();
    let image = descriptor.clone();
    blocking(move || {
        for (path, digest) in paths {
            let path = path.ok_or_else(|| PrepareErrorKind::Other(format!("the registry lacks its blob {digest}")))?;
            // The registry hashed these bytes when it took them.
            store.blobs().link_from_trusted(&path, &digest).map_err(other)?;
        }
        store.blobs().put(&bytes).map_err(other)?;
        Ok(())
    })
    .await?;
    Ok(image)
}

/// Unpacks the layers of an image that the store has, each one once.
pub async fn unpack(store: &Store, image: &Descriptor) -> Result<(), PrepareErrorKind> {
    let (store, image) = (store.clone(), image.clone());
    blocking(move || {
        let image = store.images().load(&image).map_err(other)?;
        let (expected, found) = (Platform::host(), image.config.platform());
        if !found.satisfies(&expected) {
            return Err(PrepareErrorKind::WrongPlatform { expected: expected.to_string(), found: found.to_string() });
        }
        store.unpack_image(&image).map_err(other)?;
        Ok(())
    })
    .await
}

/// The error of a whole preparation.
pub fn error(reference: &Reference, kind: PrepareErrorKind) -> PrepareError {
    let hint = match &kind {
        PrepareErrorKind::NotFound => Some("push it with `cfc push`, or check its name".to_string()),
        PrepareErrorKind::Unauthorized => {
            Some("put the registry's credentials into ~/.docker/config.json of the server's user".to_string())
        }
        PrepareErrorKind::WrongPlatform { expected, .. } => Some(format!("build the image for {expected}")),
        _ => None,
    };
    PrepareError { reference: reference.clone(), kind, hint }
}

/// The texts of an error and its causes in one line.
pub fn one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let cause = source.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        next = source.source();
    }
    text
}

async fn manifest(
    registry: &Registry,
    repository: &RepositoryName,
    name: &str,
) -> Result<(Descriptor, bytes::Bytes), PrepareErrorKind> {
    registry.manifest(repository, name).await.map_err(other)?.ok_or(PrepareErrorKind::NotFound)
}

fn parse(descriptor: &Descriptor, bytes: &[u8]) -> Result<ManifestOrIndex, PrepareErrorKind> {
    ManifestOrIndex::parse(&descriptor.media_type, bytes).map_err(other)
}

fn platforms(manifests: &[Descriptor]) -> String {
    let named = manifests.iter().filter_map(|manifest| manifest.platform.as_ref()).map(Platform::to_string);
    named.collect::<Vec<_>>().join(", ")
}

fn other(error: impl std::error::Error) -> PrepareErrorKind {
    PrepareErrorKind::Other(one_line(&error))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PrepareErrorKind> + Send + 'static,
) -> Result<T, PrepareErrorKind> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(other(error)))
}

/// An error of a pull in the control API's words.
pub fn pull_error(reference: &Reference, failed: cfc_transfer::PullError) -> PrepareError {
    use cfc_transfer::TransferErrorKind;
    let hint = failed.kind.hint().map(str::to_string);
    let kind = match &failed.kind {
        TransferErrorKind::NotFound { .. } => PrepareErrorKind::NotFound,
        TransferErrorKind::Unauthorized { .. } => PrepareErrorKind::Unauthorized,
        _ => PrepareErrorKind::Other(one_line(&failed.kind)),
    };
    PrepareError { hint, ..error(reference, kind) }
}
