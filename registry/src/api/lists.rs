//! Lists: `tags/list`, `_catalog`, `referrers/<digest>`.

use axum::body::Body;
use axum::response::Response;
use cfc_oci::{Descriptor, Digest, Index, RepositoryName, media_type};
use http::{HeaderName, HeaderValue, Method, header};
use serde_json::{Value, json};

use super::{Call, not_allowed, set};
use crate::error::{ApiError, Problem};
use crate::query::encode;
use crate::{Action, Catalog};

const OCI_FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// A longer list of referrers is cut into pages, since clients refuse larger manifests.
const MAX_REFERRERS_BYTES: usize = 4 * 1024 * 1024;

/// Repositories that are looked at in one go for those that a client may know of.
const CATALOG_BATCH: usize = 1000;

pub(super) async fn tags(call: &Call<'_>, name: &RepositoryName) -> Result<Response, ApiError> {
    let limit = limit(call)?;
    let wanted = limit.map_or(usize::MAX, |limit| limit.saturating_add(1));
    let tags = call.registry.metadata.tags(name, call.query.first("last"), wanted).await?;
    if tags.is_empty() && !call.registry.metadata.has_repository(name).await? {
        return Err(ApiError::new(Problem::NameUnknown, name));
    }
    Ok(page_of_tags(name, tags, limit))
}

/// Of all the tags that an upstream has those that the client asks for.
pub(super) fn tags_of_upstream(
    call: &Call<'_>,
    name: &RepositoryName,
    mut tags: Vec<String>,
) -> Result<Response, ApiError> {
    let limit = limit(call)?;
    if let Some(last) = call.query.first("last") {
        tags.retain(|tag| tag.as_str() > last);
    }
    Ok(page_of_tags(name, tags, limit))
}

fn page_of_tags(name: &RepositoryName, tags: Vec<String>, limit: Option<usize>) -> Response {
    let (page, next) = cut(tags, limit);
    let mut response = super::json(Body::from(json!({ "name": name, "tags": page }).to_string()));
    link_next(&mut response, &format!("/v2/{name}/tags/list"), limit, next);
    response
}

/// Repositories that hold a manifest and of which the client may know: a list of names, or with `tags=true` an object of
/// names and their tags.
pub(super) async fn catalog(call: &Call<'_>) -> Result<Response, ApiError> {
    call.gate.check(Action::Catalog, None).await?;
    if !matches!(call.parts.method, Method::GET | Method::HEAD) {
        return Err(not_allowed("GET, HEAD"));
    }
    let limit = limit(call)?;
    let with_tags = call.query.first("tags") == Some("true");
    let wanted = limit.map_or(usize::MAX, |limit| limit.saturating_add(1));
    let names = listed(call, wanted).await?;
    let (page, next) = cut(names, limit);
    let repositories = if with_tags { names_and_tags(call, page).await? } else { json!(page) };
    let mut response = super::json(Body::from(json!({ "repositories": repositories }).to_string()));
    let path = if with_tags { "/v2/_catalog?tags=true" } else { "/v2/_catalog" };
    link_next(&mut response, path, limit, next);
    Ok(response)
}

/// The first names, as many as are `wanted`, of those that the client may know of.
async fn listed(call: &Call<'_>, wanted: usize) -> Result<Vec<String>, ApiError> {
    let catalog = call.gate.catalog().await;
    let batch = match catalog {
        Catalog::Whole => wanted,
        Catalog::Matching(_) => wanted.max(CATALOG_BATCH),
    };
    let mut listed = Vec::new();
    let mut last = call.query.first("last").map(str::to_string);
    loop {
        let names = call.registry.metadata.page_of_repositories(last.as_deref(), batch).await?;
        let is_end = names.len() < batch;
        last = names.last().cloned();
        listed.extend(names.into_iter().filter(|name| catalog.lists(name)));
        if is_end || listed.len() >= wanted {
            listed.truncate(wanted);
            return Ok(listed);
        }
    }
}

async fn names_and_tags(call: &Call<'_>, names: Vec<String>) -> Result<Value, ApiError> {
    let mut repositories = serde_json::Map::new();
    for name in names {
        let Ok(repository) = name.parse() else { continue };
        let tags = call.registry.metadata.tags(&repository, None, usize::MAX).await?;
        repositories.insert(name, json!(tags));
    }
    Ok(Value::Object(repositories))
}

/// The manifests that refer to `subject`, `further` ones elsewhere included; an empty index when there are none, and when
/// nobody knows `subject`.
pub(super) async fn referrers(
    call: &Call<'_>,
    name: &RepositoryName,
    subject: &Digest,
    further: Vec<Descriptor>,
) -> Result<Response, ApiError> {
    let mut referrers = call.registry.metadata.referrers(name, subject).await?;
    if !further.is_empty() {
        referrers.extend(further);
        referrers.sort_by(|a, b| a.digest.cmp(&b.digest));
        referrers.dedup_by(|a, b| a.digest == b.digest);
    }
    let filter = call.query.first("artifactType").filter(|filter| !filter.is_empty());
    if let Some(filter) = filter {
        referrers.retain(|referrer| referrer.artifact_type.as_deref() == Some(filter));
    }
    if let Some(last) = call.query.first("last") {
        referrers.retain(|referrer| referrer.digest.to_string().as_str() > last);
    }
    let next = cut_to_bytes(&mut referrers);
    let mut response = Response::new(Body::from(Index::new(referrers).to_bytes()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type::INDEX));
    if filter.is_some() {
        response.headers_mut().insert(OCI_FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
    }
    let path = match filter {
        Some(filter) => format!("/v2/{name}/referrers/{subject}?artifactType={}", encode(filter)),
        None => format!("/v2/{name}/referrers/{subject}"),
    };
    link_next(&mut response, &path, None, next);
    Ok(response)
}

/// The number of results that `n` allows.
fn limit(call: &Call<'_>) -> Result<Option<usize>, ApiError> {
    let Some(text) = call.query.first("n") else { return Ok(None) };
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(ApiError::new(Problem::PageInvalid, text));
    }
    // A number beyond all numbers is as good as none; what is listed is never more than there is.
    Ok(Some(text.parse().unwrap_or(usize::MAX)))
}

/// The first `limit` names, and the last of them when more follow. No names were asked for: none follow.
fn cut(mut names: Vec<String>, limit: Option<usize>) -> (Vec<String>, Option<String>) {
    let limit = limit.unwrap_or(usize::MAX);
    let has_more = names.len() > limit;
    names.truncate(limit);
    let next = if has_more { names.last().cloned() } else { None };
    (names, next)
}

/// Leaves as many referrers as one answer holds, and names the last of them when more follow.
fn cut_to_bytes(referrers: &mut Vec<Descriptor>) -> Option<String> {
    let mut bytes = 0;
    let fits = |referrer: &Descriptor| {
        bytes += serde_json::to_vec(referrer).map_or(0, |json| json.len() + 1);
        bytes <= MAX_REFERRERS_BYTES - 1024
    };
    let count = referrers.iter().map(fits).take_while(|fits| *fits).count().max(1);
    if count >= referrers.len() {
        return None;
    }
    referrers.truncate(count);
    referrers.last().map(|referrer| referrer.digest.to_string())
}

fn link_next(response: &mut Response, path: &str, limit: Option<usize>, last: Option<String>) {
    let Some(last) = last else { return };
    let mark = if path.contains('?') { '&' } else { '?' };
    let limit = limit.map(|limit| format!("n={limit}&")).unwrap_or_default();
    set(response, header::LINK, &format!("<{path}{mark}{limit}last={}>; rel=\"next\"", encode(&last)));
}
