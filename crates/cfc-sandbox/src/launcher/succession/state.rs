//! [`State`]: what a launcher knows, in the form in which it goes to the next program of its process.
//!
//! The next program may be of a later cfc, or of an earlier one. `version` comes first and is looked at first: it rises
//! with every change that a program of the version before would get wrong, and [`OLDEST`] with every change after which
//! the form of an older one is not understood any more. A field that is added later has a default.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::passed::Passed;
use crate::child::Stubs;
use crate::config::SandboxConfig;
use crate::disk::DiskKind;
use crate::error::ErrorKind;
use crate::launcher::exec_template::ExecMeans;
use crate::launcher::log_file::Stream;
use crate::launcher::slots::Slots;
use crate::status::{Exit, Started};

/// Which form this program writes.
pub(crate) const VERSION: u32 = 1;

/// The oldest form that it reads.
pub(crate) const OLDEST: u32 = 1;

/// All that a launcher knows.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) version: u32,
    /// The cfc that wrote it.
    pub(crate) program: String,
    pub(crate) socket: PathBuf,
    pub(crate) listener: Passed,
    pub(crate) cgroup_parent: String,
    /// The client that asked for the next program, and is told that it runs.
    pub(crate) asker: u64,
    pub(crate) next_token: u64,
    /// The numbers that no descriptor has which is passed on: the first, and how many.
    pub(crate) slots: (i32, usize),
    /// How many shells had a name of their own.
    pub(crate) shells_made: u64,
    pub(crate) clients: Vec<ClientState>,
    pub(crate) watchers: Vec<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) oom_watchers: Vec<u64>,
    pub(crate) sandboxes: Vec<SandboxState>,
    pub(crate) execs: Vec<ExecState>,
    pub(crate) ranges: RangesState,
    pub(crate) disks: DisksState,
    /// Children that will end and that nobody asks for.
    pub(crate) retired: Vec<i32>,
}

/// A connection, with what was read of its next request and not sent of its answers.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ClientState {
    pub(crate) token: u64,
    pub(crate) socket: Passed,
    pub(crate) received: ReceivedState,
    pub(crate) outgoing: Vec<OutgoingState>,
}

/// What has come over a socket and was no whole message yet.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ReceivedState {
    pub(crate) bytes: Vec<u8>,
    pub(crate) descriptors: Vec<Passed>,
}

/// An answer that was not sent to its end.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct OutgoingState {
    pub(crate) bytes: Vec<u8>,
    pub(crate) sent: usize,
    pub(crate) descriptors: Vec<Passed>,
}

/// A sandbox.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SandboxState {
    pub(crate) id: String,
    pub(crate) started: Started,
    pub(crate) phase: PhaseState,
    pub(crate) pidfd: Passed,
    pub(crate) network: Option<Passed>,
    pub(crate) outbound: Option<Result<Vec<Passed>, ErrorKind>>,
    pub(crate) cgroup: CgroupState,
    /// How many kills for want of memory are in its log.
    #[serde(default, skip_serializing_if = "is_none_yet")]
    pub(crate) oom_kills: u64,
    /// Somebody had it killed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) is_killed: bool,
    pub(crate) exec: ExecMeans,
    /// The first of its host ids, when the launcher chose them.
    pub(crate) range: Option<u32>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) log: Option<LogState>,
    pub(crate) outputs: Vec<(Stream, Passed)>,
    pub(crate) upper: Option<PathBuf>,
    pub(crate) stubs: Stubs,
    pub(crate) disk: Option<Passed>,
    /// The process that makes device nodes for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) node_maker: Option<Passed>,
    pub(crate) waiting: Vec<u64>,
}

fn is_none_yet(count: &u64) -> bool {
    *count == 0
}

/// Where in its life a sandbox is.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum PhaseState {
    Starting { client: u64, control: Passed, received: ReceivedState, outcome: Option<Result<(), ErrorKind>> },
    Running,
    Exited(Exit),
}

/// A sandbox's cgroups.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct CgroupState {
    pub(crate) directories: Vec<PathBuf>,
    /// Controller to the directory that its files are in, and whether that is of the v2 tree.
    pub(crate) controllers: Vec<(String, PathBuf, bool)>,
    pub(crate) is_lenient: bool,
}

/// A log file, with what had no newline yet.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct LogState {
    pub(crate) path: PathBuf,
    pub(crate) max_bytes: u64,
    pub(crate) file: Passed,
    pub(crate) unfinished: [Vec<u8>; 3],
}

/// A further process of a sandbox, and the client that it belongs to.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ExecState {
    pub(crate) client: u64,
    pub(crate) sandbox: String,
    pub(crate) pid: i32,
    pub(crate) pidfd: Passed,
    pub(crate) control: Option<Passed>,
    pub(crate) is_released: bool,
    /// Has ended, and could not be waited for yet.
    pub(crate) is_traced: bool,
    /// Its report, and where its terminal comes from, as long as it starts.
    pub(crate) starting: Option<(Passed, Option<Passed>, Vec<u8>)>,
}

/// The host ids that are the launcher's.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RangesState {
    /// The first ids of the ranges that no sandbox has.
    pub(crate) free: Vec<u32>,
    /// The files whose locks make them ours.
    pub(crate) blocks: Vec<Passed>,
}

/// Disks that no sandbox has, and who waits for one.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct DisksState {
    /// The mount and the root of each.
    pub(crate) ready: Vec<(DiskKind, Passed, Passed)>,
    pub(crate) waiting: Vec<(DiskKind, WaitingState)>,
    /// The roots of those that are to be taken down.
    pub(crate) over: Vec<Passed>,
}

/// Who waits for a disk.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum WaitingState {
    Start { client: u64, config: Box<SandboxConfig>, descriptors: Vec<Passed> },
    Preparation { client: u64 },
}

impl PartialEq for WaitingState {
    fn eq(&self, other: &WaitingState) -> bool {
        let text = |state: &WaitingState| serde_json::to_string(state).ok();
        text(self) == text(other)
    }
}

impl State {
    pub(crate) fn encode(&self) -> std::io::Result<Vec<u8>> {
        Ok(serde_json::to_vec(self)?)
    }

    /// Reads what this or another program has written. An error says why this one cannot go on from there.
    pub(crate) fn decode(bytes: &[u8]) -> Result<State, String> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
            program: String,
        }
        let head: Head = serde_json::from_slice(bytes).map_err(|error| format!("the launcher's state: {error}"))?;
        let own = env!("CARGO_PKG_VERSION");
        if !(OLDEST..=VERSION).contains(&head.version) {
            let Head { version, program } = head;
            return Err(format!(
                "the launcher is of cfc {program} and keeps its state in version {version} of the form, of which cfc {own} \
                 reads {OLDEST} to {VERSION}"
            ));
        }
        let program = head.program;
        let state: State = serde_json::from_slice(bytes).map_err(|error| {
            format!("cfc {own} does not understand the state of a launcher of cfc {program}: {error}")
        })?;
        if state.slots != Slots::NUMBERS {
            return Err(format!("a launcher of cfc {program} has descriptors where cfc {own} needs its own"));
        }
        Ok(state)
    }
}
