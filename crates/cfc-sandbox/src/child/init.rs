//! Process 1 of a sandbox, for applications that do not reap their orphans: `init/main.rs`, a program of its own.

use std::ffi::{CStr, CString};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{MemfdFlags, Mode, SealFlags};
use rustix::io::{Errno, FdFlags};
use rustix::pipe::PipeFlags;
use rustix::process::WaitStatus;

use super::{identity, terminal};
use crate::error::ErrorKind;
use crate::step::Step;
use crate::sys::{self, Cloned};

const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/cfc-init"));
const NAME: &CStr = c"cfc-init";

/// With what the program ends that was told nothing to do.
pub(crate) const USAGE: i32 = 125;

/// The program as a file with a name. crun looks into process 1 with the rights of the container's own user namespace,
/// which it could not if nobody might read the file.
pub(crate) fn write_program(path: &Path) -> std::io::Result<()> {
    std::fs::write(path, PROGRAM)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o555))
}

/// The program as a file without a name that nobody can change. What may not be read cannot be traced either, from its
/// first instruction on: so it is only executable.
pub(crate) fn program() -> Result<OwnedFd, ErrorKind> {
    let step = || "make a file of the sandboxes' process 1 (is `vm.memfd_noexec` 2?)".to_owned();
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = match rustix::fs::memfd_create(NAME, flags | MemfdFlags::EXEC) {
        // A kernel before 6.3, where every such file is executable.
        Err(Errno::INVAL) => rustix::fs::memfd_create(NAME, flags),
        result => result,
    };
    let mut file = std::fs::File::from(file.step(step)?);
    file.write_all(PROGRAM).step(step)?;
    rustix::fs::fchmod(&file, Mode::XUSR | Mode::XGRP | Mode::XOTH).step(step)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&file, seals).step(step)?;
    Ok(file.into())
}

/// Forks. Returns in the child, which becomes the application; this process becomes `program`, which reaps, forwards
/// signals, and ends as the application ends: with its code, or with 128 plus the signal.
///
/// Where the application can be the machine's root (`is_readable`), to whom every file is readable, it begins only when the
/// program has closed its memory itself.
pub(crate) fn stay_as_reaper(program: &OwnedFd, is_readable: bool) -> Result<(), ErrorKind> {
    // Closed before the application exists; `execve` opens the application's own again.
    identity::close_memory()?;
    let step = || "wait for its init".to_owned();
    let closed = is_readable.then(|| rustix::pipe::pipe_with(PipeFlags::CLOEXEC)).transpose().step(step)?;
    match sys::clone_process(0, None).step(|| "fork the application from its init".into())? {
        Cloned::Child => {
            if let Some((read, write)) = closed {
                drop(write);
                rustix::io::retry_on_intr(|| rustix::io::read(&read, &mut [0; 1])).step(step)?;
            }
            rustix::process::setsid().step(|| "start a session".into())?;
            terminal::take_stdin();
            Ok(())
        }
        Cloned::Parent { pid, .. } => {
            if let Some((_, write)) = &closed {
                // Stays open until the program closes all that it has.
                rustix::io::fcntl_setfd(write, FdFlags::empty()).step(step)?;
            }
            // They wait for the program.
            sys::block_signals();
            let arguments = [NAME.to_owned(), CString::new(pid.to_string()).unwrap_or_default()];
            let error = sys::execute_file(program.as_fd(), &arguments, &[]);
            Err(error).step(|| "become process 1".into())
        }
    }
}

pub(super) fn code(status: WaitStatus) -> i32 {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (_, Some(signal)) => 128 + signal,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Output};

    use super::*;

    /// What the program does when it starts `command` itself, here as an ordinary process.
    fn run(command: &[&str]) -> Output {
        let file = program().expect("made");
        let path = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&file));
        Command::new(path).args(command).env("PATH", "/nowhere:/bin:/usr/bin").output().expect("executed")
    }

    #[test]
    fn the_program_ends_as_what_it_started() {
        let code = |command: &[&str]| run(command).status.code();
        assert_eq!(code(&["--", "sh", "-c", "exit 7"]), Some(7));
        assert_eq!(code(&["--", "/bin/sh", "-c", "kill -9 $$"]), Some(137));
        assert_eq!(code(&[]), Some(125));
        let said = |command: &[&str]| String::from_utf8_lossy(&run(command).stderr).into_owned();
        assert_eq!((code(&["--", "nonesuch"]), code(&["--", "/etc/passwd"])), (Some(127), Some(126)));
        assert_eq!(said(&["--", "nonesuch"]), "cfc-init: cannot execute `nonesuch`\n");
    }

    #[test]
    fn what_it_started_has_its_arguments_its_environment_and_its_signals() {
        let script = "echo $0 $1 $PATH; trap 'echo got it; exit 3' TERM; kill $$; sleep 1";
        let output = run(&["--", "sh", "-c", script, "zero", "one two"]);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "zero one two /nowhere:/bin:/usr/bin\ngot it\n");
        assert_eq!(output.status.code(), Some(3));
    }

    #[test]
    fn nobody_can_write_or_read_the_program() {
        let file = program().expect("made");
        assert_eq!(rustix::fs::fstat(&file).expect("stat").st_mode & 0o777, 0o111);
        assert_eq!(rustix::io::write(&file, b"x"), Err(Errno::PERM));
    }
}
