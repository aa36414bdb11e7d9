//! Further commands in running instances: [`Runtime::exec`] and the [`Exec`] that it gives.
//!
//! A command ends when whoever holds its [`ExecControl`] drops it or dies: nobody could take its output any more. Only a
//! command that was [released](ExecControl::release) goes on.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use cfc_sandbox::{ExecConfig, Terminal, WindowSize};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::error::{AtPath, Result, RuntimeErrorKind};
use crate::runtime::{Runtime, blocking};

const SIGKILL: i32 = 9;
const EIO: i32 = 5;
/// What is still read once the command has ended. What it put out is in a pipe of 64 KiB; more comes from what it left
/// behind, which could go on for ever.
const AFTER_END_BYTES_MAX: usize = 1 << 20;

/// A further command for a running instance. What is not said is as it is for the instance's own process.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExecSpec {
    /// The command and its arguments. No shell is involved.
    pub command: Vec<String>,
    /// `KEY=value`, added to the instance's environment.
    pub env: Vec<String>,
    /// `user[:group]`, names or numbers.
    pub user: Option<String>,
    /// Where it starts.
    pub cwd: Option<PathBuf>,
    /// Whether it gets input. Without, there is none.
    pub has_input: bool,
    /// A terminal of this size in place of three pipes.
    pub terminal: Option<WindowSize>,
}

/// A command that was started.
#[derive(Debug)]
pub struct Exec {
    /// Its process id, as the instance numbers it.
    pub pid: u32,
    /// Takes its input, if it gets any.
    pub input: Option<ExecInput>,
    /// What it puts out; with a terminal, all that is shown.
    pub stdout: ExecOutput,
    /// What it complains of. `None` with a terminal.
    pub stderr: Option<ExecOutput>,
    /// How it is signalled and watched.
    pub control: ExecControl,
}

