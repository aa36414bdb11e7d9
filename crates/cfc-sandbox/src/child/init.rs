//! A tiny process 1, for applications that do not reap their orphans.

use std::os::fd::AsFd;

use rustix::process::{Pid, WaitOptions, WaitStatus};

use super::identity;
use crate::error::ErrorKind;
use crate::step::Step;
use crate::sys::{self, Cloned};

/// Forks. Returns in the child, which becomes the application; this process stays, reaps, forwards signals, and ends as
/// the application ends: with its code, or with 128 plus the signal.
pub(crate) fn stay_as_reaper() -> Result<(), ErrorKind> {
    // Closed before the application exists; `execve` opens the application's own again.
    identity::close_memory()?;
    let _ = rustix::thread::set_name(c"cfc-init");
    match sys::clone_process(0, None).step(|| "fork the application from its init".into())? {
        Cloned::Child => rustix::process::setsid().map(drop).step(|| "start a session".into()),
        Cloned::Parent { pid, .. } => reap(pid),
    }
}

fn reap(application: i32) -> ! {
    sys::block_signals();
    // Whoever waits for the end of a pipe must not wait for this process.
    let _ = close_all();
    loop {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if pid == Pid::from_raw(application).unwrap_or(Pid::INIT) {
                sys::exit_now(code(status));
            }
        }
        match sys::next_signal() {
            libc::SIGCHLD => {}
            signal => sys::forward_signal(application, signal),
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

pub(super) fn close_all() -> rustix::io::Result<()> {
    let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty())?;
    rustix::stdio::dup2_stdin(null.as_fd())?;
    rustix::stdio::dup2_stdout(null.as_fd())?;
    rustix::stdio::dup2_stderr(null.as_fd())?;
    drop(null);
    sys::close_from(3);
    Ok(())
}
