//! [`foreground_sandbox`]: one container outside the runtime, on the caller's own stdin, stdout and stderr.

use std::fs;
use std::path::Path;

use cfc_sandbox::{Network, SandboxConfig, Stdio};
use cfc_scheduler::InstanceType;
use cfc_store::Store;

use crate::directory::InstanceDirectory;
use crate::error::{AtPath, Result, RuntimeErrorKind};
use crate::instance::{InstanceSpec, Isolation};
use crate::launch::{Place, sandbox_config};
use crate::prepared::PreparedImage;

/// What a launcher needs to run `spec` with descriptors that the caller passes along. `directory` must be empty; it gets
/// the container's disk and is the caller's to remove after the end.
pub fn foreground_sandbox(
    store: &Store,
    spec: &InstanceSpec,
    instance_type: &InstanceType,
    directory: &Path,
    isolation: &Isolation,
) -> Result<SandboxConfig> {
    let make = || -> std::result::Result<SandboxConfig, RuntimeErrorKind> {
        let instance = InstanceDirectory::at(directory);
        for path in [directory.join("etc"), instance.upper(), instance.work()] {
            fs::create_dir_all(&path).at("make the directory", &path)?;
        }
        let network = Network::Redirected { ipv6: cfc_sandbox::has_ipv6_route() };
        let place = Place { directory: &instance, disks: None };
        let image = PreparedImage::of(store, &spec.image)?;
        let config = sandbox_config(&image, spec, instance_type, 1, &place, network, isolation)?;
        Ok(SandboxConfig { stdio: Stdio::Files, ..config })
    };
    make().map_err(|kind| kind.of("prepare", &spec.name))
}
