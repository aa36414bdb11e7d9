//! A further process of a sandbox that an OCI runtime runs: this process has the runtime start it, and stays beside it.
//!
//! It is a fork of the launcher, born in the pid namespace in which the runtime works, outside of the container. There it
//! joins the other namespaces of the runtime, and takes over whom the runtime leaves behind: `exec --detach` ends when
//! the command runs, which then is our child. So its exit is known as it was, and no program of the runtime stays for as
//! long as the command does (runsc excepted, whose commands have no process of their own).
//!
//! ```text
//! <scratch>/exec-<pid>/    only ours, until the command ends
//!   process.json log pid internal-pid console answer
//! ```

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, WaitOptions, WaitStatus};
use rustix::thread::ThreadNameSpaceType;
use serde::{Deserialize, Serialize};

use super::exec::{self, ExecReport, ExecWiring};
use super::init::code;
use super::oci_command::RuntimeCommand;
use super::oci_runtime::use_own_null;
use super::{FAILED, identity, report};
use crate::cgroup;
use crate::error::ErrorKind;
use crate::exec::ExecConfig;
use crate::launcher::give_pipes;
use crate::launcher::oci_exec::OciExec;
use crate::oci_runtime::Kind;
use crate::protocol::{self, Receiver};
use crate::rootless;
use crate::step::Step;
use crate::sys;
use crate::terminal::{WindowSize, set_size};

/// How often it is looked whether the runtime has done its part.
const POLL: Duration = Duration::from_millis(2);

/// What the launcher wants of a running command. The end of the socket means: end it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ExecOrder {
    /// Which signal it is to get.
    pub(crate) signal: i32,
    /// Its process group too, as far as there is one.
    pub(crate) group: bool,
}

/// The process's whole life. `control` brings [`ExecOrder`]s; `wiring.first` is process 1 of the pid namespace in which the
/// runtime works.
pub(crate) fn run(exec: &OciExec, config: &ExecConfig, wiring: &ExecWiring, control: &OwnedFd) -> ! {
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| start(exec, config, wiring, control)));
    let failure = match result {
        Ok(Ok(command)) => command.attend(&wiring.report, control),
        Ok(Err(failure)) => failure,
        Err(_) => ErrorKind::Step { step: "have the runtime run it (a bug: it panicked)".into(), errno: libc::EIO },
    };
    report::send(&wiring.report, &ExecReport::Failed(failure));
    sys::exit_now(FAILED)
}

/// A command that runs.
struct Command<'a> {
    exec: &'a OciExec,
    directory: Directory,
    /// The process that is waited for: the command's own, or with runsc the one that ends as the command does.
    pid: i32,
    /// As the container numbers the command.
    inside: u32,
}

fn start<'a>(
    exec: &'a OciExec,
    config: &ExecConfig,
    wiring: &ExecWiring,
    control: &OwnedFd,
) -> Result<Command<'a>, ErrorKind> {
    join(exec, wiring, control)?;
    let (user, environment) = exec::find_user(&exec.defaults, config, &exec.scratch.join("root"))?;
    let ids = (user.uid, user.gid);
    let ids = if exec.has_user_namespace() { Some(ids) } else { exec.defaults.on_host(ids.0, ids.1) };
    if let (Some(_), Some((uid, gid))) = (&wiring.stdio, ids) {
        give_pipes(&exec::standard_descriptors(), uid, gid);
    }
    let environment = environment.into_iter().map(|variable| variable.to_string_lossy().into_owned()).collect();
    let directory = Directory::make(exec)?;
    let process = serde_json::to_vec(&exec.process(config, &user, environment)).map_err(std::io::Error::from);
    let step = || "write the runtime's process.json".to_owned();
    fs::write(directory.path("process.json"), process.step(step)?).step(step)?;
    let listener = config.terminal.map(|_| UnixListener::bind(directory.path("console"))).transpose();
    let listener = listener.step(|| "listen for the terminal".into())?;
    // Who has the command started may be gone before the command is.
    rustix::process::set_child_subreaper(Some(Pid::INIT)).step(|| "take over the command".into())?;
    let runtime = directory.command(exec);
    // A group that is not ours: crun leaves the command in the one that it was started in.
    let own_group = || {
        let _ = rustix::process::setpgid(None, None);
    };
    let starter = runtime.spawn(&words(exec, &directory, listener.is_some()), own_group)?;
    let size = config.terminal.unwrap_or(WindowSize { rows: 0, columns: 0 });
    let ended = wait_for_runtime(starter, listener.as_ref(), size, wiring)?;
    // It is the runtime's no more, and must not keep the pipes open that the command closes.
    exec::connect_nothing()?;
    let pid = directory.number("pid").filter(|_| ended == 0);
    let pid = pid.ok_or_else(|| runtime.failure(&config.arguments[0], ended))?;
    let inside = match exec.runtime.kind() {
        Kind::Runsc => directory.number("internal-pid"),
        Kind::Runc | Kind::Crun | Kind::Other => number_inside(pid),
    };
    Ok(Command { exec, directory, pid, inside: inside.and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0) })
}

