//! [`Sandbox`]: what the launcher knows of one sandbox.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus};

use super::exec_template::ExecMeans;
use super::log_file::{LogFile, Stream};
use super::node_maker::NodeMaker;
use super::oom::OomWatch;
use super::ranges::Range;
use super::start::Outputs;
use super::succession::{Passed, Passing, PhaseState, SandboxState, take_all};
use crate::cgroup::Cgroup;
use crate::child::{Stubs, remove_stubs};
use crate::config::{Root, SandboxConfig};
use crate::error::ErrorKind;
use crate::fail::fail_point;
use crate::protocol::Receiver;
use crate::status::{Exit, ExitStatus, Started, State, Status, Usage};
use crate::sys;

/// How much of a stream is read before others have their turn.
const READ_LENGTH: usize = 64 << 10;

/// A sandbox from its process's first moment until it is removed.
pub(crate) struct Sandbox {
    pub(crate) id: String,
    pub(crate) started: Started,
    pub(crate) phase: Phase,
    pub(crate) pidfd: OwnedFd,
    pub(crate) network: Option<OwnedFd>,
    /// The sockets to which its outbound traffic is redirected, when it was to be, or why there are none.
    pub(crate) outbound: Option<Result<Vec<OwnedFd>, ErrorKind>>,
    pub(crate) cgroup: Cgroup,
    /// Tells of kills for want of memory, and how many of them are in the log.
    pub(crate) oom_watch: Option<OomWatch>,
    pub(crate) oom_kills: u64,
    /// Somebody had it killed: its end is not the kernel's doing.
    pub(crate) is_killed: bool,
    /// How further processes of it are made.
    pub(crate) exec: ExecMeans,
    /// Its host ids, when the launcher chose them.
    pub(crate) range: Option<Range>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) log: Option<LogFile>,
    /// The read ends of stdout and stderr, until they end.
    pub(crate) outputs: Vec<(Stream, OwnedFd)>,
    pub(crate) rate: Rate,
    /// The overlay's upper directory, and what was made in it that is not the application's.
    pub(crate) upper: Option<PathBuf>,
    pub(crate) stubs: Stubs,
    /// The root of its disk, when it has one.
    pub(crate) disk: Option<OwnedFd>,
    /// Who makes device nodes for it, when somebody does.
    pub(crate) node_maker: Option<NodeMaker>,
    /// The clients that wait for its end.
    pub(crate) waiting: Vec<u64>,
}

/// The process of a sandbox that starts, and what belongs to it.
pub(crate) struct NewProcess {
    pub(crate) started: Started,
    pub(crate) pidfd: OwnedFd,
    /// Brings its reports.
    pub(crate) control: OwnedFd,
    pub(crate) network: Option<OwnedFd>,
    pub(crate) cgroup: Cgroup,
    pub(crate) range: Option<Range>,
}

/// Where in its life a sandbox is.
pub(crate) enum Phase {
    /// Its process reports through `control`; `client` waits for the outcome.
    Starting {
        client: u64,
        control: OwnedFd,
        receiver: Receiver,
        /// What the last report said. It holds when the process closes `control`, which `execve` does.
        outcome: Option<Result<(), ErrorKind>>,
    },
    Running,
    Exited(Exit),
}

/// How fast output may come: beyond it the application waits, so that the launcher has time for the others.
pub(crate) struct Rate {
    window_start: Instant,
    bytes: usize,
}

/// About 10 MiB a second.
const WINDOW: Duration = Duration::from_millis(100);
const WINDOW_BYTES_MAX: usize = 1 << 20;

impl Rate {
    pub(crate) fn new() -> Rate {
        Rate { window_start: Instant::now(), bytes: 0 }
    }

    fn add(&mut self, bytes: usize) {
        if self.window_start.elapsed() >= WINDOW {
            *self = Rate::new();
        }
        self.bytes += bytes;
    }

    pub(crate) fn is_exceeded(&self) -> bool {
        self.bytes > WINDOW_BYTES_MAX
    }

    pub(crate) fn window_end(&self) -> Instant {
        self.window_start + WINDOW
    }
}

/// What reading an output has shown.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// There may be more.
    More,
    /// Nothing now.
    Empty,
    /// Nothing any more.
    End,
}

