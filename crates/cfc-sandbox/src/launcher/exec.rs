//! Further processes of running sandboxes, as the launcher sees them.
//!
//! Each belongs to the connection over which it was asked for, which hears of its start and of its end. It is the
//! launcher's child, born in the sandbox's pid namespace: when the sandbox's process 1 dies the kernel kills it, and waits
//! until the launcher has taken note.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, waitid};
use rustix::thread::ThreadNameSpaceType;

use super::event_loop::{EventLoop, Source};
use super::exec_template::ExecMeans;
use super::sandbox::{Phase, Sandbox, ended};
use super::shell::socket_pair;
use super::start::output_pipe;
use super::succession::{ExecState, Passed, Passing};
use crate::child::exec::{ExecReport, ExecWiring};
use crate::child::oci_exec::ExecOrder;
use crate::child::{self, parse_all};
use crate::error::{Error, ErrorKind};
use crate::exec::{ExecConfig, operation};
use crate::protocol::{self, Receiver, Reply};
use crate::rootless;
use crate::status::ExitStatus;
use crate::step::Step;
use crate::sys::{self, Cloned};

/// How many further processes a sandbox may have at once. Each costs the launcher two descriptors.
const EXECS_MAX: usize = 1_024;

/// One further process of a sandbox.
pub(super) struct ExecProcess {
    sandbox: String,
    /// As the host numbers it.
    pid: i32,
    pidfd: OwnedFd,
    /// Where an OCI runtime has started it, the process beside it takes orders here: it is that process which we know.
    control: Option<OwnedFd>,
    /// Whether it goes on when its client goes.
    is_released: bool,
    phase: ExecPhase,
}

enum ExecPhase {
    /// It reports through `report`. `handover` brings its terminal before.
    Starting {
        report: OwnedFd,
        handover: Option<OwnedFd>,
        received: Vec<u8>,
    },
    Running,
}

impl EventLoop {
    /// Starts a process for `client`, which is told when `execve` has succeeded or failed.
    pub(super) fn exec(
        &mut self,
        client: u64,
        id: &str,
        config: &ExecConfig,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), ErrorKind> {
        config.validate(id).map_err(|error| error.kind().clone())?;
        let sandbox = self.sandboxes.get(id).ok_or(ErrorKind::NotFound)?;
        match sandbox.phase {
            Phase::Running => {}
            Phase::Starting { .. } => return Err(ErrorKind::Invalid("it has not started yet".into())),
            Phase::Exited(_) => return Err(ErrorKind::NotRunning),
        }
        if self.execs.contains_key(&client) {
            return Err(ErrorKind::Launcher("a connection can have one command only".into()));
        }
        if self.execs.values().filter(|exec| exec.sandbox == id).count() >= EXECS_MAX {
            let message = format!("{EXECS_MAX} commands run in it already (wait until some have ended)");
            return Err(ErrorKind::Unavailable(message));
        }
        let process = launch(sandbox, config, descriptors)?;
        self.watch_exec(client, process)
    }

    fn watch_exec(&mut self, client: u64, process: ExecProcess) -> Result<(), ErrorKind> {
        let watched = match &process.phase {
            ExecPhase::Starting { report, .. } => self.watch(report, Source::ExecReport(client)).map(Some),
            ExecPhase::Running => Ok(None),
        };
        let watched = watched.and_then(|_| self.watch(&process.pidfd, Source::ExecExit(client)));
        if watched.is_err() {
            // Out of descriptors: what cannot be watched must not run.
            process.kill();
            self.forget_exec_sources(client);
            self.execs.insert(client, process);
            self.traced_execs.push(client);
            return Err(ErrorKind::Unavailable("the launcher cannot watch another process".into()));
        }
        self.execs.insert(client, process);
        Ok(())
    }

    /// For the launcher's next program.
    pub(super) fn save_execs(&self, passing: &Passing) -> Vec<ExecState> {
        let save =
            |(client, exec): (&u64, &ExecProcess)| exec.save(*client, self.traced_execs.contains(client), passing);
        self.execs.iter().map(save).collect()
    }

    pub(super) fn restore_exec(&mut self, state: ExecState) -> std::io::Result<()> {
        let (client, is_traced) = (state.client, state.is_traced);
        let process = ExecProcess::restore(state)?;
        if let ExecPhase::Starting { report, .. } = &process.phase {
            self.watch(report, Source::ExecReport(client))?;
        }
        match is_traced {
            true => self.traced_execs.push(client),
            false => drop(self.watch(&process.pidfd, Source::ExecExit(client))?),
        }
        self.execs.insert(client, process);
        Ok(())
    }

