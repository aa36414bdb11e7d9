//! [`write_config`]: a [`WorkerVersion`] as the binary config of `workerd serve`.

use std::path::{Path, PathBuf};

use crate::{Toolchain, WorkerVersion, WorkersError};

/// Writes `dir/config.bin` for `workerd serve --binary` and returns its path. Containers of the Worker are asked from
/// the engine that listens on the unix socket `engine_socket`; their sidecar is the image `egress_image`.
pub fn write_config(
    toolchain: &Toolchain,
    dir: &Path,
    version: &WorkerVersion,
    engine_socket: &Path,
    egress_image: &str,
) -> Result<PathBuf, WorkersError> {
    let _ = (toolchain, dir, version, engine_socket, egress_image);
    todo!()
}

/// The key of a Durable Object class: workerd names an object's container `workerd-<unique key>-<object id>`.
pub fn unique_key(worker: &str, class: &str) -> String {
    format!("{worker}-{class}")
}
