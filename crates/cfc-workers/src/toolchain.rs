//! [`Toolchain`]: the pinned npm packages that cfc runs.

use std::path::{Path, PathBuf};

use crate::WorkersError;

/// The pinned npm packages that cfc runs, on this machine.
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// The directory that holds `node_modules`.
    pub directory: PathBuf,
    /// The `workerd` binary.
    pub workerd: PathBuf,
    /// The `esbuild` binary.
    pub esbuild: PathBuf,
}

impl Toolchain {
    /// The tools in `tools_dir`, if all of them are there in the pinned versions.
    pub fn locate(tools_dir: &Path) -> Result<Toolchain, WorkersError> {
        let _ = tools_dir;
        todo!()
    }

    /// Installs the pinned versions into `tools_dir` with `npm ci`; each line that npm says goes to `progress`.
    /// Blocks. What is installed already is left alone.
    pub fn install(tools_dir: &Path, progress: &mut dyn FnMut(&str)) -> Result<Toolchain, WorkersError> {
        let _ = (tools_dir, progress);
        todo!()
    }
}