    /// Whether there was something to read, the end included.
    pub(super) fn on_exec_report(&mut self, token: u64, client: u64) -> bool {
        let Some(process) = self.execs.get_mut(&client) else { return false };
        let ExecPhase::Starting { report, handover, received } = &mut process.phase else { return false };
        let mut buffer = [0; 4096];
        match rustix::io::retry_on_intr(|| rustix::io::read(&*report, &mut buffer)) {
            Ok(0) => {}
            Ok(count) => {
                received.extend_from_slice(&buffer[..count]);
                return true;
            }
            Err(Errno::AGAIN) => return false,
            Err(_) => {}
        }
        let mut outcome = Err(ErrorKind::Unavailable("it died before its command began (out of memory?)".into()));
        for report in parse_all(received) {
            match report {
                ExecReport::Ready(pid) => outcome = receive_terminal(handover.as_ref()).map(|terminal| (pid, terminal)),
                ExecReport::Failed(failure) => outcome = Err(failure),
            }
        }
        if let ExecPhase::Starting { report, .. } = std::mem::replace(&mut process.phase, ExecPhase::Running) {
            self.sources.remove(&token);
            let _ = epoll::delete(&self.epoll, report);
        }
        self.tell_start(client, outcome);
        true
    }

    fn tell_start(&mut self, client: u64, outcome: Result<(u32, Option<OwnedFd>), ErrorKind>) {
        match outcome {
            Ok((pid, terminal)) => {
                self.respond(client, Ok(Reply::ExecStarted { pid }), terminal.into_iter().collect());
            }
            Err(kind) => {
                let Some(process) = self.execs.get(&client) else { return };
                process.kill();
                let error = Error::new(operation(&process.sandbox), kind);
                self.respond(client, Err(error), Vec::new());
            }
        }
    }

    pub(super) fn on_exec_exit(&mut self, token: u64, client: u64) {
        // A command that ends at once may be seen before its start: that comes first.
        while let Some(report) = self.exec_report_token(client) {
            if !self.on_exec_report(report, client) {
                break;
            }
        }
        let Some(process) = self.execs.get(&client) else { return };
        self.sources.remove(&token);
        let _ = epoll::delete(&self.epoll, &process.pidfd);
        self.forget_exec_sources(client);
        self.traced_execs.push(client);
        self.reap_execs();
    }

    /// Takes note of the commands that have ended. One that a process of the container traces is not ours to wait for
    /// until that has taken note, which may be never: it is looked at again later, and nobody waits.
    pub(super) fn reap_execs(&mut self) {
        for client in std::mem::take(&mut self.traced_execs) {
            let Some(process) = self.execs.get(&client) else { continue };
            match process.exit() {
                None => self.traced_execs.push(client),
                Some(exit) => {
                    self.execs.remove(&client);
                    self.respond(client, Ok(Reply::ExecEnded(exit)), Vec::new());
                }
            }
        }
    }

    /// The token of a starting process's report. The process is over, so reading it cannot wait.
    fn exec_report_token(&self, client: u64) -> Option<u64> {
        let is_report = |source: &Source| matches!(source, Source::ExecReport(known) if *known == client);
        let process = self.execs.get(&client)?;
        let is_starting = matches!(process.phase, ExecPhase::Starting { .. });
        let find = || self.sources.iter().find_map(|(token, source)| is_report(source).then_some(*token));
        if is_starting { find() } else { None }
    }

    fn forget_exec_sources(&mut self, client: u64) {
        self.sources.retain(
            |_, source| !matches!(source, Source::ExecReport(known) | Source::ExecExit(known) if *known == client),
        );
    }

    /// What has ended, or was never there, gets no signal.
    pub(super) fn signal_exec(&self, client: u64, signal: i32, group: bool) {
        if let Some(process) = self.execs.get(&client) {
            process.signal(signal, group);
        }
    }

    pub(super) fn release_exec(&mut self, client: u64) {
        if let Some(process) = self.execs.get_mut(&client) {
            process.is_released = true;
        }
    }

