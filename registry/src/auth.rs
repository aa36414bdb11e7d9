//! [`Authorizer`]: the hook that decides who may do what. The registry itself knows no users; without a hook
//! everybody may do everything, which is right on loopback only.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use cfc_oci::RepositoryName;
use http::{HeaderMap, header};

use crate::access::matches;
use crate::error::{ApiError, Problem};
use crate::registry::Inner;
use crate::token::SERVICE;
use crate::{Loan, LoanRequest};

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
    /// Ask whether a blob or a manifest is there. Whoever may pull may, and whoever may push, since mostly a push comes
    /// next.
    Look,
    /// Take a blob from here to another repository, of which the client holds a push right. Who may not, pushes it: so
    /// this is no reason to ask for credentials, but for a token that covers it, from who could have one.
    Mount,
    /// Write manifests and blobs.
    Push,
    /// Go on with an upload that began already.
    Continue,
    /// Delete tags, manifests and blobs.
    Delete,
    /// List repositories.
    Catalog,
    /// Remove what nothing refers to.
    Collect,
    /// Read the registry's metrics.
    Metrics,
}

/// One wish of one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// What is to be done.
    pub action: Action,
    /// Where; `None` for what is nowhere in particular.
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
        /// URL of the token endpoint; a path stands for the registry's own, under the name the client has for it.
        realm: String,
        /// Name of this registry at the token endpoint.
        service: String,
        /// What is wrong with the token that came (RFC 6750, section 3.1); `None` when there was none.
        error: Option<&'static str>,
    },
}

/// What a client asks the token endpoint for, beside proving who it is.
#[derive(Clone, Debug, Default)]
pub struct TokenRequest {
    /// Scopes, each as `repository:team/app:pull,push`.
    pub scopes: Vec<String>,
    /// A token that stands for a password.
    pub refresh_token: Option<String>,
    /// Whether the client wants a token that stands for its password.
    pub wants_refresh: bool,
}

/// What the token endpoint answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenAnswer {
    /// A token for those of the scopes that the client has.
    Issued {
        /// The token.
        token: String,
        /// How long it lasts.
        lifetime: Duration,
        /// What it is for, in the form of the request.
        scope: String,
        /// A token that stands for the client's password.
        refresh_token: Option<String>,
        /// Whose it is; `None` for nobody's.
        user: Option<String>,
    },
    /// The credentials are wrong.
    Refused,
    /// Too many clients have their credentials checked at the same time.
    Busy,
    /// There are no tokens here.
    Unsupported,
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

/// Which repositories a client may know of that may list them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Catalog {
    /// All of them.
    Whole,
    /// Those that one of these patterns means.
    Matching(Vec<String>),
}

impl Catalog {
    /// Whether the repository `name` is one of them.
    pub(crate) fn lists(&self, name: &str) -> bool {
        match self {
            Catalog::Whole => true,
            Catalog::Matching(patterns) => patterns.iter().any(|pattern| matches(pattern, name)),
        }
    }
}

/// Decides each request. Called before anything is read from the body.
#[async_trait]
pub trait Authorizer: Send + Sync {
    /// Whether whoever presented `credentials` gets `access`.
    async fn authorize(&self, credentials: &Credentials, access: &Access) -> Decision;

    /// The name that goes with `credentials`; it is the client's word unless these were found to be good.
    fn name(&self, credentials: &Credentials) -> Option<String> {
        match credentials {
            Credentials::Basic { username, .. } => Some(username.clone()),
            _ => None,
        }
    }

    /// Which repositories are listed for whoever presented `credentials`, to whom [`Action::Catalog`] is allowed.
    async fn catalog(&self, _credentials: &Credentials) -> Catalog {
        Catalog::Whole
    }

    /// Makes a password that expires, for the operator, or says why not.
    fn lend(&self, _request: &LoanRequest) -> Result<Loan, String> {
        Err("who may do what here is not decided by passwords".to_string())
    }

    /// The id of the password that was made for a while ([`lend`](Self::lend)) and that `credentials` are, or are of, whether
    /// or not it has expired. The registry knows whether it was taken back.
    fn loan(&self, _credentials: &Credentials) -> Option<String> {
        None
    }

    /// Gives whoever presented `credentials` a token.
    async fn issue(&self, _credentials: &Credentials, _request: &TokenRequest) -> TokenAnswer {
        TokenAnswer::Unsupported
    }
}

