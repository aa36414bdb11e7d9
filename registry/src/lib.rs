//! The OCI distribution API over a bucket.
//!
//! Owns the HTTP API below `/v2/` (push, pull, mount, referrers, tags, catalog, deletes), the layout of repositories
//! in the bucket, and upload sessions that survive a restart. Metadata are small objects reached through
//! [`object_store`]; blob content goes through [`BlobBackend`] and [`UploadBackend`], which a local directory
//! implements today and which are cut so that S3 fits. Never unpacks a layer and never fetches from another registry.
//! `cfc serve`, `cfc registry serve` and the tests call it.

mod registry;

mod api;
mod auth;
mod route;
mod serve;

mod backend;
mod local;
mod metadata;

mod error;
mod hash;
mod manifest;
mod query;
mod range;

pub use auth::{Access, Action, Authorizer, Challenge, Credentials, Decision};
pub use backend::{AppendError, BlobBackend, BlobStream, ByteStream, CommitError, UploadBackend, UploadStatus};
pub use error::StorageError;
pub use registry::{Options, Registry};
pub use serve::{serve, serve_until};