    /// The client is gone, and with it whoever could want its process.
    pub(super) fn abandon_exec(&mut self, client: u64) {
        if let Some(process) = self.execs.get(&client).filter(|process| !process.is_released) {
            process.kill();
        }
    }
}

impl ExecProcess {
    /// Kills it and its process group. It was not waited for, so the number is still its own.
    fn kill(&self) {
        self.signal(libc::SIGKILL, true);
        if self.control.is_none() {
            let _ = sys::send_signal(self.pidfd.as_fd(), libc::SIGKILL);
        }
    }

    /// For the launcher's next program.
    fn save(&self, client: u64, is_traced: bool, passing: &Passing) -> ExecState {
        let starting = match &self.phase {
            ExecPhase::Starting { report, handover, received } => {
                let handover = handover.as_ref().map(|socket| passing.pass(socket));
                Some((passing.pass(report), handover, received.clone()))
            }
            ExecPhase::Running => None,
        };
        ExecState {
            client,
            sandbox: self.sandbox.clone(),
            pid: self.pid,
            pidfd: passing.pass(&self.pidfd),
            control: self.control.as_ref().map(|control| passing.pass(control)),
            is_released: self.is_released,
            is_traced,
            starting,
        }
    }

    fn restore(state: ExecState) -> std::io::Result<ExecProcess> {
        let phase = match state.starting {
            Some((report, handover, received)) => {
                let handover = handover.map(Passed::take).transpose()?;
                ExecPhase::Starting { report: report.take()?, handover, received }
            }
            None => ExecPhase::Running,
        };
        let (pidfd, control) = (state.pidfd.take()?, state.control.map(Passed::take).transpose()?);
        Ok(ExecProcess {
            sandbox: state.sandbox,
            pid: state.pid,
            pidfd,
            control,
            is_released: state.is_released,
            phase,
        })
    }

    fn signal(&self, signal: i32, group: bool) {
        match &self.control {
            // It reads at once, and has ended when it does not.
            Some(control) => {
                let order = protocol::encode(&ExecOrder { signal, group });
                drop(order.map(|bytes| protocol::send(control, &bytes, &[])));
            }
            None if group => sys::signal_group(self.pid, signal),
            None => drop(sys::send_signal(self.pidfd.as_fd(), signal)),
        }
    }

    /// How it ended, if it has and it is ours to know. Does not wait.
    fn exit(&self) -> Option<ExitStatus> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let waited = rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(self.pidfd.as_fd()), options));
        match waited {
            Ok(status) => status.as_ref().map(ended),
            Err(_) => Some(ExitStatus::Signal(libc::SIGKILL)),
        }
    }
}

fn launch(sandbox: &Sandbox, config: &ExecConfig, descriptors: Vec<OwnedFd>) -> Result<ExecProcess, ErrorKind> {
    let stdio: Option<[OwnedFd; 3]> = match (config.terminal, descriptors.try_into()) {
        (Some(_), _) => None,
        (None, Ok(stdio)) => Some(stdio),
        (None, Err(_)) => {
            return Err(ErrorKind::Invalid("without a terminal it needs exactly three descriptors".into()));
        }
    };
    let (report, report_write) = output_pipe()?;
    let (handover, handover_write) = config.terminal.map(|_| socket_pair()).transpose()?.unzip();
    let first = sandbox.pidfd.try_clone().step(|| "copy a descriptor".into())?;
    let entrances = sandbox.cgroup.entrances()?;
    let birthplace = sandbox.cgroup.birthplace()?;
    let control = match &sandbox.exec {
        ExecMeans::Own(_) => None,
        ExecMeans::Runtime(_) => Some(socket_pair()?),
    };
    let (control, their_control) = control.unzip();
    let wiring = ExecWiring { report: report_write, handover: handover_write, stdio, entrances, first };
    match clone_inside(sandbox, birthplace.as_ref())? {
        Cloned::Child => match (&sandbox.exec, their_control) {
            (ExecMeans::Runtime(exec), Some(control)) => child::oci_exec::run(exec, config, &wiring, &control),
            (ExecMeans::Own(template), _) => child::exec::run(template, config, &wiring),
            (ExecMeans::Runtime(_), None) => sys::exit_now(libc::EIO),
        },
        Cloned::Parent { pid, pidfd } => Ok(ExecProcess {
            sandbox: sandbox.id.clone(),
            pid,
            pidfd,
            control,
            is_released: false,
            phase: ExecPhase::Starting { report, handover, received: Vec::new() },
        }),
    }
}

