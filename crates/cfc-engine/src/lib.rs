//! The Docker Engine API socket and the in-process sidecar, for workerd.
//!
//! workerd starts, reaches, watches and ends containers by speaking Docker's HTTP API to a Unix socket. This crate
//! answers on that socket with instances of the runtime. workerd also asks for a second container beside each one, a
//! *sidecar* from a known image, and talks to that over TCP; the engine recognises it and plays it itself, without any
//! container. What of Docker's API is not there yet is answered with 501 and a message that names it.
//!
//! Docker's JSON appears in `docker` and nowhere else.

mod api;
mod container;
mod containers;
mod docker;
mod egress;
mod engine;
mod exec;
mod exec_stream;
mod exec_wrapper;
mod execs;
mod operations;
mod restart;
mod sidecar;
mod stillborn;
mod streams;
mod succession;
mod worker;

pub use cfc_egress::{AddressRange, EgressPolicy};
pub use engine::Engine;
pub use worker::WorkerNames;
