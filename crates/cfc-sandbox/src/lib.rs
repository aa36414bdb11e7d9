//! Runs one process in one root filesystem under namespaces, cgroups and seccomp; the only crate with `unsafe`.
//!
//! A sandbox is made by a *launcher*: a small single-threaded process of our own that `cfc` starts once and talks to
//! over a Unix socket. It makes the sandboxes, copies their output into log files, and keeps their exit statuses until
//! they are asked for, so sandboxes outlive the process that wanted them. [`Launcher`] is the handle to it.
//!
//! The program that embeds this crate must call [`launcher_main`] first thing when its `argv[0]` is
//! [`LAUNCHER_ARGV0`], before it starts a thread.
//!
//! What is absent: this crate never unpacks an image, never pulls, never decides who may start. It does not need any OCI
//! runtime (it runs one where the caller asks for it), bridge, veth pair or firewall.

mod config;
mod default_spec;
mod error;
mod fail;
mod grant;
mod status;

mod client;
mod exec;
mod host;
mod inside;
mod ipv6;
mod listeners;
mod network;
mod oci_runtime;
mod peer;
mod redirect;
mod rootless;
mod runtime_check;
mod terminal;
mod time;
mod user;

mod cgroup;
mod child;
mod datagrams;
mod disk;
mod launcher;
mod netlink;
mod protocol;
mod seccomp;
mod step;
mod sys;
mod unsupported;

pub use client::{Ends, Happening, Happenings, Launcher};
pub use config::{DEVICE_NODES_ANNOTATION, INIT_ANNOTATION, Network, Root, SandboxConfig, Stdio, TERMINAL_ANNOTATION};
pub use datagrams::{Datagram, OutboundDatagrams};
pub use default_spec::{build_spec, default_spec, insecure_build_spec};
pub use disk::{DiskKind, DiskUsage};
pub use error::{Error, ErrorKind, Result};
pub use exec::{Exec, ExecConfig};
pub use fail::fail_point;
pub use grant::Grant;
pub use host::{
    Finding, Severity, check_host, check_runtime, missing_controllers, missing_limits, sweep, well_known_runtimes,
};
pub use ipv6::has_ipv6_route;
pub use launcher::{LAUNCHER_ARGV0, launcher_main};
pub use listeners::Listeners;
pub use network::NetworkHandle;
pub use oci_runtime::OciRuntime;
/// The OCI runtime specification's types, as [`SandboxConfig::spec`] holds them.
pub use oci_spec::runtime as oci;
pub use peer::is_from_own_user;
pub use redirect::{OUTBOUND_PORT, OutboundSockets, original_destination};
pub use rootless::{
    Obstacle, current_program, enter_rootless, execute_with_capabilities, is_rootless, spawn_with_capabilities, user_id,
};
pub use status::{Exit, ExitStatus, Started, State, Status, Usage};
pub use sys::keep_freed_memory;
pub use terminal::{Terminal, WindowSize};
pub use time::rfc3339;
pub use user::{ResolvedUser, resolve_user};
