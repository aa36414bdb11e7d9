//! [`Client`]: speaks to one upstream: tokens, redirects, and who gets to see our password.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cfc_oci::Digest;
use futures::{StreamExt, TryStreamExt};
use http::{StatusCode, header};
use reqwest::{Response, Url};
use serde::Deserialize;

use super::destination::{is_allowed, is_same_server, outside};
use super::{Upstream, lock};
use crate::ByteStream;

const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// An upstream that says nothing for this long is away.
const READ_PATIENCE: Duration = Duration::from_secs(30);
const MAX_REDIRECTS: usize = 5;
const MAX_TOKEN_BYTES: usize = 64 * 1024;
/// How long a token is used whose service does not say.
const TOKEN_LIFETIME: Duration = Duration::from_secs(60);

const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// Speaks to one upstream.
pub(super) struct Client {
    upstream: Upstream,
    /// To the upstream's own server, wherever that is.
    own: reqwest::Client,
    /// To any other.
    foreign: reqwest::Client,
    tokens: Mutex<HashMap<String, (String, Instant)>>,
}

/// Why nothing came.
pub(super) enum FetchError {
    Status(StatusCode),
    Unreachable(String),
    /// It wants us to do what we do not.
    Refused(String),
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Client {
    pub(super) fn new(upstream: &Upstream) -> Client {
        // Whoever installs one first wins, and any is fine.
        let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
        let builder = || {
            let builder = reqwest::Client::builder()
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(CONNECT_PATIENCE)
                .read_timeout(READ_PATIENCE);
            match upstream.url.starts_with("http://") {
                // Needs no certificates, and so works where the system has none.
                true => builder.tls_certs_only([]),
                false => builder,
            }
        };
        // A proxy would resolve names for us, and not as we do.
        let foreign = builder().no_proxy().dns_resolver(outside()).build();
        Client {
            upstream: upstream.clone(),
            own: builder().build().unwrap_or_default(),
            foreign: foreign.unwrap_or_default(),
            tokens: Mutex::default(),
        }
    }

    /// Media type and bytes of a manifest.
    pub(super) async fn manifest(
        &self,
        name: &str,
        reference: &str,
        limit: usize,
    ) -> Result<(Option<String>, Bytes), FetchError> {
        let response = self.get(name, &format!("manifests/{reference}")).await?;
        let media_type = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let media_type = media_type.map(str::to_string);
        Ok((media_type, read(response, limit).await?))
    }

    /// The bytes of a blob, as they come.
    pub(super) async fn blob(&self, name: &str, digest: &Digest) -> Result<ByteStream<'static>, FetchError> {
        let response = self.get(name, &format!("blobs/{digest}")).await?;
        Ok(response.bytes_stream().map_err(|error| describe(&error)).boxed())
    }

    async fn get(&self, name: &str, path: &str) -> Result<Response, FetchError> {
        let text = format!("{}/v2/{name}/{path}", self.upstream.url.trim_end_matches('/'));
        let url = Url::parse(&text).map_err(|error| FetchError::Refused(format!("`{text}` is no URL: {error}")))?;
        let scope = format!("repository:{name}:pull");
        let known = lock(&self.tokens).get(&scope).filter(|(_, until)| *until > Instant::now()).cloned();
        let mut proof = known.map(|(token, _)| format!("Bearer {token}"));
        for _ in 0..2 {
            let response = self.follow(&url, proof.as_deref()).await?;
            match response.status() {
                StatusCode::UNAUTHORIZED => proof = Some(self.prove(&url, &response, &scope).await?),
                status if status.is_success() => return Ok(response),
                status => return Err(FetchError::Status(status)),
            }
        }
        Err(FetchError::Status(StatusCode::UNAUTHORIZED))
    }

    /// Asks, and follows redirects. What proves who we are goes to the upstream's own server only.
    async fn follow(&self, own: &Url, proof: Option<&str>) -> Result<Response, FetchError> {
        let mut url = own.clone();
        for _ in 0..=MAX_REDIRECTS {
            let is_own = is_same_server(own, &url);
            let client = if is_own { &self.own } else { &self.foreign };
            let mut request = client.get(url.clone()).header(header::ACCEPT, ACCEPT);
            if let Some(proof) = proof.filter(|_| is_own) {
                request = request.header(header::AUTHORIZATION, proof);
            }
            let response = request.send().await.map_err(|error| FetchError::Unreachable(describe(&error)))?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            let target = location.and_then(|location| url.join(location).ok());
            url = match target {
                Some(target) if is_allowed(own, &target) => target,
                _ => return Err(FetchError::Refused("it redirects to where we do not go".to_string())),
            };
        }
        Err(FetchError::Refused("it redirects without end".to_string()))
    }

