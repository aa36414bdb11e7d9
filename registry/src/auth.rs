//! [`Authorizer`]: the hook that decides who may do what. The registry itself knows no users; without a hook
//! everybody may do everything, which is right on loopback only.

use async_trait::async_trait;
use cfc_oci::RepositoryName;

/// What a client presented in its `Authorization` header.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// Nothing.
    Anonymous,
    /// `Basic`: a user name and a password.
    Basic {
        /// The user name.
        username: String,
        /// The password.
        password: String,
    },
    /// `Bearer`: a token.
    Bearer(String),
}

/// What a client wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask whether the registry is there and whether the credentials are good.
    Ping,
    /// Read manifests, blobs, tags and referrers.
    Pull,
    /// Write manifests and blobs.
    Push,
    /// Delete tags, manifests and blobs.
    Delete,
    /// List all repositories.
    Catalog,
}

/// One wish of one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// What is to be done.
    pub action: Action,
    /// Where; `None` for [`Action::Ping`] and [`Action::Catalog`].
    pub repository: Option<RepositoryName>,
}

/// How a client is asked for credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// `WWW-Authenticate: Basic realm="…"`.
    Basic {
        /// Shown to people.
        realm: String,
    },
    /// `WWW-Authenticate: Bearer realm="…",service="…"`; the registry adds the scope.
    Bearer {
        /// URL of the token endpoint.
        realm: String,
        /// Name of this registry at the token endpoint.
        service: String,
    },
}

/// What an [`Authorizer`] answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Go on.
    Allow,
    /// Credentials are missing or wrong: 401 with this challenge.
    Challenge(Challenge),
    /// The credentials are good, but this is not allowed: 403.
    Deny,
}

/// Decides each request. Called before anything is read from the body.
#[async_trait]
pub trait Authorizer: Send + Sync {
    /// Whether whoever presented `credentials` gets `access`.
    async fn authorize(&self, credentials: &Credentials, access: &Access) -> Decision;
}
