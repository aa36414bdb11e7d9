//! `/metrics` and `/healthz`: beside the API, read-only, and without a token. They tell names of applications and
//! numbers, nothing of what is deployed or said; the API listens on the loopback, which no container reaches.

use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue};

use crate::Control;
use crate::wire::metrics;

/// `GET /metrics`.
pub(crate) async fn scrape(State(control): State<Control>) -> Response {
    let families = control.inner.platform.metrics().await;
    let mut response = Response::new(metrics::render(&families).into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE));
    response
}

/// `GET /healthz`: 200 when all records can be read. A 503 names those that cannot; the Workers of others are served.
pub(crate) async fn health(State(control): State<Control>) -> Response {
    let (status, text) = match control.inner.catalog.damage().await {
        Ok(damage) if damage.is_empty() => (StatusCode::OK, "ok\n".to_string()),
        Ok(damage) => {
            let lines = damage.iter().map(|(_, error)| format!("{}\n", error.chain()));
            (StatusCode::SERVICE_UNAVAILABLE, lines.collect())
        }
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", error.chain())),
    };
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    response
}
