//! `blobs/<digest>`: pull, look for, unlink.

use axum::body::Body;
use axum::response::Response;
use cfc_oci::{Digest, RepositoryName};
use http::{HeaderValue, StatusCode, header};

use super::{Call, empty, is_unchanged, set, set_digest};
use crate::error::{ApiError, Problem};
use crate::range::{Wanted, wanted};
use crate::sendfile::FileQueue;

/// Up to here the bytes go out in one piece with the head of the answer.
const SMALL_BYTES: u64 = 64 * 1024;

pub(super) async fn get(call: &Call<'_>, name: &RepositoryName, digest: &Digest) -> Result<Response, ApiError> {
    let size = stat(call, name, digest).await?;
    if let Some(response) = elsewhere(call, digest).await? {
        return Ok(response);
    }
    let mut response = content(call, digest, size).await?;
    set_digest(&mut response, digest);
    set(&mut response, header::ETAG, &format!("\"{digest}\""));
    response.headers_mut().insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=31536000, immutable"));
    Ok(response)
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

/// Unlinks the blob from this repository; others may hold it still.
pub(super) async fn delete(call: &Call<'_>, name: &RepositoryName, digest: &Digest) -> Result<Response, ApiError> {
    if call.registry.metadata.unlink_blob(name, digest).await? {
        Ok(empty(StatusCode::ACCEPTED))
    } else {
        Err(ApiError::new(Problem::BlobUnknown, digest))
    }
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
    let body = if call.is_head() { Body::empty() } else { read(call, digest, range.clone()).await? };
    let mut response = Response::new(body);
    set(&mut response, header::CONTENT_LENGTH, &(range.end - range.start).to_string());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    if part.is_some() {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        set(&mut response, header::CONTENT_RANGE, &format!("bytes {}-{}/{size}", range.start, range.end - 1));
    }
    Ok(response)
}

/// The part that is asked for; with `If-Range` only if the client's other parts are of this blob, too.
fn wanted_part(call: &Call<'_>, digest: &Digest, size: u64) -> Wanted {
    let is_same = call.header(header::IF_RANGE).is_none_or(|tag| tag.trim_matches('"') == digest.to_string());
    match call.header(header::RANGE) {
        Some(range) if is_same && !call.is_head() => wanted(range, size),
        _ => Wanted::Whole,
    }
}

/// The bytes of a small blob, or a large one as a file if the connection can send files.
async fn read(call: &Call<'_>, digest: &Digest, range: std::ops::Range<u64>) -> Result<Body, ApiError> {
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
