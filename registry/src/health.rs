//! `/healthz` and `/readyz`: for whoever watches the machine, without a password. They tell nothing but themselves.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use cfc_oci::Digest;
use http::{HeaderValue, StatusCode, header};

use crate::bucket::UnknownFormat;
use crate::error::{Chain, is_read_only};
use crate::registry::Inner;

/// How long the storage may take to answer: who watches the machine gives up after a few seconds, and is to learn why.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whether the process answers.
pub(crate) fn health() -> Response {
    text(StatusCode::OK, "ok\n")
}

/// Whether what is stored can be reached and changed: 503 if not, or if the storage does not say so within two seconds.
pub(crate) async fn readiness(registry: &Inner) -> Response {
    let look = async {
        registry.blobs.stat(&Digest::of(b"")).await?;
        registry.metadata.require_known_format().await?;
        registry.metadata.require_writable().await
    };
    match tokio::time::timeout(PATIENCE, look).await {
        Ok(Ok(())) => text(StatusCode::OK, "ok\n"),
        Err(_) => {
            tracing::error!("not ready: the storage does not answer");
            text(StatusCode::SERVICE_UNAVAILABLE, "the storage does not answer\n")
        }
        Ok(Err(error)) => {
            tracing::error!(error = %Chain(&error), "not ready");
            let why = match &error {
                error if error.source.is::<UnknownFormat>() => {
                    "a newer registry shares the storage, and this one takes no pushes any more\n"
                }
                error if is_read_only(error) => "the storage cannot be written to, clients may only pull\n",
                _ => "the storage cannot be used\n",
            };
            text(StatusCode::SERVICE_UNAVAILABLE, why)
        }
    }
}

fn text(status: StatusCode, text: &'static str) -> Response {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}
