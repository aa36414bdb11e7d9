//! One request's way: find its Worker, reach it, send the request, pass the answer on.

use std::net::IpAddr;
use std::sync::Arc;

use http::uri::{Authority, PathAndQuery, Uri};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use tokio::time::{Duration, Instant, sleep, sleep_until};

use crate::answer::{self, Body};
use crate::gateway::Inner;
use crate::headers;
use crate::host::{Target, authority, target};
use crate::route::Route;
use crate::upgrade::tunnel;
use crate::upstream::{Lease, RequestBody, ResponseBody};

/// How often a Worker that should be there and does not accept is tried again.
const RETRY: Duration = Duration::from_millis(20);

/// Answers `request`, by its Worker or with the reason why not.
pub(crate) async fn forward(inner: Arc<Inner>, client: IpAddr, request: Request<Incoming>) -> Response<Body> {
    match try_forward(&inner, client, request).await {
        Ok(response) | Err(response) => response,
    }
}

async fn try_forward(
    inner: &Arc<Inner>,
    client: IpAddr,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Response<Body>> {
    if request.method() == Method::CONNECT {
        return Err(answer::no_proxy());
    }
    let authority = authority_of(&request).ok_or_else(answer::no_host)?;
    let worker = worker_of(inner, &authority).ok_or_else(|| no_worker(inner, &authority))?;
    let limit = inner.options.max_request_body;
    if request.body().size_hint().lower() > limit {
        return Err(answer::too_large(limit));
    }
    let lease = reach(inner, &worker, &authority).await?;
    let protocol = headers::upgrade_protocol(request.headers());
    let client_upgrade = protocol.as_ref().map(|_| hyper::upgrade::on(&mut request));
    rewrite(&mut request, client, &authority);
    if let Some(protocol) = protocol {
        headers::set_upgrade(request.headers_mut(), protocol);
    }
    let request = request.map(|body| Limited::new(body, usize::try_from(limit).unwrap_or(usize::MAX)));
    let (mut response, lease) = send(inner, &worker, &authority, lease, request).await?;

    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(client_upgrade) = client_upgrade else {
            return Err(answer::broken(&worker, "it changed the protocol without being asked to"));
        };
        let protocol = headers::upgrade_protocol(response.headers());
        let agreed = protocol.clone().unwrap_or(HeaderValue::from_static(""));
        tunnel(inner, &agreed, client_upgrade, hyper::upgrade::on(&mut response));
        headers::remove_hop_by_hop(response.headers_mut());
        if let Some(protocol) = protocol {
            headers::set_upgrade(response.headers_mut(), protocol);
        }
    } else {
        headers::remove_hop_by_hop(response.headers_mut());
    }
    Ok(response.map(|incoming| ResponseBody::new(incoming, lease).boxed_unsync()))
}

/// The request's host; a client of HTTP/1.0 need not name one, and means whatever is here.
fn authority_of(request: &Request<Incoming>) -> Option<Authority> {
    let may_lack_host = request.version() == Version::HTTP_10 && !request.headers().contains_key(http::header::HOST);
    let whatever = may_lack_host.then(|| Authority::from_static("localhost"));
    authority(request.uri(), request.headers()).or(whatever)
}

fn worker_of(inner: &Inner, authority: &Authority) -> Option<String> {
    match target(authority, &inner.options.domains) {
        Target::Worker(worker) => Some(worker),
        Target::Only => inner.routes.only(),
        Target::Unknown => None,
    }
}

fn no_worker(inner: &Inner, authority: &Authority) -> Response<Body> {
    let domain = inner.options.domains.first().map_or("localhost", String::as_str);
    answer::no_worker(authority.as_str(), &inner.routes.names(), domain, authority.port_u16())
}

/// A connection to the Worker, waiting for one that is being restarted.
async fn reach(inner: &Inner, worker: &str, authority: &Authority) -> Result<Lease, Response<Body>> {
    let mut route = inner.routes.watch(worker).ok_or_else(|| no_worker(inner, authority))?;
    let hold = inner.options.hold;
    let deadline = Instant::now() + hold;
    loop {
        let current = route.borrow_and_update().clone();
        let reason = match current {
            Route::Down(reason) => return Err(answer::unavailable(worker, &reason)),
            Route::Held => format!("it is being restarted and was not back within {hold:?}"),
            Route::Up(upstream) => match upstream.lease().await {
                Ok(lease) => return Ok(lease),
                Err(error) => {
                    tracing::debug!(worker, %error, "a Worker does not accept connections");
                    format!("its process did not accept a connection within {hold:?}")
                }
            },
        };
        tokio::select! {
            changed = route.changed() => changed.map_err(|_| no_worker(inner, authority))?,
            () = sleep(RETRY) => {}
            () = sleep_until(deadline) => return Err(answer::unavailable(worker, &reason)),
        }
    }
}

/// Makes of the client's request the one that the Worker gets.
fn rewrite(request: &mut Request<Incoming>, client: IpAddr, authority: &Authority) {
    let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from(path);
    *request.version_mut() = Version::HTTP_11;
    headers::remove_hop_by_hop(request.headers_mut());
    headers::add_forwarded(request.headers_mut(), client, authority);
}

/// Sends the request. A connection that turns out to be closed before any of it was sent is replaced.
async fn send(
    inner: &Inner,
    worker: &str,
    authority: &Authority,
    mut lease: Lease,
    mut request: Request<RequestBody>,
) -> Result<(Response<Incoming>, Lease), Response<Body>> {
    loop {
        match lease.sender.try_send_request(request).await {
            Ok(response) => return Ok((response, lease)),
            Err(mut error) => match error.take_message() {
                Some(unsent) => request = unsent,
                None => return Err(failed(inner, worker, error.into_error())),
            },
        }
        lease = reach(inner, worker, authority).await?;
    }
}

/// The answer to a request that was sent and got no answer. The cause may be the client's own body.
fn failed(inner: &Inner, worker: &str, error: hyper::Error) -> Response<Body> {
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        if error.is::<LengthLimitError>() {
            return answer::too_large(inner.options.max_request_body);
        }
        cause = error.source();
    }
    tracing::warn!(worker, %error, "a Worker gave no answer");
    answer::broken(worker, "it closed the connection; its log may say why")
}
