//! [`Registry`]: one repository of a registry, over the distribution API.
//!
//! Written on reqwest and not on the `oci-client` crate, which streams blobs, too, but does not go on with an upload that
//! broke off, nor authenticate again when a token is refused halfway, and gives a password to whichever token service
//! the registry names.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cfc_oci::{Descriptor, Digest, Hasher, ManifestOrIndex, media_type};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, LOCATION, RETRY_AFTER};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url};

use crate::answer::{describe_answer, error_text, may_pass, read_bounded, unreachable};
use crate::auth::{Authorizer, Proof};
use crate::credentials::Login;
use crate::endpoint::{Endpoint, is_inner};
use crate::protocol::Protocol;
use crate::{Options, TransferErrorKind};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Registries on object storage need their time to put a large blob together.
const READ_TIMEOUT: Duration = Duration::from_secs(300);
const MAX_WAIT: Duration = Duration::from_secs(60);
const MAX_REDIRECTS: usize = 5;
/// The specification asks registries for at least 4 MiB.
const MAX_MANIFEST_BYTES: usize = 16 << 20;

/// What a transfer may do with the repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Pull,
    Push,
}

/// A client for one repository.
pub(crate) struct Registry {
    endpoint: Endpoint,
    client: Client,
    authorizer: Authorizer,
    scope: String,
    retries: u32,
    backoff: Duration,
    /// Until the registry has answered once, a refused connection means that there is none: waiting is no use.
    has_answered: AtomicBool,
}

impl Registry {
    /// A client for `endpoint`. Sends no request yet; a registry of this machine is greeted, to learn what it speaks.
    pub async fn new(endpoint: Endpoint, access: Access, options: &Options) -> Result<Registry, TransferErrorKind> {
        let endpoint = endpoint.settle().await;
        let login = Login::find(&options.credentials, &endpoint).await?;
        let client = http_client(&endpoint).await?;
        let actions = match access {
            Access::Pull => "pull",
            Access::Push => "pull,push",
        };
        Ok(Registry {
            authorizer: Authorizer::new(client.clone(), login, endpoint.root()?),
            scope: format!("repository:{}:{actions}", endpoint.repository),
            endpoint,
            client,
            retries: options.retries,
            backoff: options.backoff,
            has_answered: AtomicBool::new(false),
        })
    }

    pub fn retries(&self) -> u32 {
        self.retries
    }

    /// Whether the repository has the blob.
    pub async fn has_blob(&self, digest: &Digest) -> Result<bool, TransferErrorKind> {
        let url = self.endpoint.url(&format!("blobs/{digest}"))?;
        let response = self.send(Method::HEAD, &url, |request| request).await?;
        match response.status() {
            status if status.is_success() => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(describe_answer("HEAD", response).await),
        }
    }

    /// The blob's bytes from `offset` on, if the registry can do that (206), else from the start (200).
    pub async fn get_blob(&self, digest: &Digest, offset: u64) -> Result<Response, TransferErrorKind> {
        let url = self.endpoint.url(&format!("blobs/{digest}"))?;
        let range = format!("bytes={offset}-");
        let response = self
            .send(Method::GET, &url, |request| if offset > 0 { request.header("range", &range) } else { request })
            .await?;
        match response.status() {
            status if status.is_success() => Ok(response),
            StatusCode::NOT_FOUND => Err(TransferErrorKind::NotFound {
                subject: format!("blob `{digest}` in `{}`", self.endpoint.repository),
            }),
            _ => Err(describe_answer("GET", response).await),
        }
    }

