//! Blobs of an upstream that breaks off: what is missing is asked for, a few times. Whether the pieces fit together the
//! digest tells in the end, so nothing else of them is compared but where they begin and what they are part of.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cfc_oci::Digest;
use futures::{StreamExt, TryStreamExt};
use http::{StatusCode, header};
use reqwest::Response;

use super::client::{Client, FetchError, describe, length};
use crate::{ByteStream, Content};

/// How often what is missing is asked for, without more than [`PROGRESS_BYTES`] coming in between.
const TRIES: u32 = 5;
const PROGRESS_BYTES: u64 = 1 << 20;
/// Before the first try; twice as long before each further one.
const PAUSE: Duration = Duration::from_millis(200);

/// The bytes of a blob, as they come.
pub(super) async fn blob(client: &Arc<Client>, name: &str, digest: &Digest) -> Result<Content<'static>, FetchError> {
    let response = client.blob(name, digest, 0).await?;
    let length = length(&response);
    let (client, name, digest) = (client.clone(), name.to_string(), digest.clone());
    let resuming = Resuming { client, name, digest, length, come: 0, tries: 0, tried_at: 0, bytes: frames(response) };
    let next = |mut resuming: Resuming| async move { Ok(resuming.next().await?.map(|frame| (frame, resuming))) };
    Ok(Content { length, bytes: futures::stream::try_unfold(resuming, next).boxed() })
}

fn frames(response: Response) -> ByteStream<'static> {
    response.bytes_stream().map_err(|error| describe(&error)).boxed()
}

struct Resuming {
    client: Arc<Client>,
    name: String,
    digest: Digest,
    length: Option<u64>,
    come: u64,
    /// Tries since enough has come, and how much had come then.
    tries: u32,
    tried_at: u64,
    bytes: ByteStream<'static>,
}

impl Resuming {
    async fn next(&mut self) -> Result<Option<Bytes>, String> {
        loop {
            let why = match self.bytes.next().await {
                Some(Ok(frame)) => {
                    self.come += frame.len() as u64;
                    return Ok(Some(frame));
                }
                None if self.length.is_none_or(|length| self.come >= length) => return Ok(None),
                None => "it ended early".to_string(),
                Some(Err(_)) if self.length == Some(self.come) => return Ok(None),
                Some(Err(why)) => why,
            };
            self.resume(why).await?;
        }
    }

    /// Has the rest come; fails with the last reason why it does not.
    async fn resume(&mut self, mut why: String) -> Result<(), String> {
        if self.come - self.tried_at > PROGRESS_BYTES {
            self.tries = 0;
        }
        while self.tries < TRIES {
            tracing::warn!(digest = %self.digest, come = self.come, why, "an upstream broke off, and is asked to go on");
            tokio::time::sleep(PAUSE * 2_u32.pow(self.tries)).await;
            (self.tries, self.tried_at) = (self.tries + 1, self.come);
            match self.rest().await {
                Ok(rest) => {
                    self.bytes = rest;
                    return Ok(());
                }
                Err(FetchError::Unreachable(reason)) => why = reason,
                Err(FetchError::Status(status) | FetchError::Elsewhere(status)) => {
                    why = format!("it answered {status} when it was asked to go on");
                }
                Err(FetchError::Refused(reason)) => return Err(reason),
            }
        }
        Err(why)
    }

    /// What is missing. An upstream that gives no parts begins anew, and what we have of it is left out.
    async fn rest(&mut self) -> Result<ByteStream<'static>, FetchError> {
        let response = self.client.blob(&self.name, &self.digest, self.come).await?;
        if response.status() != StatusCode::PARTIAL_CONTENT {
            let total = length(&response);
            return match self.length.is_none() || total.is_none() || total == self.length {
                true => Ok(without_start(frames(response), self.come)),
                false => Err(FetchError::Refused("it has a blob of another length by now".to_string())),
            };
        }
        let range = response.headers().get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
        match range.is_some_and(|range| goes_on(range, self.come, self.length)) {
            true => Ok(frames(response)),
            false => Err(FetchError::Refused("it gives another part than it was asked for".to_string())),
        }
    }
}

/// Whether a `Content-Range` is the rest from `start` of something that has `length` bytes, where that is known.
fn goes_on(range: &str, start: u64, length: Option<u64>) -> bool {
    let parse = || {
        let (part, total) = range.strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = part.split_once('-')?;
        Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?, total.parse::<u64>().ok()))
    };
    let Some((first, last, total)) = parse() else { return false };
    first == start
        && (length.is_none() || total.is_none() || total == length)
        && length.or(total).is_none_or(|length| last.checked_add(1) == Some(length))
}

fn without_start(bytes: ByteStream<'static>, mut left: u64) -> ByteStream<'static> {
    let cut = move |mut frame: Bytes| {
        let start = left.min(frame.len() as u64);
        left -= start;
        frame.split_off(start as usize)
    };
    bytes.map_ok(cut).boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_go_on_are_told_from_others() {
        for (range, length, expected) in [
            ("bytes 5-9/10", Some(10), true),
            ("bytes 5-9/*", Some(10), true),
            ("bytes 5-9/10", None, true),
            ("bytes 5-9/*", None, true),
            ("bytes 5-8/10", Some(10), false),
            ("bytes 5-8/10", None, false),
            ("bytes 4-9/10", Some(10), false),
            ("bytes 5-9/11", Some(10), false),
            ("bytes 5-10/11", Some(10), false),
            ("bytes */10", Some(10), false),
            ("bytes 5-18446744073709551615/*", Some(10), false),
            ("5-9/10", Some(10), false),
            ("", None, false),
        ] {
            assert_eq!(goes_on(range, 5, length), expected, "{range} of {length:?}");
        }
    }

    #[tokio::test]
    async fn what_is_there_already_is_left_out() {
        let frames = ["ab", "cd", "ef"].map(|frame| Ok(Bytes::from(frame)));
        let rest: Vec<Bytes> =
            without_start(futures::stream::iter(frames).boxed(), 3).try_collect().await.expect("bytes");
        assert_eq!(rest.concat(), b"def");
    }
}
