//! What a command in an instance says and hears: [`ExecRequest`], [`ExecInput`], [`ExecOutput`].

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::InstanceError;

/// A command to run in an instance. What is not said is as it is for the instance's own process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// The command and its arguments.
    pub command: Vec<String>,
    /// `KEY=value`, added to the instance's environment.
    #[serde(default)]
    pub env: Vec<String>,
    /// `user[:group]`, names or numbers.
    #[serde(default)]
    pub user: Option<String>,
    /// Where it starts.
    #[serde(default)]
    pub workdir: Option<String>,
    /// Whether it gets input.
    #[serde(default)]
    pub stdin: bool,
    /// Rows and columns of a terminal, in place of pipes.
    #[serde(default)]
    pub terminal: Option<(u16, u16)>,
}

/// What a command is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecInput {
    /// Its input goes on.
    Data(Bytes),
    /// Its input ends.
    End,
    /// Its terminal now has so many rows and columns.
    Resize(u16, u16),
    /// It gets this signal.
    Signal(i32),
}

/// What a command tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecOutput {
    /// What it puts out, or what its terminal shows.
    Stdout(Bytes),
    /// What it complains of.
    Stderr(Bytes),
    /// It has ended: its exit code, or 128 plus the signal that ended it. The last.
    Exit(i32),
}

/// A command that runs. It is killed when both ends are dropped before it has ended. Both are bounded: who sends faster than
/// the other reads waits.
#[derive(Debug)]
pub struct ExecSession {
    /// Takes what it is told.
    pub input: mpsc::Sender<ExecInput>,
    /// Gives what it tells.
    pub output: mpsc::Receiver<ExecOutput>,
}

/// A command that was not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExecError {
    /// There is no one instance that is meant, or it does not run.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// It could not be started.
    #[error("{reason}")]
    NotStarted {
        /// Why, in one sentence.
        reason: String,
        /// What to do about it.
        hint: Option<String>,
        /// What a shell exits with then: 127 where there is no such command, 126 where it cannot be executed. `None` where
        /// the command is not what is wrong.
        shell_code: Option<i32>,
    },
}
