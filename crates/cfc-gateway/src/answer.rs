//! What the gateway answers itself: plain text that says what is wrong and what to do.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};

/// Every body the gateway sends: a Worker's or its own.
pub(crate) type Body = UnsyncBoxBody<Bytes, hyper::Error>;

fn answer(status: StatusCode, text: String) -> Response<Body> {
    let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// 404: `host` names no Worker; `workers` are there.
pub(crate) fn no_worker(host: &str, workers: &[String], domain: &str, port: Option<u16>) -> Response<Body> {
    let mut text = format!("cfc: no Worker answers at {host}.\n\n");
    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
    if workers.is_empty() {
        text.push_str("No Worker is deployed yet. In a project's directory, `cfc deploy` deploys it.\n");
    } else {
        text.push_str("These do:\n");
        workers.iter().for_each(|worker| text.push_str(&format!("  http://{worker}.{domain}{port}\n")));
    }
    answer(StatusCode::NOT_FOUND, text)
}

/// 400: nothing says which Worker is meant.
pub(crate) fn no_host() -> Response<Body> {
    answer(StatusCode::BAD_REQUEST, "cfc: the request needs exactly one well-formed Host header.\n".to_string())
}

/// 400: `CONNECT` is for proxies.
pub(crate) fn no_proxy() -> Response<Body> {
    answer(StatusCode::BAD_REQUEST, "cfc: this is a gateway to Workers, not a proxy.\n".to_string())
}

/// 413: more than the Worker is to get.
pub(crate) fn too_large(limit: u64) -> Response<Body> {
    answer(StatusCode::PAYLOAD_TOO_LARGE, format!("cfc: the request's body is larger than {limit} bytes.\n"))
}

/// 503: the Worker is there and cannot serve.
pub(crate) fn unavailable(worker: &str, reason: &str) -> Response<Body> {
    answer(StatusCode::SERVICE_UNAVAILABLE, format!("cfc: Worker `{worker}` cannot serve now: {reason}.\n"))
}

/// 502: the Worker got the request and did not answer it.
pub(crate) fn broken(worker: &str, reason: &str) -> Response<Body> {
    answer(StatusCode::BAD_GATEWAY, format!("cfc: Worker `{worker}` gave no answer: {reason}.\n"))
}
