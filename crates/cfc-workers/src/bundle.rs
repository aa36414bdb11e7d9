//! [`bundle`]: a project's Worker as modules that workerd loads.

use cfc_project::Project;

use crate::{Toolchain, WorkersError};

/// The modules of one version of a Worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// The name of the module that workerd starts with.
    pub main_module: String,
    /// Every module, the main one first.
    pub modules: Vec<Module>,
}

/// One module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name: a relative path, as imports write it.
    pub name: String,
    /// `application/javascript+module`, `application/javascript`, `text/plain`, `application/octet-stream`,
    /// `application/wasm`, `application/json` or `application/source-map`.
    pub content_type: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Bundles the project's Worker with esbuild, as wrangler does. Dependencies resolve from the project;
/// `@cloudflare/containers` comes from the toolchain when the project has not installed it. Blocks for about 0.1 s.
pub fn bundle(project: &Project, toolchain: &Toolchain) -> Result<Bundle, WorkersError> {
    let _ = (project, toolchain);
    todo!()
}
