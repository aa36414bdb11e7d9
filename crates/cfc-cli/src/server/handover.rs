//! [`Handover`]: what a server passes on to the program that takes its place in the same process.
//!
//! The new program is executed in place: same process, same arguments. What it inherits comes over a socket that is its
//! standard input, as one message: the listening sockets, so that no connection is refused meanwhile, the data
//! directory's lock, so that nobody else takes it, and the standard input that it shall have. An environment variable
//! says so.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType,
};

use crate::failure::Failure;

/// `<process id>:<generation>`. The process id tells it from one that somebody's environment happens to hold.
const VARIABLE: &str = "CFC_HANDOVER";
const DESCRIPTORS: usize = 5;

/// What goes from a server to its successor.
#[derive(Debug)]
pub struct Handover {
    /// How often the program of this process has been replaced.
    pub generation: u32,
    pub gateway: std::net::TcpListener,
    pub control: std::net::TcpListener,
    pub registry: std::net::TcpListener,
    pub lock: File,
}

impl Handover {
    /// What this process's earlier program has left for this one, if there was one.
    pub fn receive() -> Result<Option<Handover>, Failure> {
        let Some(generation) = generation_of(std::env::var(VARIABLE).ok().as_deref(), std::process::id()) else {
            return Ok(None);
        };
        let broken = |error: &io::Error| Failure::because("cannot take over from the program before", error);
        let descriptors = receive_descriptors().map_err(|error| broken(&error))?;
        let [stdin, lock, gateway, control, registry] = descriptors;
        rustix::stdio::dup2_stdin(&stdin).map_err(|errno| broken(&errno.into()))?;
        Ok(Some(Handover {
            generation,
            gateway: gateway.into(),
            control: control.into(),
            registry: registry.into(),
            lock: lock.into(),
        }))
    }

    /// Executes `program` in this process's place, with its arguments. Returns only when that is not possible.
    pub fn execute(&self, program: &Path) -> io::Error {
        let prepared = || -> io::Result<(OwnedFd, OwnedFd)> {
            let flags = SocketFlags::CLOEXEC;
            let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            self.send(&ours)?;
            Ok((ours, theirs))
        };
        match prepared() {
            Err(error) => error,
            Ok((_ours, theirs)) => cfc_sandbox::execute_with_capabilities(
                Command::new(program)
                    .args(std::env::args_os().skip(1))
                    .env(VARIABLE, format!("{}:{}", std::process::id(), self.generation + 1))
                    .stdin(theirs),
            ),
        }
    }

    fn send(&self, socket: &OwnedFd) -> io::Result<()> {
        let stdin = io::stdin();
        let descriptors: [BorrowedFd<'_>; DESCRIPTORS] =
            [stdin.as_fd(), self.lock.as_fd(), self.gateway.as_fd(), self.control.as_fd(), self.registry.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        rustix::net::sendmsg(socket, &[IoSlice::new(b"h")], &mut ancillary, SendFlags::empty())?;
        Ok(())
    }
}

fn receive_descriptors() -> io::Result<[OwnedFd; DESCRIPTORS]> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0; 1];
    let stdin = io::stdin();
    rustix::net::recvmsg(&stdin, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let descriptors: Vec<OwnedFd> = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    descriptors.try_into().map_err(|_| io::Error::other("it has not passed what a server needs"))
}

fn generation_of(text: Option<&str>, process: u32) -> Option<u32> {
    let (pid, generation) = text?.split_once(':')?;
    let is_ours = pid.parse() == Ok(process);
    generation.parse().ok().filter(|_| is_ours)
}

/// The file that this program was started from, as its path was written: a link that leads to another file by now
/// leads to the successor.
pub fn own_program() -> Result<PathBuf, Failure> {
    let name = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    let is_path = name.parent().is_some_and(|parent| !parent.as_os_str().is_empty());
    let found = match is_path {
        true => std::path::absolute(&name).ok(),
        false => {
            let paths = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&paths).map(|directory| directory.join(&name)).find(|path| path.is_file())
        }
    };
    let found = found.map_or_else(std::env::current_exe, Ok);
    found.map_err(|error| Failure::because("cannot find the program that is running", &error))
}

/// Whether `program` runs at all, before everything is entrusted to it: asks for its version.
pub fn check_program(program: &Path) -> Result<(), String> {
    let said = Command::new(program).arg("--version").output();
    match said {
        Ok(output) if output.status.success() && output.stdout.starts_with(b"cfc ") => Ok(()),
        Ok(output) => Err(format!("`{} --version` ended with {}", program.display(), output.status)),
        Err(error) => Err(format!("`{}` cannot be executed: {error}", program.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::generation_of;

    #[test]
    fn only_what_was_left_for_this_process_is_taken() {
        assert_eq!(generation_of(Some("7:3"), 7), Some(3));
        for (text, process) in [(Some("7:3"), 8), (Some("7"), 7), (Some("7:x"), 7), (None, 7)] {
            assert_eq!(generation_of(text, process), None, "{text:?}");
        }
    }
}
