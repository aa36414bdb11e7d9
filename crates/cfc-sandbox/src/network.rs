//! [`NetworkHandle`]: sockets made inside a sandbox's network namespace.
//!
//! A thread of our own enters the namespace, makes the socket, and comes back. A socket stays in the namespace it was made
//! in, so whoever gets it reaches what listens on the sandbox's loopback: no port mapping, no address translation, no
//! device.
//!
//! An ordinary user's thread could enter, but not come back: the machine's network is not its user namespace's. It leaves
//! that first, once, for a network namespace of its own, which serves as the place to come back to.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::LinkNameSpaceType;

use crate::error::{Error, Result};
use crate::listeners::Listeners;

/// A sandbox's network, held open. It stays usable, and silent, when the sandbox has ended.
#[derive(Debug, Clone)]
pub struct NetworkHandle {
    id: Arc<str>,
    namespace: Arc<OwnedFd>,
}

type Job = Box<dyn FnOnce() + Send>;

impl NetworkHandle {
    pub(crate) fn new(id: &str, namespace: OwnedFd) -> NetworkHandle {
        NetworkHandle { id: id.into(), namespace: Arc::new(namespace) }
    }

    /// A non-blocking, unconnected TCP socket inside the sandbox's network namespace.
    pub fn tcp_socket(&self, ipv6: bool) -> Result<OwnedFd> {
        let family = if ipv6 { AddressFamily::INET6 } else { AddressFamily::INET };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        self.inside("make a socket", move || {
            Ok(rustix::net::socket_with(family, SocketType::STREAM, flags, Some(rustix::net::ipproto::TCP))?)
        })
    }

    /// A way to ask what listens in the sandbox.
    pub fn listeners(&self) -> Result<Listeners> {
        self.inside("make a socket", Listeners::here)
    }

    /// Bytes that the sandbox's loopback device has carried: all that came in or went out, and what it sent to itself.
    pub fn loopback_bytes(&self) -> Result<u64> {
        self.inside("read its loopback's count", || {
            Ok(loopback_bytes(&fs::read_to_string("/proc/thread-self/net/dev")?))
        })
    }

    /// Runs `action` on the thread that may change its namespace, inside ours.
    fn inside<T: Send + 'static>(
        &self,
        what: &str,
        action: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = mpsc::channel();
        let namespace = self.namespace.clone();
        run_on_thread(Box::new(move || {
            let _ = answer.send(in_namespace(&namespace, action));
        }));
        let result = answered.recv().unwrap_or_else(|_| Err(std::io::Error::from_raw_os_error(libc::ECANCELED)));
        result.map_err(|error| {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            Error::step(format!("use the network of sandbox `{}`", self.id), what, errno)
        })
    }
}

fn in_namespace<T>(namespace: &OwnedFd, action: impl FnOnce() -> std::io::Result<T>) -> std::io::Result<T> {
    let network = Some(LinkNameSpaceType::Network);
    let own = rustix::fs::open("/proc/thread-self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::thread::move_into_link_name_space(namespace.as_fd(), network)?;
    let result = action();
    if rustix::thread::move_into_link_name_space(own.as_fd(), network).is_err() {
        // A thread that is lost inside must not do another's work: it ends, and the next job starts a new one.
        std::panic::resume_unwind(Box::new("cannot leave a network namespace"));
    }
    result
}

/// Hands `job` to the thread that changes namespaces, starting it when there is none.
fn run_on_thread(job: Job) {
    static THREAD: OnceLock<Mutex<Option<Sender<Job>>>> = OnceLock::new();
    let mut sender = THREAD.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    let unsent = match sender.as_ref() {
        None => job,
        Some(known) => match known.send(job) {
            Ok(()) => return,
            Err(mpsc::SendError(job)) => job,
        },
    };
    start_thread(&mut sender, unsent);
}

fn start_thread(sender: &mut Option<Sender<Job>>, job: Job) {
    let (new_sender, jobs) = mpsc::channel::<Job>();
    let run = move || {
        leave_unless_free_to_return();
        jobs.into_iter().for_each(|job| job());
    };
    if std::thread::Builder::new().name("cfc-netns".into()).spawn(run).is_ok() && new_sender.send(job).is_ok() {
        *sender = Some(new_sender);
    }
}

/// Where this thread could not come back to its network namespace, takes it to an empty one. Should that fail, the jobs
/// do, each with its reason.
fn leave_unless_free_to_return() {
    let own = rustix::fs::open("/proc/thread-self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let Ok(own) = own else { return };
    let may_return = rustix::thread::move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::Network));
    if may_return == Err(rustix::io::Errno::PERM) {
        let _ = crate::sys::unshare(rustix::thread::UnshareFlags::NEWNET);
    }
}

/// The first number behind `lo:` counts received bytes, which on a loopback are those that were sent.
fn loopback_bytes(devices: &str) -> u64 {
    let counts = devices.lines().find_map(|line| line.trim_start().strip_prefix("lo:"));
    counts.and_then(|counts| counts.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
