//! [`push`]: from the store to a registry.

use cfc_oci::{Descriptor, Digest, Reference};
use cfc_store::Store;

use crate::{Options, Progress, PushError};

/// Uploads `image` (a manifest or index of the store) and everything it consists of to `destination`: only the blobs
/// that the repository lacks, then the manifest. Returns the manifest's digest.
pub async fn push(
    _store: &Store,
    _image: &Descriptor,
    _destination: &Reference,
    _options: &Options,
    _progress: &dyn Progress,
) -> Result<Digest, PushError> {
    todo!()
}
