//! `/operator/loans`: the operator has a password made that expires. Only his socket has it.

use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, header};
use http_body_util::{BodyExt, Limited};

use crate::LoanRequest;
use crate::error::{ApiError, Problem};
use crate::registry::Inner;
use crate::visit::Visit;

/// A request is not longer.
const MAX_BYTES: usize = 64 * 1024;

pub(super) async fn post(registry: &Inner, body: &mut Body, visit: &mut Visit) -> Result<Response, ApiError> {
    let wrong = |what: String| ApiError::new(Problem::LoanRefused, what);
    let bytes = Limited::new(body, MAX_BYTES).collect().await.map_err(|error| wrong(error.to_string()))?.to_bytes();
    let request: LoanRequest = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    // What the registry's options say, although the operator need not be authorized.
    let authorizer = registry.options.authorizer.as_ref();
    let authorizer = authorizer.ok_or_else(|| wrong("it has no users, so everybody may do everything".to_string()))?;
    let loan = authorizer.lend(&request).map_err(wrong)?;
    visit.lends(&request, &loan);
    let mut response = super::json(Body::from(serde_json::to_vec(&loan).expect("texts are JSON")));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}
