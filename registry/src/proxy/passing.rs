//! Answers with what an upstream has and this registry does not keep.

use std::io;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use cfc_oci::{Digest, Hasher};
use futures::{Stream, StreamExt};
use http::{HeaderValue, header, response};
use tokio::sync::OwnedSemaphorePermit;

use crate::ByteStream;

/// That a blob is there.
pub(super) fn size_of_blob(digest: &Digest, size: u64) -> Response {
    let answer = named(digest, "application/octet-stream").header(header::CONTENT_LENGTH, size);
    answer.body(Body::empty()).expect("digests and numbers are valid in headers")
}

/// A blob, as it comes; of one that turns out to be another the end is missing. Takes up `slot` until then.
pub(super) fn blob(
    digest: &Digest,
    length: Option<u64>,
    bytes: ByteStream<'static>,
    slot: OwnedSemaphorePermit,
) -> Response {
    let mut answer = named(digest, "application/octet-stream");
    if let Some(length) = length {
        answer = answer.header(header::CONTENT_LENGTH, length);
    }
    let bytes = verified(digest.clone(), bytes).inspect(move |_| {
        let _ = &slot;
    });
    answer.body(Body::from_stream(bytes)).expect("digests and numbers are valid in headers")
}

/// A manifest that was verified; only its head if the client wants no more.
pub(super) fn manifest(digest: &Digest, media_type: &str, bytes: Bytes, is_head: bool) -> Response {
    let answer = named(digest, media_type).header(header::CONTENT_LENGTH, bytes.len());
    let body = if is_head { Body::empty() } else { Body::from(bytes) };
    answer.body(body).expect("digests and numbers are valid in headers")
}

fn named(digest: &Digest, media_type: &str) -> response::Builder {
    let unknown = || HeaderValue::from_static("application/octet-stream");
    let media_type = HeaderValue::from_str(media_type).unwrap_or_else(|_| unknown());
    let answer = Response::builder().header(header::CONTENT_TYPE, media_type);
    answer.header("docker-content-digest", digest.to_string()).header(header::ETAG, format!("\"{digest}\""))
}

struct Verifying {
    digest: Digest,
    bytes: ByteStream<'static>,
    /// Until the end was seen.
    hasher: Option<Hasher>,
    held: Option<Bytes>,
}

/// The last piece is held back until all of it has the right digest.
fn verified(digest: Digest, bytes: ByteStream<'static>) -> impl Stream<Item = io::Result<Bytes>> {
    let hasher = Some(Hasher::new(digest.algorithm()));
    futures::stream::try_unfold(Verifying { digest, bytes, hasher, held: None }, |mut state| async move {
        while let Some(hasher) = &mut state.hasher {
            match state.bytes.next().await {
                Some(frame) => {
                    let frame = frame.map_err(io::Error::other)?;
                    hasher.update(&frame);
                    if let Some(before) = state.held.replace(frame) {
                        return Ok(Some((before, state)));
                    }
                }
                None => {
                    let found = state.hasher.take().map(Hasher::finish);
                    if found.as_ref() != Some(&state.digest) {
                        tracing::error!(expected = %state.digest, "an upstream gave another blob");
                        return Err(io::Error::other("the upstream gave another blob"));
                    }
                }
            }
        }
        Ok(state.held.take().map(|last| (last, state)))
    })
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;

    use super::*;

    async fn pass(digest: Digest, frames: &[&'static str]) -> (Vec<u8>, bool) {
        let frames: Vec<Result<Bytes, String>> = frames.iter().map(|frame| Ok(Bytes::from(*frame))).collect();
        let (mut passed, mut stream) = (Vec::new(), verified(digest, futures::stream::iter(frames).boxed()).boxed());
        loop {
            match stream.try_next().await {
                Ok(Some(frame)) => passed.extend_from_slice(&frame),
                end => return (passed, end.is_ok()),
            }
        }
    }

    #[tokio::test]
    async fn what_is_passed_on_is_whole_or_has_no_end() {
        assert_eq!(pass(Digest::of(b"abc"), &["a", "b", "c"]).await, (b"abc".to_vec(), true));
        assert_eq!(pass(Digest::of(b""), &[]).await, (Vec::new(), true));
        assert_eq!(pass(Digest::of(b"abc"), &["a", "b", "x"]).await, (b"ab".to_vec(), false));
        assert_eq!(pass(Digest::of(b"abc"), &["ab"]).await, (Vec::new(), false));
        assert_eq!(pass(Digest::of(b"abc"), &[]).await, (Vec::new(), false));
    }
}
