//! [`PushError`] and [`PullError`]: what failed, against which registry, and why.

use cfc_oci::{Digest, Reference};
use cfc_store::StoreError;

/// A push that failed. What was uploaded stays in the registry, and the next push goes on from there.
#[derive(Debug, thiserror::Error)]
#[error("cannot push `{reference}`")]
pub struct PushError {
    /// The destination.
    pub reference: Box<Reference>,
    /// Why.
    #[source]
    pub kind: TransferErrorKind,
}

/// A pull that failed. Blobs that arrived stay in the store.
#[derive(Debug, thiserror::Error)]
#[error("cannot pull `{reference}`")]
pub struct PullError {
    /// The source.
    pub reference: Box<Reference>,
    /// Why.
    #[source]
    pub kind: TransferErrorKind,
}

/// Why a transfer failed.
#[derive(Debug, thiserror::Error)]
pub enum TransferErrorKind {
    /// The reference names no registry, and cfc does not guess one.
    #[error("it names no registry")]
    NoRegistry,
    /// No answer.
    #[error("cannot reach the registry at `{address}`: {cause}")]
    Unreachable {
        /// The URL that was tried.
        address: String,
        /// What the network said.
        cause: String,
    },
    /// The registry wants credentials, or other ones.
    #[error("the registry refused the credentials ({from}): {answer}")]
    Unauthorized {
        /// Where the credentials came from.
        from: String,
        /// What the registry said.
        answer: String,
    },
    /// There is no such repository, tag or blob.
    #[error("the registry has no {subject}")]
    NotFound {
        /// What was asked for.
        subject: String,
    },
    /// An answer that the specification does not allow here.
    #[error("the registry answered {status} to {method} {address}: {answer}")]
    Answer {
        /// HTTP status.
        status: u16,
        /// HTTP method.
        method: String,
        /// The URL.
        address: String,
        /// Codes and messages of the answer.
        answer: String,
    },
    /// What came is not what was asked for.
    #[error("{subject}: expected {expected}, but the bytes hash to {actual}")]
    DigestMismatch {
        /// What was transferred.
        subject: String,
        /// The digest that was promised.
        expected: Digest,
        /// The digest of the bytes.
        actual: Digest,
    },
    /// The answer, a credential or a configuration file is not what it should be.
    #[error("{0}")]
    Malformed(String),
    /// The local store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl TransferErrorKind {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            TransferErrorKind::NoRegistry => {
                Some("put the registry's host in front, for example `127.0.0.1:5000/name:tag`")
            }
            TransferErrorKind::Unauthorized { .. } => {
                Some("log in with `docker login REGISTRY` or put the credentials into ~/.docker/config.json")
            }
            TransferErrorKind::Unreachable { .. } => Some("check the address, and that the registry runs"),
            _ => None,
        }
    }
}
