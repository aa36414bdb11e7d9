//! [`Upload`]: one blob into a registry, streamed from its file, resumed where an interruption left it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cfc_oci::{Descriptor, RepositoryName};
use futures::TryStreamExt;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE};
use reqwest::{Body, Method, StatusCode, Url};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use crate::answer::{describe_answer, may_pass};
use crate::registry::{Registry, received};
use crate::{Outcome, TransferErrorKind};

const READ_BYTES: usize = 256 << 10;

/// One blob on its way.
pub(crate) struct Upload<'a> {
    pub registry: &'a Registry,
    pub blob: &'a Descriptor,
    /// Where its bytes are.
    pub path: &'a Path,
    /// A repository of the same registry that may have it.
    pub mount_from: Option<&'a RepositoryName>,
    /// The most bytes that one request carries.
    pub chunk_bytes: Option<u64>,
    /// Bytes sent so far, for those who watch.
    pub sent: Arc<AtomicU64>,
}

impl Upload<'_> {
    /// Brings the blob there, unless it is there.
    pub async fn run(&self) -> Result<Outcome, TransferErrorKind> {
        if self.registry.has_blob(&self.blob.digest).await? {
            return Ok(Outcome::Existed);
        }
        let mount = self.mount_from.map(|from| (&self.blob.digest, from));
        let Some(mut location) = self.registry.start_upload(mount).await? else { return Ok(Outcome::Mounted) };
        let mut offset = 0;
        let mut attempt = 0;
        loop {
            let error = match self.send_rest(&mut location, &mut offset).await {
                Ok(()) => return Ok(Outcome::Uploaded),
                Err(error) => error,
            };
            if attempt == self.registry.retries() || !is_worth_a_retry(&error) {
                return Err(error);
            }
            tracing::debug!(blob = %self.blob.digest, offset, %error, "the upload was interrupted");
            self.registry.pause(attempt, None).await;
            attempt += 1;
            // The last request may have arrived although its answer did not.
            if self.registry.has_blob(&self.blob.digest).await? {
                return Ok(Outcome::Uploaded);
            }
            (location, offset) = self.resume(&location).await?;
            self.sent.store(offset, Ordering::Relaxed);
        }
    }

    async fn resume(&self, location: &Url) -> Result<(Url, u64), TransferErrorKind> {
        if let Ok((location, offset)) = self.registry.upload_status(location).await
            && (1..=self.blob.size).contains(&offset)
        {
            return Ok((location, offset));
        }
        let location = self.registry.start_upload(None).await?;
        let none = || TransferErrorKind::Malformed("the registry mounted a blob unasked".to_string());
        Ok((location.ok_or_else(none)?, 0))
    }

    async fn send_rest(&self, location: &mut Url, offset: &mut u64) -> Result<(), TransferErrorKind> {
        while *offset < self.blob.size {
            let end = self.chunk_bytes.map_or(self.blob.size, |chunk| self.blob.size.min(offset.saturating_add(chunk)));
            (*location, *offset) = self.send_chunk(location, *offset, end).await?;
        }
        self.registry.finish_upload(location, &self.blob.digest).await
    }

    /// Sends the bytes from `offset` to `end`; returns where to go on.
    async fn send_chunk(&self, location: &Url, offset: u64, end: u64) -> Result<(Url, u64), TransferErrorKind> {
        let file = tokio::fs::File::open(self.path).await.map_err(|error| self.unreadable(&error))?;
        // A request is built again when the registry first wants to know who we are; each build needs a file.
        let file = file.into_std().await;
        let is_whole = offset == 0 && end == self.blob.size;
        let build = |request: reqwest::RequestBuilder| {
            let body = match file.try_clone() {
                Ok(file) => self.body(file, offset, end),
                Err(error) => Body::wrap_stream(futures::stream::once(async { Err::<Vec<u8>, _>(error) })),
            };
            let request = request
                .header(CONTENT_TYPE, "application/octet-stream")
                .header(CONTENT_LENGTH, (end - offset).to_string())
                .body(body);
            match is_whole {
                // As Docker sends it. Some registries do not take a range where there is but one chunk.
                true => request,
                false => request.header(CONTENT_RANGE, format!("{offset}-{}", end - 1)),
            }
        };
        let response = self.registry.send_once(Method::PATCH, location, &build).await?;
        if !matches!(response.status(), StatusCode::ACCEPTED | StatusCode::NO_CONTENT | StatusCode::CREATED) {
            return Err(describe_answer("PATCH", response).await);
        }
        let has = received(response.headers()).filter(|has| *has > offset && *has <= end).unwrap_or(end);
        Ok((self.registry.location(&response)?, has))
    }

    fn body(&self, file: std::fs::File, offset: u64, end: u64) -> Body {
        let sent = self.sent.clone();
        sent.store(offset, Ordering::Relaxed);
        let opened = async move {
            let mut file = tokio::fs::File::from_std(file);
            file.seek(std::io::SeekFrom::Start(offset)).await?;
            Ok::<_, std::io::Error>(ReaderStream::with_capacity(file.take(end - offset), READ_BYTES))
        };
        let bytes = futures::stream::once(opened).try_flatten().inspect_ok(move |chunk| {
            sent.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        });
        Body::wrap_stream(bytes)
    }

    fn unreadable(&self, error: &std::io::Error) -> TransferErrorKind {
        TransferErrorKind::Malformed(format!("cannot read blob `{}` of the store: {error}", self.blob.digest))
    }
}

/// Whether an upload may go on after this: it got no answer, or one that may pass. 416 is a registry that has other
/// bytes than we think, 404 one that forgot the upload: both start over.
fn is_worth_a_retry(error: &TransferErrorKind) -> bool {
    match error {
        TransferErrorKind::Unreachable { .. } => true,
        TransferErrorKind::Answer { status, .. } => {
            matches!(status, 404 | 416) || StatusCode::from_u16(*status).is_ok_and(may_pass)
        }
        _ => false,
    }
}
