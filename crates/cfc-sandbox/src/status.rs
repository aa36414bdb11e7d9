//! What a launcher tells about its sandboxes: [`Started`], [`Exit`], [`Status`], [`Usage`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A sandbox that has just started: its command is executing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Its process 1, as the host numbers it.
    pub pid: i32,
    /// When that process started, in clock ticks since boot. With `pid` it names the process for good.
    pub start_time: u64,
}

/// How a sandbox ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// How its process 1 ended.
    pub status: ExitStatus,
    /// Whether it ended because of its memory limit: SIGKILL ended it, nobody had sent that, and the kernel killed something
    /// in it at the limit. What it survived is in [`Usage::oom_kills`].
    pub oom_killed: bool,
    /// What it had used.
    #[serde(default)]
    pub usage: Usage,
}

/// What a sandbox uses and has used. What its cgroups do not tell is zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// Time on processors, in microseconds.
    pub cpu_usec: u64,
    /// Memory now, page cache included, in bytes.
    pub memory_bytes: u64,
    /// The most that was.
    pub memory_peak_bytes: u64,
    /// Memory now that no file backs.
    pub memory_anonymous_bytes: u64,
    /// Processes and threads now.
    pub pids: u64,
    /// How many processes the kernel has killed in it for want of memory.
    pub oom_kills: u64,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// It exited by itself, with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl ExitStatus {
    /// Whether SIGKILL ended it, or the process that it passes the end of on.
    pub(crate) fn is_sigkill(self) -> bool {
        self.shell_code() == 128 + libc::SIGKILL
    }

    /// The number a shell or Docker gives: the code, or 128 plus the signal.
    pub fn shell_code(self) -> i32 {
        match self {
            ExitStatus::Code(code) => code,
            ExitStatus::Signal(signal) => 128 + signal,
        }
    }
}

/// Whether a sandbox runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// It is being made; its command does not execute yet.
    Starting,
    /// Its process 1 lives.
    Running,
    /// It has ended and has not been removed.
    Exited(Exit),
}

/// One sandbox that a launcher knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The id it was started with.
    pub id: String,
    /// Its process 1.
    pub started: Started,
    /// Whether it runs.
    pub state: State,
    /// The spec's annotations.
    pub annotations: BTreeMap<String, String>,
}
