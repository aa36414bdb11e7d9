//! The launcher process: one thread, one loop, no async runtime.
//!
//! It is single-threaded so that forking is safe, and small so that forking is fast. It never blocks on a sandbox or on a
//! client. When it dies its sandboxes die with it, so there is never one that nobody watches.

pub(crate) mod blueprint;
mod chores;
mod connection;
mod disk_pool;
mod disks;
mod event_loop;
mod exec;
pub(crate) mod exec_template;
pub(crate) mod furniture;
pub(crate) mod host_ids;
mod idmap;
mod log_file;
pub(crate) mod mount_options;
mod node_maker;
pub(crate) mod oci_bundle;
pub(crate) mod oci_exec;
mod oci_runtime;
mod oom;
mod pool;
mod ranges;
mod requests;
mod sandbox;
mod sandbox_events;
pub(crate) mod shell;
pub(crate) mod slots;
mod start;
mod succession;
mod zygote;

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Resource, Rlimit};

use crate::protocol;
use crate::sys;
use event_loop::EventLoop;
use pool::Pool;
pub(crate) use start::give_pipes;
pub(crate) use succession::{CgroupState, Passing, ReceivedState, take_all};

/// The `argv[0]` that makes a program a launcher.
pub const LAUNCHER_ARGV0: &str = "cfc-launcher";

/// The argument of a launcher that is talked to over its standard input and ends when that does.
pub(crate) const PRIVATE: &str = "--private";

/// The argument of the process in which a launcher has its disks made.
pub(crate) const DISKS: &str = "--disks";

/// The second argument, after the socket, of a launcher that goes on where an earlier program of its process has left off;
/// the number of a descriptor follows.
const RESUME: &str = "--resume";

/// The argument of a program that is to say whether it could go on from the state that is its standard input.
const CHECK_STATE: &str = "--check-state";

/// What a launcher writes to its standard output when its socket accepts connections.
pub(crate) const READY: &[u8] = b"ready\n";

const BACKLOG: i32 = 128;

/// The launcher's whole life.
///
/// `args` are the process's arguments, `argv[0]` included: `cfc-launcher <socket>` or `cfc-launcher --private`. Call it
/// before any thread starts.
pub fn launcher_main(args: impl IntoIterator<Item = OsString>) -> ! {
    let mut args = args.into_iter().skip(1);
    let (argument, further, number) = (args.next(), args.next(), args.next());
    let result = match &argument {
        Some(_) if further.as_deref() == Some(OsStr::new(RESUME)) => succession::resume(number.as_deref()),
        Some(argument) if argument == OsStr::new(CHECK_STATE) => succession::check_state(),
        Some(argument) if argument == OsStr::new(PRIVATE) => run_private(),
        Some(argument) if argument == OsStr::new(DISKS) => run_disks(),
        Some(socket) => run_listening(Path::new(socket)),
        None => Err(std::io::Error::other("usage: cfc-launcher SOCKET | --private")),
    };
    let code = match result {
        Ok(()) => 0,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "cfc-launcher: {error}");
            1
        }
    };
    std::process::exit(code)
}

fn run_private() -> std::io::Result<()> {
    let control = sys::standard_input()?;
    let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(null)?;
    prepare_process()?;
    EventLoop::new(protocol::cgroup_parent(std::process::id()), Pool::empty()?, None)?.run_private(control)
}

fn run_disks() -> std::io::Result<()> {
    let socket = sys::standard_input()?;
    let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(null)?;
    let _ = rustix::thread::set_name(c"cfc-disks");
    crate::disk::serve(socket)
}

fn run_listening(socket: &Path) -> std::io::Result<()> {
    let socket = std::path::absolute(socket)?;
    prepare_process()?;
    let listener = listen(&socket)?;
    let event_loop = EventLoop::new(protocol::cgroup_parent(std::process::id()), Pool::new()?, Some(socket))?;
    tell_ready()?;
    event_loop.run_listening(listener)
}

fn prepare_process() -> std::io::Result<()> {
    let _ = rustix::process::setsid();
    let _ = rustix::thread::set_name(c"cfc-launcher");
    rustix::process::chdir("/")?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    // Up to seven descriptors a sandbox: take all that this machine gives.
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let _ = rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    Ok(())
}

/// Only the launcher's own user can connect: the socket is made with mode 0600.
fn listen(socket: &PathBuf) -> std::io::Result<OwnedFd> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let listener = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let bound = rustix::net::bind(&listener, &SocketAddrUnix::new(socket)?);
    rustix::process::umask(before);
    bound.map_err(|errno| std::io::Error::other(format!("cannot listen on {}: {errno}", socket.display())))?;
    rustix::net::listen(&listener, BACKLOG)?;
    Ok(listener)
}

/// The starter reads standard output until it is told or until the pipe ends; afterwards output goes nowhere.
fn tell_ready() -> std::io::Result<()> {
    rustix::io::write(rustix::stdio::stdout(), READY)?;
    let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(())
}
