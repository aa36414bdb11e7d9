//! [`Relays`]: the handle through which connections are given away.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType};
use rustix::process::Resource;

use crate::counts::{Counts, Group};
use crate::message::{self, MESSAGE_BYTES_MAX, Order, Report};
use crate::process::{RELAY_ARGV0, tunnels_max};

/// A relay that takes no order for so long is no use.
const ORDER_PATIENCE: Duration = Duration::from_secs(2);
/// With so many tunnels in each relay, another one starts while there are cores for it.
const TUNNELS_BEFORE_NEXT: usize = 64;

/// A handle to the relays of this process. Cheap to clone; the relays end, with all their tunnels, when the last is
/// dropped or the process ends. Its methods block for moments only.
#[derive(Clone, Debug)]
pub struct Relays {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    program: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    relays: Vec<Relay>,
    next_id: u64,
    counts: BTreeMap<Group, Counts>,
}

#[derive(Debug)]
struct Relay {
    id: u64,
    pid: u32,
    control: Arc<OwnedFd>,
    n_open: usize,
    open: BTreeMap<Group, u64>,
}

impl Relays {
    /// Relays made by executing `program` as [`RELAY_ARGV0`]. The first one starts now, so that no connection waits for
    /// it; further ones as they are needed.
    pub fn start(program: &Path) -> io::Result<Relays> {
        let shared = Shared { program: program.to_owned(), inner: Mutex::default() };
        let relays = Relays { shared: Arc::new(shared) };
        relays.start_relay(&mut relays.lock())?;
        Ok(relays)
    }

    /// Carries what comes on either of two connected stream sockets to the other, until both have ended, one breaks, or
    /// the instance of `group` has [ended](Relays::end). `inner` is the socket on the instance's side. Fails when no relay can
    /// take them; both are closed then.
    pub fn carry(&self, group: &Group, outer: OwnedFd, inner: OwnedFd) -> io::Result<()> {
        let mut state = self.lock();
        let order = Order::Carry(group.clone());
        loop {
            let index = self.place(&mut state)?;
            let relay = &mut state.relays[index];
            let sockets = [outer.as_fd(), inner.as_fd()];
            match message::send(&relay.control, &order, &sockets, SendFlags::empty()) {
                Ok(()) => {
                    relay.n_open += 1;
                    *relay.open.entry(group.clone()).or_default() += 1;
                    let counts = state.counts.entry(group.clone()).or_default();
                    counts.open += 1;
                    counts.opened += 1;
                    return Ok(());
                }
                // It has died, or hangs. Its reader hears of the end and accounts for it.
                Err(_) => state.relays[index].give_up(),
            }
        }
    }

    /// Says that `instance` has ended: what it has said is still delivered, then its tunnels are closed.
    pub fn end(&self, instance: &str) {
        let state = self.lock();
        let order = Order::End { instance: instance.to_owned() };
        let has_tunnels = |relay: &&Relay| relay.open.keys().any(|group| group.instance == instance);
        for relay in state.relays.iter().filter(has_tunnels) {
            // One that does not hear it has died with its tunnels.
            let _ = message::send(&relay.control, &order, &[], SendFlags::empty());
        }
    }

    /// What the tunnels of `group` have carried so far.
    pub fn counts(&self, group: &Group) -> Counts {
        self.lock().counts.get(group).copied().unwrap_or_default()
    }

    /// Stops counting for `instance`, which is gone for good.
    pub fn forget(&self, instance: &str) {
        self.lock().counts.retain(|group, _| group.instance != instance);
    }

    /// The process ids of the relays that run.
    pub fn pids(&self) -> Vec<u32> {
        self.lock().relays.iter().map(|relay| relay.pid).collect()
    }

