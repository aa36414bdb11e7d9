//! `cfc unshare`: a command in the user namespace that an ordinary user's cfc works in.
//!
//! There the user has rights over the files of images and containers, which belong to the user's subordinate ids. For
//! root it is the command alone.

use std::process::{Command, ExitCode};

use cfc_sandbox::ExitStatus;

use crate::args::Unshare;
use crate::failure::Failure;

/// Runs the command to its end. The exit code is its own; 128 plus the signal's number when one ended it.
pub fn run(arguments: &Unshare) -> Result<ExitCode, Failure> {
    let Some((program, rest)) = arguments.command.split_first() else {
        return Err(Failure::new("there is no command to run"));
    };
    let cannot = |error: std::io::Error| Failure::because(format!("cannot run `{program}`"), &error);
    let mut process = cfc_sandbox::spawn_with_capabilities(Command::new(program).args(rest)).map_err(cannot)?;
    let status = process.wait().map_err(cannot)?;
    let signal = std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or_default();
    let status = status.code().map_or(ExitStatus::Signal(signal), ExitStatus::Code);
    Ok(ExitCode::from(u8::try_from(status.shell_code()).unwrap_or(u8::MAX)))
}
