//! `/operator/loans`: the operator has a password made that expires, sees those that were, and takes them back. Only his
//! socket has it.

use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, Method, header, request::Parts};
use http_body_util::{BodyExt, Limited};
use serde::Serialize;

use crate::error::{ApiError, Problem};
use crate::query::Query;
use crate::registry::Inner;
use crate::visit::Visit;
use crate::{LendError, LoanRequest};

/// A request is not longer.
const MAX_BYTES: usize = 64 * 1024;

pub(super) async fn answer(
    registry: &Inner,
    parts: &Parts,
    body: &mut Body,
    visit: &mut Visit,
) -> Result<Response, ApiError> {
    match parts.method {
        Method::POST => lend(registry, body, visit).await,
        Method::GET => Ok(secret(&registry.loans.list().await?)),
        Method::DELETE => revoke(registry, &Query::parse(parts.uri.query()), visit).await,
        _ => Err(super::not_allowed("GET, POST, DELETE")),
    }
}

async fn lend(registry: &Inner, body: &mut Body, visit: &mut Visit) -> Result<Response, ApiError> {
    let wrong = |what: String| ApiError::new(Problem::LoanRefused, what);
    let bytes = Limited::new(body, MAX_BYTES).collect().await.map_err(|error| wrong(error.to_string()))?.to_bytes();
    let request: LoanRequest = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    let (loan, record) = registry.lend(&request).await.map_err(|error| match error {
        LendError::Refused(why) => wrong(why),
        LendError::Storage(error) => error.into(),
    })?;
    visit.is_about_loan(record);
    Ok(secret(&loan))
}

async fn revoke(registry: &Inner, query: &Query, visit: &mut Visit) -> Result<Response, ApiError> {
    let id = query.first("id").ok_or_else(|| ApiError::new(Problem::LoanUnknown, "expected `?id=`"))?;
    let unknown = || ApiError::new(Problem::LoanUnknown, format!("no password with the id `{id}` is known"));
    let record = registry.revoke(id).await?.ok_or_else(unknown)?;
    visit.is_about_loan(record.clone());
    Ok(secret(&record))
}

/// An answer that nobody is to keep.
fn secret(answer: &impl Serialize) -> Response {
    let mut response = super::json(Body::from(serde_json::to_vec(answer).expect("texts are JSON")));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