    /// The relay for the next tunnel: the one with the fewest, or a new one.
    fn place(&self, state: &mut Inner) -> io::Result<usize> {
        let living = || state.relays.iter().enumerate().filter(|(_, relay)| !relay.is_given_up());
        let least = living().min_by_key(|(_, relay)| relay.n_open).map(|(index, relay)| (index, relay.n_open));
        let n_living = living().count();
        let parallel = std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1));
        let is_enough = |n_open: usize| {
            n_open < TUNNELS_BEFORE_NEXT || (n_living >= parallel && n_open < tunnels_max(descriptors()))
        };
        match least {
            Some((index, n_open)) if is_enough(n_open) => Ok(index),
            Some((index, n_open)) if n_open < tunnels_max(descriptors()) => {
                Ok(self.start_relay(state).unwrap_or(index))
            }
            _ => self.start_relay(state),
        }
    }

    fn start_relay(&self, state: &mut Inner) -> io::Result<usize> {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        set_socket_timeout(&ours, Timeout::Send, Some(ORDER_PATIENCE))?;
        let mut child = Command::new(&self.shared.program)
            .arg0(RELAY_ARGV0)
            .stdin(theirs)
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("cannot start a relay: {error}")))?;
        let control = Arc::new(ours);
        let (id, pid) = (state.next_id, child.id());
        state.next_id += 1;
        let (shared, reading) = (Arc::downgrade(&self.shared), control.clone());
        std::thread::Builder::new().name("cfc-relay-reader".into()).stack_size(64 << 10).spawn(move || {
            read_reports(&reading, id, &shared);
            // Whatever it still does is of no use to anybody.
            let _ = child.kill();
            let _ = child.wait();
        })?;
        state.relays.push(Relay { id, pid, control, n_open: 0, open: BTreeMap::new() });
        Ok(state.relays.len() - 1)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.shared.lock()
    }
}

impl Relay {
    /// Closes the connection to it, which ends it.
    fn give_up(&mut self) {
        let _ = rustix::net::shutdown(&self.control, Shutdown::Both);
        self.n_open = usize::MAX;
    }

    fn is_given_up(&self) -> bool {
        self.n_open == usize::MAX
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics halfway through a change; what a poisoned lock guards is whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for relay in &mut self.lock().relays {
            relay.give_up();
        }
    }
}

impl Inner {
    fn apply(&mut self, id: u64, report: Report) {
        let Some(relay) = self.relays.iter_mut().find(|relay| relay.id == id) else { return };
        for change in report.changes {
            if let Some(open) = relay.open.get_mut(&change.group) {
                *open = open.saturating_sub(change.ended);
                if *open == 0 {
                    relay.open.remove(&change.group);
                }
            }
            if !relay.is_given_up() {
                relay.n_open = relay.n_open.saturating_sub(change.ended as usize);
            }
            if let Some(counts) = self.counts.get_mut(&change.group) {
                counts.open = counts.open.saturating_sub(change.ended);
                counts.bytes_in += change.bytes_in;
                counts.bytes_out += change.bytes_out;
            }
        }
    }

    /// The relay has died, and its tunnels with it.
    fn bury(&mut self, id: u64) {
        let Some(index) = self.relays.iter().position(|relay| relay.id == id) else { return };
        for (group, open) in self.relays.swap_remove(index).open {
            if let Some(counts) = self.counts.get_mut(&group) {
                counts.open = counts.open.saturating_sub(open);
            }
        }
    }
}

/// Takes in what a relay reports until it has died or the last handle is dropped.
fn read_reports(control: &OwnedFd, id: u64, shared: &Weak<Shared>) {
    let mut buffer = vec![0; MESSAGE_BYTES_MAX];
    while let Ok(Some((report, _))) = message::receive::<Report>(control, &mut buffer, RecvFlags::empty()) {
        let Some(shared) = shared.upgrade() else { return };
        shared.lock().apply(id, report);
    }
    if let Some(shared) = shared.upgrade() {
        shared.lock().bury(id);
    }
}

/// How many descriptors a relay will have.
fn descriptors() -> usize {
    let limit = rustix::process::getrlimit(Resource::Nofile).maximum;
    limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}
