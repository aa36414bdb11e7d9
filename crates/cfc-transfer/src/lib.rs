//! Images between a registry and the store, over the distribution API.
//!
//! A registry is not trusted: what it sends is bounded and verified, other places it names are asked only when that is
//! safe, and the `urls` of a layer are never followed. This crate decides nothing about names: a reference without a
//! registry is an error.

mod pull;
mod push;

mod answer;
mod artifact;
mod auth;
mod challenge;
mod credentials;
mod download;
mod endpoint;
mod error;
mod options;
mod progress;
mod protocol;
mod registries;
mod registry;
mod upload;
mod url;

pub use artifact::RemoteArtifact;
pub use credentials::login;
pub use error::{PullError, PushError, TransferErrorKind};
pub use options::{Credentials, Options};
pub use progress::{NoProgress, Outcome, Progress};
pub use pull::pull;
pub use push::push;
pub use registries::{Registries, RegistrySettings};
pub use url::{FetchError, fetch_url};
