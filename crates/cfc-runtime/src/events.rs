//! [`InstanceEvent`]: what happened to an instance, and [`EventLog`], which remembers the newest of them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use crate::instance::ExitReport;
use crate::unheard::Unheard;

/// How many events are remembered: about 200 KiB.
const EVENTS_KEPT: usize = 1_000;

/// Something that happened to an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceEvent {
    /// Counts the events of this process, from 1.
    pub number: u64,
    /// When it happened.
    pub time: SystemTime,
    /// To whom.
    pub instance: String,
    /// The application that it belongs to.
    pub application: String,
    /// What happened.
    pub kind: InstanceEventKind,
}

/// What happened to an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InstanceEventKind {
    /// It was made; nothing runs yet.
    Created,
    /// It was admitted, and its process is being made.
    Starting,
    /// Its command executes.
    Running {
        /// Its process 1, as the machine numbers it.
        pid: i32,
        /// How long it took until then.
        timings: StartTimings,
    },
    /// It listens on a port.
    Ready {
        /// How long after its command began to execute.
        after: Duration,
    },
    /// Somebody wanted a connection to a port on which nothing listened for as long as it was held. Told once a start
    /// and port.
    NotListening(Unheard),
    /// Its process was told to end.
    Stopping,
    /// Its process ended.
    Exited(ExitReport),
    /// The kernel killed something in it at its memory limit. It may go on.
    OomKilled {
        /// How many processes, since it was last told.
        kills: u64,
        /// The limit.
        limit_mib: u64,
    },
    /// It may not be created or started.
    Refused {
        /// Which rule, in one word: `max_instances`.
        rule: &'static str,
        /// In one sentence.
        reason: String,
    },
    /// It was found running when the platform started.
    Adopted {
        /// Its process 1, as the machine numbers it.
        pid: i32,
    },
    /// It is gone.
    Removed,
}

/// How long the parts of a start took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StartTimings {
    /// Until it was decided that it may start.
    pub admit: Duration,
    /// Journal, empty disk, files of its own.
    pub disk: Duration,
    /// From the order to the launcher until the command executed.
    pub launch: Duration,
}

/// The newest events, for whoever asks and for whoever follows.
#[derive(Debug)]
pub(crate) struct EventLog {
    events: Mutex<VecDeque<Arc<InstanceEvent>>>,
    /// The number of the newest event.
    newest: watch::Sender<u64>,
}

impl EventLog {
    pub fn new() -> EventLog {
        EventLog { events: Mutex::default(), newest: watch::channel(0).0 }
    }

    /// Remembers an event, and forgets the oldest when there are many.
    pub fn push(&self, instance: &str, application: &str, kind: InstanceEventKind) {
        let mut events = self.lock();
        let number = *self.newest.borrow() + 1;
        let (instance, application) = (instance.to_string(), application.to_string());
        events.push_back(Arc::new(InstanceEvent { number, time: SystemTime::now(), instance, application, kind }));
        if events.len() > EVENTS_KEPT {
            events.pop_front();
        }
        self.newest.send_replace(number);
    }

    /// Reads from the oldest event that is remembered.
    pub fn reader(&self) -> EventReader {
        EventReader { last: 0, newest: self.newest.subscribe() }
    }

    fn after(&self, number: u64) -> Vec<Arc<InstanceEvent>> {
        let events = self.lock();
        let first = events.partition_point(|event| event.number <= number);
        events.range(first..).cloned().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Arc<InstanceEvent>>> {
        // A list of finished events is whole whenever somebody panics.
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where somebody is in the events.
#[derive(Debug)]
pub struct EventReader {
    last: u64,
    newest: watch::Receiver<u64>,
}

impl EventReader {
    /// Those that are remembered and were not read yet, oldest first. A jump in their numbers means that the ones between were
    /// forgotten before they could be read.
    pub(crate) fn read(&mut self, log: &EventLog) -> Vec<Arc<InstanceEvent>> {
        let events = log.after(self.last);
        self.last = events.last().map_or(self.last, |event| event.number);
        events
    }

    /// Waits until there is one that was not read. False when the runtime has ended.
    pub async fn wait(&mut self) -> bool {
        let last = self.last;
        self.newest.wait_for(|newest| *newest > last).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(events: &[Arc<InstanceEvent>]) -> Vec<u64> {
        events.iter().map(|event| event.number).collect()
    }

    #[tokio::test]
    async fn every_event_is_read_once_and_the_oldest_are_forgotten() {
        let log = EventLog::new();
        let mut reader = log.reader();
        log.push("a", "app", InstanceEventKind::Created);
        log.push("a", "app", InstanceEventKind::Starting);
        assert_eq!(numbers(&reader.read(&log)), [1, 2]);
        assert_eq!(numbers(&reader.read(&log)), [0; 0]);
        let late = async {
            log.push("a", "app", InstanceEventKind::Removed);
        };
        let (is_open, ()) = tokio::join!(reader.wait(), late);
        assert!(is_open);
        assert_eq!(numbers(&reader.read(&log)), [3]);
        for _ in 0..EVENTS_KEPT + 5 {
            log.push("b", "app", InstanceEventKind::Created);
        }
        let read = numbers(&reader.read(&log));
        assert_eq!((read.len(), read[0]), (EVENTS_KEPT, 9));
        drop(log);
        assert!(!reader.wait().await);
    }
}
