//! `blobs/<digest>`: pull, look for, unlink.

use std::ops::Range;

use axum::body::Body;
use axum::response::Response;
use cfc_oci::{Digest, RepositoryName, Tag};
use http::{HeaderValue, StatusCode, header};

use super::{Call, empty, is_unchanged, needed, set, set_digest};
use crate::StorageError;
use crate::error::{ApiError, Problem};
use crate::proxy::Portion;
use crate::range::{Wanted, wanted_by};
use crate::sendfile::FileQueue;

/// Up to here the bytes go out in one piece with the head of the answer.
const SMALL_BYTES: u64 = 64 * 1024;

pub(super) async fn get(call: &Call<'_>, name: &RepositoryName, digest: &Digest) -> Result<Response, ApiError> {
    let size = stat(call, name, digest).await?;
    if let Some(response) = elsewhere(call, digest).await? {
        return Ok(response);
    }
    Ok(of_digest(content(call, digest, size).await?, digest))
}

/// Answers with what of a blob is being fetched from an upstream, as it comes.
pub(super) fn coming(call: &Call<'_>, digest: &Digest, portion: Portion) -> Response {
    let (size, part) = (portion.size, portion.part.clone());
    let response = Response::new(portion.into_body(call.parts.extensions.get::<FileQueue>()));
    of_digest(of_length(response, size, part), digest)
}

/// With what is true of whatever a digest names.
fn of_digest(mut response: Response, digest: &Digest) -> Response {
    set_digest(&mut response, digest);
    set(&mut response, header::ETAG, &format!("\"{digest}\""));
    response.headers_mut().insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=31536000, immutable"));
    response
}

/// Sends the client to where the blob can be fetched without us, if there is such a place.
async fn elsewhere(call: &Call<'_>, digest: &Digest) -> Result<Option<Response>, ApiError> {
    if call.is_head() || is_unchanged(call, digest) {
        return Ok(None);
    }
    let Some((url, lifetime)) = call.registry.blobs.url(digest).await? else { return Ok(None) };
    let mut response = empty(StatusCode::TEMPORARY_REDIRECT);
    set(&mut response, header::LOCATION, &url);
    set_digest(&mut response, digest);
    // The URL is the client's alone, and one that is remembered can still be used for half of its time.
    set(&mut response, header::CACHE_CONTROL, &format!("private, max-age={}", lifetime.as_secs() / 2));
    Ok(Some(response))
}

/// Unlinks the blob from this repository, unless an immutable tag needs it there; others may hold it still.
pub(super) async fn delete(call: &Call<'_>, name: &RepositoryName, digest: &Digest) -> Result<Response, ApiError> {
    // It may have to come back.
    let _hold = call.registry.holds.hold([digest.clone()]);
    if let Some(tag) = needed_by(call, name, digest).await? {
        return Err(needed(&tag, digest));
    }
    if !call.registry.metadata.unlink_blob(name, digest).await? {
        return Err(ApiError::new(Problem::BlobUnknown, digest));
    }
    match needed_by(call, name, digest).await? {
        Some(tag) => {
            link_again(call, name, digest).await?;
            Err(needed(&tag, digest))
        }
        None => Ok(empty(StatusCode::ACCEPTED)),
    }
}

async fn needed_by(call: &Call<'_>, name: &RepositoryName, digest: &Digest) -> Result<Option<Tag>, StorageError> {
    let options = &call.registry.options;
    if !options.can_have_immutable_tags(name) {
        return Ok(None);
    }
    call.registry.metadata.needed_by(name, digest, &|tag| options.is_immutable(name, tag)).await
}

/// Links a blob that was unlinked although somebody has pushed an immutable tag that needs it.
async fn link_again(call: &Call<'_>, name: &RepositoryName, digest: &Digest) -> Result<(), StorageError> {
    call.registry.metadata.link_blob(name, digest).await?;
    if !call.registry.blobs.stays(digest).await? {
        tracing::error!(repository = %name, %digest, "a blob that an immutable tag needs was deleted and collected");
    }
    Ok(())
}

/// The size of a blob that the repository holds.
async fn stat(call: &Call<'_>, name: &RepositoryName, digest: &Digest) -> Result<u64, ApiError> {
    let is_linked = call.registry.metadata.claim_blob(name, digest).await?;
    let size = if is_linked { call.registry.blobs.stat(digest).await? } else { None };
    size.ok_or_else(|| ApiError::new(Problem::BlobUnknown, digest))
}

async fn content(call: &Call<'_>, digest: &Digest, size: u64) -> Result<Response, ApiError> {
    if is_unchanged(call, digest) {
        return Ok(empty(StatusCode::NOT_MODIFIED));
    }
    let part = match wanted_part(call, digest, size) {
        Wanted::Whole => None,
        Wanted::Part(range) => Some(range),
        Wanted::Unsatisfiable => {
            let error = ApiError::new(Problem::BlobRange, format!("the blob has {size} bytes"));
            return Err(error.with_header(header::CONTENT_RANGE, &format!("bytes */{size}")));
        }
    };
    let range = part.clone().unwrap_or(0..size);
    let body = if call.is_head() { Body::empty() } else { read(call, digest, range).await? };
    Ok(of_length(Response::new(body), Some(size), part))
}

/// Says how much of `size` bytes it has: a part that is not empty, or all of it.
fn of_length(mut response: Response, size: Option<u64>, part: Option<Range<u64>>) -> Response {
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    if let Some(length) = part.as_ref().map(|part| part.end - part.start).or(size) {
        set(&mut response, header::CONTENT_LENGTH, &length.to_string());
    }
    if let (Some(part), Some(size)) = (part, size) {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        set(&mut response, header::CONTENT_RANGE, &format!("bytes {}-{}/{size}", part.start, part.end - 1));
    }
    response
}

fn wanted_part(call: &Call<'_>, digest: &Digest, size: u64) -> Wanted {
    if call.is_head() { Wanted::Whole } else { wanted_by(&call.parts.headers, digest, size) }
}

/// The bytes of a small blob, or a large one as a file if the connection can send files.
async fn read(call: &Call<'_>, digest: &Digest, range: Range<u64>) -> Result<Body, ApiError> {
    let queue = call.parts.extensions.get::<FileQueue>().filter(|_| range.end - range.start > SMALL_BYTES);
    if let Some(queue) = queue
        && let Some(file) = call.registry.blobs.open(digest).await?
    {
        return Ok(queue.body(file, range));
    }
    let stream = call.registry.blobs.read(digest, range).await?;
    let stream = stream.ok_or_else(|| ApiError::new(Problem::BlobUnknown, digest))?;
    Ok(Body::from_stream(stream))
}
