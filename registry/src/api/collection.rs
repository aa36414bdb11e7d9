//! `gc/layers`: wrangler asks for garbage collection after it has deleted an image.

use axum::body::Body;
use axum::response::Response;
use http::Method;

use super::{Call, not_allowed};
use crate::Action;
use crate::error::ApiError;

/// Collects garbage by the registry's own rules, with `?dry-run=true` only to tell what that would remove.
pub(super) async fn put(call: &Call<'_>) -> Result<Response, ApiError> {
    call.gate.check(Action::Collect, None).await?;
    if call.parts.method != Method::PUT {
        return Err(not_allowed("PUT"));
    }
    let is_dry_run = call.query.first("dry-run") == Some("true");
    let collected = call.registry.clone().collect(call.registry.options.collection, is_dry_run).await?;
    let body = serde_json::to_vec(&collected).expect("numbers are JSON");
    Ok(super::json(Body::from(body)))
}
