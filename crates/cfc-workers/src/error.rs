//! [`WorkersError`]: why a Worker could not be bundled, configured or started.

use std::fmt;

/// Why a Worker could not be bundled, configured or started.
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
    /// A pinned tool is not installed.
    Missing,
    /// A tool ran and refused: its own text.
    Tool(String),
    /// The input asks for what cfc does not do.
    Unsupported(String),
    /// workerd ended before it served, or did not serve in time; with the end of its log.
    NotReady(String),
}

impl fmt::Display for WorkersError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}", self.subject)
    }
}

impl std::error::Error for WorkersError {}