/// Lets go of the host, and joins the runtime's namespaces.
fn join(exec: &OciExec, wiring: &ExecWiring, control: &OwnedFd) -> Result<(), ErrorKind> {
    identity::close_memory()?;
    wiring.entrances.iter().try_for_each(cgroup::enter)?;
    exec::adjust_oom_score(Some(exec.defaults.oom_score_adj.unwrap_or(0)))?;
    rustix::process::setsid().step(|| "start a session".into())?;
    let _ = rustix::thread::set_name(c"cfc-exec");
    match &wiring.stdio {
        Some(stdio) => {
            if let Some((uid, gid)) = exec.defaults.on_host(0, 0).filter(|_| exec.has_user_namespace()) {
                give_pipes(stdio, uid, gid);
            }
            super::connect_stdio(stdio)?;
        }
        None => exec::connect_nothing()?,
    }
    let kept = [Some(&wiring.report), Some(control), Some(&wiring.first), wiring.handover.as_ref()];
    sys::close_all_but(&kept.into_iter().flatten().map(AsRawFd::as_raw_fd).collect::<Vec<_>>());
    let flags = ThreadNameSpaceType::from_bits_retain(exec.namespaces as u32);
    match rustix::thread::move_into_thread_name_spaces(wiring.first.as_fd(), flags) {
        Err(Errno::SRCH) => return Err(ErrorKind::NotRunning),
        // To whoever is not the machine's root the kernel says EPERM of a process that is ending.
        Err(Errno::PERM) if rootless::is_rootless() => return Err(ErrorKind::NotRunning),
        result => result.step(|| "join the runtime's namespaces".into())?,
    }
    if exec.has_user_namespace() {
        identity::become_root()?;
    }
    if !exec.has_user_namespace() {
        use_own_null(&exec.scratch)?;
    }
    sys::reset_signals();
    sys::close_on_exec_from(3).step(|| "close inherited files".into())
}

fn words<'a>(exec: &'a OciExec, directory: &'a Directory, has_terminal: bool) -> Vec<String> {
    let at = |name: &str| directory.path(name).to_string_lossy().into_owned();
    let mut words = vec!["exec".to_owned(), "--detach".to_owned()];
    words.extend(["--process".to_owned(), at("process.json"), "--pid-file".to_owned(), at("pid")]);
    if exec.runtime.kind() == Kind::Runsc {
        words.extend(["--internal-pid-file".to_owned(), at("internal-pid")]);
    }
    if has_terminal {
        words.extend(["--console-socket".to_owned(), at("console")]);
    }
    words.push(exec.id.clone());
    words
}

/// Until the runtime has ended, with which code; takes the terminal on the way.
fn wait_for_runtime(
    starter: i32,
    listener: Option<&UnixListener>,
    size: WindowSize,
    wiring: &ExecWiring,
) -> Result<i32, ErrorKind> {
    if let Some(listener) = listener {
        listener.set_nonblocking(true).step(|| "listen for the terminal".into())?;
    }
    let mut is_connected = listener.is_none();
    loop {
        let ended = rustix::process::waitpid(Pid::from_raw(starter), WaitOptions::NOHANG);
        let ended = ended.step(|| "wait for the runtime".into())?;
        if let Some((connection, _)) = listener.filter(|_| !is_connected).and_then(|listener| listener.accept().ok()) {
            hand_over(&connection, size, wiring)?;
            is_connected = true;
        }
        match ended {
            Some((_, status)) => return Ok(code(status)),
            None => std::thread::sleep(POLL),
        }
    }
}

/// Passes the terminal on that comes over `connection`.
fn hand_over(connection: &UnixStream, size: WindowSize, wiring: &ExecWiring) -> Result<(), ErrorKind> {
    let step = || "take over its terminal".to_owned();
    connection.set_nonblocking(false).step(step)?;
    let mut receiver = Receiver::default();
    receiver.receive(connection).step(step)?;
    let terminal = receiver.take_descriptor().ok_or(Errno::BADMSG).step(step)?;
    set_size(&terminal, size).step(|| "set the terminal's size".into())?;
    rustix::io::ioctl_fionbio(&terminal, true).step(step)?;
    let handover = wiring.handover.as_ref().ok_or(Errno::BADF).step(step)?;
    protocol::send(handover, b"t", &[terminal.as_fd()]).map(drop).step(|| "hand over the terminal".into())
}

/// The innermost number of a process, which may have ended: it was not waited for.
fn number_inside(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    numbers.split_whitespace().next_back()?.parse().ok()
}

