//! [`Authorizer`]: the hook that decides who may do what. The registry itself knows no users; without a hook
//! everybody may do everything, which is right on loopback only.

use async_trait::async_trait;
use cfc_oci::RepositoryName;
use http::{HeaderMap, header};

use crate::error::{ApiError, Problem};

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
    /// Remove what nothing refers to.
    Collect,
}

/// One wish of one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// What is to be done.
    pub action: Action,
    /// Where; `None` for [`Action::Ping`], [`Action::Catalog`] and [`Action::Collect`].
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
    /// Too many clients have their credentials checked at the same time: 429.
    Busy,
}

/// Decides each request. Called before anything is read from the body.
#[async_trait]
pub trait Authorizer: Send + Sync {
    /// Whether whoever presented `credentials` gets `access`.
    async fn authorize(&self, credentials: &Credentials, access: &Access) -> Decision;
}

/// Marks a request of who runs the registry; it need not be authorized.
#[derive(Clone, Copy)]
pub(crate) struct Operator;

/// One client's credentials at one authorizer.
pub(crate) struct Gate<'a> {
    authorizer: Option<&'a dyn Authorizer>,
    credentials: Credentials,
}

impl<'a> Gate<'a> {
    pub(crate) fn new(authorizer: Option<&'a dyn Authorizer>, credentials: Credentials) -> Gate<'a> {
        Gate { authorizer, credentials }
    }

    /// Whether the client may pull from, or do anything else with, a repository.
    pub(crate) async fn allows(&self, action: Action, repository: &RepositoryName) -> bool {
        self.check(action, Some(repository)).await.is_ok()
    }

    /// Goes on, or says why not.
    pub(crate) async fn check(&self, action: Action, repository: Option<&RepositoryName>) -> Result<(), ApiError> {
        let Some(authorizer) = self.authorizer else { return Ok(()) };
        let access = Access { action, repository: repository.cloned() };
        match authorizer.authorize(&self.credentials, &access).await {
            Decision::Allow => Ok(()),
            Decision::Deny => Err(Problem::Denied.into()),
            Decision::Busy => Err(ApiError::from(Problem::TooManyLogins).with_header(header::RETRY_AFTER, "1")),
            Decision::Challenge(challenge) => {
                let challenge = challenge.header(&access);
                Err(ApiError::from(Problem::Unauthorized).with_header(header::WWW_AUTHENTICATE, &challenge))
            }
        }
    }
}

impl Challenge {
    fn header(&self, access: &Access) -> String {
        match self {
            Challenge::Basic { realm } => format!("Basic realm=\"{realm}\""),
            Challenge::Bearer { realm, service } => {
                let scope = access.scope().map(|scope| format!(",scope=\"{scope}\"")).unwrap_or_default();
                format!("Bearer realm=\"{realm}\",service=\"{service}\"{scope}")
            }
        }
    }
}

impl Access {
    /// What to ask the token endpoint for. A push also pulls, to find what need not be pushed.
    fn scope(&self) -> Option<String> {
        let actions = match self.action {
            Action::Ping => return None,
            Action::Catalog => return Some("registry:catalog:*".to_string()),
            Action::Collect => return Some("registry:collection:*".to_string()),
            Action::Pull => "pull",
            Action::Push => "pull,push",
            Action::Delete => "pull,delete",
        };
        self.repository.as_ref().map(|name| format!("repository:{name}:{actions}"))
    }
}

/// Reads `Authorization`. What cannot be read counts as nothing.
pub(crate) fn credentials(headers: &HeaderMap) -> Credentials {
    let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (scheme, rest) = value.split_once(' ').unwrap_or_default();
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") && !rest.is_empty() {
        return Credentials::Bearer(rest.to_string());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return Credentials::Anonymous;
    }
    let pair = decode_base64(rest).and_then(|bytes| String::from_utf8(bytes).ok());
    match pair.as_deref().and_then(|pair| pair.split_once(':')) {
        // What skopeo and podman send when they were challenged and have nothing.
        Some(("", "")) => Credentials::Anonymous,
        Some((username, password)) => {
            Credentials::Basic { username: username.to_string(), password: password.to_string() }
        }
        None => Credentials::Anonymous,
    }
}

/// Decodes standard base64, padded or not.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    let (mut bits, mut count) = (0_u32, 0);
    for byte in text.trim_end_matches('=').bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(header: &str, expected: Credentials) {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, header.parse().expect("ASCII"));
        assert!(credentials(&headers) == expected, "{header}");
    }

    #[test]
    fn credentials_are_read() {
        let basic = |username: &str, password: &str| Credentials::Basic {
            username: username.to_string(),
            password: password.to_string(),
        };
        check("Basic djE6c2VjcmV0", basic("v1", "secret"));
        check("basic dTpwOnE=", basic("u", "p:q"));
        check("Bearer abc", Credentials::Bearer("abc".to_string()));
        for unreadable in ["", "Basic", "Basic !!!", "Basic dTo_", "Basic Og==", "Bearer ", "Digest x"] {
            check(unreadable, Credentials::Anonymous);
        }
    }

    #[test]
    fn a_challenge_names_the_scope() {
        let access = Access { action: Action::Push, repository: "a/b".parse().ok() };
        let bearer = Challenge::Bearer { realm: "https://t/token".to_string(), service: "cfc".to_string() };
        assert_eq!(
            bearer.header(&access),
            r#"Bearer realm="https://t/token",service="cfc",scope="repository:a/b:pull,push""#
        );
    }
}
