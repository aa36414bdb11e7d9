//! [`RuntimeError`]: what could not be done with which instance, and why.

use std::io;
use std::path::Path;

use cfc_scheduler::Refusal;
use cfc_store::StoreError;

/// The runtime's result.
pub type Result<T> = std::result::Result<T, RuntimeError>;

/// An operation on an instance that failed. `Display` says which; the cause is its [`source`](std::error::Error).
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation}")]
pub struct RuntimeError {
    /// The operation and the instance: "start instance `x`".
    pub operation: String,
    /// Why.
    #[source]
    pub kind: RuntimeErrorKind,
}

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeErrorKind {
    /// The scheduler refused it; see [`Refusal::is_temporary`].
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Its name would not do as the name of a directory and a cgroup.
    #[error("the name must be 1 to 200 of `A-Z a-z 0-9 _ . -`, and not start with a dot")]
    InvalidName,
    /// Its process does not run.
    #[error("it is not running")]
    NotRunning,
    /// The image has neither ENTRYPOINT nor CMD, and no command was given.
    #[error("no command: the image has neither ENTRYPOINT nor CMD, and none was given")]
    NoCommand,
    /// The image cannot be read.
    #[error("{0}: {kind}", kind = .0.kind)]
    Image(Box<StoreError>),
    /// The sandbox failed.
    #[error(transparent)]
    Sandbox(#[from] cfc_sandbox::Error),
    /// A file operation failed.
    #[error("{action} `{path}`: {error}")]
    Io {
        /// What was attempted: "write".
        action: &'static str,
        /// On what.
        path: String,
        /// Why it failed.
        error: io::Error,
    },
    /// What the sandbox was to be given is not valid.
    #[error("{0}")]
    Invalid(String),
}

impl RuntimeErrorKind {
    /// What to do about it, where there is something to say.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            RuntimeErrorKind::Sandbox(error) => error.hint(),
            RuntimeErrorKind::NoCommand => Some("add CMD or ENTRYPOINT to the Dockerfile"),
            RuntimeErrorKind::Refused(Refusal::MaxInstances { .. }) => {
                Some("raise `max_instances` in the project's config, or wait until an instance sleeps")
            }
            _ => None,
        }
    }

    pub(crate) fn of(self, operation: &str, instance: &str) -> RuntimeError {
        RuntimeError { operation: format!("{operation} instance `{instance}`"), kind: self }
    }
}

impl From<StoreError> for RuntimeErrorKind {
    fn from(error: StoreError) -> RuntimeErrorKind {
        RuntimeErrorKind::Image(Box::new(error))
    }
}

impl From<oci_spec::OciSpecError> for RuntimeErrorKind {
    fn from(error: oci_spec::OciSpecError) -> RuntimeErrorKind {
        RuntimeErrorKind::Invalid(error.to_string())
    }
}

/// Names the path on an error's way out.
pub(crate) trait AtPath<T> {
    fn at(self, action: &'static str, path: &Path) -> std::result::Result<T, RuntimeErrorKind>;
}

impl<T> AtPath<T> for io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> std::result::Result<T, RuntimeErrorKind> {
        self.map_err(|error| RuntimeErrorKind::Io { action, path: path.display().to_string(), error })
    }
}

/// A [`cfc_sandbox::fail_point`] as a step of the runtime.
pub(crate) fn fail_at(point: &'static str) -> std::result::Result<(), RuntimeErrorKind> {
    cfc_sandbox::fail_point(point).at("pass", Path::new(point))
}
