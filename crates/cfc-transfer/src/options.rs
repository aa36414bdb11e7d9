//! [`Options`] of a transfer.

use std::path::PathBuf;
use std::time::Duration;

use cfc_oci::{Platform, RepositoryName};

use crate::Registries;

/// How to speak to the registry.
#[derive(Clone, Debug)]
pub struct Options {
    /// HTTP instead of HTTPS. `None`: where `registries` says so, and for loopback addresses and `localhost` where the server
    /// does not speak TLS.
    pub plain_http: Option<bool>,
    /// What is special about some registries.
    pub registries: Registries,
    /// Who we are.
    pub credentials: Credentials,
    /// Which image of an index is pulled. `None`: this machine's.
    pub platform: Option<Platform>,
    /// A repository of the same registry that may have the blobs of a push, to be taken from there.
    pub mount_from: Option<RepositoryName>,
    /// The most bytes that one request of a push carries, for proxies that bound it. `None`: a whole blob.
    pub chunk_bytes: Option<u64>,
    /// Blobs transferred at the same time.
    pub parallel: usize,
    /// How often a request is repeated after a failure that may pass.
    pub retries: u32,
    /// Wait before the first repetition; doubles each time.
    pub backoff: Duration,
    /// Certificates (PEM files) to trust besides the system's.
    pub certificates: Vec<PathBuf>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            plain_http: None,
            registries: Registries::default(),
            credentials: Credentials::default(),
            platform: None,
            mount_from: None,
            chunk_bytes: None,
            parallel: 4,
            retries: 4,
            backoff: Duration::from_millis(250),
            certificates: Vec::new(),
        }
    }
}

/// Who we are to the registry.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Credentials {
    /// What `~/.docker/config.json` (or `$DOCKER_CONFIG/config.json`) has for the registry: `auths`, `credHelpers`,
    /// `credsStore`; else nobody.
    #[default]
    DockerConfig,
    /// Nobody.
    Anonymous,
    /// A user, by name and password.
    Password {
        /// Name.
        username: String,
        /// Password or access token.
        password: String,
    },
    /// A bearer token that the registry takes as it is.
    Token(String),
}

impl std::fmt::Debug for Credentials {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Credentials::DockerConfig => f.write_str("DockerConfig"),
            Credentials::Anonymous => f.write_str("Anonymous"),
            Credentials::Password { username, .. } => write!(f, "Password({username})"),
            Credentials::Token(_) => f.write_str("Token"),
        }
    }
}