/// Marks a request of who runs the registry; it need not be authorized.
#[derive(Clone, Copy)]
pub(crate) struct Operator;

/// One client's credentials at one authorizer.
pub(crate) struct Gate<'a> {
    registry: &'a Inner,
    authorizer: Option<&'a dyn Authorizer>,
    credentials: Credentials,
    base: String,
    /// Set when the credentials were found to be good.
    proof: Arc<AtomicBool>,
}

impl<'a> Gate<'a> {
    /// `base` is the URL under which the client knows the registry, `https://registry.example:5000`.
    pub(crate) fn new(
        registry: &'a Inner,
        authorizer: Option<&'a dyn Authorizer>,
        credentials: Credentials,
        base: String,
        proof: Arc<AtomicBool>,
    ) -> Gate<'a> {
        Gate { registry, authorizer, credentials, base, proof }
    }

    /// The URL under which the client knows the registry.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// The name that the client gives itself; its own once [`check`](Self::check) went through.
    pub(crate) fn name(&self) -> Option<String> {
        match (self.authorizer, &self.credentials) {
            (Some(authorizer), credentials) => authorizer.name(credentials),
            (None, _) => None,
        }
    }

    /// Asks for a token.
    pub(crate) async fn issue(
        &self,
        own: Option<Credentials>,
        request: &TokenRequest,
    ) -> Result<TokenAnswer, ApiError> {
        let Some(authorizer) = self.authorizer else { return Ok(TokenAnswer::Unsupported) };
        let credentials = own.as_ref().unwrap_or(&self.credentials);
        let answer = authorizer.issue(credentials, request).await;
        // Who shows a refresh token needs nothing else.
        let is_shown = matches!(answer, TokenAnswer::Issued { .. }) && request.refresh_token.is_none();
        if is_shown && self.is_revoked(authorizer, credentials).await? {
            return Err(revoked(&Challenge::Basic { realm: "cfc registry".to_string() }, &[], &self.base));
        }
        Ok(answer)
    }

    /// Whether the client may pull from, or do anything else with, a repository.
    pub(crate) async fn allows(&self, action: Action, repository: &RepositoryName) -> bool {
        matches!(self.ask(&Access { action, repository: Some(repository.clone()) }).await, Ok(Decision::Allow))
    }

    /// Which repositories the client may know of, once it may list them.
    pub(crate) async fn catalog(&self) -> Catalog {
        match self.authorizer {
            Some(authorizer) => authorizer.catalog(&self.credentials).await,
            None => Catalog::Whole,
        }
    }

    /// Goes on, or says why not. Counts as a request of the user.
    pub(crate) async fn check(&self, action: Action, repository: Option<&RepositoryName>) -> Result<(), ApiError> {
        self.check_first(&[Access { action, repository: repository.cloned() }]).await
    }

    /// The same for a push to `repository` of what may be mounted from `source`. Who is asked for a token is told of both,
    /// as by distribution.
    pub(crate) async fn check_mount(
        &self,
        repository: &RepositoryName,
        source: &RepositoryName,
    ) -> Result<(), ApiError> {
        self.check_first(&mount(repository, source)).await
    }

    /// Whether the client, which may push to `repository`, may have there what `source` holds. One that may, but whose
    /// token does not say so, is asked for another.
    pub(crate) async fn may_mount(
        &self,
        repository: &RepositoryName,
        source: &RepositoryName,
    ) -> Result<bool, ApiError> {
        let accesses = mount(repository, source);
        match self.ask(&accesses[1]).await? {
            Decision::Challenge(challenge @ Challenge::Bearer { .. }) => Err(self.unauthorized(&challenge, &accesses)),
            decision => Ok(decision == Decision::Allow),
        }
    }

    /// The first of the accesses decides; a challenge is for all of them.
    async fn check_first(&self, accesses: &[Access]) -> Result<(), ApiError> {
        match self.ask(&accesses[0]).await? {
            Decision::Allow => {}
            Decision::Deny => return Err(Problem::Denied.into()),
            Decision::Busy => {
                return Err(ApiError::from(Problem::TooManyLogins).with_header(header::RETRY_AFTER, "1"));
            }
            Decision::Challenge(challenge) => return Err(self.unauthorized(&challenge, accesses)),
        }
        match self.name() {
            Some(name) => self.registry.rates.of_user(self.registry.options.rates, &name).map_err(ApiError::too_many),
            None => Ok(()),
        }
    }

    async fn ask(&self, access: &Access) -> Result<Decision, ApiError> {
        let Some(authorizer) = self.authorizer else { return Ok(Decision::Allow) };
        let decision = authorizer.authorize(&self.credentials, access).await;
        if matches!(decision, Decision::Allow | Decision::Deny) {
            self.proof.store(true, Ordering::Relaxed);
            if self.is_revoked(authorizer, &self.credentials).await? {
                return Err(revoked(&Challenge::own(Some("invalid_token")), std::slice::from_ref(access), &self.base));
            }
        }
        Ok(decision)
    }

    /// Whether the credentials are a password that was taken back, or a token that was given for one.
    async fn is_revoked(&self, authorizer: &dyn Authorizer, credentials: &Credentials) -> Result<bool, ApiError> {
        match authorizer.loan(credentials) {
            Some(id) => Ok(self.registry.loans.is_revoked(&id).await?),
            None => Ok(false),
        }
    }

    fn unauthorized(&self, challenge: &Challenge, accesses: &[Access]) -> ApiError {
        let challenge = challenge.header(accesses, &self.base);
        ApiError::from(Problem::Unauthorized).with_header(header::WWW_AUTHENTICATE, &challenge)
    }
}

