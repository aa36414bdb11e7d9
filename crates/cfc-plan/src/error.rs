//! [`PlanError`]: why a Dockerfile cannot be built, in the Dockerfile's own terms.

use std::fmt;
use std::path::PathBuf;

use cfc_dockerfile::Span;

use crate::BuildRequest;

/// Why a Dockerfile was not lowered.
#[derive(Debug, thiserror::Error)]
pub struct PlanError {
    /// The Dockerfile.
    pub dockerfile: PathBuf,
    /// The line it is about, from 1; none when it is about the whole file.
    pub line: Option<u32>,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The cause.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.dockerfile.display())?;
        match self.line {
            Some(line) => write!(f, ":{line}: {}", self.message),
            None => write!(f, ": {}", self.message),
        }
    }
}

/// Makes errors about a request's Dockerfile.
pub(crate) trait Located {
    /// An error about the whole file.
    fn error(&self, message: impl Into<String>) -> PlanError;

    /// An error about some of its lines.
    fn error_at(&self, span: Span, message: impl Into<String>) -> PlanError {
        PlanError { line: Some(span.start_line), ..self.error(message) }
    }
}

impl Located for BuildRequest {
    fn error(&self, message: impl Into<String>) -> PlanError {
        PlanError {
            dockerfile: self.dockerfile_path.clone(),
            line: None,
            message: message.into(),
            hint: None,
            source: None,
        }
    }
}

impl PlanError {
    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> PlanError {
        self.hint = Some(hint.into());
        self
    }
}
