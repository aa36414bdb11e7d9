//! [`Client`]: speaks to one upstream: tokens, redirects, and who gets to see our password. It goes straight to where it
//! goes: the environment's proxies are not used, since they would resolve names for us, and not as we do.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cfc_oci::{Descriptor, Digest, Index};
use futures::StreamExt;
use http::{Method, StatusCode, header};
use reqwest::{Certificate, ClientBuilder, Response, Url};
use serde::Deserialize;

use super::challenge::Challenge;
use super::contacts::Contacts;
use super::destination::{Road, check_name, is_named, outside, road};
use super::{Login, Upstream, lock};
use crate::StorageError;
use crate::files::blocking;

const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// An upstream that says nothing for this long is away.
const READ_PATIENCE: Duration = Duration::from_secs(30);
const MAX_REDIRECTS: usize = 5;
/// Pages of one list of referrers.
const MAX_PAGES: usize = 20;
const MAX_TAG_PAGES: usize = 1000;
const MAX_TOKEN_BYTES: usize = 64 * 1024;
/// How long a token is used whose service does not say.
const TOKEN_LIFETIME: Duration = Duration::from_secs(60);

const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// Speaks to one upstream.
pub(super) struct Client {
    upstream: Upstream,
    base: Url,
    /// To servers that the operator has named, wherever they are.
    named: reqwest::Client,
    /// To any other.
    foreign: reqwest::Client,
    tokens: Mutex<HashMap<String, (String, Instant)>>,
    /// How it went.
    pub(super) contacts: Contacts,
}

/// Why nothing came.
pub(super) enum FetchError {
    Status(StatusCode),
    /// A server that it redirects to says so.
    Elsewhere(StatusCode),
    Unreachable(String),
    /// It wants us to do what we do not.
    Refused(String),
}

/// What is asked.
struct Question {
    method: Method,
    /// Where what we do not have begins.
    start: u64,
}