fn revoked(challenge: &Challenge, accesses: &[Access], base: &str) -> ApiError {
    let what = "this password was taken back by who runs the registry";
    ApiError::new(Problem::Unauthorized, what).with_header(header::WWW_AUTHENTICATE, &challenge.header(accesses, base))
}

fn mount(repository: &RepositoryName, source: &RepositoryName) -> [Access; 2] {
    [(Action::Push, repository), (Action::Mount, source)]
        .map(|(action, name)| Access { action, repository: Some(name.clone()) })
}

impl Challenge {
    /// For a token of the registry's own endpoint.
    pub(crate) fn own(error: Option<&'static str>) -> Challenge {
        Challenge::Bearer { realm: "/token".to_string(), service: SERVICE.to_string(), error }
    }

    fn header(&self, accesses: &[Access], base: &str) -> String {
        match self {
            Challenge::Basic { realm } => format!("Basic realm=\"{realm}\""),
            Challenge::Bearer { realm, service, error } => {
                let base = if realm.starts_with('/') { base } else { "" };
                let scopes: Vec<String> = accesses.iter().filter_map(Access::scope).collect();
                let scope = if scopes.is_empty() { String::new() } else { format!(",scope=\"{}\"", scopes.join(" ")) };
                let error = error.map(|error| format!(",error=\"{error}\"")).unwrap_or_default();
                format!("Bearer realm=\"{base}{realm}\",service=\"{service}\"{scope}{error}")
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
            Action::Metrics => return Some("registry:metrics:*".to_string()),
            Action::Pull | Action::Mount => "pull",
            // Some clients (oras-py) use the token that they get for this for the push as well.
            Action::Look => "pull,push",
            Action::Push | Action::Continue => "pull,push",
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
    let pair = cfc_oci::base64::decode(rest).and_then(|bytes| String::from_utf8(bytes).ok());
    match pair.as_deref().and_then(|pair| pair.split_once(':')) {
        // What skopeo and podman send when they were challenged and have nothing.
        Some(("", "")) => Credentials::Anonymous,
        Some((username, password)) => {
            Credentials::Basic { username: username.to_string(), password: password.to_string() }
        }
        None => Credentials::Anonymous,
    }
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
        let bearer = |realm: &str, error| {
            let challenge = Challenge::Bearer { realm: realm.to_string(), service: "cfc".to_string(), error };
            challenge.header(std::slice::from_ref(&access), "http://r:5000")
        };
        let scope = r#"service="cfc",scope="repository:a/b:pull,push""#;
        assert_eq!(bearer("https://t/token", None), format!(r#"Bearer realm="https://t/token",{scope}"#));
        let ours = bearer("/token", Some("insufficient_scope"));
        assert_eq!(ours, format!(r#"Bearer realm="http://r:5000/token",{scope},error="insufficient_scope""#));
    }
}
