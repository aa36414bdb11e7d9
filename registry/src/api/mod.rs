//! The HTTP API: one handler for everything below `/v2/`, which reads the route, asks the authorizer, and calls the
//! resource. Each resource is one file, with one function a method.

mod blobs;
mod collection;
mod lists;
mod loans;
mod manifests;
mod uploads;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use cfc_oci::{Digest, RepositoryName, Tag};
use futures::StreamExt;
use http::{HeaderName, HeaderValue, Method, StatusCode, header, request::Parts};
use http_body_util::BodyDataStream;

use crate::auth::{Gate, Operator, credentials};
use crate::error::{ApiError, Problem};
use crate::proxy::Brought;
use crate::query::Query;
use crate::registry::Inner;
use crate::route::{Resource, Route};
use crate::visit::Visit;
use crate::webhook::{Cause, Target};
use crate::{Action, ByteStream, HookEvent, Registry};

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const OCI_NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// Where the operator, and nobody else, has tags removed that are not kept (PUT), or asks which these are (GET).
pub(crate) const RETENTION: &str = "/operator/retention";

/// Where the operator, and nobody else, has passwords made that expire (POST), sees which there are (GET), and takes one
/// back (DELETE, `?id=`).
pub(crate) const LOANS: &str = "/operator/loans";

/// What of a refused body is read, so that its client gets to read the answer before the connection closes.
const DRAINED_BYTES: usize = 8 * 1024 * 1024;
const DRAINED_FOR: Duration = Duration::from_secs(2);

/// A request on its way through a resource.
struct Call<'a> {
    registry: &'a Arc<Inner>,
    parts: &'a Parts,
    query: Query,
    gate: Gate<'a>,
}

/// Answers one request.
pub(crate) async fn respond(registry: &Registry, request: Request) -> Response {
    let registry = &registry.inner;
    let (parts, body) = request.into_parts();
    match parts.uri.path() {
        "/healthz" => return crate::health::health(),
        "/readyz" => return crate::health::readiness(registry).await,
        _ => {}
    }
    let mut visit = Visit::begin(registry, &parts);
    let mut body = visit.count(body);
    let result = answer(registry, &parts, &mut body, &mut visit).await;
    let mut response = match result {
        Ok(response) => response,
        Err(error) => {
            tracing::debug!(method = %parts.method, uri = %parts.uri, %error, "refused");
            drain(&parts, body).await;
            error.into_response()
        }
    };
    response.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    visit.answer(response)
}

async fn answer(
    registry: &Arc<Inner>,
    parts: &Parts,
    body: &mut Body,
    visit: &mut Visit,
) -> Result<Response, ApiError> {
    let authorizer = registry.options.authorizer.as_deref().filter(|_| parts.extensions.get::<Operator>().is_none());
    let gate = Gate::new(registry, authorizer, credentials(&parts.headers), base_url(registry, parts), visit.proof());
    visit.is_by(gate.name());
    if let Some(address) = crate::visit::address(registry, parts) {
        registry.rates.of_address(registry.options.rates, address).map_err(ApiError::too_many)?;
    }
    match parts.uri.path() {
        "/token" => {
            visit.is_for_a_token();
            return crate::token::answer(registry, &gate, parts, body, visit).await;
        }
        RETENTION
            if parts.extensions.get::<Operator>().is_some() && [Method::GET, Method::PUT].contains(&parts.method) =>
        {
            visit.is_for_retention();
            let retired = registry.retain(parts.method == Method::GET).await?;
            return Ok(json(Body::from(serde_json::to_vec(&retired).expect("names are JSON"))));
        }
        LOANS if parts.extensions.get::<Operator>().is_some() => {
            visit.is_for_a_loan();
            return loans::answer(registry, parts, body, visit).await;
        }
        "/metrics" => {
            gate.check(Action::Metrics, None).await?;
            return Ok(crate::metrics::answer(registry));
        }
        _ => {}
    }
    let query = Query::parse(parts.uri.query());
    let route = Route::parse(parts.uri.path());
    let call = Call { registry, parts, query, gate };
    let route = match route {
        Ok(route) => route,
        Err(error) => {
            // What is wrong with a path is not for everybody to explore.
            call.gate.check(Action::Ping, None).await?;
            return Err(error);
        }
    };
    visit.is_about(&route);
    match route {
        Route::Base => base(&call).await,
        Route::Catalog => lists::catalog(&call).await,
        Route::Collection => collection::put(&call).await,
        Route::Repository(name, resource) => {
            let namespace = namespace(&call);
            let (name, namespace) = match namespace.and_then(|ns| Some((registry.upstreams.mirrored(ns, &name)?, ns))) {
                Some((name, namespace)) => (name, Some(namespace)),
                None => (name, None),
            };
            let mut response = in_repository(&call, body, name, resource).await?;
            if let Some(namespace) = namespace {
                set(&mut response, OCI_NAMESPACE, namespace);
            }
            Ok(response)
        }
    }
}