impl Command<'_> {
    /// Tells that it runs, and stays until it has ended. Returns only on failure.
    fn attend(self, report: &OwnedFd, control: &OwnedFd) -> ErrorKind {
        let pidfd = Pid::from_raw(self.pid).ok_or(Errno::SRCH);
        let pidfd = pidfd.and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()));
        let pidfd = match pidfd.step(|| "watch the command".into()) {
            Ok(pidfd) => pidfd,
            Err(failure) => {
                self.signal(&ExecOrder { signal: libc::SIGKILL, group: true });
                return failure;
            }
        };
        report::send(report, &ExecReport::Ready(self.inside));
        sys::close_all_but(&[control.as_raw_fd(), pidfd.as_raw_fd()]);
        let mut receiver = Receiver::default();
        let mut is_wanted = true;
        loop {
            let mut events = [PollFd::new(&pidfd, PollFlags::IN), PollFd::new(control, PollFlags::IN)];
            // Once nobody wants it any more, there is only its end to wait for.
            let watched = if is_wanted { &mut events[..] } else { &mut events[..1] };
            let _ = rustix::io::retry_on_intr(|| rustix::event::poll(watched, None));
            let has_order = !events[1].revents().is_empty();
            self.reap();
            if has_order && is_wanted {
                is_wanted = receiver.receive(control).unwrap_or(false);
                while let Ok(Some((order, _))) = receiver.next::<ExecOrder>() {
                    self.signal(&order);
                }
                if !is_wanted {
                    self.signal(&ExecOrder { signal: libc::SIGKILL, group: true });
                }
            }
        }
    }

    fn signal(&self, order: &ExecOrder) {
        match self.exec.runtime.kind() {
            Kind::Runsc => {
                let signal = order.signal.to_string();
                let others = if order.group { self.descendants() } else { Vec::new() };
                for pid in [self.inside].into_iter().chain(others) {
                    let _ = self.ask(&["kill", "--pid", &pid.to_string(), &self.exec.id, &signal]);
                }
            }
            Kind::Runc | Kind::Crun | Kind::Other => {
                let group = Pid::from_raw(self.pid).map(|pid| rustix::process::getpgid(Some(pid)));
                match group {
                    Some(Ok(group)) if order.group => sys::signal_group(group.as_raw_nonzero().get(), order.signal),
                    _ => sys::forward_signal(self.pid, order.signal),
                }
            }
        }
    }

    /// What the command has started, where process groups cannot be reached, as the container numbers it.
    fn descendants(&self) -> Vec<u32> {
        let said = self.ask(&["ps", &self.exec.id]).unwrap_or_default();
        let parent_of = |line: &str| {
            let mut fields = line.split_whitespace().skip(1).map(str::parse::<u32>);
            Some((fields.next()?.ok()?, fields.next()?.ok()?))
        };
        let parents: Vec<(u32, u32)> = said.lines().filter_map(parent_of).collect();
        let mut found = vec![self.inside];
        let mut at = 0;
        while let Some(parent) = found.get(at).copied() {
            let is_new = |(pid, of): &&(u32, u32)| *of == parent && !found.contains(pid);
            let children: Vec<u32> = parents.iter().filter(is_new).map(|(pid, _)| *pid).collect();
            found.extend(children);
            at += 1;
        }
        found.split_off(1)
    }

    /// What the runtime answers.
    fn ask(&self, words: &[&str]) -> std::io::Result<String> {
        let answer = fs::File::create(self.directory.path("answer"))?;
        let runtime = self.directory.command(self.exec);
        let spawned = runtime.spawn(words, || {
            let _ = rustix::stdio::dup2_stdout(&answer);
        });
        if let Ok(pid) = spawned {
            rustix::process::waitpid(Pid::from_raw(pid), WaitOptions::empty())?;
        }
        fs::read_to_string(self.directory.path("answer"))
    }

    /// Takes note of whoever has ended: helpers of the runtime that were left to us, and the command, with which this
    /// process ends.
    fn reap(&self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if Some(pid) == Pid::from_raw(self.pid) {
                self.end_as(status);
            }
        }
    }

    /// Ends this process in the way in which the command has ended.
    fn end_as(&self, status: WaitStatus) -> ! {
        self.directory.remove();
        if let Some(signal) = status.terminating_signal() {
            let _ = rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
            sys::forward_signal(std::process::id() as i32, signal);
        }
        sys::exit_now(code(status))
    }
}

/// The files of one command.
struct Directory(PathBuf);

impl Directory {
    fn make(exec: &OciExec) -> Result<Directory, ErrorKind> {
        let directory = Directory(exec.scratch.join(format!("exec-{}", std::process::id())));
        // One of a process that had our number and was killed.
        directory.remove();
        let made = rustix::fs::mkdirat(rustix::fs::CWD, &directory.0, rustix::fs::Mode::RWXU);
        made.step(|| "make a directory for the command".into())?;
        Ok(directory)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn number(&self, name: &str) -> Option<i32> {
        fs::read_to_string(self.path(name)).ok()?.trim().parse().ok()
    }

    fn command<'a>(&self, exec: &'a OciExec) -> RuntimeCommand<'a> {
        RuntimeCommand { runtime: &exec.runtime, scratch: &exec.scratch, log: self.path("log") }
    }

    fn remove(&self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
