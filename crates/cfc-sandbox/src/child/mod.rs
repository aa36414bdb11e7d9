//! The new process, from its first instruction in its namespaces to `execve`.
//!
//! It is a fork of the launcher, and it runs as the sandbox's root until it takes the application's identity. Whatever
//! fails is reported through a pipe that `execve` closes.

pub(crate) mod capabilities;
pub(crate) mod exec;
mod identity;
mod init;
mod program;
mod report;
mod rootfs;
mod stubs;
mod targets;
mod terminal;

use std::os::fd::{AsFd, OwnedFd};
use std::panic::AssertUnwindSafe;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::UnshareFlags;

use crate::cgroup;
use crate::error::ErrorKind;
use crate::fail::fail_point;
use crate::launcher::blueprint::Blueprint;
use crate::redirect;
use crate::step::Step;
use crate::sys;
pub(crate) use report::{Report, parse_all};
pub(crate) use stubs::{Stubs, remove_stubs};

/// The exit code of a process that failed before `execve`; the report says why.
const FAILED: i32 = 125;

/// The launcher has done its part: set up the sandbox.
pub(crate) const GO: u8 = b'g';

/// The pipes and files that the new process is given.
pub(crate) struct Wiring {
    /// Brings [`GO`] when the launcher has written the id maps.
    pub(crate) go: OwnedFd,
    /// Takes [`Report`]s.
    pub(crate) report: OwnedFd,
    /// Takes the sockets to which outbound traffic is redirected.
    pub(crate) handover: Option<OwnedFd>,
    pub(crate) stdio: [OwnedFd; 3],
    /// Through these it joins its v1 cgroups.
    pub(crate) entrances: Vec<OwnedFd>,
}

/// The new process's whole life. Never returns, so that nothing of the launcher's runs twice.
pub(crate) fn run(blueprint: &Blueprint, wiring: &Wiring) -> ! {
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| prepare_and_execute(blueprint, wiring)));
    let failure = match result {
        Ok(Err(failure)) => failure,
        Ok(Ok(never)) => match never {},
        Err(_) => ErrorKind::Step { step: "set up the sandbox (a bug: it panicked)".into(), errno: libc::EIO },
    };
    report::send(&wiring.report, &Report::Failed(failure));
    sys::exit_now(FAILED)
}

fn prepare_and_execute(blueprint: &Blueprint, wiring: &Wiring) -> Result<std::convert::Infallible, ErrorKind> {
    wait_for_go(wiring)?;
    fail_point("child.start.go").step(|| "go on".into())?;
    wiring.entrances.iter().try_for_each(cgroup::enter)?;
    if blueprint.has_user_namespace {
        identity::become_root()?;
    }
    rustix::process::setsid().step(|| "start a session".into())?;
    if blueprint.has_cgroup_namespace {
        sys::unshare(UnshareFlags::NEWCGROUP).step(|| "make the cgroup namespace".into())?;
    }
    if blueprint.has_network_namespace {
        bring_loopback_up()?;
    }
    if let (Some(plan), Some(handover)) = (blueprint.redirect, &wiring.handover) {
        redirect::set_up_and_send(plan, handover)?;
    }
    if let Some(hostname) = &blueprint.hostname {
        rustix::system::sethostname(hostname.as_bytes()).step(|| format!("set the host name `{hostname}`"))?;
    }
    let stubs = rootfs::enter(blueprint)?;
    fail_point("child.start.root").step(|| "be in its root".into())?;
    identity::set_rlimits(&blueprint.rlimits)?;
    let is_cwd_set = program::change_or_make_directory(&blueprint.cwd)?;
    sys::reset_signals();
    connect_stdio(&wiring.stdio)?;
    sys::close_on_exec_from(3).step(|| "close inherited files".into())?;
    identity::take(&blueprint.identity())?;
    if !is_cwd_set {
        program::change_directory_as_user(&blueprint.cwd)?;
    }
    // The credentials have changed for the last time: from here on the launcher's death is ours.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .step(|| "bind the sandbox to its launcher".into())?;
    if blueprint.has_init {
        init::stay_as_reaper()?;
    }
    if blueprint.no_new_privileges {
        identity::install_seccomp(&blueprint.identity())?;
    }
    fail_point("child.start.bound").step(|| "be bound to its launcher".into())?;
    report::send(&wiring.report, &Report::Ready(stubs));
    Err(program::execute(&blueprint.arguments, &blueprint.environment))
}

fn wait_for_go(wiring: &Wiring) -> Result<(), ErrorKind> {
    let mut byte = [0; 1];
    let count = rustix::io::retry_on_intr(|| rustix::io::read(&wiring.go, &mut byte))
        .step(|| "wait for the launcher".into())?;
    // Its end without a byte: the launcher gave up or died. Nobody reads a report.
    if count == 1 && byte == [GO] { Ok(()) } else { sys::exit_now(FAILED) }
}

fn bring_loopback_up() -> Result<(), ErrorKind> {
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .step(|| "open a socket".into())?;
    sys::loopback_up(socket.as_fd()).step(|| "bring the loopback device up".into())
}

fn connect_stdio([stdin, stdout, stderr]: &[OwnedFd; 3]) -> Result<(), ErrorKind> {
    rustix::stdio::dup2_stdin(stdin).step(|| "connect stdin".into())?;
    rustix::stdio::dup2_stdout(stdout).step(|| "connect stdout".into())?;
    rustix::stdio::dup2_stderr(stderr).step(|| "connect stderr".into())
}
