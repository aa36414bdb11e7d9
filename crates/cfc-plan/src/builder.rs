//! [`Builder`]: the seam between plans and what carries them out. It takes the whole plan, because BuildKit solves whole
//! graphs.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

use cfc_dockerfile::IgnoreFile;
use cfc_oci::{Descriptor, ImageConfig};

use crate::{ContextFiles, ContextName, LintWarning, Node, Plan};

/// How much of an instruction an error message shows.
const SHOWN_CHARACTERS: usize = 100;

/// Carries out plans.
pub trait Builder {
    /// Builds `plan` with files of `context`. On failure nothing is left but what may be used again: finished layers.
    fn build(&mut self, plan: &Plan, context: &Context, progress: &dyn BuildProgress)
    -> Result<BuiltImage, BuildError>;
}

/// What instructions may use from outside: the files that `COPY` may take, and what `RUN` may be trusted with.
#[derive(Default)]
pub struct Context {
    /// The directory.
    pub directory: PathBuf,
    /// What of it is left out.
    pub ignore: Option<Ignore>,
    /// Secrets by id.
    pub secrets: BTreeMap<String, SecretSource>,
    /// Sockets of ssh agents by id.
    pub ssh: BTreeMap<String, PathBuf>,
    /// Further contexts.
    pub named: BTreeMap<ContextName, NamedFiles>,
}

/// A build context beside the build's own.
pub struct NamedFiles {
    /// Where its files are.
    pub files: ContextFiles,
    /// What of them is left out.
    pub ignore: Option<Ignore>,
}

/// Where a secret is. It is read when a `RUN` needs it, and kept nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// In a file.
    File(PathBuf),
    /// In a variable of our environment.
    Variable(String),
}

/// A `.dockerignore` and where it was.
pub struct Ignore {
    /// The file, for messages.
    pub path: PathBuf,
    /// What it says.
    pub file: IgnoreFile,
}

/// Gets files from the network, for `ADD`.
pub trait Downloads: Send + Sync {
    /// Writes what is at `url` to `to`, all of it, and returns when it was last modified, in seconds since 1970, where the
    /// server says so. After an error, `to` holds a part.
    fn download(&self, url: &str, to: &mut File) -> Result<Option<i64>, DownloadError>;
}

/// Why a file could not be had.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct DownloadError {
    /// What went wrong with which address.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The cause.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// A finished image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuiltImage {
    /// Its manifest.
    pub manifest: Descriptor,
    /// Its config.
    pub config: ImageConfig,
}

/// Hears how a build goes. All methods may be called from any thread.
pub trait BuildProgress: Send + Sync {
    /// Something that is no error and should be known.
    fn warned(&self, warning: &str) {
        let _ = warning;
    }
    /// The Dockerfile breaks a rule of lint.
    fn linted(&self, warning: &LintWarning) {
        let _ = warning;
    }
    /// This is what is going to be carried out.
    fn planned(&self, plan: &Plan) {
        let _ = plan;
    }
    /// `node` begins.
    fn started(&self, node: &Node) {
        let _ = node;
    }
    /// What the program of `node` wrote, in pieces of any length, not always whole lines.
    fn output(&self, node: &Node, stream: OutputStream, bytes: &[u8]) {
        let _ = (node, stream, bytes);
    }
    /// `node` is done.
    fn finished(&self, node: &Node, outcome: NodeOutcome) {
        let _ = (node, outcome);
    }
    /// `node` could not be carried out, and why.
    fn failed(&self, node: &Node, reason: &str) {
        let _ = (node, reason);
    }
}

/// Hears nothing.
pub struct Silent;

impl BuildProgress for Silent {}

/// Where a program wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How a node ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeOutcome {
    /// It was carried out.
    Built,
    /// An earlier result was used.
    Cached,
}

/// Why a plan was not carried out.
#[derive(Debug, thiserror::Error)]
pub struct BuildError {
    /// The Dockerfile.
    pub dockerfile: PathBuf,
    /// The instruction that failed. None when the failure belongs to none of them.
    pub instruction: Option<Box<FailedInstruction>>,
    /// What went wrong, for example `exited with status 2`.
    pub message: String,
    /// The last lines its program wrote.
    pub output: Vec<String>,
    /// What to do about it.
    pub hint: Option<String>,
    /// The cause.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// An instruction that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedInstruction {
    /// Its first line, from 1.
    pub line: u32,
    /// It, as written.
    pub text: String,
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.dockerfile.display())?;
        match &self.instruction {
            Some(instruction) => {
                write!(f, ":{}: `{}`: {}", instruction.line, shortened(&instruction.text), self.message)
            }
            None => write!(f, ": {}", self.message),
        }
    }
}

/// A script of a RUN may have hundreds of lines; its first words tell which one it is.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARACTERS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
}

impl BuildError {
    /// An error of the build as a whole.
    pub fn new(dockerfile: &Path, message: impl Into<String>) -> BuildError {
        BuildError {
            dockerfile: dockerfile.to_path_buf(),
            instruction: None,
            message: message.into(),
            output: Vec::new(),
            hint: None,
            source: None,
        }
    }
}
