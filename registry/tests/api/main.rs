//! The registry over HTTP, group by group as the distribution conformance suite has them, and with real clients.

mod faults;
mod hand;
mod harness;
mod process;
mod store;

mod access;
mod auth;
mod blobs;
mod bucket;
mod clients;
mod collect;
mod coming;
mod conformance;
mod crash;
mod durability;
mod hostile;
mod late;
mod lists;
mod loans;
mod manifests;
mod memory;
mod model;
mod proxy;
mod quotas;
mod races;
mod retention;
mod security;
mod slow;
mod tokens;
mod uploads;
mod verify;
mod watching;
mod webhooks;
