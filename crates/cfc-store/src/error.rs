//! [`StoreError`]: what the store could not do, to what, and why.

use std::io;
use std::path::Path;

use cfc_oci::{Digest, ManifestError, Platform};

/// The store's result.
pub type Result<T> = std::result::Result<T, StoreError>;

/// An operation of the store that failed.
#[derive(Debug, thiserror::Error)]
#[error("{subject}")]
pub struct StoreError {
    /// What was attempted, with the path, digest or reference it was attempted on.
    pub subject: String,
    /// Why it failed.
    #[source]
    pub kind: StoreErrorKind,
}

impl StoreError {
    /// An error of `kind` while doing `subject`.
    pub fn new(subject: impl Into<String>, kind: StoreErrorKind) -> StoreError {
        StoreError { subject: subject.into(), kind }
    }

    /// Whether what was asked for is simply not in the store.
    pub fn is_missing(&self) -> bool {
        match &self.kind {
            StoreErrorKind::Missing => true,
            StoreErrorKind::Io(error) => error.kind() == io::ErrorKind::NotFound,
            _ => false,
        }
    }
}

/// Why an operation of the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreErrorKind {
    /// The operating system refused.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The store does not have it.
    #[error("it is not in the store")]
    Missing,
    /// The bytes are not the ones that were promised.
    #[error("expected {expected}, but the bytes hash to {actual}")]
    DigestMismatch {
        /// The digest that was promised.
        expected: Digest,
        /// The digest of the bytes.
        actual: Digest,
    },
    /// There are more or fewer bytes than promised.
    #[error("expected {expected} bytes, found {actual}")]
    SizeMismatch {
        /// The size that was promised, in bytes.
        expected: u64,
        /// The size that was found, in bytes.
        actual: u64,
    },
    /// The content is not what its type promises, or is hostile.
    #[error("{0}")]
    Malformed(String),
    /// A bound that protects the machine was exceeded.
    #[error("{0}")]
    Limit(String),
    /// No image in the index runs here.
    #[error("no image for the platform {wanted} in it; it has {}", list(.offered))]
    Platform {
        /// The platform that is needed.
        wanted: Box<Platform>,
        /// The platforms there are.
        offered: Vec<Platform>,
    },
    /// A process uses the store that does not say what it needs.
    #[error("{0}")]
    InUse(String),
    /// Something cfc does not do.
    #[error("{0}")]
    Unsupported(String),
    /// Not a manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

fn list(platforms: &[Platform]) -> String {
    if platforms.is_empty() {
        return "none".to_string();
    }
    platforms.iter().map(Platform::to_string).collect::<Vec<_>>().join(", ")
}

/// Adds the subject to an error on its way out.
pub(crate) trait Context<T> {
    fn context(self, subject: impl FnOnce() -> String) -> Result<T>;

    /// `verb` and the path: "cannot open `/x`".
    fn on(self, verb: &str, path: &Path) -> Result<T>
    where
        Self: Sized,
    {
        self.context(|| format!("cannot {verb} `{}`", path.display()))
    }
}

impl<T, E: Into<StoreErrorKind>> Context<T> for std::result::Result<T, E> {
    fn context(self, subject: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| StoreError { subject: subject(), kind: error.into() })
    }
}

impl From<rustix::io::Errno> for StoreErrorKind {
    fn from(error: rustix::io::Errno) -> StoreErrorKind {
        StoreErrorKind::Io(error.into())
    }
}
