//! workerd processes: bundle, configuration, start, stop.
//!
//! In the order of a deploy: a [`Toolchain`] is installed or located, [`bundle`] makes one script of a project, a
//! [`WorkerVersion`] says everything that workerd must know of a Worker, [`try_version`] sees whether workerd accepts
//! it, [`write_config`] turns it into the binary config that `workerd serve` takes, and a [`Workerd`] is the process
//! that serves it. Called by `cfc-cli`.

mod bundle;
mod config;
mod error;
mod leftover;
mod log;
mod message;
mod patch;
mod spawn;
mod toolchain;
mod trial;
mod version;
mod workerd;

pub use bundle::{Bundle, Module, bundle};
pub use config::{WorkerConfig, unique_key, write_config};
pub use error::{WorkersError, WorkersErrorKind};
pub use log::{LogLine, LogReader};
pub use toolchain::Toolchain;
pub use trial::try_version;
pub use version::{ContainerBinding, WorkerVersion};
pub use workerd::{Exited, Workerd};
