//! [`Metrics`]: what happened to the instances of each application, counted since the runtime opened.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cfc_sandbox::Usage;

use crate::events::InstanceEventKind;
use crate::tunnels::Traffic;

/// The upper ends of the buckets of [`Histogram`], in seconds. A start takes milliseconds, an app may take half a minute.
pub const BUCKETS: [f64; 14] = [0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 30.0];

/// How often a duration fell below each of [`BUCKETS`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// One for each bucket, not added up.
    counts: [u64; BUCKETS.len()],
    /// All there were, those above the last bucket included.
    pub count: u64,
    /// Of all of them.
    pub sum: Duration,
}

impl Histogram {
    fn add(&mut self, duration: Duration) {
        self.count += 1;
        self.sum += duration;
        if let Some(index) = BUCKETS.iter().position(|bucket| duration.as_secs_f64() <= *bucket) {
            self.counts[index] += 1;
        }
    }

    /// For each bucket its upper end, and how many durations were not above that.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        BUCKETS.iter().zip(&self.counts).scan(0, |total, (bucket, count)| {
            *total += count;
            Some((*bucket, *total))
        })
    }
}

/// The counts of one application.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ApplicationMetrics {
    /// Processes whose command executed.
    pub starts: u64,
    /// Those of them on behalf of an instance that had run before.
    pub restarts: u64,
    /// Processes that ended, and processes that could not be made.
    pub exits: u64,
    /// Processes that the kernel killed in instances at their memory limit.
    pub oom_kills: u64,
    /// Refused starts and creations, by the rule that refused.
    pub refusals: BTreeMap<&'static str, u64>,
    /// How long the phases of starts took: `admit`, `disk`, `launch`, `ready`.
    pub start_phases: BTreeMap<&'static str, Histogram>,
    /// Processor time of processes that have ended.
    pub ended_cpu: Duration,
    /// Bytes on the loopback devices of instances that have ended.
    pub ended_network_bytes: u64,
    /// Bytes that connections carried into instances.
    pub received_bytes: u64,
    /// Bytes that connections carried out of instances.
    pub sent_bytes: u64,
    /// Connections that are open now.
    pub tunnels_open: u64,
}

/// The counts of all applications.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    applications: Mutex<BTreeMap<String, ApplicationMetrics>>,
}

impl Metrics {
    /// Counts an event. `is_again`: the instance had run before.
    pub fn count(&self, application: &str, kind: &InstanceEventKind, is_again: bool) {
        let mut applications = self.lock();
        let counts = of(&mut applications, application);
        match kind {
            InstanceEventKind::Running { timings, .. } => {
                counts.starts += 1;
                counts.restarts += u64::from(is_again);
                for (phase, duration) in [("admit", timings.admit), ("disk", timings.disk), ("launch", timings.launch)]
                {
                    counts.start_phases.entry(phase).or_default().add(duration);
                }
            }
            InstanceEventKind::Ready { after } => counts.start_phases.entry("ready").or_default().add(*after),
            InstanceEventKind::Exited(_) => counts.exits += 1,
            InstanceEventKind::OomKilled { kills, .. } => counts.oom_kills += kills,
            InstanceEventKind::Refused { rule, .. } => *counts.refusals.entry(rule).or_default() += 1,
            _ => {}
        }
    }

    /// Adds what an instance had used that has ended.
    pub fn add_ended(&self, application: &str, usage: &Usage, network_bytes: u64) {
        let mut applications = self.lock();
        let counts = of(&mut applications, application);
        counts.ended_cpu += Duration::from_micros(usage.cpu_usec);
        counts.ended_network_bytes += network_bytes;
    }

    /// Adds what the connections of an instance have carried that is removed.
    pub fn add_traffic(&self, application: &str, traffic: &Traffic) {
        let mut applications = self.lock();
        let counts = of(&mut applications, application);
        counts.received_bytes += traffic.received_bytes();
        counts.sent_bytes += traffic.sent_bytes();
    }

    /// Forgets an application, which is gone.
    pub fn forget(&self, application: &str) {
        self.lock().remove(application);
    }

    pub fn all(&self) -> BTreeMap<String, ApplicationMetrics> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, ApplicationMetrics>> {
        // Numbers are whole whenever somebody panics.
        self.applications.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn of<'a>(all: &'a mut BTreeMap<String, ApplicationMetrics>, application: &str) -> &'a mut ApplicationMetrics {
    if !all.contains_key(application) {
        all.insert(application.to_string(), ApplicationMetrics::default());
    }
    all.get_mut(application).expect("was just put there")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_add_up_and_what_is_above_them_counts() {
        let mut histogram = Histogram::default();
        for ms in [1, 3, 3, 60_000] {
            histogram.add(Duration::from_millis(ms));
        }
        let cumulative: Vec<(f64, u64)> = histogram.cumulative().collect();
        assert_eq!((cumulative[0], cumulative[1], cumulative[3]), ((0.000_5, 0), (0.001, 1), (0.005, 3)));
        assert_eq!((cumulative[13], histogram.count), ((30.0, 3), 4));
        assert_eq!(histogram.sum, Duration::from_millis(60_007));
    }
}
