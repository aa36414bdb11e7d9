//! [`Authorizer`]: proves to one registry who we are, with tokens fetched once and kept while they last.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use reqwest::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use tokio::sync::Mutex;

use crate::TransferErrorKind;
use crate::answer::{describe_answer, read_bounded, unreachable};
use crate::challenge::Challenge;
use crate::credentials::{Login, Secret};
use crate::endpoint::is_inner;

/// How long a token lasts whose service does not say (distribution's token spec).
const DEFAULT_LIFETIME: Duration = Duration::from_secs(60);
/// Tokens are renewed before they expire on the way.
const MARGIN: Duration = Duration::from_secs(10);
const MAX_TOKEN_BYTES: usize = 1 << 20;
const CLIENT_ID: &str = "cfc";

/// Who we are to one registry.
pub(crate) struct Authorizer {
    client: Client,
    login: Login,
    registry: Url,
    state: Mutex<State>,
}

/// What a request had with it.
pub(crate) enum Proof {
    /// Nothing, as the registry has not asked yet.
    None,
    /// A token.
    Token(String),
    /// All we have.
    Final,
}

#[derive(Default)]
struct State {
    challenge: Option<Challenge>,
    /// By scope.
    tokens: HashMap<String, Token>,
}

#[derive(Clone)]
struct Token {
    value: String,
    good_until: Instant,
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    /// Seconds.
    #[serde(default)]
    expires_in: Option<u64>,
}

impl Authorizer {
    pub fn new(client: Client, login: Login, registry: Url) -> Authorizer {
        Authorizer { client, login, registry, state: Mutex::default() }
    }

    /// Adds to `request` what the registry has asked for so far.
    pub async fn authorize(
        &self,
        request: RequestBuilder,
        scope: &str,
    ) -> Result<(RequestBuilder, Proof), TransferErrorKind> {
        if let Secret::Bearer(token) = &self.login.secret {
            return Ok((request.bearer_auth(token), Proof::Final));
        }
        let mut state = self.state.lock().await;
        match (state.challenge.clone(), &self.login.secret) {
            (Some(Challenge::Basic), Secret::Password { username, password }) => {
                Ok((request.basic_auth(username, Some(password)), Proof::Final))
            }
            (Some(Challenge::Bearer { realm, service }), _) => {
                let known = state.tokens.get(scope).filter(|token| token.good_until > Instant::now()).cloned();
                let token = match known {
                    Some(token) => token,
                    // The lock is held meanwhile, so that parallel requests fetch one token, not one each.
                    None => self.fetch_token(realm, service.as_deref(), scope).await?,
                };
                state.tokens.insert(scope.to_string(), token.clone());
                Ok((request.bearer_auth(&token.value), Proof::Token(token.value)))
            }
            _ => Ok((request, Proof::None)),
        }
    }

    /// Learns from a refusal of a request that had `proof` what the registry wants. Returns whether another try may do
    /// better.
    pub async fn learn(&self, refusal: &Response, proof: &Proof, scope: &str) -> bool {
        let headers = refusal.headers().get_all(WWW_AUTHENTICATE);
        let challenge = Challenge::parse(headers.iter().filter_map(|value| value.to_str().ok()));
        let mut state = self.state.lock().await;
        let is_known = challenge.is_some();
        state.challenge = challenge;
        match proof {
            Proof::None => is_known,
            // It may have expired early, and a parallel request may have fetched another by now.
            Proof::Token(value) => {
                if state.tokens.get(scope).is_some_and(|token| token.value == *value) {
                    state.tokens.remove(scope);
                }
                is_known
            }
            Proof::Final => false,
        }
    }

    /// The error of a registry that still refuses.
    pub fn refused(&self, answer: String) -> TransferErrorKind {
        TransferErrorKind::Unauthorized { from: self.login.from.clone(), answer }
    }

