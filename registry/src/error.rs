//! Errors: [`StorageError`] for callers of the library.

/// The store could not do what was asked; never the client's fault.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} `{subject}`")]
pub struct StorageError {
    /// What was tried: `read`, `write`, `list`.
    pub operation: &'static str,
    /// A path or an object's key.
    pub subject: String,
    /// What the system says.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl StorageError {
    pub(crate) fn new(
        operation: &'static str,
        subject: impl std::fmt::Display,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> StorageError {
        StorageError { operation, subject: subject.to_string(), source: source.into() }
    }
}
