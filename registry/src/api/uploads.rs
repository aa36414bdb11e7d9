//! `blobs/uploads/`: push a blob at once, in a stream or in chunks; mount it from elsewhere; ask how far it got;
//! cancel.

use std::ops::Range;
use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use cfc_oci::{Algorithm, Digest, RepositoryName};
use http::{HeaderName, StatusCode, header};
use uuid::Uuid;

use super::{Call, empty, set, set_digest, stream};
use crate::error::{ApiError, Problem};
use crate::quota::{Arrival, Budget};
use crate::registry::Inner;
use crate::route::parse_digest;
use crate::{Action, AppendError, ByteStream, CommitError, Content, range};

const UPLOAD_ID: HeaderName = HeaderName::from_static("docker-upload-uuid");

/// Repositories that are asked for a blob to mount before the client has to push it.
const HOLDERS_ASKED: usize = 100;

/// Starts an upload, or does without one: a blob that can be mounted, or that comes with this request.
pub(super) async fn begin(call: &Call<'_>, body: &mut Body, name: &RepositoryName) -> Result<Response, ApiError> {
    // A digest that is not one cannot be mounted, which is answered like any mount that fails: by an upload.
    let mounted = call.query.first("mount").and_then(|digest| digest.parse().ok());
    if let Some(digest) = mounted
        && mount(call, name, &digest).await?
    {
        return Ok(created(name, &digest));
    }
    let digest = call.query.first("digest").map(parse_digest).transpose()?;
    let algorithm = match (&digest, call.query.first("digest-algorithm")) {
        (Some(digest), _) => digest.algorithm(),
        (None, Some(algorithm)) => algorithm.parse().map_err(|e| ApiError::new(Problem::DigestInvalid, e))?,
        (None, None) => Algorithm::Sha256,
    };
    if let Some(digest) = digest {
        return push(call, body, name, &digest).await;
    }
    call.registry.admit_upload(name, 0).await?;
    let id = call.registry.uploads.begin(name, algorithm).await?;
    Ok(progress(StatusCode::ACCEPTED, name, id, 0))
}

/// Takes a whole blob in one request.
async fn push(call: &Call<'_>, body: &mut Body, name: &RepositoryName, digest: &Digest) -> Result<Response, ApiError> {
    let registry = call.registry;
    if registry.is_watched() {
        return push_counted(call, body, name, digest).await;
    }
    let _hold = registry.holds.hold([digest.clone()]);
    registry.uploads.push(name, content(call, stream(call, body)), digest).await?;
    registry.metadata.link_blob(name, digest).await?;
    require_stay(call, digest, digest).await?;
    Ok(created(name, digest))
}

/// Fails when the content that was not stored once more, since another repository held it, is going with that repository's
/// link: whoever pushes it again stores it.
async fn require_stay(call: &Call<'_>, digest: &Digest, what: impl std::fmt::Display) -> Result<(), ApiError> {
    match call.registry.blobs.stays(digest).await? {
        true => Ok(()),
        false => Err(ApiError::new(Problem::UploadUnknown, what)),
    }
}

/// By way of an upload, whose id has what it reserved counted even if the client goes away and something of it stays.
async fn push_counted(
    call: &Call<'_>,
    body: &mut Body,
    name: &RepositoryName,
    digest: &Digest,
) -> Result<Response, ApiError> {
    let registry = call.registry;
    registry.admit_upload(name, call.content_length().unwrap_or(0)).await?;
    let id = registry.uploads.begin(name, digest.algorithm()).await?;
    // Nobody knows the id, so nobody can go on, also when the client goes away.
    let mut unknown = Unknown { registry, name, id, is_over: false };
    let finished = finish(call, body, name, id, None, digest).await;
    if finished.is_err() {
        registry.uploads.abort(name, id).await?;
        registry.release(name, id);
    }
    unknown.is_over = true;
    finished
}