/// How a command is signalled and watched. Cheap to clone; the command ends when all clones are gone.
#[derive(Clone, Debug)]
pub struct ExecControl {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    process: Arc<cfc_sandbox::Exec>,
    terminal: Option<Arc<Terminal>>,
    exit: watch::Receiver<Option<i32>>,
    watcher: AbortHandle,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

impl Runtime {
    /// Runs a further command in a running instance. Returns once it executes.
    pub async fn exec(&self, name: &str, spec: ExecSpec) -> Result<Exec> {
        let failed = |kind: RuntimeErrorKind| kind.of("run a command in", name);
        match self.inspect(name) {
            None => return Err(failed(cfc_scheduler::Refusal::NoInstance(name.to_string()).into())),
            Some(view) if !view.phase.is_live() => return Err(failed(RuntimeErrorKind::NotRunning)),
            Some(_) => {}
        }
        let (launcher, instance) = (self.shared().launcher.clone(), name.to_string());
        let started = blocking(move || start(&launcher, &instance, &spec)).await;
        let ends = started.map_err(|kind| match kind {
            RuntimeErrorKind::Sandbox(error) if error.is_gone() => failed(RuntimeErrorKind::NotRunning),
            kind => failed(kind),
        })?;
        Exec::new(ends).map_err(|error| failed(RuntimeErrorKind::Invalid(format!("its pipes: {error}"))))
    }
}

/// A command's process and our ends of what it reads and writes.
struct Ends {
    process: cfc_sandbox::Exec,
    terminal: Option<Terminal>,
    stdin: Option<OwnedFd>,
    outputs: Option<(OwnedFd, OwnedFd)>,
    has_input: bool,
}

fn start(launcher: &cfc_sandbox::Launcher, name: &str, spec: &ExecSpec) -> std::result::Result<Ends, RuntimeErrorKind> {
    let config = ExecConfig {
        arguments: spec.command.clone(),
        environment: spec.env.clone(),
        user: spec.user.clone(),
        cwd: spec.cwd.clone(),
        terminal: spec.terminal,
    };
    let has_input = spec.has_input;
    if spec.terminal.is_some() {
        let mut process = launcher.exec_in_terminal(name, &config)?;
        let terminal = process.take_terminal();
        return Ok(Ends { process, terminal, stdin: None, outputs: None, has_input });
    }
    let (stdin, our_stdin) = match has_input {
        true => pipe().map(|(read, write)| (read, Some(write)))?,
        false => (File::open("/dev/null").at("open", "/dev/null".as_ref())?.into(), None),
    };
    let (our_stdout, stdout) = pipe()?;
    let (our_stderr, stderr) = pipe()?;
    let process = launcher.exec(name, &config, [stdin, stdout, stderr])?;
    Ok(Ends { process, terminal: None, stdin: our_stdin, outputs: Some((our_stdout, our_stderr)), has_input })
}

fn pipe() -> std::result::Result<(OwnedFd, OwnedFd), RuntimeErrorKind> {
    let (read, write) = io::pipe().at("make", "a pipe".as_ref())?;
    Ok((read.into(), write.into()))
}

impl Exec {
    fn new(ends: Ends) -> io::Result<Exec> {
        let process = Arc::new(ends.process);
        let (exit_sender, exit) = watch::channel(None);
        let watched = StdUnixStream::from(process.as_fd().try_clone_to_owned()?);
        let watched = UnixStream::from_std(watched)?;
        let watcher = tokio::spawn(watch_end(process.clone(), watched, exit_sender)).abort_handle();
        let terminal = ends.terminal.map(Arc::new);
        let output = |source: pipe::Receiver| -> io::Result<ExecOutput> {
            let direct = File::from(source.as_fd().try_clone_to_owned()?);
            Ok(ExecOutput { source, direct, exit: exit.clone(), after_end: 0 })
        };
        let (input, stdout, stderr) = match (&terminal, ends.outputs) {
            (Some(terminal), _) => {
                let copy = || terminal.as_fd().try_clone_to_owned().map(File::from);
                // They check that it is a pipe; all that matters is that it can be waited for.
                let pipe = pipe::Sender::from_file_unchecked(copy()?)?;
                let input = Sink::Terminal { pipe, terminal: terminal.clone(), is_at_line_start: true };
                let shown = pipe::Receiver::from_file_unchecked(copy()?)?;
                (ends.has_input.then_some(ExecInput(input)), output(shown)?, None)
            }
            (None, Some((stdout, stderr))) => {
                let input = ends.stdin.map(pipe::Sender::from_owned_fd).transpose()?;
                let [stdout, stderr] = [pipe::Receiver::from_owned_fd(stdout)?, pipe::Receiver::from_owned_fd(stderr)?];
                let input = input.map(|pipe| ExecInput(Sink::Pipe(pipe)));
                (input, output(stdout)?, Some(output(stderr)?))
            }
            (None, None) => return Err(io::Error::other("neither pipes nor a terminal")),
        };
        let pid = process.pid();
        let control = ExecControl { shared: Arc::new(Shared { process, terminal, exit, watcher }) };
        Ok(Exec { pid, input, stdout, stderr, control })
    }
}

/// `connection` is a copy of the process's own.
async fn watch_end(process: Arc<cfc_sandbox::Exec>, connection: UnixStream, exit: watch::Sender<Option<i32>>) {
    let look = || match process.poll_exit() {
        Ok(Some(status)) => Ok(status.shell_code()),
        Ok(None) => Err(io::ErrorKind::WouldBlock.into()),
        Err(error) => Err(io::Error::other(error)),
    };
    // The news of its end may have come with that of its start, and then nothing further comes.
    let ended = match look() {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => connection.async_io(Interest::READABLE, look).await,
        outcome => outcome,
    };
    let code = ended.unwrap_or_else(|error| {
        // The launcher is gone, and all its processes with it.
        tracing::debug!(%error, "a command was lost");
        128 + SIGKILL
    });
    exit.send_replace(Some(code));
}

impl ExecControl {
    /// Sends `signal` to the command's process. One that has ended already is fine.
    pub fn kill(&self, signal: i32) -> Result<()> {
        self.shared.process.signal(signal).map_err(|error| signal_failed(error.into()))
    }