    /// What proves who we are, as the upstream wants it.
    async fn prove(&self, own: &Url, refusal: &Response, scope: &str) -> Result<String, FetchError> {
        let headers = refusal.headers().get_all(header::WWW_AUTHENTICATE);
        let challenge = headers.iter().filter_map(|value| value.to_str().ok()).find_map(Challenge::parse);
        match (challenge, &self.upstream.credentials) {
            (Some(Challenge::Basic), Some((name, password))) => Ok(basic(name, password)),
            (Some(Challenge::Bearer { realm, service }), _) => {
                let token = self.token(own, &realm, service.as_deref(), scope).await?;
                Ok(format!("Bearer {token}"))
            }
            _ => Err(FetchError::Status(StatusCode::UNAUTHORIZED)),
        }
    }

    async fn token(&self, own: &Url, realm: &str, service: Option<&str>, scope: &str) -> Result<String, FetchError> {
        let refused = |why: &str| FetchError::Refused(format!("its token service `{realm}` {why}"));
        let mut url = Url::parse(realm).map_err(|_| refused("is no URL"))?;
        if !is_allowed(own, &url) {
            return Err(refused("is not one that we ask"));
        }
        let is_own = is_same_server(own, &url);
        let is_trusted =
            is_own || url.host_str().is_some_and(|host| self.upstream.realms.iter().any(|own| own == host));
        url.query_pairs_mut().append_pair("scope", scope);
        if let Some(service) = service {
            url.query_pairs_mut().append_pair("service", service);
        }
        let client = if is_own { &self.own } else { &self.foreign };
        let mut request = client.get(url);
        if let Some((name, password)) = &self.upstream.credentials {
            if !is_trusted {
                return Err(refused("may not get our password: name its host in `realms`"));
            }
            request = request.basic_auth(name, Some(password));
        }
        let response = request.send().await.map_err(|error| FetchError::Unreachable(describe(&error)))?;
        if !response.status().is_success() {
            return Err(FetchError::Status(response.status()));
        }
        let answer: TokenAnswer = serde_json::from_slice(&read(response, MAX_TOKEN_BYTES).await?)
            .map_err(|_| refused("does not answer as one"))?;
        let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
        let token = token.ok_or_else(|| refused("gives no token"))?;
        let lifetime = answer.expires_in.map_or(TOKEN_LIFETIME, |seconds| Duration::from_secs(seconds.min(3600)));
        let mut tokens = lock(&self.tokens);
        if tokens.len() >= super::REMEMBERED {
            tokens.clear();
        }
        // Renewed before it expires on the way.
        tokens.insert(scope.to_string(), (token.clone(), Instant::now() + lifetime.saturating_sub(lifetime / 6)));
        Ok(token)
    }
}

enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String> },
}

impl Challenge {
    fn parse(header: &str) -> Option<Challenge> {
        let (scheme, rest) = header.split_once(' ').unwrap_or((header, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Challenge::Basic);
        }
        let value = |key: &str| {
            let start = rest.find(&format!("{key}=\""))? + key.len() + 2;
            rest[start..].split_once('"').map(|(value, _)| value.to_string())
        };
        let is_bearer = scheme.eq_ignore_ascii_case("bearer");
        is_bearer.then(|| value("realm")).flatten().map(|realm| Challenge::Bearer { realm, service: value("service") })
    }
}

fn basic(name: &str, password: &str) -> String {
    format!("Basic {}", cfc_oci::base64::encode(format!("{name}:{password}").as_bytes()))
}

async fn read(response: Response, limit: usize) -> Result<Bytes, FetchError> {
    let mut bytes = Vec::new();
    let mut frames = response.bytes_stream();
    while let Some(frame) = frames.next().await {
        let frame = frame.map_err(|error| FetchError::Unreachable(describe(&error)))?;
        if bytes.len() + frame.len() > limit {
            return Err(FetchError::Refused(format!("it sends more than {limit} bytes")));
        }
        bytes.extend_from_slice(&frame);
    }
    Ok(bytes.into())
}

/// An error with its causes, and without the URL, which may have a secret in its query.
fn describe(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}{}{error}", if text.is_empty() { "" } else { ": " });
        cause = error.source();
    }
    if text.is_empty() { "it cannot be reached".to_string() } else { text }
}