/// An upload whose id nobody knows, and which ends with its request.
struct Unknown<'a> {
    registry: &'a Arc<Inner>,
    name: &'a RepositoryName,
    id: Uuid,
    is_over: bool,
}

impl Drop for Unknown<'_> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let (registry, name, id) = (self.registry.clone(), self.name.clone(), self.id);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = registry.uploads.abort(&name, id).await {
                    tracing::warn!(upload = %id, %error, "an upload without a client is left to its expiry");
                }
                registry.release(&name, id);
            });
        }
    }
}

pub(super) async fn status(call: &Call<'_>, name: &RepositoryName, id: Uuid) -> Result<Response, ApiError> {
    let status = call.registry.uploads.status(name, id).await?;
    let status = status.ok_or_else(|| ApiError::new(Problem::UploadUnknown, id))?;
    Ok(progress(StatusCode::NO_CONTENT, name, id, status.size))
}

/// Adds a chunk, or with no `Content-Range` a stream of unknown length.
pub(super) async fn append(
    call: &Call<'_>,
    body: &mut Body,
    name: &RepositoryName,
    id: Uuid,
) -> Result<Response, ApiError> {
    let chunk = chunk(call, name, id).await?;
    let uploads = &call.registry.uploads;
    let budget = Budget::open(call.registry, name, id, call.content_length()).await?;
    match uploads.append(name, id, chunk, content(call, budget.stream(stream(call, body)))).await {
        Ok(size) => {
            budget.settle().await?;
            Ok(progress(StatusCode::ACCEPTED, name, id, size))
        }
        Err(error) => Err(budget.failed(explain(error, name, id)).await?),
    }
}

/// Adds the last chunk, if there is one, and makes the upload a blob.
pub(super) async fn commit(
    call: &Call<'_>,
    body: &mut Body,
    name: &RepositoryName,
    id: Uuid,
) -> Result<Response, ApiError> {
    let digest = call.query.first("digest");
    let digest = digest.ok_or_else(|| ApiError::new(Problem::DigestInvalid, "`?digest=` is missing"))?;
    let digest = parse_digest(digest)?;
    // Some clients send the range of nothing with the request that only ends the upload.
    let chunk = if call.content_length() == Some(0) { None } else { chunk(call, name, id).await? };
    finish(call, body, name, id, chunk, &digest).await
}

pub(super) async fn cancel(call: &Call<'_>, name: &RepositoryName, id: Uuid) -> Result<Response, ApiError> {
    if call.registry.uploads.abort(name, id).await? {
        call.registry.release(name, id);
        Ok(empty(StatusCode::NO_CONTENT))
    } else {
        Err(ApiError::new(Problem::UploadUnknown, id))
    }
}

async fn finish(
    call: &Call<'_>,
    body: &mut Body,
    name: &RepositoryName,
    id: Uuid,
    chunk: Option<Range<u64>>,
    digest: &Digest,
) -> Result<Response, ApiError> {
    let registry = call.registry;
    // A blob that no repository holds yet is garbage to whoever does not know of this.
    let _hold = registry.holds.hold([digest.clone()]);
    let budget = Budget::open(registry, name, id, call.content_length()).await?;
    let is_new = registry.is_new(digest).await?;
    let body = content(call, budget.stream(stream(call, body)));
    let error = match registry.uploads.commit(name, id, chunk, body, digest).await {
        Ok(size) => {
            budget.spent();
            registry.link(name, digest, size, Arrival::Uploaded(id, is_new)).await?;
            require_stay(call, digest, id).await?;
            return Ok(created(name, digest));
        }
        Err(CommitError::Append(error)) => explain(error, name, id),
        Err(error) => error.into(),
    };
    Err(budget.failed(error).await?)
}

/// What comes of a body, and how long the client says it is.
fn content<'a>(call: &Call<'_>, bytes: ByteStream<'a>) -> Content<'a> {
    Content { length: call.content_length(), bytes }
}

