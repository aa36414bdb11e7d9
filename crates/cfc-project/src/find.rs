//! [`find_config`]: which file is the project's config.

use std::path::{Path, PathBuf};

use crate::ProjectError;

/// Finds the config for work in the directory `start`, as wrangler does: the nearest `wrangler.json` upward, else the
/// nearest `wrangler.jsonc`, else the nearest `wrangler.toml`. Where `start` is a file, it is the config.
pub fn find_config(start: &Path) -> Result<PathBuf, ProjectError> {
    let _ = start;
    todo!()
}