impl Sandbox {
    /// The sandbox of `config`, whose `process` was let go and reports to `client`.
    pub(crate) fn starting(
        config: &SandboxConfig,
        client: u64,
        process: NewProcess,
        outputs: Outputs,
        exec: ExecMeans,
    ) -> Sandbox {
        let NewProcess { started, pidfd, control, network, cgroup, range } = process;
        let upper = match &config.root {
            Root::Overlay { upper, .. } => Some(upper.clone()),
            Root::Disk { .. } | Root::Directory { .. } => None,
        };
        Sandbox {
            id: config.id.clone(),
            started,
            phase: Phase::Starting { client, control, receiver: Receiver::default(), outcome: None },
            pidfd,
            network,
            outbound: None,
            cgroup,
            oom_watch: None,
            oom_kills: 0,
            is_killed: false,
            exec,
            range,
            annotations: config.spec.annotations().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect(),
            log: outputs.log,
            outputs: outputs.read_ends,
            rate: Rate::new(),
            upper,
            disk: None,
            node_maker: None,
            stubs: Stubs::default(),
            waiting: Vec::new(),
        }
    }

    /// For the launcher's next program.
    pub(crate) fn save(&self, passing: &Passing) -> SandboxState {
        let pass = |descriptor: &Option<OwnedFd>| descriptor.as_ref().map(|descriptor| passing.pass(descriptor));
        let phase = match &self.phase {
            Phase::Starting { client, control, receiver, outcome } => PhaseState::Starting {
                client: *client,
                control: passing.pass(control),
                received: receiver.save(passing),
                outcome: outcome.clone(),
            },
            Phase::Running => PhaseState::Running,
            Phase::Exited(exit) => PhaseState::Exited(*exit),
        };
        SandboxState {
            id: self.id.clone(),
            started: self.started,
            phase,
            pidfd: passing.pass(&self.pidfd),
            network: pass(&self.network),
            outbound: self.outbound.as_ref().map(|sockets| match sockets {
                Ok(sockets) => Ok(passing.pass_all(sockets)),
                Err(kind) => Err(kind.clone()),
            }),
            cgroup: self.cgroup.save(),
            oom_kills: self.oom_kills,
            is_killed: self.is_killed,
            exec: self.exec.clone(),
            range: self.range.map(|range| range.first),
            annotations: self.annotations.clone(),
            log: self.log.as_ref().map(|log| log.save(passing)),
            outputs: self.outputs.iter().map(|(stream, pipe)| (*stream, passing.pass(pipe))).collect(),
            upper: self.upper.clone(),
            stubs: self.stubs.clone(),
            disk: pass(&self.disk),
            node_maker: self.node_maker.as_ref().map(|maker| passing.pass(maker)),
            waiting: self.waiting.clone(),
        }
    }

    pub(crate) fn restore(state: SandboxState) -> std::io::Result<Sandbox> {
        let phase = match state.phase {
            PhaseState::Starting { client, control, received, outcome } => {
                let (control, receiver) = (control.take()?, Receiver::restore(received)?);
                Phase::Starting { client, control, receiver, outcome }
            }
            PhaseState::Running => Phase::Running,
            PhaseState::Exited(exit) => Phase::Exited(exit),
        };
        let outputs = state.outputs.into_iter().map(|(stream, pipe)| Ok((stream, pipe.take()?)));
        Ok(Sandbox {
            id: state.id,
            started: state.started,
            phase,
            pidfd: state.pidfd.take()?,
            network: state.network.map(Passed::take).transpose()?,
            outbound: match state.outbound {
                Some(Ok(sockets)) => Some(Ok(take_all(sockets)?)),
                Some(Err(kind)) => Some(Err(kind)),
                None => None,
            },
            cgroup: Cgroup::restore(state.cgroup),
            oom_watch: None,
            oom_kills: state.oom_kills,
            is_killed: state.is_killed,
            exec: state.exec,
            range: state.range.map(|first| Range { first }),
            annotations: state.annotations,
            log: state.log.map(LogFile::restore).transpose()?,
            outputs: outputs.collect::<std::io::Result<_>>()?,
            rate: Rate::new(),
            upper: state.upper,
            stubs: state.stubs,
            disk: state.disk.map(Passed::take).transpose()?,
            node_maker: state.node_maker.map(Passed::take).transpose()?.map(NodeMaker::restore),
            waiting: state.waiting,
        })
    }