    /// A manifest or index by tag or digest, with its descriptor. A digest is verified.
    pub async fn get_manifest(
        &self,
        name: &str,
        expected: Option<&Digest>,
    ) -> Result<(Descriptor, Vec<u8>), TransferErrorKind> {
        let url = self.endpoint.url(&format!("manifests/{name}"))?;
        let types = [media_type::INDEX, media_type::MANIFEST, media_type::DOCKER_INDEX, media_type::DOCKER_MANIFEST];
        let accept = types.join(", ");
        let response = self.send(Method::GET, &url, |request| request.header(ACCEPT, &accept)).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => {
                let answer = error_text(response).await;
                let subject = format!("image `{name}` in `{}` ({answer})", self.endpoint.repository);
                return Err(TransferErrorKind::NotFound { subject });
            }
            _ => return Err(describe_answer("GET", response).await),
        }
        let content_type = header(response.headers(), CONTENT_TYPE.as_str());
        let announced =
            header(response.headers(), "docker-content-digest").and_then(|text| text.parse::<Digest>().ok());
        let bytes = read_bounded(response, MAX_MANIFEST_BYTES).await?;
        let subject = || format!("manifest `{name}`");
        let digest = match expected.or(announced.as_ref()) {
            Some(expected) => verified(expected, &bytes, subject)?,
            None => Digest::of(&bytes),
        };
        let media_type = manifest_type(content_type.as_deref(), &bytes)?;
        Ok((Descriptor::new(&media_type, digest, bytes.len() as u64), bytes))
    }

    /// Puts a manifest whose blobs are all there.
    pub async fn put_manifest(
        &self,
        name: &str,
        media_type: &str,
        digest: &Digest,
        bytes: &[u8],
    ) -> Result<(), TransferErrorKind> {
        let url = self.endpoint.url(&format!("manifests/{name}"))?;
        let put = |request: RequestBuilder| request.header(CONTENT_TYPE, media_type).body(bytes.to_vec());
        let response = self.send(Method::PUT, &url, put).await?;
        if !response.status().is_success() {
            return Err(describe_answer("PUT", response).await);
        }
        match header(response.headers(), "docker-content-digest").and_then(|text| text.parse::<Digest>().ok()) {
            Some(actual) if actual.algorithm() == digest.algorithm() && actual != *digest => {
                let subject = format!("manifest `{name}`, as the registry stored it");
                Err(TransferErrorKind::DigestMismatch { subject, expected: digest.clone(), actual })
            }
            _ => Ok(()),
        }
    }

    /// Begins an upload. `None`: the registry took the blob from the repository that `mount` names.
    pub async fn start_upload(
        &self,
        mount: Option<(&Digest, &cfc_oci::RepositoryName)>,
    ) -> Result<Option<Url>, TransferErrorKind> {
        let mut url = self.endpoint.url("blobs/uploads/")?;
        if let Some((digest, from)) = mount {
            url.query_pairs_mut().append_pair("mount", &digest.to_string()).append_pair("from", from.as_str());
        }
        let response = self.send(Method::POST, &url, |request| request.header("content-length", "0")).await?;
        match response.status() {
            StatusCode::CREATED if mount.is_some() => Ok(None),
            StatusCode::ACCEPTED => self.location(&response).map(Some),
            _ => Err(describe_answer("POST", response).await),
        }
    }

    /// How many bytes of an upload the registry has, and where to go on.
    pub async fn upload_status(&self, location: &Url) -> Result<(Url, u64), TransferErrorKind> {
        let response = self.send(Method::GET, location, |request| request).await?;
        if !response.status().is_success() {
            return Err(describe_answer("GET", response).await);
        }
        let received = received(response.headers());
        Ok((self.location(&response).unwrap_or_else(|_| location.clone()), received.unwrap_or(0)))
    }

    /// Ends an upload.
    pub async fn finish_upload(&self, location: &Url, digest: &Digest) -> Result<(), TransferErrorKind> {
        let mut url = location.clone();
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        let put = |request: RequestBuilder| {
            request.header("content-length", "0").header(CONTENT_TYPE, "application/octet-stream")
        };
        let response = self.send(Method::PUT, &url, put).await?;
        match response.status() {
            StatusCode::CREATED | StatusCode::NO_CONTENT => Ok(()),
            _ => Err(describe_answer("PUT", response).await),
        }
    }

    /// Where the answer sends us on.
    pub fn location(&self, response: &Response) -> Result<Url, TransferErrorKind> {
        let text = header(response.headers(), LOCATION.as_str());
        let url = text.as_deref().and_then(|text| response.url().join(text).ok());
        let url = url.filter(|url| matches!(url.scheme(), "http" | "https"));
        url.ok_or_else(|| TransferErrorKind::Malformed(format!("{} answered without a Location", response.url())))
    }

    /// Sends a request that may be repeated, until the registry gives an answer that will not change by waiting.
    async fn send(
        &self,
        method: Method,
        url: &Url,
        build: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, TransferErrorKind> {
        let mut attempt = 0;
        loop {
            let outcome = self.send_once(method.clone(), url, &build).await;
            let wait = match &outcome {
                Ok(response) if may_pass(response.status()) => retry_after(response.headers()),
                Err(TransferErrorKind::Unreachable { .. }) if self.has_answered.load(Ordering::Relaxed) => None,
                _ => return outcome,
            };
            if attempt == self.retries {
                return outcome;
            }
            self.pause(attempt, wait).await;
            attempt += 1;
        }
    }

    /// Sends a request, a second time when the registry first asks who we are.
    pub async fn send_once(
        &self,
        method: Method,
        url: &Url,
        build: &impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, TransferErrorKind> {
        let is_own = url.origin() == self.endpoint.root()?.origin();
        for is_last in [false, true] {
            let request = build(self.client.request(method.clone(), url.clone()));
            // An upload may continue elsewhere; our credentials are for the registry alone.
            let (request, proof) = match is_own {
                true => self.authorizer.authorize(request, &self.scope).await?,
                false => (request, Proof::Final),
            };
            let response = request.send().await.map_err(unreachable)?;
            self.has_answered.store(true, Ordering::Relaxed);
            match response.status() {
                StatusCode::UNAUTHORIZED if !is_last && self.authorizer.learn(&response, &proof, &self.scope).await => {
                }
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    return Err(self.authorizer.refused(error_text(response).await));
                }
                _ => return Ok(response),
            }
        }
        Err(self.authorizer.refused("it asks again and again".to_string()))
    }

    /// Waits before the repetition after `attempt`.
    pub async fn pause(&self, attempt: u32, wanted: Option<Duration>) {
        let backoff = self.backoff.saturating_mul(2u32.saturating_pow(attempt));
        tokio::time::sleep(wanted.unwrap_or(backoff).min(MAX_WAIT)).await;
    }
}

