//! The socket of an ssh agent inside a sandbox: ours, and each connection to it is carried to the agent.

use std::fs;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use cfc_plan::{Context, FileOwner};

use crate::failure::{Failure, OnPath, Result};

/// A socket that leads to an agent, until this is dropped.
pub(crate) struct SshProxy {
    path: PathBuf,
    listener: UnixListener,
    thread: Option<JoinHandle<()>>,
}

impl SshProxy {
    /// A socket below `workspace` for the agent `id`; none when there is no such agent and none is needed.
    pub(crate) fn start(
        context: &Context,
        id: &str,
        is_required: bool,
        owner: FileOwner,
        workspace: &Path,
        number: usize,
    ) -> Result<Option<SshProxy>> {
        let Some(agent) = context.ssh.get(id) else {
            if !is_required {
                return Ok(None);
            }
            let failure = Failure::new(format!("there is no ssh agent `{id}`, which is required"));
            return Err(failure.hint(format!("give one with `--ssh {id}`, or `--ssh {id}=SOCKET`")));
        };
        let name = format!("ssh-{number}");
        let path = workspace.join(&name);
        // A socket's path must be short, and the workspace's may be long.
        let directory = fs::File::open(workspace).on("open", workspace)?;
        let short = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
        let listener = UnixListener::bind(short).on("listen on", &path)?;
        chown(&path, Some(owner.uid), Some(owner.gid)).on("give away", &path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(owner.mode)).on("set the mode of", &path)?;
        let accepting = listener.try_clone().on("listen on", &path)?;
        let agent = agent.clone();
        let thread = std::thread::spawn(move || {
            // Ends when the listener is shut down.
            while let Ok((stream, _)) = accepting.accept() {
                let agent = agent.clone();
                std::thread::spawn(move || {
                    if let Err(error) = carry(stream, &agent) {
                        tracing::warn!(agent = %agent.display(), %error, "a connection to the ssh agent broke");
                    }
                });
            }
        });
        Ok(Some(SshProxy { path, listener, thread: Some(thread) }))
    }

    /// Where the socket is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SshProxy {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Carries bytes both ways until one side has no more. Ends by itself when the sandbox ends, since its end is closed then.
fn carry(stream: UnixStream, agent: &Path) -> io::Result<()> {
    let agent = UnixStream::connect(agent)?;
    let (mut from_agent, mut to_program) = (agent.try_clone()?, stream.try_clone()?);
    let answers = std::thread::spawn(move || {
        let result = io::copy(&mut from_agent, &mut to_program);
        let _ = to_program.shutdown(Shutdown::Write);
        result
    });
    let (mut from_program, mut to_agent) = (stream, agent);
    let result = io::copy(&mut from_program, &mut to_agent);
    let _ = to_agent.shutdown(Shutdown::Write);
    let answers = answers.join().unwrap_or(Ok(0));
    result.and(answers).map(drop)
}
