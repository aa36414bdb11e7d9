//! How a launcher executes its next program: the process stays, and with it its children, its connections and all that is
//! open.
//!
//! What the launcher knows goes into a file in memory, as a [`State`], and descriptors stay open under their numbers. First
//! the next program is run beside the launcher, to say whether it understands that very state; only then does it take its
//! place. If it cannot, the launcher goes on as if it had not been asked.
//!
//! Two things do not go along. Shells that wait are ended: what they would do for a sandbox is the old program's. So is the
//! process that makes disks, once it has done what it was about to do.

mod passed;
mod state;
#[cfg(test)]
mod state_tests;

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};
use rustix::time::Timespec;

use super::event_loop::{EventLoop, Source};
use super::pool::Pool;
use super::{CHECK_STATE, LAUNCHER_ARGV0, RESUME, prepare_process};
use crate::error::{Error, ErrorKind};
use crate::fail::fail_point;
use crate::launcher::connection::Connection;
use crate::launcher::ranges::Ranges;
use crate::launcher::sandbox::{Phase, Sandbox};
use crate::launcher::slots::Slots;
use crate::protocol::{Hello, Reply};
use crate::rootless::keep_capabilities;
use crate::step::Step;
use crate::sys;
pub(crate) use passed::{Passed, Passing, take_all};
pub(crate) use state::{
    CgroupState, ClientState, DisksState, ExecState, LogState, OutgoingState, PhaseState, RangesState, ReceivedState,
    SandboxState, State, VERSION, WaitingState,
};

/// What a program says that understands a state.
const UNDERSTOOD: &[u8] = b"ok\n";

/// How long it may take to say so. Meanwhile nobody is served.
const PATIENCE: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

impl EventLoop {
    /// Executes `program` in this one's place. Returns only when that is not possible, and `client` is told why.
    pub(super) fn succeed(&mut self, client: u64, program: &Path) {
        let Err(kind) = self.try_to_succeed(client, program);
        let operation = format!("replace the launcher by {}", program.display());
        self.respond(client, Err(Error::new(operation, kind)), Vec::new());
    }

    fn try_to_succeed(&mut self, client: u64, program: &Path) -> Result<std::convert::Infallible, ErrorKind> {
        if self.ending.is_some() {
            return Err(ErrorKind::Launcher("it is shutting down".into()));
        }
        let passing = Passing::default();
        let state = self.save(client, &passing)?;
        let file = in_memory(&state.encode().step(|| "write down what the launcher knows".into())?)?;
        check(program, &file)?;
        // Their program is the old one.
        self.starter.clear_pool();
        passing.pass(&file);
        let step = || "pass on what is open".to_owned();
        let executed = passing.keep_open(true).step(step).and_then(|()| execute(program, &state.socket, &file));
        let Err(failure) = executed;
        passing.keep_open(false).step(step)?;
        Err(failure)
    }

    fn save(&self, asker: u64, passing: &Passing) -> Result<State, ErrorKind> {
        let (Some(socket), Some(listener)) = (&self.socket, &self.listener) else {
            return Err(ErrorKind::Invalid("a private launcher ends with its owner, and is not replaced".into()));
        };
        let retired = self.retired.iter().map(|(pid, _)| *pid);
        Ok(State {
            version: VERSION,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            socket: socket.clone(),
            listener: passing.pass(listener),
            cgroup_parent: self.starter.parent.clone(),
            asker,
            next_token: self.next_token,
            slots: Slots::NUMBERS,
            shells_made: self.starter.pool.made(),
            clients: self.clients.iter().map(|(token, client)| client.save(*token, passing)).collect(),
            watchers: self.watchers.clone(),
            oom_watchers: self.oom_watchers.clone(),
            sandboxes: self.sandboxes.values().map(|sandbox| sandbox.save(passing)).collect(),
            execs: self.save_execs(passing),
            ranges: self.starter.ranges.save(passing),
            disks: self.save_disks(passing),
            retired: retired.chain(self.maker_pid()).collect(),
        })
    }

    fn restore(state: State) -> io::Result<(EventLoop, OwnedFd)> {
        let mut event_loop =
            EventLoop::new(state.cgroup_parent, Pool::continuing(state.shells_made)?, Some(state.socket))?;
        event_loop.next_token = state.next_token;
        event_loop.watchers = state.watchers;
        event_loop.oom_watchers = state.oom_watchers;
        event_loop.starter.ranges = Ranges::restore(state.ranges)?;
        for client in state.clients {
            let token = client.token;
            event_loop.restore_client(token, Connection::restore(client)?)?;
        }
        for sandbox in state.sandboxes {
            let sandbox = Sandbox::restore(sandbox)?;
            if !sandbox.is_over() {
                event_loop.watch_sandbox(&sandbox)?;
            }
            let (id, is_running) = (sandbox.id.clone(), matches!(sandbox.phase, Phase::Running));
            event_loop.starting.push(id.clone());
            event_loop.sandboxes.insert(id.clone(), sandbox);
            if is_running {
                event_loop.watch_memory(&id);
            }
        }
        for exec in state.execs {
            event_loop.restore_exec(exec)?;
        }
        event_loop.restore_disks(state.disks)?;
        for pid in state.retired {
            event_loop.retire(pid);
        }
        event_loop.respond(state.asker, Ok(Reply::Hello(Hello::own())), Vec::new());
        // What had come behind the last request is in no socket any more.
        for token in event_loop.clients.keys().copied().collect::<Vec<_>>() {
            event_loop.serve(token);
        }
        Ok((event_loop, state.listener.take()?))
    }