/// The registry that a client means which uses this one as a mirror (distribution-spec, "Registry Proxying"). Nothing is
/// written to those.
fn namespace<'a>(call: &'a Call<'_>) -> Option<&'a str> {
    let is_reading = matches!(call.parts.method, Method::GET | Method::HEAD);
    call.query.first("ns").filter(|_| is_reading)
}

async fn in_repository(
    call: &Call<'_>,
    body: &mut Body,
    name: RepositoryName,
    resource: Resource,
) -> Result<Response, ApiError> {
    let (registry, parts) = (call.registry, call.parts);
    match uploads::mount_source(call).filter(|_| matches!(resource, Resource::Uploads)) {
        Some(source) => call.gate.check_mount(&name, &source).await?,
        None => call.gate.check(action(&resource, &parts.method), Some(&name)).await?,
    }
    // What is pulled from an upstream is kept.
    if !matches!(parts.method, Method::GET | Method::HEAD) || registry.upstreams.has(&name) {
        registry.metadata.require_known_format().await?;
    }
    let brought = crate::proxy::bring(registry, &name, &resource, parts).await?;
    match (brought, resource) {
        (Brought::Answer(answer), _) => Ok(*answer),
        (Brought::Coming(portion), Resource::Blob(digest)) => Ok(blobs::coming(call, &digest, portion)),
        (Brought::Referrers(further), Resource::Referrers(subject)) => {
            lists::referrers(call, &name, &subject, further).await
        }
        (Brought::Tags(tags), Resource::Tags) => lists::tags_of_upstream(call, &name, tags),
        (_, resource) => repository(call, body, &name, resource).await,
    }
}

async fn repository(
    call: &Call<'_>,
    body: &mut Body,
    name: &RepositoryName,
    resource: Resource,
) -> Result<Response, ApiError> {
    match (resource, call.parts.method.as_str()) {
        // An upload that is cancelled has not been anything yet.
        (Resource::Manifest(_) | Resource::Blob(_), "DELETE") if !call.registry.options.deletes => {
            Err(not_allowed("GET, HEAD"))
        }
        (Resource::Tags, "GET" | "HEAD") => lists::tags(call, name).await,
        (Resource::Tags, _) => Err(not_allowed("GET, HEAD")),
        (Resource::Manifest(reference), "GET" | "HEAD") => manifests::get(call, name, &reference).await,
        (Resource::Manifest(reference), "PUT") => manifests::put(call, body, name, &reference).await,
        (Resource::Manifest(reference), "DELETE") => manifests::delete(call, name, &reference).await,
        (Resource::Manifest(_), _) => Err(not_allowed("GET, HEAD, PUT, DELETE")),
        (Resource::Blob(digest), "GET" | "HEAD") => blobs::get(call, name, &digest).await,
        (Resource::Blob(digest), "DELETE") => blobs::delete(call, name, &digest).await,
        (Resource::Blob(_), _) => Err(not_allowed("GET, HEAD, DELETE")),
        (Resource::Uploads, "POST") => uploads::begin(call, body, name).await,
        (Resource::Uploads, _) => Err(not_allowed("POST")),
        (Resource::Upload(id), "GET" | "HEAD") => uploads::status(call, name, id).await,
        (Resource::Upload(id), "PATCH") => uploads::append(call, body, name, id).await,
        (Resource::Upload(id), "PUT") => uploads::commit(call, body, name, id).await,
        (Resource::Upload(id), "DELETE") => uploads::cancel(call, name, id).await,
        (Resource::Upload(_), _) => Err(not_allowed("GET, HEAD, PATCH, PUT, DELETE")),
        (Resource::Referrers(digest), "GET" | "HEAD") => lists::referrers(call, name, &digest, Vec::new()).await,
        (Resource::Referrers(_), _) => Err(not_allowed("GET, HEAD")),
    }
}

/// The action that a method means. A cancelled upload is part of a push, not a deletion.
fn action(resource: &Resource, method: &Method) -> Action {
    match *method {
        _ if matches!(resource, Resource::Uploads) => Action::Push,
        _ if matches!(resource, Resource::Upload(_)) => Action::Continue,
        Method::HEAD if matches!(resource, Resource::Blob(_) | Resource::Manifest(_)) => Action::Look,
        Method::GET | Method::HEAD => Action::Pull,
        Method::DELETE => Action::Delete,
        _ => Action::Push,
    }
}

