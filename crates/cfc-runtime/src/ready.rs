//! [`Readiness`]: tells when something in an instance begins to listen, a millisecond or two after it does.
//!
//! No system call tells when another process listens, short of watching all of its calls. So one thread asks the kernel,
//! for each instance that somebody waits for, a thousand times a second, which costs some microseconds a time
//! ([`cfc_sandbox::Listeners`]). With very many at once it asks less often rather than use more than a fifth of a processor.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cfc_sandbox::{Listeners, NetworkHandle};
use tokio::sync::oneshot;

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sought {
    /// Something listens on this TCP port.
    Port(u16),
    /// Something listens on any TCP port.
    AnyPort,
}

/// How often one port is asked for, and how often after each of [`LONG`].
const PORT_INTERVALS: [Duration; 3] = [Duration::from_millis(1), Duration::from_millis(5), Duration::from_millis(5)];
/// The same for all ports, which takes the kernel a hundred times as long, and longer with each instance that listens.
/// What has not listened for long may never do so.
const ALL_INTERVALS: [Duration; 3] = [Duration::from_millis(25), Duration::from_millis(250), Duration::from_secs(10)];
const LONG: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(60)];
/// The least time between two questions for each one that waits.
const SHARE: Duration = Duration::from_micros(20);

/// Watches the ports of all instances. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Readiness {
    watches: Arc<Mutex<Option<Sender<Watch>>>>,
}

struct Watch {
    listeners: Listeners,
    sought: Sought,
    since: Instant,
    due: Instant,
    tell: oneshot::Sender<()>,
}

impl Readiness {
    /// Returns when what is sought is there; never where there is no way to find out.
    pub async fn listening(&self, network: Arc<NetworkHandle>, sought: Sought) {
        let readiness = self.clone();
        if let Ok(told) = tokio::task::spawn_blocking(move || readiness.watch(&network, sought)).await
            && told.await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }

    /// Brings a message when what is sought is there. Dropping the receiver ends the watch.
    fn watch(&self, network: &NetworkHandle, sought: Sought) -> oneshot::Receiver<()> {
        let (tell, told) = oneshot::channel();
        if let Ok(listeners) = network.listeners() {
            let now = Instant::now();
            // All ports are looked at for each instance that starts, and none listens at once.
            let due = if sought == Sought::AnyPort { now + ALL_INTERVALS[0] } else { now };
            self.hand_over(Watch { listeners, sought, since: now, due, tell });
        }
        told
    }

    fn hand_over(&self, watch: Watch) {
        let mut sender = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        let unsent = match sender.as_ref() {
            None => watch,
            Some(known) => match known.send(watch) {
                Ok(()) => return,
                Err(mpsc::SendError(watch)) => watch,
            },
        };
        let (new, watches) = mpsc::channel();
        let thread = std::thread::Builder::new().name("cfc-ready".to_string());
        if thread.spawn(move || run(&watches)).is_ok() && new.send(unsent).is_ok() {
            *sender = Some(new);
        }
    }
}

/// Ends with the last [`Readiness`].
fn run(new: &Receiver<Watch>) {
    let mut watches: Vec<Watch> = Vec::new();
    loop {
        let arrived = match watches.iter().map(|watch| watch.due).min() {
            None => new.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(due) => new.recv_timeout(due.saturating_duration_since(Instant::now())),
        };
        match arrived {
            Ok(watch) => watches.push(watch),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let least = SHARE * watches.len() as u32;
        watches = watches.into_iter().filter_map(|watch| look(watch, least)).collect();
    }
}

/// Asks, if it is time. The watch, if it goes on.
fn look(mut watch: Watch, least: Duration) -> Option<Watch> {
    let now = Instant::now();
    if watch.tell.is_closed() {
        return None;
    }
    if watch.due > now {
        return Some(watch);
    }
    let (found, intervals) = match watch.sought {
        Sought::Port(port) => (watch.listeners.on(port), PORT_INTERVALS),
        Sought::AnyPort => (ports(&watch.listeners).map(|ports| !ports.is_empty()), ALL_INTERVALS),
    };
    match found {
        Ok(false) => {
            let long = LONG.iter().filter(|long| now - watch.since > **long).count();
            watch.due = now + intervals[long].max(least);
            Some(watch)
        }
        Ok(true) => {
            let _ = watch.tell.send(());
            None
        }
        // Dropped: who waits sees that.
        Err(_) => None,
    }
}

/// The TCP ports on which an instance listens, in ascending order.
pub(crate) fn ports(listeners: &Listeners) -> cfc_sandbox::Result<Vec<u16>> {
    let mut ports = listeners.ports()?;
    // The redirection of what it sends out listens inside it, too.
    ports.retain(|port| *port != cfc_sandbox::OUTBOUND_PORT);
    Ok(ports)
}
