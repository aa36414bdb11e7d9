//! The new process, from its first instruction in its namespaces to `execve`.
//!
//! It is a fork of the launcher, or of the launcher's [zygote](crate::launcher::zygote). First it makes a
//! [shell](crate::launcher::shell) of itself and waits, maybe long; then it gets its blueprint. It runs as the sandbox's root
//! until it takes the application's identity. Whatever fails is reported through a socket that `execve` closes.

pub(crate) mod capabilities;
pub(crate) mod exec;
mod file_identity;
mod furnish;
mod identity;
mod init;
mod node_call;
pub(crate) mod nodes;
mod oci_command;
pub(crate) mod oci_exec;
pub(crate) mod oci_runtime;
mod overlay;
mod program;
mod report;
mod rootfs;
mod stubs;
mod targets;
mod terminal;

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::AssertUnwindSafe;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::UnshareFlags;

use crate::cgroup;
use crate::error::ErrorKind;
use crate::fail::fail_point;
use crate::launcher::blueprint::Blueprint;
use crate::launcher::shell::ShellKind;
use crate::redirect;
use crate::step::Step;
use crate::sys;
use furnish::Room;
pub(crate) use identity::resource;
pub(crate) use init::{USAGE as INIT_USAGE, program as init_program, write_program as write_init_program};
use report::Channel;
pub(crate) use report::{Order, Report, parse_all};
pub(crate) use stubs::{Stubs, remove_stubs};

/// The exit code of a process that failed before `execve`; the report says why.
pub(crate) const FAILED: i32 = 125;

/// What the new process is given.
pub(crate) struct Wiring {
    /// Brings [`Order`]s and takes [`Report`]s.
    pub(crate) control: OwnedFd,
    /// Through these it joins its v1 cgroups.
    pub(crate) entrances: Vec<OwnedFd>,
}

impl Wiring {
    /// Its descriptors, in the order in which they are handed over.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [&self.control].into_iter().chain(&self.entrances).map(AsFd::as_fd)
    }
}

/// The new process's whole life. Never returns, so that nothing of the launcher's runs twice.
pub(crate) fn run(kind: &ShellKind, wiring: Wiring) -> ! {
    let Wiring { control, entrances } = wiring;
    let mut channel = Channel::new(control);
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| live(kind, &mut channel, entrances)));
    let failure = match result {
        Ok(Err(failure)) => failure,
        // The launcher has given up or died.
        Ok(Ok(())) => sys::exit_now(FAILED),
        Err(_) => ErrorKind::Step { step: "set up the sandbox (a bug: it panicked)".into(), errno: libc::EIO },
    };
    channel.report(&Report::Failed(failure), &[]);
    sys::exit_now(FAILED)
}

/// Returns only when there is nothing to become, or on failure.
fn live(kind: &ShellKind, channel: &mut Channel, entrances: Vec<OwnedFd>) -> Result<(), ErrorKind> {
    if !channel.wait_for_go()? {
        return Ok(());
    }
    let room = become_shell(kind, channel, entrances)?;
    match channel.wait_for_blueprint()? {
        Some(blueprint) => {
            let blueprint = Blueprint { seccomp: kind.seccomp.clone(), ..blueprint };
            Err(become_application(&blueprint, kind, &room, channel)?)
        }
        None => Ok(()),
    }
}

/// Does all that needs no blueprint. Afterwards it sees nothing of the host's files.
fn become_shell(kind: &ShellKind, channel: &Channel, entrances: Vec<OwnedFd>) -> Result<Room, ErrorKind> {
    entrances.iter().try_for_each(cgroup::enter)?;
    if kind.clone_flags & libc::CLONE_NEWUSER as u64 != 0 {
        identity::become_root()?;
    }
    let _ = rustix::thread::set_name(c"cfc-shell");
    die_with_launcher()?;
    rustix::process::setsid().step(|| "start a session".into())?;
    if kind.has_cgroup_namespace {
        sys::unshare(UnshareFlags::NEWCGROUP).step(|| "make the cgroup namespace".into())?;
    }
    if kind.has_network_namespace {
        bring_loopback_up()?;
    }
    if let Some(plan) = kind.redirect {
        let (outcome, sockets) = match redirect::set_up(plan) {
            Ok(sockets) => (Ok(()), sockets),
            Err(kind) => (Err(kind), Vec::new()),
        };
        channel.report(&Report::Outbound(outcome), &sockets);
    }
    let room = furnish::furnish(&kind.furniture)?;
    fail_point("child.shell.made").step(|| "be a shell".into())?;
    Ok(room)
}

/// Returns only when it failed.
fn become_application(
    blueprint: &Blueprint,
    kind: &ShellKind,
    room: &Room,
    channel: &Channel,
) -> Result<ErrorKind, ErrorKind> {
    fail_point("child.start.go").step(|| "go on".into())?;
    if let Some(hostname) = &blueprint.hostname {
        rustix::system::sethostname(hostname.as_bytes()).step(|| format!("set the host name `{hostname}`"))?;
    }
    let stubs = rootfs::enter(blueprint, &kind.furniture, room)?;
    fail_point("child.start.root").step(|| "be in its root".into())?;
    identity::set_rlimits(&blueprint.rlimits)?;
    let is_cwd_set = program::change_or_make_directory(&blueprint.cwd)?;
    sys::reset_signals();
    connect_stdio(&blueprint.stdio.map(|handle| blueprint.descriptors.get(handle)))?;
    sys::close_on_exec_from(3).step(|| "close inherited files".into())?;
    if let Some(maker) = blueprint.node_maker {
        nodes::hand_over_calls(blueprint.descriptors.get(maker))?;
    }
    identity::take(&blueprint.identity())?;
    if !is_cwd_set {
        program::change_directory_as_user(&blueprint.cwd)?;
    }
    // The credentials have changed for the last time, and every change forgets it.
    die_with_launcher()?;
    if let Some(program) = blueprint.init {
        init::stay_as_reaper(blueprint.descriptors.get(program), !blueprint.has_user_namespace)?;
    }
    if blueprint.no_new_privileges {
        identity::install_seccomp(&blueprint.identity())?;
    }
    fail_point("child.start.bound").step(|| "be bound to its launcher".into())?;
    channel.report(&Report::Ready(stubs), &[]);
    // The launcher has looked for zero bytes.
    let convert = |strings: &[String]| strings.iter().filter_map(|s| CString::new(s.as_str()).ok()).collect::<Vec<_>>();
    Ok(program::execute(&convert(&blueprint.arguments), &convert(&blueprint.environment)))
}

/// From here on the launcher's death is ours.
pub(crate) fn die_with_launcher() -> Result<(), ErrorKind> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .step(|| "bind the sandbox to its launcher".into())
}

fn bring_loopback_up() -> Result<(), ErrorKind> {
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .step(|| "open a socket".into())?;
    sys::loopback_up(socket.as_fd()).step(|| "bring the loopback device up".into())
}

fn connect_stdio([stdin, stdout, stderr]: &[impl AsFd; 3]) -> Result<(), ErrorKind> {
    rustix::stdio::dup2_stdin(stdin).step(|| "connect stdin".into())?;
    rustix::stdio::dup2_stdout(stdout).step(|| "connect stdout".into())?;
    rustix::stdio::dup2_stderr(stderr).step(|| "connect stderr".into())
}
