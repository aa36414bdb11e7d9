//! Executes a plan as LLB on a BuildKit daemon.
//!
//! The plan is the native executor's, so a Dockerfile means the same on both: it is said in BuildKit's words (`lowering`,
//! `llb`), the daemon carries it out and asks for files, secrets and logins over a session, and the layers that it made
//! come back into the store, where config and manifest are written as the native executor writes them. Leaves the meaning
//! of instructions to `cfc-plan`, blobs and layers to `cfc-store`.

mod builder;

mod lowering;

mod llb;

mod session;

mod solve;

mod watch;

mod archive;

mod arrivals;

mod cache;

mod address;
mod capabilities;
mod connect;
mod engine;
mod failure;
mod lent;
mod pieces;

pub use address::{Address, AddressError};
pub use builder::{BuildkitBuilder, BuildkitOptions, RegistryLogins, Stopper};
pub use cache::{CacheEntry, CachePlace};
pub use connect::TlsFiles;
