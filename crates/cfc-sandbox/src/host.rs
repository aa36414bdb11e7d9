//! What this machine offers to sandboxes, and what earlier launchers left on it.

use std::path::Path;

use serde::Serialize;

use crate::error::Result;

/// One thing the machine lacks or limits, for `cfc doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What was found.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

/// How bad a [`Finding`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Severity {
    /// Worth knowing; everything works.
    Note,
    /// Something works less well.
    Warning,
    /// Sandboxes cannot run.
    Error,
}

/// Looks for what this machine lacks. Changes nothing.
pub fn check_host() -> Vec<Finding> {
    Vec::new()
}

/// Removes the cgroups of sandboxes whose launcher on `socket` is gone, killing what is left in them.
///
/// Does nothing while a launcher listens on `socket`. Returns the ids that were removed.
#[allow(clippy::todo)]
pub fn sweep(_socket: &Path) -> Result<Vec<String>> {
    todo!()
}
