//! [`foreground_sandbox`]: one container outside the runtime, on the caller's own stdin, stdout and stderr.

use std::fs;
use std::path::Path;

use cfc_sandbox::{Launcher, Network, SandboxConfig, Stdio};
use cfc_scheduler::InstanceType;
use cfc_store::Store;

use crate::directory::InstanceDirectory;
use crate::error::{AtPath, Result, RuntimeErrorKind};
use crate::instance::{InstanceSpec, Isolation};
use crate::launch::{Place, disk_of, sandbox_config};
use crate::prepared::PreparedImage;

/// Where a container in the foreground has its files.
#[derive(Clone, Copy, Debug)]
pub struct ForegroundPlace<'a> {
    /// Empty. It gets what the container writes, where it has no disk, and is the caller's to remove after the end.
    pub directory: &'a Path,
    /// Whether it gets a disk as large as its instance type says, which takes its space from the same filesystem.
    pub has_disk: bool,
}

/// Whether `launcher` can make disks in `directory`; else why not.
pub fn check_disks(launcher: &Launcher, instance_type: &InstanceType, directory: &Path) -> cfc_sandbox::Result<()> {
    launcher.prepare_disk(&disk_of(instance_type, directory))
}

/// What a launcher needs to run `spec` with descriptors that the caller passes along.
pub fn foreground_sandbox(
    store: &Store,
    spec: &InstanceSpec,
    instance_type: &InstanceType,
    ForegroundPlace { directory, has_disk }: ForegroundPlace<'_>,
    isolation: &Isolation,
) -> Result<SandboxConfig> {
    let make = || -> std::result::Result<SandboxConfig, RuntimeErrorKind> {
        let instance = InstanceDirectory::at(directory);
        for path in [directory.join("etc"), instance.upper(), instance.work()] {
            fs::create_dir_all(&path).at("make the directory", &path)?;
        }
        let network = Network::Redirected { ipv6: cfc_sandbox::has_ipv6_route() };
        let place = Place { directory: &instance, disks: has_disk.then_some(directory) };
        let image = PreparedImage::of(store, &spec.image)?;
        let config = sandbox_config(&image, spec, instance_type, 1, &place, network, isolation)?;
        Ok(SandboxConfig { stdio: Stdio::Files, ..config })
    };
    make().map_err(|kind| kind.of("prepare", &spec.name))
}