/// The number of bytes a registry reports with `Range: 0-<last>`. Distribution says `0-0` for none, too.
pub(crate) fn received(headers: &HeaderMap) -> Option<u64> {
    let text = header(headers, "range")?;
    let range = text.strip_prefix("bytes=").unwrap_or(&text);
    let last: u64 = range.strip_prefix("0-")?.parse().ok()?;
    Some(if last == 0 { 0 } else { last + 1 })
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    header(headers, RETRY_AFTER.as_str())?.parse().ok().map(Duration::from_secs)
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_string)
}

fn verified(expected: &Digest, bytes: &[u8], subject: impl FnOnce() -> String) -> Result<Digest, TransferErrorKind> {
    let mut hasher = Hasher::new(expected.algorithm());
    hasher.update(bytes);
    let actual = hasher.finish();
    match actual == *expected {
        true => Ok(actual),
        false => Err(TransferErrorKind::DigestMismatch { subject: subject(), expected: expected.clone(), actual }),
    }
}

/// The media type of a manifest. What the bytes say of themselves must agree with what they were served as: a manifest
/// that is also an index would be two images under one digest.
fn manifest_type(content_type: Option<&str>, bytes: &[u8]) -> Result<String, TransferErrorKind> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Envelope {
        media_type: Option<String>,
        manifests: Option<serde::de::IgnoredAny>,
        layers: Option<serde::de::IgnoredAny>,
    }
    let malformed = TransferErrorKind::Malformed;
    let envelope: Envelope =
        serde_json::from_slice(bytes).map_err(|error| malformed(format!("malformed manifest: {error}")))?;
    let served = content_type.map(|text| text.split(';').next().unwrap_or(text).trim().to_string());
    let served = served.filter(|text| media_type::is_manifest(text) || media_type::is_index(text));
    let media_type = match (served, envelope.media_type) {
        (Some(served), Some(own)) if served != own => {
            return Err(malformed(format!("the manifest was served as `{served}`, but says it is `{own}`")));
        }
        (Some(media_type), _) | (None, Some(media_type)) => media_type,
        (None, None) => return Err(malformed("the manifest has no media type".to_string())),
    };
    if envelope.manifests.is_some() && envelope.layers.is_some() {
        return Err(malformed("the manifest has layers and manifests, so it is two things at once".to_string()));
    }
    ManifestOrIndex::parse(&media_type, bytes).map_err(|error| malformed(error.to_string()))?;
    Ok(media_type)
}

