//! [`ProjectError`]: why a config cannot be used.

use std::fmt;
use std::path::PathBuf;

/// Why a config cannot be used.
#[derive(Debug)]
pub struct ProjectError {
    /// The config file, or the directory where one was searched.
    pub path: PathBuf,
    /// What went wrong.
    pub kind: ProjectErrorKind,
}

/// What went wrong with a config.
#[derive(Debug)]
pub enum ProjectErrorKind {
    /// There is no config upward of the directory.
    NotFound,
    /// The file cannot be read.
    Read(std::io::Error),
    /// The file is not JSON, JSONC or TOML.
    Syntax(String),
    /// The text is well formed and says something that cannot be meant: all such findings.
    Invalid(Vec<Problem>),
}

/// One finding about a config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The place in the config, e.g. `containers[0].image`.
    pub field: String,
    /// What is wrong there.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.field, self.message)
    }
}

impl fmt::Display for ProjectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())
    }
}

impl std::error::Error for ProjectError {}
