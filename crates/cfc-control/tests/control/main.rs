//! The control API over HTTP, with a platform that only remembers what it was told.

mod deploy;
mod failures;
mod operations;
mod platform;
mod secrets;
mod server;
mod wrangler;
