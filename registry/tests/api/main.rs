//! The registry over HTTP, group by group as the distribution conformance suite has them, and with real clients.

mod harness;

mod auth;
mod blobs;
mod clients;
mod durability;
mod hostile;
mod lists;
mod manifests;
mod uploads;
