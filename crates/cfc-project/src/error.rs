//! [`ProjectError`]: why a config cannot be used.

use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};

/// Why a config cannot be used. `Display` names the file, `source` says what is wrong with it.
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
    /// There is no config in the directory and none above it.
    NotFound,
    /// The file cannot be read.
    Read(std::io::Error),
    /// The file is not JSON, JSONC or TOML.
    Syntax(String),
    /// There is no such environment; with those that there are.
    NoSuchEnvironment(String, Vec<String>),
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

impl ProjectError {
    pub(crate) fn read(path: &Path, error: std::io::Error) -> ProjectError {
        ProjectError { path: path.to_path_buf(), kind: ProjectErrorKind::Read(error) }
    }

    /// What to do about it, one sentence for each finding that has one.
    pub fn hints(&self) -> Vec<String> {
        match &self.kind {
            ProjectErrorKind::NotFound => {
                vec!["name the project's directory, or the config with `--config FILE`".to_string()]
            }
            ProjectErrorKind::NoSuchEnvironment(name, _) => {
                vec![format!("add `env.{name}` to the config, or choose another `--env`")]
            }
            ProjectErrorKind::Read(_) | ProjectErrorKind::Syntax(_) => Vec::new(),
            ProjectErrorKind::Invalid(problems) => {
                let mut hints: Vec<String> = Vec::new();
                for hint in problems.iter().filter_map(|problem| problem.hint.as_ref()) {
                    if !hints.contains(hint) {
                        hints.push(hint.clone());
                    }
                }
                hints
            }
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.field, self.message)
    }
}

impl fmt::Display for ProjectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            ProjectErrorKind::NotFound => write!(f, "cannot find a project at `{}`", self.path.display()),
            _ => write!(f, "cannot use the config `{}`", self.path.display()),
        }
    }
}

impl Error for ProjectError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.kind)
    }
}

impl fmt::Display for ProjectErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProjectErrorKind::NotFound => {
                f.write_str("no `wrangler.json`, `wrangler.jsonc` or `wrangler.toml` there or in a directory above")
            }
            ProjectErrorKind::Read(error) => error.fmt(f),
            ProjectErrorKind::Syntax(text) => f.write_str(text),
            ProjectErrorKind::NoSuchEnvironment(name, known) if known.is_empty() => {
                write!(f, "it has no environment `{name}`, nor any other")
            }
            ProjectErrorKind::NoSuchEnvironment(name, known) => {
                write!(f, "it has no environment `{name}`, only `{}`", known.join("`, `"))
            }
            ProjectErrorKind::Invalid(problems) => {
                for (index, problem) in problems.iter().enumerate() {
                    let separator = if index == 0 { "" } else { "\n" };
                    write!(f, "{separator}{problem}")?;
                }
                Ok(())
            }
        }
    }
}

impl Error for ProjectErrorKind {}
