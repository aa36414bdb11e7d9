//! The relay process: one thread, one loop, no async runtime. It ends when whoever started it does.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit};

use crate::event_loop::EventLoop;
use crate::flow::Tools;

/// The `argv[0]` that makes a program a relay.
pub const RELAY_ARGV0: &str = "cfc-relay";

/// How many tunnels a relay is given. Each has two descriptors; 20,000 is what a process usually gets at most.
pub(crate) const TUNNELS_MAX: usize = 8_000;
/// Descriptors that are neither a tunnel's nor a pipe's.
const DESCRIPTORS_KEPT: usize = 32;

/// A relay's whole life. Its standard input is the socket to whoever started it. Call it before any thread starts.
pub fn relay_main() -> ! {
    let code = match run() {
        Ok(()) => 0,
        Err(error) => {
            let _ = io::Write::write_fmt(&mut io::stderr(), format_args!("cfc-relay: {error}\n"));
            1
        }
    };
    std::process::exit(code)
}

fn run() -> io::Result<()> {
    let control: OwnedFd = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    drop(null);
    // What is typed at a terminal is for whoever started us, who then ends us in order.
    let _ = rustix::process::setsid();
    let _ = rustix::thread::set_name(c"cfc-relay");
    rustix::process::chdir("/")?;
    EventLoop::new(control, Tools::new(pipes_max(descriptors_max())))?.run()
}

/// Takes all the descriptors that this machine gives, and says how many.
fn descriptors_max() -> usize {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    let now = if raised.is_ok() { limit.maximum } else { limit.current };
    now.map_or(usize::MAX, |now| usize::try_from(now).unwrap_or(usize::MAX))
}

/// How many tunnels fit into a process that may open `descriptors`.
pub(crate) fn tunnels_max(descriptors: usize) -> usize {
    (descriptors.saturating_sub(DESCRIPTORS_KEPT) / 2 * 4 / 5).clamp(1, TUNNELS_MAX)
}

fn pipes_max(descriptors: usize) -> usize {
    let left = descriptors.saturating_sub(DESCRIPTORS_KEPT + 2 * tunnels_max(descriptors));
    // A thousand streams at a time that all wait for slow readers; beyond them streams are copied.
    (left / 2).min(1_024)
}