    async fn fetch_token(&self, realm: Url, service: Option<&str>, scope: &str) -> Result<Token, TransferErrorKind> {
        self.check_realm(&realm)?;
        let fields = [("service", service.unwrap_or_default()), ("scope", scope)];
        let fields = fields.into_iter().filter(|(_, value)| !value.is_empty());
        let request = match &self.login.secret {
            Secret::IdentityToken(token) => {
                let more = [("grant_type", "refresh_token"), ("client_id", CLIENT_ID), ("refresh_token", token)];
                let form = form(&realm, fields.chain(more))?;
                self.client.post(realm).header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form)
            }
            Secret::Password { username, password } => {
                let fields = fields.chain([("account", username.as_str())]);
                self.client.get(with_query(realm, fields)).basic_auth(username, Some(password))
            }
            Secret::Nobody | Secret::Bearer(_) => self.client.get(with_query(realm, fields)),
        };
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Err(self.refused(format!("its token service answered {status}")));
        }
        if !status.is_success() {
            return Err(describe_answer("GET", response).await);
        }
        let malformed = |_| TransferErrorKind::Malformed("the answer of the token service is malformed".to_string());
        let answer: TokenAnswer =
            serde_json::from_slice(&read_bounded(response, MAX_TOKEN_BYTES).await?).map_err(malformed)?;
        let no_token = || TransferErrorKind::Malformed("the answer of the token service has no token".to_string());
        let value = answer.token.or(answer.access_token).filter(|value| !value.is_empty()).ok_or_else(no_token)?;
        let lifetime = answer.expires_in.map_or(DEFAULT_LIFETIME, Duration::from_secs).min(Duration::from_secs(86400));
        Ok(Token { value, good_until: Instant::now() + lifetime.saturating_sub(MARGIN).max(Duration::from_secs(1)) })
    }

    fn check_realm(&self, realm: &Url) -> Result<(), TransferErrorKind> {
        if is_safe_realm(&self.registry, realm) {
            return Ok(());
        }
        let text = format!("the registry names `{realm}` as its token service, which is not safe to ask");
        Err(TransferErrorKind::Malformed(text))
    }
}

/// A registry may name any token service. It must not make us talk to what only this machine can reach, nor put a
/// password on the wire in the clear that TLS would have protected.
fn is_safe_realm(registry: &Url, realm: &Url) -> bool {
    match registry.scheme() {
        "https" => realm.scheme() == "https" && (is_inner(registry) || !is_inner(realm)),
        _ => matches!(realm.scheme(), "http" | "https") && (is_inner(registry) || !is_inner(realm)),
    }
}

fn with_query<'a>(mut url: Url, fields: impl Iterator<Item = (&'a str, &'a str)>) -> Url {
    url.query_pairs_mut().extend_pairs(fields);
    url
}

/// The fields in the encoding of a form, which is that of a query.
fn form<'a>(url: &Url, fields: impl Iterator<Item = (&'a str, &'a str)>) -> Result<String, TransferErrorKind> {
    let mut url = url.clone();
    url.set_query(None);
    Ok(with_query(url, fields).query().unwrap_or_default().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_safe(registry: &str, realm: &str) -> bool {
        is_safe_realm(&Url::parse(registry).expect(registry), &Url::parse(realm).expect(realm))
    }

    #[test]
    fn a_token_service_may_be_elsewhere_but_not_here_or_in_the_clear() {
        assert!(is_safe("https://r.example/v2/", "https://auth.example/token"));
        assert!(is_safe("http://127.0.0.1:5000/v2/", "http://127.0.0.1:5001/token"));
        assert!(!is_safe("https://r.example/v2/", "http://auth.example/token"));
        assert!(!is_safe("https://r.example/v2/", "https://127.0.0.1:8443/token"));
        assert!(!is_safe("http://10.0.0.1:5000/v2/", "http://169.254.169.254/latest"));
        assert!(!is_safe("https://r.example/v2/", "file:///etc/passwd"));
    }
}