    /// Ends the command and its process group, at once.
    pub fn end(&self) -> Result<()> {
        self.shared.process.signal_group(SIGKILL).map_err(|error| signal_failed(error.into()))
    }

    /// Lets the command go on when nobody holds it any more.
    pub fn release(&self) -> Result<()> {
        self.shared.process.release().map_err(|error| signal_failed(error.into()))
    }

    /// Changes the size of its terminal; does nothing without one.
    pub fn resize(&self, size: WindowSize) -> io::Result<()> {
        self.shared.terminal.as_ref().map_or(Ok(()), |terminal| terminal.resize(size))
    }

    /// Its exit code, or 128 plus the signal that ended it, once it has ended.
    pub fn exit_code(&self) -> Option<i32> {
        *self.shared.exit.borrow()
    }

    /// Waits for its end; its exit code.
    pub async fn ended(&self) -> i32 {
        let mut exit = self.shared.exit.clone();
        // An error says that the watcher was aborted, which only the last holder's end does.
        exit.wait_for(Option::is_some).await.ok().and_then(|code| *code).unwrap_or(128 + SIGKILL)
    }
}

fn signal_failed(kind: RuntimeErrorKind) -> crate::RuntimeError {
    crate::RuntimeError { operation: "signal a command".to_string(), kind }
}

/// Takes a command's input. Dropping it ends the input of a command without a terminal.
#[derive(Debug)]
pub struct ExecInput(Sink);

#[derive(Debug)]
enum Sink {
    Pipe(pipe::Sender),
    Terminal { pipe: pipe::Sender, terminal: Arc<Terminal>, is_at_line_start: bool },
}

impl ExecInput {
    /// Writes all of `bytes`, waiting while the command reads slowly.
    pub async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.0 {
            Sink::Pipe(pipe) => pipe.write_all(bytes).await,
            Sink::Terminal { pipe, is_at_line_start, .. } => {
                *is_at_line_start = bytes.last().map_or(*is_at_line_start, |byte| matches!(byte, b'\n' | b'\r'));
                pipe.write_all(bytes).await
            }
        }
    }

    /// Ends the input. In a terminal that reads lines this is typed; one that reads keys knows no end.
    pub async fn finish(self) -> io::Result<()> {
        let Sink::Terminal { mut pipe, terminal, is_at_line_start } = self.0 else { return Ok(()) };
        let Some(end) = terminal.end_of_input()? else { return Ok(()) };
        // After an unfinished line the first only hands that over.
        let typed: &[u8] = if is_at_line_start { &[end] } else { &[end, end] };
        pipe.write_all(typed).await
    }
}

/// What a command puts out. It ends when nobody can write to it any more, and when the command has ended and all it wrote
/// was read: what the command left running in the background does not keep it open.
#[derive(Debug)]
pub struct ExecOutput {
    source: pipe::Receiver,
    /// A copy of it that is read without asking whether it is ready.
    direct: File,
    exit: watch::Receiver<Option<i32>>,
    after_end: usize,
}

impl ExecOutput {
    /// Reads into `buffer`; 0 at the end. The command waits when nobody reads.
    pub async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            // Looked at before the output: what it wrote before its end is then there.
            let has_ended = self.exit.borrow().is_some();
            // Once it has ended nothing more may become ready, and what is there must be had: the asynchronous pipe would
            // refuse to look as long as it has not been told that there is something.
            let read = if has_ended { (&self.direct).read(buffer) } else { self.source.try_read(buffer) };
            match read {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // So a terminal tells that no process has it open any more.
                Err(error) if error.raw_os_error() == Some(EIO) => return Ok(0),
                Ok(count) if has_ended => {
                    self.after_end += count;
                    return Ok(if self.after_end > AFTER_END_BYTES_MAX { 0 } else { count });
                }
                result => return result,
            }
            if has_ended {
                return Ok(0);
            }
            tokio::select! {
                ready = self.source.readable() => ready?,
                _ = self.exit.wait_for(Option::is_some) => {}
            }
        }
    }
}