/// Links a blob that a repository the client may pull from holds. Without `from`, any such repository will do.
async fn mount(call: &Call<'_>, name: &RepositoryName, digest: &Digest) -> Result<bool, ApiError> {
    let metadata = &call.registry.metadata;
    let _hold = call.registry.holds.hold([digest.clone()]);
    let source = match (call.query.first("from"), mount_source(call)) {
        (_, Some(source)) => call.gate.may_mount(name, &source).await?.then_some(source),
        (Some(_), None) => None,
        (None, None) => first_to_pull_from(call, metadata.holders(digest).await?).await,
    };
    let Some(source) = source else { return Ok(false) };
    // The source keeps the blob until it is linked here.
    if !metadata.claim_blob(&source, digest).await? {
        return Ok(false);
    }
    let Some(size) = call.registry.blobs.stat(digest).await? else { return Ok(false) };
    call.registry.take_stock_once().await?;
    call.registry.link(name, digest, size, Arrival::Mounted).await?;
    // The source may have given it up in between. If so, the link is garbage until the client has pushed the blob.
    Ok(call.registry.blobs.stays(digest).await?)
}

/// The repository that a request names to mount a blob from.
pub(super) fn mount_source(call: &Call<'_>) -> Option<RepositoryName> {
    let _ = call.query.first("mount")?;
    call.query.first("from")?.parse().ok()
}

async fn first_to_pull_from(call: &Call<'_>, sources: Vec<RepositoryName>) -> Option<RepositoryName> {
    for source in sources.into_iter().take(HOLDERS_ASKED) {
        if call.gate.allows(Action::Mount, &source).await {
            return Some(source);
        }
    }
    None
}

/// The `Content-Range` of this request, checked against its length.
async fn chunk(call: &Call<'_>, name: &RepositoryName, id: Uuid) -> Result<Option<Range<u64>>, ApiError> {
    let Some(header) = call.parts.headers.get(header::CONTENT_RANGE) else { return Ok(None) };
    let chunk = header.to_str().ok().and_then(range::chunk);
    let Some(chunk) = chunk else {
        let status = call.registry.uploads.status(name, id).await?;
        let size = status.ok_or_else(|| ApiError::new(Problem::UploadUnknown, id))?.size;
        let error = ApiError::new(Problem::UploadRange, "expected `Content-Range: <first>-<last>`");
        return Err(with_progress(error, name, id, size));
    };
    let expected = chunk.end - chunk.start;
    match call.content_length() {
        Some(found) if found != expected => Err(AppendError::Length { expected, found }.into()),
        _ => Ok(Some(chunk)),
    }
}

/// An error of an upload that can go on says where.
fn explain(error: AppendError, name: &RepositoryName, id: Uuid) -> ApiError {
    match error {
        AppendError::OutOfOrder { size, .. } => with_progress(error.into(), name, id, size),
        error => error.into(),
    }
}

fn with_progress(error: ApiError, name: &RepositoryName, id: Uuid, size: u64) -> ApiError {
    error.with_header(header::LOCATION, &location(name, id)).with_header(header::RANGE, &received(size))
}

fn progress(status: StatusCode, name: &RepositoryName, id: Uuid, size: u64) -> Response {
    let mut response = empty(status);
    set(&mut response, header::LOCATION, &location(name, id));
    set(&mut response, header::RANGE, &received(size));
    set(&mut response, UPLOAD_ID, &id.to_string());
    response
}

fn created(name: &RepositoryName, digest: &Digest) -> Response {
    let mut response = empty(StatusCode::CREATED);
    set(&mut response, header::LOCATION, &format!("/v2/{name}/blobs/{digest}"));
    set_digest(&mut response, digest);
    response
}

fn location(name: &RepositoryName, id: Uuid) -> String {
    format!("/v2/{name}/blobs/uploads/{id}")
}

/// The bytes received, as an inclusive range. Nothing has no such range; by custom it looks like one byte.
fn received(size: u64) -> String {
    format!("0-{}", size.saturating_sub(1))
}
