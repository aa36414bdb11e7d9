//! [`Workerd`]: one running workerd process.

use std::fmt;
use std::io::PipeWriter;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::sync::watch;

use crate::log::Log;
use crate::{Toolchain, WorkersError, WorkersErrorKind, leftover, spawn};

/// workerd serves about 0.05 s after it was started; a machine under load is given more.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// What the kernel's `sun_path` holds.
const MAX_SOCKET_PATH: usize = 107;

/// One running workerd process. It ends when this value is dropped and when this process ends.
#[derive(Debug)]
pub struct Workerd {
    pid: u32,
    pidfd: OwnedFd,
    exited: watch::Receiver<Option<Exited>>,
    http_socket: PathBuf,
    log: Log,
}

/// How a workerd process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exited {
    /// With this code.
    Code(i32),
    /// Killed by this signal.
    Signal(i32),
}

impl fmt::Display for Exited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exited::Code(code) => write!(f, "exit code {code}"),
            Exited::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

impl Workerd {
    /// Starts workerd on `config`, which `write_config` wrote into `dir`, and waits until it listens on the unix socket
    /// `http_socket` (replaced when it is there). What it prints is added to `dir/log`. A workerd of an earlier run that
    /// still uses `dir` is ended first. Returns after about 50 ms, or with workerd's own words when it refuses.
    pub async fn start(
        toolchain: &Toolchain,
        dir: &Path,
        config: &Path,
        http_socket: &Path,
    ) -> Result<Workerd, WorkersError> {
        let subject = || format!("start workerd on `{}`", config.display());
        if http_socket.as_os_str().len() > MAX_SOCKET_PATH {
            let reason =
                format!("the path of the socket, `{}`, is longer than {MAX_SOCKET_PATH} bytes", http_socket.display());
            return Err(WorkersError::new(subject(), WorkersErrorKind::Unsupported(reason))
                .hint("choose a data directory with a shorter path"));
        }
        leftover::end(dir)?;
        match std::fs::remove_file(http_socket) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(WorkersError::io("remove", http_socket)(error));
            }
            _ => {}
        }
        let (log, output) = Log::start(&dir.join("log"))?;
        let (control, child) = launch(toolchain, config, http_socket, output)
            .map_err(|error| WorkersError::new(subject(), WorkersErrorKind::Io(error)))?;
        let workerd = Workerd::watch(child, http_socket, log)
            .map_err(|error| WorkersError::new(subject(), WorkersErrorKind::Io(error)))?;
        leftover::note(dir, workerd.pid)?;

        match tokio::time::timeout(READY_WITHIN, listens(control)).await {
            Ok(Ok(true)) => Ok(workerd),
            Ok(Ok(false)) => {
                let ended = workerd.stop(Duration::from_secs(1)).await;
                let said = workerd.log.last();
                Err(WorkersError::new(subject(), WorkersErrorKind::NotReady(format!("it ended with {ended}:\n{said}"))))
            }
            Ok(Err(error)) => Err(WorkersError::new(subject(), WorkersErrorKind::Io(error))),
            Err(_) => {
                let said = workerd.log.last();
                let reason = format!("it did not listen within {} s:\n{said}", READY_WITHIN.as_secs());
                Err(WorkersError::new(subject(), WorkersErrorKind::NotReady(reason)))
            }
        }
    }

    fn watch(mut child: Child, http_socket: &Path, log: Log) -> std::io::Result<Workerd> {
        let pid = child.id();
        let raw = Pid::from_child(&child);
        let (sender, exited) = watch::channel(None);
        let pidfd = pidfd_open(raw, PidfdFlags::empty())?;
        std::thread::Builder::new().name(format!("workerd-{pid}")).spawn(move || {
            let ended = child.wait().map(|status| match (status.code(), status.signal()) {
                (Some(code), _) => Exited::Code(code),
                (None, signal) => Exited::Signal(signal.unwrap_or_default()),
            });
            sender.send_replace(Some(ended.unwrap_or(Exited::Code(-1))));
        })?;
        Ok(Workerd { pid, pidfd, exited, http_socket: http_socket.to_path_buf(), log })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The unix socket that it serves HTTP on.
    pub fn http_socket(&self) -> &Path {
        &self.http_socket
    }

    /// Waits until the process has ended. May be called any number of times, also at once by several tasks.
    pub async fn exited(&self) -> Exited {
        let mut exited = self.exited.clone();
        match exited.wait_for(Option::is_some).await.map(|ended| *ended) {
            Ok(Some(ended)) => ended,
            // The watching thread always says how the process ended before it goes.
            _ => Exited::Code(-1),
        }
    }

    /// Asks the process to end (SIGTERM: it answers what it has begun and asks the engine to remove its containers),
    /// and kills it after `patience`. What it has printed is in its log then.
    pub async fn stop(&self, patience: Duration) -> Exited {
        // An error means that it has ended already.
        let _ = pidfd_send_signal(&self.pidfd, Signal::TERM);
        let ended = match tokio::time::timeout(patience, self.exited()).await {
            Ok(ended) => ended,
            Err(_) => {
                let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
                self.exited().await
            }
        };
        self.log.drained().await;
        ended
    }
}

impl Drop for Workerd {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }
}

/// Starts the process. workerd writes a line of JSON to the pipe for each socket that it listens on; the pipe is the
/// process's standard input, since that is a descriptor that can be given without more ado.
fn launch(
    toolchain: &Toolchain,
    config: &Path,
    http_socket: &Path,
    output: PipeWriter,
) -> std::io::Result<(pipe::Receiver, Child)> {
    let (reader, writer) = std::io::pipe()?;
    let control = pipe::Receiver::from_owned_fd(reader.into())?;
    let mut command = spawn::dying_with_us(&toolchain.workerd);
    command
        .args(["serve", "--binary", "--control-fd", "0", "--socket-addr"])
        .arg(format!("http=unix:{}", http_socket.display()))
        .arg(config)
        // What a terminal sends to its foreground (Ctrl-C, its end) is for us, who end it when its requests have.
        .process_group(0)
        // Whatever else is in our environment is no business of a Worker.
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .stdin(Stdio::from(OwnedFd::from(writer)))
        .stdout(output.try_clone()?)
        .stderr(output);
    Ok((control, spawn::spawn(command)?))
}

/// Waits for the line that says that the socket `http` is there; `false` when the process closes the pipe before.
async fn listens(control: pipe::Receiver) -> std::io::Result<bool> {
    let mut lines = BufReader::new(control).lines();
    while let Some(line) = lines.next_line().await? {
        let event: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        if event["event"] == "listen" && event["socket"] == "http" {
            return Ok(true);
        }
    }
    Ok(false)
}