async fn http_client(endpoint: &Endpoint) -> Result<Client, TransferErrorKind> {
    // Whoever installs one first wins, and any is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = Client::builder()
        .user_agent(concat!("cfc/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .redirect(reqwest::redirect::Policy::custom(follow_safely));
    if endpoint.accepts_any_certificate {
        builder = builder.tls_danger_accept_invalid_certs(true);
    }
    for path in &endpoint.certificates {
        let subject = |cause: String| {
            TransferErrorKind::Malformed(format!("cannot use the certificates of `{}`: {cause}", path.display()))
        };
        let bytes = tokio::fs::read(path).await.map_err(|error| subject(error.to_string()))?;
        let certificates = reqwest::Certificate::from_pem_bundle(&bytes).map_err(|error| subject(error.to_string()))?;
        builder = builder.tls_certs_merge(certificates);
    }
    if endpoint.protocol != Protocol::Https {
        // Needs no certificates, and so works where the system has none.
        builder = builder.tls_certs_only([]);
    }
    let failed = |error| TransferErrorKind::Malformed(format!("cannot set up TLS: {}", deepest(&error)));
    builder.build().map_err(failed)
}

fn deepest(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => deepest(source),
        None => error.to_string(),
    }
}

/// Registries send blobs from elsewhere. That must not become a way to make us ask what only this machine can reach.
fn follow_safely(attempt: reqwest::redirect::Attempt<'_>) -> reqwest::redirect::Action {
    let Some(previous) = attempt.previous().last() else { return attempt.follow() };
    let is_downgrade = previous.scheme() == "https" && attempt.url().scheme() != "https";
    let is_inward = !is_inner(previous) && is_inner(attempt.url());
    if attempt.previous().len() > MAX_REDIRECTS {
        return attempt.error("too many redirects");
    }
    if is_downgrade || is_inward {
        return attempt.error("a redirect that is not safe to follow");
    }
    attempt.follow()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_is_one_thing() {
        let index = br#"{"schemaVersion":2,"manifests":[]}"#;
        assert_eq!(manifest_type(Some(media_type::INDEX), index).ok().as_deref(), Some(media_type::INDEX));
        let with_parameters = format!("{}; charset=utf-8", media_type::INDEX);
        assert!(manifest_type(Some(&with_parameters), index).is_ok());
        assert!(manifest_type(None, index).is_err());
        assert!(manifest_type(Some("text/html"), b"<html>").is_err());
        let both = br#"{"schemaVersion":2,"manifests":[],"layers":[]}"#;
        assert!(manifest_type(Some(media_type::INDEX), both).is_err());
        let other = format!(r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[]}}"#, media_type::MANIFEST);
        assert!(manifest_type(Some(media_type::INDEX), other.as_bytes()).is_err());
    }

    #[test]
    fn received_bytes_are_counted() {
        let check = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("range", text.parse().expect("a header"));
            received(&headers)
        };
        assert_eq!(check("0-499"), Some(500));
        assert_eq!(check("bytes=0-499"), Some(500));
        assert_eq!(check("0-0"), Some(0));
        assert_eq!(check("5-9"), None);
    }
}
