//! [`Launcher`]: the handle through which sandboxes are started and watched.

use std::os::fd::OwnedFd;
use std::path::Path;

use crate::config::SandboxConfig;
use crate::error::Result;
use crate::network::NetworkHandle;
use crate::status::{Exit, Started, Status};

/// A handle to a launcher process. Cheap to clone; its methods block and may be called from many threads.
#[derive(Debug, Clone)]
pub struct Launcher {}

#[allow(clippy::todo, unused_variables)]
impl Launcher {
    /// Connects to the launcher listening on `socket`, or starts one that outlives this process.
    ///
    /// A launcher is started by re-executing `program` with the arguments `["cfc-launcher", socket]`.
    pub fn connect_or_start(program: &Path, socket: &Path) -> Result<Launcher> {
        todo!()
    }

    /// Starts a launcher that ends, with all its sandboxes, when this process ends. For builds and `cfc run`.
    pub fn private(program: &Path) -> Result<Launcher> {
        todo!()
    }

    /// Makes a sandbox and starts its command. Returns once the command executes.
    ///
    /// Fails with [`ErrorKind::CommandNotFound`](crate::ErrorKind::CommandNotFound) or
    /// [`ErrorKind::NotExecutable`](crate::ErrorKind::NotExecutable) when the image lacks it; nothing remains then.
    pub fn start(&self, config: &SandboxConfig) -> Result<Started> {
        todo!()
    }

    /// As [`start`](Launcher::start), with these three descriptors as the command's own. `config.stdio` must be
    /// [`Stdio::Files`](crate::Stdio::Files).
    pub fn start_with_stdio(
        &self,
        config: &SandboxConfig,
        stdin: OwnedFd,
        stdout: OwnedFd,
        stderr: OwnedFd,
    ) -> Result<Started> {
        todo!()
    }

    /// Sends `signal` to the sandbox's process 1.
    pub fn kill(&self, id: &str, signal: i32) -> Result<()> {
        todo!()
    }

    /// Kills every process of the sandbox. One that has ended already is fine.
    pub fn kill_all(&self, id: &str) -> Result<()> {
        todo!()
    }

    /// Blocks until the sandbox has ended and its last output is in its log.
    pub fn wait(&self, id: &str) -> Result<Exit> {
        todo!()
    }

    /// Forgets an ended sandbox and removes its cgroups. Its upper and work directories are the caller's.
    pub fn remove(&self, id: &str) -> Result<()> {
        todo!()
    }

    /// All sandboxes that have not been removed.
    pub fn list(&self) -> Result<Vec<Status>> {
        todo!()
    }

    /// The network of a running sandbox.
    pub fn network(&self, id: &str) -> Result<NetworkHandle> {
        todo!()
    }

    /// Ends all sandboxes and the launcher, and returns when they are gone.
    pub fn shutdown(&self) -> Result<()> {
        todo!()
    }
}