    pub(crate) fn status(&self) -> Status {
        let state = match &self.phase {
            Phase::Starting { .. } => State::Starting,
            Phase::Running => State::Running,
            Phase::Exited(exit) => State::Exited(*exit),
        };
        Status { id: self.id.clone(), started: self.started, state, annotations: self.annotations.clone() }
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Exited(_))
    }

    /// What it uses; once it has ended, what it had used.
    pub(crate) fn usage(&self) -> Usage {
        match &self.phase {
            Phase::Exited(exit) => exit.usage,
            _ => self.cgroup.usage(),
        }
    }

    /// Kills process 1, and with it the whole pid namespace. A process that has ended already is fine.
    pub(crate) fn kill_all(&mut self) {
        self.is_killed = true;
        let _ = sys::send_signal(self.pidfd.as_fd(), libc::SIGKILL);
    }

    /// The read end of an output that has not ended.
    pub(crate) fn output(&self, stream: Stream) -> Option<&OwnedFd> {
        self.outputs.iter().find_map(|(known, pipe)| (*known == stream).then_some(pipe))
    }

    /// Reads once from an output into the log.
    pub(crate) fn copy_output(&mut self, stream: Stream) -> Output {
        let Some(pipe) = self.output(stream) else { return Output::End };
        let mut buffer = [MaybeUninit::uninit(); READ_LENGTH];
        match rustix::io::read(pipe, &mut buffer) {
            Ok(([], _)) => Output::End,
            Ok((read, _)) => {
                self.rate.add(read.len());
                if let Some(log) = &mut self.log {
                    log.take(stream, read);
                }
                Output::More
            }
            Err(rustix::io::Errno::AGAIN) => Output::Empty,
            Err(rustix::io::Errno::INTR) => Output::More,
            Err(_) => Output::End,
        }
    }

    /// Takes note in the log of how many processes the kernel has killed for want of memory. True when that is news.
    pub(crate) fn note_oom_kills(&mut self, kills: u64) -> bool {
        if kills <= self.oom_kills {
            return false;
        }
        self.oom_kills = kills;
        let limit = self.cgroup.memory_limit().map_or(String::new(), |bytes| format!(" of {} MiB", bytes >> 20));
        if let Some(log) = &mut self.log {
            log.say(&format!("out of memory: the kernel killed a process at the limit{limit}"));
        }
        true
    }

    /// Waits for the process, which has ended or is about to, and takes everything down but this record.
    pub(crate) fn finish(&mut self) -> Exit {
        let status = exit_status(&self.pidfd);
        // Nothing can be reported from here: these points are for being killed at.
        let _ = fail_point("launcher.end.reaped");
        // All processes are gone, so what the pipes hold is bounded and is all there will ever be.
        for stream in [Stream::Stdout, Stream::Stderr] {
            while self.copy_output(stream) == Output::More {}
        }
        self.outputs.clear();
        let usage = self.cgroup.usage();
        if let Some(log) = &mut self.log {
            log.finish();
        }
        self.note_oom_kills(usage.oom_kills);
        self.log = None;
        self.oom_watch = None;
        self.network = None;
        self.outbound = None;
        self.node_maker = None;
        if let Some(upper) = &self.upper {
            remove_stubs(upper, &self.stubs);
        }
        let oom_killed = usage.oom_kills > 0 && status.is_sigkill() && !self.is_killed;
        let exit = Exit { status, oom_killed, usage };
        self.cgroup.remove();
        let _ = fail_point("launcher.end.cleared");
        self.phase = Phase::Exited(exit);
        exit
    }
}

/// Waits for a child, which has ended or is about to.
fn exit_status(pidfd: &OwnedFd) -> ExitStatus {
    let waited =
        rustix::io::retry_on_intr(|| rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED));
    waited.ok().flatten().as_ref().map_or(ExitStatus::Signal(libc::SIGKILL), ended)
}

/// How a process ended that was waited for.
pub(super) fn ended(status: &WaitIdStatus) -> ExitStatus {
    let code = status.exit_status().map(ExitStatus::Code);
    let signal = status.terminating_signal().map(ExitStatus::Signal);
    code.or(signal).unwrap_or(ExitStatus::Signal(libc::SIGKILL))
}
