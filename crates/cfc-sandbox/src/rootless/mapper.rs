//! [`Mapper`]: a process that stays outside, to write the id maps of the user namespace that this one makes.
//!
//! Who may write maps of more than one id: root's `newuidmap` and `newgidmap`, which check `/etc/subuid`, and processes
//! that hold CAP_SETUID outside. Both work from outside only.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use rustix::process::{WaitId, WaitIdOptions};
use rustix::thread::CapabilitySet;

use super::{Obstacle, ranges};
use crate::error::ErrorKind;
use crate::step::Step;
use crate::sys::{self, Cloned};

const PROGRAMS: [(&str, &str); 2] = [("newuidmap", "/etc/subuid"), ("newgidmap", "/etc/subgid")];

/// How the maps are to be written.
enum Plan {
    /// By the mapper itself, which may: every id keeps its number.
    Keep,
    /// By `newuidmap` and `newgidmap`.
    Subordinate { uids: Vec<[u32; 3]>, gids: Vec<[u32; 3]> },
    /// By the process itself.
    Single { why: String },
}

/// The process outside, waiting to be told that the namespace exists.
pub(super) struct Mapper {
    plan: Plan,
    process: Option<Waiting>,
    /// This process's ids as they are outside: inside, until they are mapped, they are nobody's.
    own: [u32; 2],
}

struct Waiting {
    pidfd: OwnedFd,
    go: OwnedFd,
    answer: OwnedFd,
}

impl Mapper {
    /// Decides how to map, and starts the process. To be called before the namespace is made.
    pub(super) fn start() -> Result<Mapper, ErrorKind> {
        let own = [rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw()];
        let plan = Plan::choose(own);
        if matches!(plan, Plan::Single { .. }) {
            return Ok(Mapper { plan, process: None, own });
        }
        let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).step(|| "make a pipe".into());
        let ((go_read, go), (answer, answer_write)) = (pipe()?, pipe()?);
        let parent = std::process::id();
        // A container's system call filter may refuse this already.
        let refused = |error| ErrorKind::NoUserNamespace(Obstacle::find("start a process with clone3", &error));
        match sys::clone_process(0, None).map_err(refused)? {
            Cloned::Parent { pidfd, .. } => Ok(Mapper { plan, process: Some(Waiting { pidfd, go, answer }), own }),
            Cloned::Child => {
                drop((go, answer));
                sys::exit_now(serve(&plan, parent, &go_read, &answer_write))
            }
        }
    }

    /// Has this process's new user namespace mapped. Returns why there is only one id, when there is.
    pub(super) fn map(self) -> io::Result<Option<String>> {
        let why = match (self.plan, self.process) {
            (Plan::Single { why }, _) => why,
            (_, None) => return Ok(None),
            (plan, Some(process)) => match (process.ask()?, plan) {
                (None, _) => return Ok(None),
                (Some(failure), Plan::Keep) => return Err(io::Error::other(failure)),
                (Some(failure), _) => failure,
            },
        };
        // Where one of the two maps is written already, this fails, and the first failure is what matters.
        map_own_id(self.own).map_err(|error| io::Error::other(format!("{why}; and the own id: {error}")))?;
        Ok(Some(why))
    }
}

impl Waiting {
    /// What went wrong; `None` when nothing did.
    fn ask(self) -> io::Result<Option<String>> {
        rustix::io::write(&self.go, b"g")?;
        let mut failure = Vec::new();
        io::Read::read_to_end(&mut fs::File::from(self.answer), &mut failure)?;
        let status = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED)?;
        let is_done = status.and_then(|status| status.exit_status()) == Some(0);
        Ok((!is_done).then(|| String::from_utf8_lossy(&failure).trim().to_owned()))
    }
}

impl Plan {
    fn choose([uid, gid]: [u32; 2]) -> Plan {
        let held = rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
        if held.contains(CapabilitySet::SETUID | CapabilitySet::SETGID) {
            return Plan::Keep;
        }
        let names = ranges::names(uid);
        let [uids, gids] = PROGRAMS.map(|(_, file)| ranges::read(file, &names));
        for ((program, file), ranges) in PROGRAMS.iter().zip([&uids, &gids]) {
            if ranges.is_empty() {
                let name = names.last().map_or("this user", String::as_str);
                return Plan::Single { why: format!("{file} gives `{name}` no ids") };
            }
            if !is_on_path(program) {
                return Plan::Single { why: format!("{program} is not installed") };
            }
        }
        Plan::Subordinate { uids: ranges::lay_out(&uids, uid), gids: ranges::lay_out(&gids, gid) }
    }

    /// Maps the user namespace of process `pid`.
    fn carry_out(&self, pid: u32) -> Result<(), String> {
        match self {
            Plan::Keep => ["uid_map", "gid_map"].iter().try_for_each(|map| keep(pid, map)),
            Plan::Subordinate { uids, gids } => {
                // Both at once: every start of cfc waits for them.
                let [uids, gids] = [(PROGRAMS[0].0, uids), (PROGRAMS[1].0, gids)].map(|(program, triples)| {
                    spawn(program, pid, triples).map_err(|error| format!("{program}: {error}"))
                });
                finish(PROGRAMS[0].0, uids?).and(finish(PROGRAMS[1].0, gids?))
            }
            Plan::Single { .. } => Ok(()),
        }
    }
}

/// The mapper's whole life; returns its exit code.
fn serve(plan: &Plan, pid: u32, go: &OwnedFd, answer: &OwnedFd) -> i32 {
    let told = rustix::io::retry_on_intr(|| rustix::io::read(go, &mut [0; 1]));
    if told != Ok(1) {
        return 1;
    }
    match plan.carry_out(pid) {
        Ok(()) => 0,
        Err(failure) => {
            let _ = rustix::io::write(answer, failure.as_bytes());
            1
        }
    }
}

/// Maps every id that there is to itself.
fn keep(pid: u32, map: &str) -> Result<(), String> {
    let own = fs::read_to_string(format!("/proc/self/{map}")).map_err(|error| error.to_string())?;
    let line = |line: &str| {
        let mut fields = line.split_whitespace();
        Some(format!("{0} {0} {1}\n", fields.next()?, fields.nth(1)?))
    };
    let text: String = own.lines().filter_map(line).collect();
    fs::write(format!("/proc/{pid}/{map}"), text).map_err(|error| format!("write its {map}: {error}"))
}

fn spawn(program: &str, pid: u32, triples: &[[u32; 3]]) -> io::Result<Child> {
    let arguments = triples.iter().flatten().map(u32::to_string);
    Command::new(program).arg(pid.to_string()).args(arguments).stderr(Stdio::piped()).spawn()
}

fn finish(program: &str, process: Child) -> Result<(), String> {
    let output = process.wait_with_output().map_err(|error| format!("{program}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{program} failed: {}", said.trim())) }
}

fn is_on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).exists())
}

/// What anybody may do in a new user namespace: map the own id, once groups are given up.
fn map_own_id([uid, gid]: [u32; 2]) -> io::Result<()> {
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1\n"))?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1\n"))
}
