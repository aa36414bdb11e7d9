//! [`Download`]: one blob from a registry into the store, resumed where an interruption left it.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use cfc_oci::Descriptor;
use cfc_store::{BlobWriter, Store, StoreError};
use reqwest::StatusCode;

use crate::TransferErrorKind;
use crate::answer::unreachable;
use crate::registry::Registry;

/// Bytes gathered before a thread is asked to write them.
const WRITE_BYTES: usize = 1 << 20;

/// One blob on its way.
pub(crate) struct Download<'a> {
    pub registry: &'a Registry,
    pub store: &'a Store,
    pub blob: &'a Descriptor,
    /// Bytes received so far, for those who watch.
    pub received: &'a AtomicU64,
}

impl Download<'_> {
    /// Brings the blob into the store, verified.
    pub async fn run(&self) -> Result<(), TransferErrorKind> {
        let mut writer = self.writer()?;
        let mut attempt = 0;
        loop {
            let error = match self.receive(&mut writer).await {
                Ok(()) => break,
                Err(error) => error,
            };
            if attempt == self.registry.retries() || !matches!(error, TransferErrorKind::Unreachable { .. }) {
                return Err(error);
            }
            tracing::debug!(blob = %self.blob.digest, offset = self.received.load(Ordering::Relaxed), %error, "interrupted");
            self.registry.pause(attempt, None).await;
            attempt += 1;
        }
        let digest = self.blob.digest.clone();
        let Some(writer) = writer else { return Err(lost_writer()) };
        run_blocking(move || writer.commit(Some(&digest))).await??;
        Ok(())
    }

    fn writer(&self) -> Result<Option<BlobWriter>, StoreError> {
        self.received.store(0, Ordering::Relaxed);
        self.store.blobs().writer_with(self.blob.digest.algorithm()).map(Some)
    }

    /// Receives what is missing behind what `writer` has. It is `None` only while a thread has it.
    async fn receive(&self, writer: &mut Option<BlobWriter>) -> Result<(), TransferErrorKind> {
        let offset = writer.as_ref().map_or(0, BlobWriter::written);
        if offset == self.blob.size {
            return Ok(());
        }
        let mut response = self.registry.get_blob(&self.blob.digest, offset).await?;
        if response.status() != StatusCode::PARTIAL_CONTENT {
            *writer = self.writer()?;
        }
        let mut total = writer.as_ref().map_or(0, BlobWriter::written);
        let mut buffer = Vec::with_capacity(WRITE_BYTES);
        let end = loop {
            let chunk = match response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break Ok(()),
                Err(error) => break Err(unreachable(error)),
            };
            total += chunk.len() as u64;
            if total > self.blob.size {
                return Err(self.wrong_size("more than"));
            }
            buffer.extend_from_slice(&chunk);
            self.received.store(total, Ordering::Relaxed);
            if buffer.len() >= WRITE_BYTES {
                buffer = write(writer, buffer).await?;
            }
        };
        // What arrived before an interruption is kept.
        write(writer, buffer).await?;
        end?;
        match total == self.blob.size {
            true => Ok(()),
            false => Err(self.wrong_size("fewer than")),
        }
    }

    fn wrong_size(&self, comparison: &str) -> TransferErrorKind {
        let Descriptor { digest, size, .. } = self.blob;
        TransferErrorKind::Malformed(format!("the registry sent {comparison} the {size} bytes of blob `{digest}`"))
    }
}

/// Writes `buffer` on a thread that may wait for the disk and hash, and returns it empty.
async fn write(writer: &mut Option<BlobWriter>, mut buffer: Vec<u8>) -> Result<Vec<u8>, TransferErrorKind> {
    let mut taken = writer.take().ok_or_else(lost_writer)?;
    let written = run_blocking(move || {
        let outcome = taken.write_all(&buffer);
        buffer.clear();
        (taken, buffer, outcome)
    });
    let (returned, buffer, outcome) = written.await?;
    *writer = Some(returned);
    outcome.map_err(|error| TransferErrorKind::Malformed(format!("cannot write to the store: {error}")))?;
    Ok(buffer)
}

pub(crate) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, TransferErrorKind> {
    let ended = |_| TransferErrorKind::Malformed("a thread that writes to the store ended early".to_string());
    tokio::task::spawn_blocking(work).await.map_err(ended)
}

fn lost_writer() -> TransferErrorKind {
    TransferErrorKind::Malformed("a thread that writes to the store did not give the blob back".to_string())
}
