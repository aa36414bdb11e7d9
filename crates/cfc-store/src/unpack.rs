//! Unpacking.

use std::io::Read;
use std::path::Path;

use cfc_oci::{Algorithm, Digest};

use crate::StoreErrorKind;

/// Bounds on what one layer may unpack to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnpackLimits {
    /// Entries of the archive.
    pub entries: u64,
    /// Bytes of the uncompressed archive.
    pub bytes: u64,
}

impl Default for UnpackLimits {
    fn default() -> UnpackLimits {
        UnpackLimits { entries: 1_000_000, bytes: 32 << 30 }
    }
}

/// Unpacks.
pub fn unpack_layer(
    _compressed: impl Read,
    _root: &Path,
    _algorithm: Algorithm,
    _limits: &UnpackLimits,
) -> Result<Digest, StoreErrorKind> {
    todo!()
}