/// The URL under which the client knows the registry. What it says is used for its own answer only. A proxy of ours may
/// say what was asked of it, as distribution has it: `X-Forwarded-Proto` and `X-Forwarded-Host`.
fn base_url(registry: &Inner, parts: &Parts) -> String {
    if let Some(url) = &registry.options.url {
        return url.trim_end_matches('/').to_string();
    }
    let forwarded = |name: &str| {
        let value =
            parts.headers.get(name).filter(|_| crate::visit::is_behind_proxy(registry, parts))?.to_str().ok()?;
        value.split(',').next().map(str::trim)
    };
    let host = parts.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let is_plain = |host: &&str| host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte));
    let host = forwarded("x-forwarded-host").filter(is_plain).or(host.filter(is_plain)).unwrap_or("localhost");
    let own = if registry.options.tls.is_some() { "https" } else { "http" };
    let scheme = forwarded("x-forwarded-proto").filter(|scheme| ["http", "https"].contains(scheme)).unwrap_or(own);
    format!("{scheme}://{host}")
}

async fn base(call: &Call<'_>) -> Result<Response, ApiError> {
    call.gate.check(Action::Ping, None).await?;
    match call.parts.method {
        Method::GET | Method::HEAD => Ok(json(Body::from("{}"))),
        _ => Err(not_allowed("GET, HEAD")),
    }
}

impl Call<'_> {
    /// Tells others of what this request has done.
    fn tell(&self, event: HookEvent, targets: Vec<Target>) {
        let cause = Cause::Request {
            parts: self.parts,
            address: crate::visit::address(self.registry, self.parts),
            user: self.gate.name(),
            base: self.gate.base(),
        };
        self.registry.hooks.tell(event, &cause, targets);
    }

    fn is_head(&self) -> bool {
        self.parts.method == Method::HEAD
    }

    fn header(&self, name: HeaderName) -> Option<&str> {
        self.parts.headers.get(name).and_then(|value| value.to_str().ok())
    }

    fn content_length(&self) -> Option<u64> {
        self.header(header::CONTENT_LENGTH).and_then(|length| length.parse().ok())
    }
}

/// What a client must send at least, or the end, while it is waited for as long as it may be idle. Less than the slowest
/// line carries, and more than is sent by who only wants to keep a connection.
const PACE_BYTES: usize = 8 * 1024;

/// What is left of a body, for a backend. Ends with an error when too little comes for too long; what is written meanwhile
/// takes none of that time.
fn stream<'a>(call: &Call<'_>, body: &'a mut Body) -> ByteStream<'a> {
    let idle = call.registry.options.limits.idle;
    let next = move |(mut frames, brought, left): (BodyDataStream<&'a mut Body>, usize, Duration)| async move {
        let began = Instant::now();
        let frame = match tokio::time::timeout(left, frames.next()).await {
            Ok(frame) => frame?.map_err(|error| error.to_string()),
            Err(_) if brought == 0 => Err(format!("nothing came for {} seconds", idle.as_secs())),
            Err(_) => Err(format!("only {brought} bytes came in {} seconds", idle.as_secs())),
        };
        let brought = brought + frame.as_ref().map_or(0, Bytes::len);
        let (brought, left) = match brought < PACE_BYTES {
            true => (brought, left.saturating_sub(began.elapsed())),
            false => (0, idle),
        };
        Some((frame, (frames, brought, left)))
    };
    futures::stream::unfold((BodyDataStream::new(body), 0, idle), next).boxed()
}

fn not_allowed(methods: &str) -> ApiError {
    ApiError::from(Problem::MethodNotAllowed).with_header(header::ALLOW, methods)
}

/// What an immutable tag leads to cannot be deleted.
fn needed(tag: &Tag, digest: &Digest) -> ApiError {
    ApiError::new(Problem::Needed, format!("the immutable tag `{tag}` needs {digest}"))
}

/// An answer without a body.
fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

fn json(body: Body) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Sets a header from text that we made, all of it visible ASCII.
fn set(response: &mut Response, name: HeaderName, text: &str) {
    match HeaderValue::from_str(text) {
        Ok(value) => drop(response.headers_mut().append(name, value)),
        Err(_) => tracing::error!(%name, text, "not a header value"),
    }
}

fn set_digest(response: &mut Response, digest: &Digest) {
    set(response, CONTENT_DIGEST, &digest.to_string());
}

/// Whether the client's copy is still good, which content named by digest always is.
fn is_unchanged(call: &Call<'_>, digest: &Digest) -> bool {
    let tags = call.header(header::IF_NONE_MATCH).unwrap_or_default();
    tags.split(',').any(|tag| tag.trim().trim_start_matches("W/").trim_matches('"') == digest.to_string())
}

async fn drain(parts: &Parts, body: Body) {
    // A client that asked first must not be told to go on.
    if parts.headers.contains_key(header::EXPECT) {
        return;
    }
    let read = async {
        let mut frames = body.into_data_stream();
        let mut left = DRAINED_BYTES;
        while let Some(Ok(frame)) = frames.next().await {
            left = left.saturating_sub(frame.len());
            if left == 0 {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(DRAINED_FOR, read).await;
}