/// Forks a child into the sandbox's pid namespace. The launcher itself never leaves its own: only where its children are
/// born changes, for this moment.
fn clone_inside(sandbox: &Sandbox, birthplace: Option<&OwnedFd>) -> Result<Cloned, ErrorKind> {
    if rootless::is_rootless() {
        return clone_by_proxy(sandbox, birthplace);
    }
    let own = rustix::fs::open("/proc/self/ns/pid", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .step(|| "open the launcher's pid namespace".into())?;
    let pid = ThreadNameSpaceType::PROCESS_ID;
    match rustix::thread::move_into_thread_name_spaces(sandbox.pidfd.as_fd(), pid) {
        Err(Errno::SRCH) => return Err(ErrorKind::NotRunning),
        result => result.step(|| "enter the sandbox's pid namespace".into())?,
    }
    let cloned = sys::clone_process(0, birthplace.map(|fd| fd.as_fd()));
    if matches!(cloned, Ok(Cloned::Child)) {
        return Ok(Cloned::Child);
    }
    // Every further sandbox would be born in this one. It cannot fail, so if it does nothing is as it seems.
    rustix::thread::move_into_thread_name_spaces(own.as_fd(), pid).expect("a process may return to its own namespace");
    match cloned {
        // Its process 1 is dying: the namespace takes no further process.
        Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => Err(ErrorKind::NotRunning),
        cloned => cloned.step(|| "make the process".into()),
    }
}

/// As [`clone_inside`], where the launcher could not come back: the machine's pid namespace is not an ordinary user's. A
/// process in between goes there, and makes the child the launcher's own.
fn clone_by_proxy(sandbox: &Sandbox, birthplace: Option<&OwnedFd>) -> Result<Cloned, ErrorKind> {
    let step = || "make the process".to_owned();
    let (answer, answer_write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).step(step)?;
    match sys::clone_process(0, None).step(step)? {
        Cloned::Child => {
            let pid = ThreadNameSpaceType::PROCESS_ID;
            let entered = rustix::thread::move_into_thread_name_spaces(sandbox.pidfd.as_fd(), pid);
            let birthplace = birthplace.map(|fd| fd.as_fd());
            let cloned = entered
                .map_err(std::io::Error::from)
                .and_then(|()| sys::clone_process(libc::CLONE_PARENT as u64, birthplace));
            let number = match cloned {
                Ok(Cloned::Child) => return Ok(Cloned::Child),
                Ok(Cloned::Parent { pid, .. }) => pid,
                Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
            };
            let _ = rustix::io::write(&answer_write, &number.to_le_bytes());
            sys::exit_now(0)
        }
        Cloned::Parent { pidfd: proxy, .. } => {
            let mut number = [0; 4];
            drop(answer_write);
            let read = rustix::io::retry_on_intr(|| rustix::io::read(&answer, &mut number));
            let _ = rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(proxy.as_fd()), WaitIdOptions::EXITED));
            match (read, i32::from_le_bytes(number)) {
                (Ok(4), pid) if pid > 0 => {
                    // Only we can take note of its end, so the number is its own.
                    let pidfd = Pid::from_raw(pid).ok_or(Errno::SRCH);
                    let pidfd = pidfd.and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()));
                    Ok(Cloned::Parent { pid, pidfd: pidfd.step(step)? })
                }
                // To whoever is not the machine's root the kernel says EPERM of a process that is ending.
                (Ok(4), errno) if [-libc::ESRCH, -libc::ENOMEM, -libc::EPERM].contains(&errno) => {
                    Err(ErrorKind::NotRunning)
                }
                (Ok(4), errno) => Err(std::io::Error::from_raw_os_error(-errno)).step(step),
                _ => Err(Errno::CHILD).step(step),
            }
        }
    }
}

fn receive_terminal(handover: Option<&OwnedFd>) -> Result<Option<OwnedFd>, ErrorKind> {
    let Some(handover) = handover else { return Ok(None) };
    let step = || "take over its terminal".to_owned();
    let mut receiver = Receiver::default();
    receiver.receive(handover).step(step)?;
    let terminal = receiver.take_descriptor();
    terminal.map(Some).ok_or_else(|| std::io::Error::from_raw_os_error(libc::EBADMSG)).step(step)
}
