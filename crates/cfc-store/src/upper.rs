//! Layers from overlay upper directories.

use std::io::Write;
use std::path::Path;

use crate::{LayerWriter, Result};

/// How an upper directory becomes a layer.
#[derive(Clone, Copy, Default)]
pub struct UpperOptions<'a> {
    /// The newest modification time that is written, in seconds since 1970; later ones become this one.
    pub clamp_mtime: Option<i64>,
    /// Paths (relative to the root) to leave out with everything below them.
    pub skip: Option<&'a dyn Fn(&Path) -> bool>,
}

/// Writes what a container changed to `writer`, sorted: the upper directory of an overlay, where a removed file is a
/// character device 0:0 and an opaque directory has the attribute `user.overlay.opaque`. Returns the number of entries;
/// 0 means that nothing changed.
pub fn write_upper_as_layer<W: Write>(
    _upper: &Path,
    _writer: &mut LayerWriter<W>,
    _options: &UpperOptions<'_>,
) -> Result<u64> {
    todo!()
}