#[derive(Deserialize)]
struct TagList {
    tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Client {
    /// Fails when the URL is none, or no connection could be made as safely as it must be.
    pub(super) fn new(upstream: &Upstream) -> Result<Client, StorageError> {
        let cannot = |why: String| StorageError::new("use the upstream", &upstream.url, why);
        let base = base(&upstream.url).map_err(cannot)?;
        for (key, names) in [("realms", &upstream.realms), ("redirects", &upstream.redirects)] {
            let checked = names.iter().try_for_each(|name| check_name(name));
            checked.map_err(|why| cannot(format!("`{key}`: {why}")))?;
        }
        // Whoever installs one first wins, and any is fine.
        let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
        let trusted = upstream.ca.as_deref().map_or(Ok(Vec::new()), certificates).map_err(cannot)?;
        let build = |trusted: &[Certificate], finish: &dyn Fn(ClientBuilder) -> ClientBuilder| {
            let builder = || {
                let builder = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy();
                finish(builder.connect_timeout(CONNECT_PATIENCE).read_timeout(READ_PATIENCE))
            };
            let usual = match trusted {
                [] => builder(),
                trusted => builder().tls_certs_merge(trusted.iter().cloned()),
            };
            let built = match usual.build() {
                // Where the system has no certificates to trust, what is not encrypted needs none, and these may do.
                Err(_) if base.scheme() == "http" || upstream.ca.is_some() => {
                    builder().tls_certs_only(trusted.iter().cloned()).build()
                }
                built => built,
            };
            built.map_err(|error| cannot(crate::error::Chain(&error).to_string()))
        };
        let named = build(&trusted, &|builder| builder)?;
        let foreign = build(&[], &|builder| builder.dns_resolver(outside()))?;
        Ok(Client {
            upstream: upstream.clone(),
            base,
            named,
            foreign,
            tokens: Mutex::default(),
            contacts: Contacts::default(),
        })
    }

    /// Media type and bytes of a manifest.
    pub(super) async fn manifest(
        &self,
        name: &str,
        reference: &str,
        limit: usize,
    ) -> Result<(Option<String>, Bytes), FetchError> {
        let response = self.ask(Method::GET, name, &self.url(name, &format!("manifests/{reference}"))?).await?;
        let media_type = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let media_type = media_type.map(str::to_string);
        Ok((media_type, read(response, limit).await?))
    }

    /// Where a tag points, as far as the upstream says so without giving the manifest.
    pub(super) async fn tag(&self, name: &str, tag: &str) -> Result<Option<Digest>, FetchError> {
        let url = self.url(name, &format!("manifests/{tag}"))?;
        let Some(response) = self.look(name, &url).await? else { return Ok(None) };
        let digest = response.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
        Ok(digest.and_then(|digest| digest.parse().ok()))
    }

    /// A blob from `start` on, or all of it if the upstream does not give parts.
    pub(super) async fn blob(&self, name: &str, digest: &Digest, start: u64) -> Result<Response, FetchError> {
        let question = Question { method: Method::GET, start };
        self.ask_for(&question, name, &self.url(name, &format!("blobs/{digest}"))?).await
    }

    /// The size of a blob, as far as the upstream says so without giving the blob.
    pub(super) async fn blob_size(&self, name: &str, digest: &Digest) -> Result<Option<u64>, FetchError> {
        let response = self.look(name, &self.url(name, &format!("blobs/{digest}"))?).await?;
        // Some proxies leave the length out, or say that of the body that they do not send.
        let is_said = |length: &u64| *length > 0 || *digest == Digest::of(b"");
        Ok(response.as_ref().and_then(length).filter(is_said))
    }

    /// The head of an answer; `None` when the upstream does not say. So also what it redirects to: by a URL that is good
    /// for GET only nothing can be looked at.
    async fn look(&self, name: &str, url: &Url) -> Result<Option<Response>, FetchError> {
        match self.ask(Method::HEAD, name, url).await {
            Ok(response) => Ok(Some(response)),
            Err(FetchError::Elsewhere(_)) => Ok(None),
            Err(FetchError::Status(status)) if is_unknown(status) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What refers to a manifest, `limit` bytes of it at most; from the tag that stands for the list where the upstream
    /// has no such lists (distribution-spec, "Referrers Tag Schema").
    pub(super) async fn referrers(
        &self,
        name: &str,
        subject: &Digest,
        limit: usize,
    ) -> Result<Vec<Descriptor>, FetchError> {
        match self.listed_referrers(name, subject, limit).await {
            Err(FetchError::Status(status)) if status == StatusCode::NOT_FOUND || is_unknown(status) => {}
            listed => return listed,
        }
        let whole = subject.to_string();
        let (algorithm, hex) = whole.split_once(':').unwrap_or_default();
        let tag = format!("{algorithm}-{}", &hex[..hex.len().min(64)]);
        match self.manifest(name, &tag, limit).await {
            Ok((_, bytes)) => referrers(&bytes),
            Err(FetchError::Status(StatusCode::NOT_FOUND)) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    async fn listed_referrers(
        &self,
        name: &str,
        subject: &Digest,
        limit: usize,
    ) -> Result<Vec<Descriptor>, FetchError> {
        let all = self.pages(name, &format!("referrers/{subject}"), limit, MAX_PAGES, referrers).await?;
        all.ok_or_else(|| FetchError::Refused(format!("it has more than {MAX_PAGES} pages of referrers")))
    }

    /// The names of all tags, `limit` bytes of them at most, in the order in which they come.
    pub(super) async fn tags(&self, name: &str, limit: usize) -> Result<Vec<String>, FetchError> {
        let all = self.pages(name, "tags/list", limit, MAX_TAG_PAGES, tags).await?;
        all.ok_or_else(|| FetchError::Refused(format!("it has more than {MAX_TAG_PAGES} pages of tags")))
    }

    /// What `parse` finds on all pages of a list, `limit` bytes of them at most; `None` when they are more than `max_pages`.
    async fn pages<T>(
        &self,
        name: &str,
        path: &str,
        mut limit: usize,
        max_pages: usize,
        parse: impl Fn(&[u8]) -> Result<Vec<T>, FetchError>,
    ) -> Result<Option<Vec<T>>, FetchError> {
        let mut url = self.url(name, path)?;
        let mut all = Vec::new();
        for _ in 0..max_pages {
            let response = self.ask(Method::GET, name, &url).await?;
            let next = next_page(&url, &response);
            let page = read(response, limit).await?;
            limit -= page.len();
            all.extend(parse(&page)?);
            url = match next {
                Some(next) => next,
                None => return Ok(Some(all)),
            };
        }
        Ok(None)
    }

    fn url(&self, name: &str, path: &str) -> Result<Url, FetchError> {
        let text = format!("{}/v2/{name}/{path}", self.base.as_str().trim_end_matches('/'));
        Url::parse(&text).map_err(|error| FetchError::Refused(format!("`{text}` is no URL: {error}")))
    }

    async fn ask(&self, method: Method, name: &str, url: &Url) -> Result<Response, FetchError> {
        self.ask_for(&Question { method, start: 0 }, name, url).await
    }

    async fn ask_for(&self, question: &Question, name: &str, url: &Url) -> Result<Response, FetchError> {
        let answer = self.ask_once_or_twice(question, name, url).await;
        self.contacts.note(&answer);
        answer
    }

    /// Asks, and once more with what proves who we are if that is wanted.
    async fn ask_once_or_twice(&self, question: &Question, name: &str, url: &Url) -> Result<Response, FetchError> {
        let scope = format!("repository:{name}:pull");
        let known = lock(&self.tokens).get(&scope).filter(|(_, until)| *until > Instant::now()).cloned();
        let mut proof = known.map(|(token, _)| format!("Bearer {token}"));
        for _ in 0..2 {
            let (response, road) = self.follow(question, url, proof.as_deref()).await?;
            match response.status() {
                status if road != Road::Own && !status.is_success() => return Err(FetchError::Elsewhere(status)),
                StatusCode::UNAUTHORIZED => proof = Some(self.prove(url, &response, &scope).await?),
                status if status.is_success() => return Ok(response),
                status => return Err(FetchError::Status(status)),
            }
        }
        Err(FetchError::Status(StatusCode::UNAUTHORIZED))
    }

    /// Asks, and follows redirects. What proves who we are goes to the upstream's own server only.
    async fn follow(
        &self,
        question: &Question,
        own: &Url,
        proof: Option<&str>,
    ) -> Result<(Response, Road), FetchError> {
        let mut url = own.clone();
        for _ in 0..=MAX_REDIRECTS {
            let road = road(own, &self.upstream.redirects, &url);
            let road = road.ok_or_else(|| FetchError::Refused(format!("it redirects to {}", elsewhere(&url))))?;
            let method = question.method.clone();
            let mut request = self.on(road).request(method, url.clone()).header(header::ACCEPT, ACCEPT);
            if question.start > 0 {
                request = request.header(header::RANGE, format!("bytes={}-", question.start));
            }
            if let Some(proof) = proof.filter(|_| road == Road::Own) {
                request = request.header(header::AUTHORIZATION, proof);
            }
            let response = request.send().await.map_err(|error| FetchError::Unreachable(describe(&error)))?;
            if !response.status().is_redirection() {
                return Ok((response, road));
            }
            let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            let target = location.and_then(|location| url.join(location).ok());
            url = target.ok_or_else(|| FetchError::Refused("it redirects to nowhere".to_string()))?;
        }
        Err(FetchError::Refused("it redirects without end".to_string()))
    }

    fn on(&self, road: Road) -> &reqwest::Client {
        match road {
            Road::Own | Road::Named => &self.named,
            Road::Outside => &self.foreign,
        }
    }

    /// What proves who we are, as the upstream wants it.
    async fn prove(&self, own: &Url, refusal: &Response, scope: &str) -> Result<String, FetchError> {
        let headers = refusal.headers().get_all(header::WWW_AUTHENTICATE);
        let challenge = headers.iter().filter_map(|value| value.to_str().ok()).find_map(Challenge::parse);
        match (challenge, &self.upstream.credentials) {
            (Some(Challenge::Basic), Some(login)) => {
                let (name, password) = current(login).await;
                Ok(basic(&name, &password))
            }
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
        let names = &self.upstream.realms;
        let Some(road) = road(own, names, &url) else {
            return Err(refused("is not one that we ask; `realms` names those that are to be asked wherever they are"));
        };
        let is_trusted = road == Road::Own || is_named(names, &url);
        url.query_pairs_mut().append_pair("scope", scope);
        if let Some(service) = service {
            url.query_pairs_mut().append_pair("service", service);
        }
        let mut request = self.on(road).get(url);
        if let Some(login) = &self.upstream.credentials {
            if !is_trusted {
                return Err(refused("may not get our password: name its host in `realms`"));
            }
            let (name, password) = current(login).await;
            request = request.basic_auth(name, Some(password));
        }
        let response = request.send().await.map_err(|error| FetchError::Unreachable(describe(&error)))?;
        match response.status() {
            status if status.is_success() => {}
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => return Err(FetchError::Status(status)),
            status => return Err(FetchError::Unreachable(format!("its token service answered {status}"))),
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

/// The URL that an operator has written.
fn base(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("it is no URL: {error}"))?;
    let is_whole = matches!(url.scheme(), "http" | "https") && url.has_host();
    let is_plain = url.username().is_empty() && url.password().is_none();
    match is_whole && is_plain && url.query().is_none() && url.fragment().is_none() {
        true => Ok(url),
        false => Err("expected `https://registry.example`, without a user, a query or a fragment".to_string()),
    }
}

/// The certificates of a PEM file.
fn certificates(path: &Path) -> Result<Vec<Certificate>, String> {
    let cannot = |why: String| format!("its `ca`, `{}`: {why}", path.display());
    let bytes = std::fs::read(path).map_err(|error| cannot(error.to_string()))?;
    let certificates = Certificate::from_pem_bundle(&bytes).map_err(|error| cannot(error.to_string()))?;
    match certificates.is_empty() {
        true => Err(cannot("there is no certificate in it".to_string())),
        false => Ok(certificates),
    }
}

/// A place that we do not go to, without what may be a secret.
fn elsewhere(url: &Url) -> String {
    let place = url.origin().ascii_serialization();
    format!("`{place}`, where we do not go; `redirects` names servers that it may send us to wherever they are")
}

/// What says that a server does not know such requests.
pub(super) fn is_unknown(status: StatusCode) -> bool {
    matches!(status, StatusCode::BAD_REQUEST | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED)
}

pub(super) fn length(response: &Response) -> Option<u64> {
    response.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn referrers(bytes: &[u8]) -> Result<Vec<Descriptor>, FetchError> {
    let index = serde_json::from_slice::<Index>(bytes);
    index
        .map(|index| index.manifests)
        .map_err(|error| FetchError::Refused(format!("its referrers are no index: {error}")))
}

fn tags(bytes: &[u8]) -> Result<Vec<String>, FetchError> {
    let list = serde_json::from_slice::<TagList>(bytes);
    list.map(|list| list.tags.unwrap_or_default())
        .map_err(|error| FetchError::Refused(format!("its list of tags is none: {error}")))
}

/// Where a list goes on (RFC 8288), on the same server.
fn next_page(url: &Url, response: &Response) -> Option<Url> {
    let links = response.headers().get(header::LINK)?.to_str().ok()?;
    let (target, kind) = links.strip_prefix('<')?.split_once('>')?;
    let next = url.join(target).ok()?;
    (kind.contains("rel=\"next\"") && next.origin() == url.origin()).then_some(next)
}

/// The user name and the password as they are now.
async fn current(login: &Login) -> (String, String) {
    let login = login.clone();
    blocking(move || login.current()).await
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
pub(super) fn describe(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}{}{error}", if text.is_empty() { "" } else { ": " });
        cause = error.source();
    }
    if text.is_empty() { "it cannot be reached".to_string() } else { text }
}
