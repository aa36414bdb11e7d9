//! [`Error`]: what failed, of which sandbox, and what to do about it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::rootless::Obstacle;

/// This crate's results.
pub type Result<T> = std::result::Result<T, Error>;

/// One failed operation on a sandbox or its launcher.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Error {
    operation: String,
    kind: ErrorKind,
}

/// Why an operation failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The command is in no directory of the sandbox's `PATH`, or its path does not exist there.
    CommandNotFound(String),
    /// The command exists and cannot be executed.
    NotExecutable {
        /// The command as it was asked for.
        command: String,
        /// Why, as an errno.
        errno: i32,
    },
    /// A step of making the sandbox failed.
    Step {
        /// The step, as a phrase: "mount the overlay".
        step: String,
        /// Why, as an errno.
        errno: i32,
    },
    /// The configuration cannot be carried out.
    Invalid(String),
    /// The machine lacks something.
    Unavailable(String),
    /// The machine gives an ordinary user no user namespace.
    NoUserNamespace(Obstacle),
    /// A sandbox of this id exists already.
    AlreadyExists,
    /// There is no sandbox of this id.
    NotFound,
    /// The sandbox has not ended yet.
    StillRunning,
    /// The sandbox has ended.
    NotRunning,
    /// The launcher could not be started, reached or understood.
    Launcher(String),
}

impl Error {
    pub(crate) fn new(operation: impl Into<String>, kind: ErrorKind) -> Error {
        Error { operation: operation.into(), kind }
    }

    /// A system call's failure, as a step of `operation`.
    pub(crate) fn step(operation: impl Into<String>, step: impl Into<String>, errno: i32) -> Error {
        Error::new(operation, ErrorKind::Step { step: step.into(), errno })
    }

    /// Why it failed.
    pub fn kind(&self) -> &ErrorKind {
        &self.kind
    }

    /// The status a shell would give: 127 when the command was not found, 126 when it could not be executed.
    pub fn exit_code(&self) -> Option<i32> {
        match self.kind {
            ErrorKind::CommandNotFound(_) => Some(127),
            ErrorKind::NotExecutable { .. } => Some(126),
            _ => None,
        }
    }

    /// Whether what was asked for is at fault.
    pub fn is_invalid(&self) -> bool {
        let is_about_a_path = |errno: i32| matches!(errno, libc::ENOENT | libc::ENOTDIR | libc::EACCES | libc::ELOOP);
        match self.kind {
            ErrorKind::Invalid(_) => true,
            ErrorKind::Step { errno, .. } => is_about_a_path(errno),
            _ => self.exit_code().is_some(),
        }
    }

    /// Whether there was no descriptor left to do it with, here or in the launcher.
    pub fn is_out_of_descriptors(&self) -> bool {
        matches!(self.kind, ErrorKind::Step { errno: libc::EMFILE | libc::ENFILE, .. })
    }

    /// Whether the sandbox has ended, or was never there.
    pub fn is_gone(&self) -> bool {
        matches!(self.kind, ErrorKind::NotRunning | ErrorKind::NotFound)
    }

    /// What to do about it, when there is something to say.
    pub fn hint(&self) -> Option<&'static str> {
        match &self.kind {
            ErrorKind::CommandNotFound(_) => Some("check ENTRYPOINT and CMD, and that the image holds the file"),
            ErrorKind::NotExecutable { errno, .. } if *errno == libc::ENOEXEC => {
                Some("the file is neither a program for this machine nor a script that starts with `#!`")
            }
            ErrorKind::NotExecutable { .. } => {
                Some("give the file its executable bit: `chmod +x`, or COPY --chmod=755")
            }
            ErrorKind::NoUserNamespace(obstacle) => Some(obstacle.remedy()),
            ErrorKind::Step { errno, .. } if *errno == libc::EMFILE => {
                Some("raise the limit of open files (`ulimit -Hn`, `LimitNOFILE=` of a unit), or end some containers")
            }
            ErrorKind::Launcher(_) => Some("see the launcher's messages in the log; `cfc doctor` checks the machine"),
            ErrorKind::Step { step, errno } if *errno == libc::EINVAL && step.starts_with("mount the overlay") => Some(
                "the data directory cannot hold overlays: inside a container, put it on a volume or a tmpfs (--data DIR; Docker \
                 and Podman: -v cfc:DIR)",
            ),
            ErrorKind::Step { step, errno } if *errno == libc::EPERM && step.starts_with("make a proc") => {
                Some(UNMASKED_PROC)
            }
            ErrorKind::Step { step, errno } if *errno == libc::EPERM && step.starts_with("set the host name") => {
                Some("in a container, allow it all system calls (Docker and Podman: --security-opt seccomp=unconfined)")
            }
            ErrorKind::Step { errno, .. } if *errno == libc::EPERM => {
                Some("`cfc doctor` checks what this machine allows")
            }
            _ => None,
        }
    }
}

/// What to do where a user namespace may mount no proc, since parts of the one that it sees are covered.
pub(crate) const UNMASKED_PROC: &str = "in a container, run it with an unmasked /proc (Docker: --security-opt \
     systempaths=unconfined; Podman: --security-opt unmask=ALL; cfc: --grant nested)";

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.operation, self.kind)
    }
}

impl std::error::Error for Error {}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = |errno: &i32| std::io::Error::from_raw_os_error(*errno);
        match self {
            ErrorKind::CommandNotFound(command) => write!(f, "command `{command}` not found in the image"),
            ErrorKind::NotExecutable { command, errno } => {
                write!(f, "command `{command}` cannot be executed: {}", reason(errno))
            }
            ErrorKind::Step { step, errno } => write!(f, "{step}: {}", reason(errno)),
            ErrorKind::Invalid(message) | ErrorKind::Unavailable(message) => f.write_str(message),
            ErrorKind::NoUserNamespace(obstacle) => obstacle.fmt(f),
            ErrorKind::AlreadyExists => f.write_str("a sandbox of this id exists already"),
            ErrorKind::NotFound => f.write_str("there is no sandbox of this id"),
            ErrorKind::StillRunning => f.write_str("it is still running"),
            ErrorKind::NotRunning => f.write_str("it is not running any more"),
            ErrorKind::Launcher(message) => write!(f, "launcher: {message}"),
        }
    }
}
