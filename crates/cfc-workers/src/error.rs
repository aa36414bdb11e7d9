//! [`WorkersError`]: why a Worker could not be bundled, configured or started.

use std::error::Error;
use std::fmt;
use std::path::Path;

/// Why a Worker could not be bundled, configured or started. `Display` says what was being done; why it failed is the
/// `source`.
#[derive(Debug)]
pub struct WorkersError {
    /// What was being done, e.g. ``bundle `/p/src/index.js` ``.
    pub subject: String,
    /// Why it failed.
    pub kind: WorkersErrorKind,
    /// What to do about it.
    pub hint: Option<String>,
}

/// Why it failed.
#[derive(Debug)]
pub enum WorkersErrorKind {
    /// A file, a process or a socket: the operating system's word.
    Io(std::io::Error),
    /// A program or a pinned package is not installed: which.
    Missing(String),
    /// A tool ran and refused: its own text.
    Tool(String),
    /// The input asks for what cfc does not do: what.
    Unsupported(String),
    /// workerd ended before it served, or did not serve in time: why, and the end of its log.
    NotReady(String),
}

impl WorkersError {
    pub(crate) fn new(subject: impl Into<String>, kind: WorkersErrorKind) -> WorkersError {
        WorkersError { subject: subject.into(), kind, hint: None }
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> WorkersError {
        WorkersError { hint: Some(hint.into()), ..self }
    }

    /// An I/O error while doing `verb` to `path`.
    pub(crate) fn io(verb: &str, path: &Path) -> impl FnOnce(std::io::Error) -> WorkersError {
        let subject = format!("{verb} `{}`", path.display());
        move |error| WorkersError::new(subject, WorkersErrorKind::Io(error))
    }
}

impl fmt::Display for WorkersError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}", self.subject)
    }
}

impl Error for WorkersError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.kind)
    }
}

impl fmt::Display for WorkersErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WorkersErrorKind::Io(error) => error.fmt(f),
            WorkersErrorKind::Missing(what) => write!(f, "{what} is not installed"),
            WorkersErrorKind::Tool(text) | WorkersErrorKind::Unsupported(text) | WorkersErrorKind::NotReady(text) => {
                f.write_str(text)
            }
        }
    }
}

impl Error for WorkersErrorKind {}
