//! [`pull`]: from a registry to the store.

use cfc_oci::{Descriptor, Reference};
use cfc_store::Store;

use crate::{Options, Progress, PullError};

/// Downloads the image that `source` names for the wanted platform: only the blobs that the store lacks. Tags it in the
/// store as `source`. Returns the descriptor of the platform's manifest.
pub async fn pull(
    _store: &Store,
    _source: &Reference,
    _options: &Options,
    _progress: &dyn Progress,
) -> Result<Descriptor, PullError> {
    todo!()
}
