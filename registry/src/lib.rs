//! The OCI distribution API over a bucket.
//!
//! Owns the HTTP API below `/v2/` (push, pull, mount, referrers, tags, catalog, deletes), the layout of repositories
//! in the bucket, upload sessions that survive a restart, and garbage collection. Storage is
//! behind three traits, which a local directory (`local/`) and an S3 bucket (`bucket/`) implement: small objects of
//! metadata, and blob content through [`BlobBackend`] and [`UploadBackend`]. Never unpacks a layer, and fetches from other
//! registries only what `proxy/` keeps of them.
//! `cfc serve`, `cfc registry serve` and the tests call it.

mod registry;

mod access;
mod api;
mod auth;
mod ca;
mod pair;
mod pem;
mod proxy;
mod renewing;
mod route;
mod sendfile;
mod serve;
mod tls;
mod token;

mod backend;
mod bucket;
mod holds;
mod local;
mod metadata;
mod objects;

mod ask;
mod audit;
mod collect;
mod health;
mod leads;
mod loans;
mod loose;
mod metrics;
mod quota;
mod rates;
mod removed;
mod retention;
mod usage;
mod verify;
mod visit;
mod webhook;

mod error;
mod files;
mod frames;
mod hash;
mod manifest;
mod query;
mod quick;
mod range;

pub use access::{AccessRules, Grant, Loan, LoanRequest, Minter, Permission, Rule, check_pattern};
pub use ask::{
    AskError, CollectionRequest, ask_for_loan, ask_for_loans, ask_to_collect, ask_to_retain, ask_to_revoke,
    ask_what_to_retain,
};
pub use audit::AuditLog;
pub use auth::{Access, Action, Authorizer, Catalog, Challenge, Credentials, Decision, TokenAnswer, TokenRequest};
pub use backend::{
    AppendError, BlobBackend, BlobStream, ByteStream, CommitError, Content, Growing, UploadBackend, UploadStatus,
};
pub use bucket::{BucketError, BucketKeys, BucketLocation, EndpointError, check_endpoint};
pub use ca::LocalCa;
pub use collect::{Collected, Rules};
pub use error::StorageError;
pub use loans::{Lender, LoanRecord};
pub use pem::UnfitPem;
pub use proxy::{Login, Upstream};
pub use quota::{QuotaRule, Quotas};
pub use rates::RateLimits;
pub use registry::{LATE_REQUESTS, LendError, Limits, Options, Registry};
pub use removed::{Listing, RemovalReason, Removed, RemovedKind};
pub use retention::{RetentionRule, Retired};
pub use serve::{serve, serve_operator, serve_until};
pub use tls::{Tls, TlsError};
pub use usage::Usage;
pub use verify::{Finding, Verified};
pub use webhook::{HookEvent, Webhook};
