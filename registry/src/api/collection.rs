//! `gc/layers`: wrangler asks for garbage collection after it has deleted an image.

use axum::body::Body;
use axum::response::Response;
use http::Method;

use super::{Call, not_allowed};
use crate::Action;
use crate::auth::Operator;
use crate::error::{ApiError, Problem};
use crate::removed::Notes;

/// Collects garbage by the registry's own rules, with `?dry-run=true` only to tell what that would remove. With `?list=true`
/// the operator, and nobody else, is told what each thing is that goes.
pub(super) async fn put(call: &Call<'_>) -> Result<Response, ApiError> {
    call.gate.check(Action::Collect, None).await?;
    if call.parts.method != Method::PUT {
        return Err(not_allowed("PUT"));
    }
    let is_dry_run = call.query.first("dry-run") == Some("true");
    let is_listed = call.query.first("list") == Some("true");
    if is_listed && call.parts.extensions.get::<Operator>().is_none() {
        return Err(ApiError::new(Problem::Denied, "only the operator may have `list=true`"));
    }
    let (registry, rules) = (call.registry.clone(), call.registry.options.collection);
    let collected = registry.collect_noting(rules, is_dry_run, is_listed.then(Notes::default)).await?;
    let body = serde_json::to_vec(&collected).expect("names and numbers are JSON");
    Ok(super::json(Body::from(body)))
}
