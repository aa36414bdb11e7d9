//! [`Workerd`]: one running workerd process.

use std::path::Path;

use crate::{Toolchain, WorkersError};

/// One running workerd process. It ends when this process ends.
#[derive(Debug)]
pub struct Workerd {
    pid: u32,
}

/// How a workerd process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exited {
    /// With this code.
    Code(i32),
    /// Killed by this signal.
    Signal(i32),
}

impl Workerd {
    /// Starts workerd on the config that `write_config` wrote into `dir` and waits until it listens on the unix socket
    /// `http_socket`. Durable Objects live in `dir/do`, its output goes to `dir/log`.
    pub async fn start(
        toolchain: &Toolchain,
        dir: &Path,
        config: &Path,
        http_socket: &Path,
    ) -> Result<Workerd, WorkersError> {
        let _ = (toolchain, dir, config, http_socket);
        todo!()
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until the process has ended. May be called any number of times, also at once by several tasks.
    pub async fn exited(&self) -> Exited {
        todo!()
    }

    /// Asks the process to end (SIGTERM: it answers what it has begun and asks the engine to remove its containers),
    /// and kills it after `patience`.
    pub async fn stop(&self, patience: std::time::Duration) -> Exited {
        let _ = patience;
        todo!()
    }
}
