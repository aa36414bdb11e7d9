//! [`Progress`]: who wants to know how far a transfer is.

use cfc_oci::{Descriptor, Digest};

/// Is told about the blobs of a transfer, from several tasks at once. For each blob: `blob_started`, then any number of
/// `blob_advanced`, then `blob_finished`, unless the transfer fails.
pub trait Progress: Send + Sync {
    /// The transfer of `blob` begins, or whether it is needed is being asked.
    fn blob_started(&self, blob: &Descriptor);
    /// `bytes` of the blob are transferred in total. Starts again from less after a failure that was retried.
    fn blob_advanced(&self, digest: &Digest, bytes: u64);
    /// The blob is where it should be.
    fn blob_finished(&self, digest: &Digest, outcome: Outcome);
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
