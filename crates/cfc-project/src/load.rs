//! [`load`]: a config file to a [`Project`].

use std::path::Path;

use crate::{Project, ProjectError};

/// Reads, merges (`env` chooses `env.<name>`) and validates the config at `path`.
pub fn load(path: &Path, env: Option<&str>) -> Result<Project, ProjectError> {
    let _ = (path, env);
    todo!()
}
