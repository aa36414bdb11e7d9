//! [`ExecConfig`]: a further process for a running sandbox; [`Exec`]: that process, from outside.
//!
//! An [`Exec`] is a connection to the launcher of its own. The launcher kills the process, with its process group, when
//! that connection ends before the process does: whoever wanted it is gone. [`Exec::release`] lets it live on.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::protocol::{self, Receiver, Reply, Request, Response};
use crate::status::ExitStatus;
use crate::terminal::{Terminal, WindowSize};

/// A further process for a running sandbox.
///
/// It has the sandbox's namespaces, cgroups and limits, and at most the rights of the sandbox's own process. What is not
/// said here is as it is for that process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecConfig {
    /// The command, looked for in the `PATH` of its environment, and its arguments. No shell is involved.
    pub arguments: Vec<String>,
    /// `KEY=value`, added to the environment of the sandbox's own process; the last of a key wins.
    pub environment: Vec<String>,
    /// `user[:group]`, names or numbers. Names are looked up in the sandbox's root filesystem as it is then.
    pub user: Option<String>,
    /// Where it starts. It must be there.
    pub cwd: Option<PathBuf>,
    /// A terminal of this size as its stdin, stdout and stderr, from the sandbox's own `/dev/pts`.
    pub terminal: Option<WindowSize>,
}

impl ExecConfig {
    /// Refuses what no launcher could carry out.
    pub(crate) fn validate(&self, id: &str) -> Result<()> {
        let problem = self.problem();
        problem.map_or(Ok(()), |message| Err(Error::new(operation(id), ErrorKind::Invalid(message))))
    }

    fn problem(&self) -> Option<String> {
        let is_variable = |text: &String| text.split_once('=').is_some_and(|(key, _)| !key.is_empty());
        let texts = self.arguments.iter().chain(&self.environment).chain(&self.user);
        let with_zero = texts.clone().find(|text| text.contains('\0'));
        match (&self.cwd, self.environment.iter().find(|text| !is_variable(text))) {
            _ if self.arguments.first().is_none_or(String::is_empty) => Some("there is no command to run".into()),
            _ if with_zero.is_some() => Some(format!("{:?} holds a zero byte", with_zero.map_or("", String::as_str))),
            (_, Some(text)) => Some(format!("expected `KEY=value` as a variable, found `{text}`")),
            (Some(cwd), _) if !cwd.is_absolute() || cwd.as_os_str().as_encoded_bytes().contains(&0) => {
                Some(format!("the working directory must be an absolute path, found `{}`", cwd.display()))
            }
            _ => None,
        }
    }
}

/// What the error's operation is called.
pub(crate) fn operation(id: &str) -> String {
    format!("run a command in sandbox `{id}`")
}

/// A process that [`Launcher::exec`](crate::Launcher::exec) has started. Dropping it ends the process.
///
/// It is non-blocking as a descriptor: readable when [`poll_exit`](Exec::poll_exit) may have news.
#[derive(Debug)]
pub struct Exec {
    id: String,
    pid: u32,
    terminal: Option<Terminal>,
    connection: OwnedFd,
    received: Mutex<Received>,
}

#[derive(Debug)]
struct Received {
    receiver: Receiver,
    exit: Option<ExitStatus>,
}

impl Exec {
    /// What the answer to a [`Request::Exec`] on `connection` has brought.
    /// `receiver` has what came with it.
    pub(crate) fn new(
        id: &str,
        connection: OwnedFd,
        receiver: Receiver,
        reply: &Reply,
        mut descriptors: Vec<OwnedFd>,
    ) -> Result<Exec> {
        let Reply::ExecStarted { pid } = reply else {
            return Err(launcher_error(id, format!("it gave an answer to another question: {reply:?}")));
        };
        rustix::io::ioctl_fionbio(&connection, true).map_err(|errno| launcher_error(id, errno.to_string()))?;
        let terminal = descriptors.pop().map(Terminal::new);
        Ok(Exec {
            id: id.to_owned(),
            pid: *pid,
            terminal,
            connection,
            received: Mutex::new(Received { receiver, exit: None }),
        })
    }

    /// Its process id as the sandbox numbers it.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its terminal, if it was given one and nobody has taken it.
    pub fn take_terminal(&mut self) -> Option<Terminal> {
        self.terminal.take()
    }

    /// Sends `signal` to the process. One that has ended already is fine.
    pub fn signal(&self, signal: i32) -> Result<()> {
        self.send(&Request::ExecSignal { signal, group: false })
    }

    /// Sends `signal` to the process's group: itself and what it has started, unless that made a group of its own.
    pub fn signal_group(&self, signal: i32) -> Result<()> {
        self.send(&Request::ExecSignal { signal, group: true })
    }

    /// From now on the process goes on when this handle is dropped or its holder dies.
    pub fn release(&self) -> Result<()> {
        self.send(&Request::ExecRelease)
    }

    fn send(&self, request: &Request) -> Result<()> {
        let bytes = protocol::encode(request).map_err(|error| launcher_error(&self.id, error.to_string()))?;
        let sent = protocol::send(&self.connection, &bytes, &[]);
        match sent {
            Ok(count) if count == bytes.len() => Ok(()),
            // The launcher reads at once; it is stuck when its socket is full, and half a message would spoil the rest.
            Ok(_) | Err(_) if self.exit().is_some() => Ok(()),
            Ok(_) => Err(launcher_error(&self.id, "it does not read".into())),
            Err(errno) => Err(launcher_error(&self.id, errno.to_string())),
        }
    }

    /// How it ended, once it has. Does not wait.
    pub fn poll_exit(&self) -> Result<Option<ExitStatus>> {
        let mut received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = |problem: String| launcher_error(&self.id, problem);
        while received.exit.is_none() {
            match received.receiver.next::<Response>().map_err(|error| failed(error.to_string()))? {
                Some((Ok(Reply::ExecEnded(exit)), _)) => received.exit = Some(exit),
                Some((other, _)) => return Err(failed(format!("it gave an answer to another question: {other:?}"))),
                None => match received.receiver.receive(&self.connection) {
                    Ok(true) => {}
                    Ok(false) => return Err(failed("it ended before the process did".into())),
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(None),
                    Err(error) => return Err(failed(error.to_string())),
                },
            }
        }
        Ok(received.exit)
    }

    /// Blocks until it has ended.
    pub fn wait(&self) -> Result<ExitStatus> {
        loop {
            if let Some(exit) = self.poll_exit()? {
                return Ok(exit);
            }
            let mut events = [PollFd::new(&self.connection, PollFlags::IN)];
            let waited = rustix::io::retry_on_intr(|| rustix::event::poll(&mut events, None));
            waited.map_err(|errno| launcher_error(&self.id, errno.to_string()))?;
        }
    }

    fn exit(&self) -> Option<ExitStatus> {
        self.poll_exit().ok().flatten()
    }
}

impl AsFd for Exec {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

impl AsRawFd for Exec {
    fn as_raw_fd(&self) -> RawFd {
        self.connection.as_raw_fd()
    }
}

fn launcher_error(id: &str, message: String) -> Error {
    Error::new(operation(id), ErrorKind::Launcher(message))
}
