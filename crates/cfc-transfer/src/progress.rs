//! [`Progress`]: who wants to know how far a transfer is.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cfc_oci::{Descriptor, Digest, Reference};

use crate::TransferErrorKind;

/// How often a watched transfer is reported.
const INTERVAL: Duration = Duration::from_millis(100);

/// Is told about the blobs of a transfer, from several tasks at once. For each blob: `blob_started`, then any number of
/// `blob_advanced`, then `blob_finished`, unless the transfer fails.
pub trait Progress: Send + Sync {
    /// The transfer of `blob` begins, or whether it is needed is being asked.
    fn blob_started(&self, blob: &Descriptor);
    /// `bytes` of the blob are transferred in total. Starts again from less after a failure that was retried.
    fn blob_advanced(&self, digest: &Digest, bytes: u64);
    /// The blob is where it should be.
    fn blob_finished(&self, digest: &Digest, outcome: Outcome);
    /// `mirror` did not give the image, and the next registry is asked.
    fn mirror_failed(&self, mirror: &Reference, error: &TransferErrorKind) {
        let _ = (mirror, error);
    }
}

/// How a blob came to be where it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was uploaded.
    Uploaded,
    /// It was downloaded.
    Downloaded,
    /// It was there already.
    Existed,
    /// The registry took it from another of its repositories.
    Mounted,
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn blob_started(&self, _blob: &Descriptor) {}
    fn blob_advanced(&self, _digest: &Digest, _bytes: u64) {}
    fn blob_finished(&self, _digest: &Digest, _outcome: Outcome) {}
}

/// Reports `counter` to `progress` while `work` runs.
pub(crate) async fn watch<T>(
    work: impl Future<Output = T>,
    counter: &AtomicU64,
    digest: &Digest,
    progress: &dyn Progress,
) -> T {
    let mut work = std::pin::pin!(work);
    let mut ticks = tokio::time::interval(INTERVAL);
    let mut reported = 0;
    loop {
        let outcome = tokio::select! {
            outcome = &mut work => Some(outcome),
            _ = ticks.tick() => None,
        };
        let bytes = counter.load(Ordering::Relaxed);
        if bytes != reported {
            progress.blob_advanced(digest, bytes);
            reported = bytes;
        }
        if let Some(outcome) = outcome {
            return outcome;
        }
    }
}