    /// Waits for the end of a child that nobody asks for.
    fn retire(&mut self, pid: i32) {
        let pidfd = Pid::from_raw(pid).map(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()));
        if let Some(Ok(pidfd)) = pidfd
            && self.watch(&pidfd, Source::Retired(pid)).is_ok()
        {
            self.retired.push((pid, pidfd));
        }
    }

    pub(super) fn on_retired(&mut self, token: u64, pid: i32) {
        let Some(at) = self.retired.iter().position(|(known, _)| *known == pid) else { return };
        let (_, pidfd) = self.retired.remove(at);
        self.unwatch(token, &pidfd);
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let _ = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), options);
    }
}

/// Goes on where the program before has left off. `number` is that of the file with its state.
pub(super) fn resume(number: Option<&OsStr>) -> io::Result<()> {
    let number = number.and_then(OsStr::to_str).and_then(|number| number.parse().ok());
    let file = sys::adopt_descriptor(number.ok_or_else(|| io::Error::other("it was not told where its state is"))?)?;
    let state = State::decode(&read(file)?).map_err(io::Error::other)?;
    prepare_process()?;
    let (event_loop, listener) = EventLoop::restore(state)?;
    event_loop.run_listening(listener)
}

/// Says whether this program could go on from the state that is its standard input.
pub(super) fn check_state() -> io::Result<()> {
    fail_point("launcher.succession.checked")?;
    State::decode(&read(sys::standard_input()?)?).map_err(io::Error::other)?;
    io::stdout().write_all(UNDERSTOOD)
}

fn in_memory(bytes: &[u8]) -> Result<OwnedFd, ErrorKind> {
    let step = || "write down what the launcher knows".to_owned();
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(rustix::fs::memfd_create("cfc-launcher-state", flags).step(step)?);
    file.write_all(bytes).step(step)?;
    let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals).step(step)?;
    Ok(file.into())
}

fn read(file: OwnedFd) -> io::Result<Vec<u8>> {
    let file = File::from(file);
    let mut bytes = vec![0; file.metadata()?.len() as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Has `program` say whether it understands the state.
fn check(program: &Path, state: &OwnedFd) -> Result<(), ErrorKind> {
    let refused = |reason: String| ErrorKind::Launcher(format!("it goes on as it is: {reason}"));
    let name = program.display();
    let stdin = state.try_clone().map_err(|error| refused(error.to_string()))?;
    let mut command = Command::new(program);
    command.arg0(LAUNCHER_ARGV0).arg(CHECK_STATE);
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| refused(format!("`{name}` cannot be executed: {error}")))?;
    let pidfd = Pid::from_raw(child.id() as i32).map(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()));
    let has_ended = match &pidfd {
        Some(Ok(pidfd)) => {
            let mut events = [PollFd::new(pidfd, PollFlags::IN)];
            matches!(rustix::io::retry_on_intr(|| rustix::event::poll(&mut events, Some(&PATIENCE))), Ok(1))
        }
        _ => false,
    };
    if !has_ended {
        let _ = child.kill();
    }
    let output = child.wait_with_output().map_err(|error| refused(error.to_string()))?;
    if output.status.success() && output.stdout == UNDERSTOOD {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().trim_start_matches("cfc-launcher: ").to_owned();
    Err(refused(match (has_ended, said.is_empty()) {
        (false, _) => format!("`{name}` did not say within {} s whether it can take its place", PATIENCE.tv_sec),
        (true, true) => {
            format!("`{name}` ended with {} when it was asked whether it can take its place", output.status)
        }
        (true, false) => said,
    }))
}

/// Returns only when it failed.
fn execute(program: &Path, socket: &Path, state: &OwnedFd) -> Result<std::convert::Infallible, ErrorKind> {
    let step = || format!("execute {}", program.display());
    let c_string = |bytes: &[u8]| CString::new(bytes).map_err(io::Error::from);
    let path = c_string(program.as_os_str().as_bytes()).step(step)?;
    let number = state.as_raw_fd().to_string();
    let words = [OsStr::new(LAUNCHER_ARGV0), socket.as_os_str(), OsStr::new(RESUME), OsStr::new(&number)];
    let arguments = words.map(|word| c_string(word.as_bytes()));
    let arguments = arguments.into_iter().collect::<io::Result<Vec<_>>>().step(step)?;
    let variable = |(key, value): (std::ffi::OsString, std::ffi::OsString)| {
        c_string(&[key.into_vec(), value.into_vec()].join(&b'='))
    };
    let environment = std::env::vars_os().map(variable).collect::<io::Result<Vec<_>>>().step(step)?;
    fail_point("launcher.succession.executed").step(step)?;
    let failure = keep_capabilities(|| sys::execute(&path, &arguments, &environment));
    Err(failure.unwrap_or_else(|error| error)).step(step)
}
