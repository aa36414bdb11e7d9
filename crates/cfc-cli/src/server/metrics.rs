//! The platform's counts as metrics. Labels name applications, never instances, so that their number stays small.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use cfc_control::{MetricFamily, MetricKind};
use cfc_runtime::{ApplicationMetrics, InstanceUsage, InstanceView, Phase, Runtime};

/// What was reported last of what only grows. An instance that ends while it is measured must not make a sum smaller.
pub type Reported = Mutex<BTreeMap<(&'static str, String), f64>>;

/// All metrics, now.
pub async fn families(runtime: &Runtime, reported: &Reported) -> Vec<MetricFamily> {
    let all = runtime.metrics().await;
    let counter = |name, help| MetricFamily::new(name, MetricKind::Counter, help);
    let gauge = |name, help| MetricFamily::new(name, MetricKind::Gauge, help);
    let mut starts = counter("cfc_container_starts_total", "Processes of instances whose command executed.");
    let mut restarts = counter("cfc_container_restarts_total", "Starts of instances that had run before.");
    let mut exits = counter("cfc_container_exits_total", "Processes that ended, and starts that failed.");
    let mut ooms = counter(
        "cfc_container_oom_kills_total",
        "Processes that the kernel killed in instances at their memory limit.",
    );
    let mut refusals = counter("cfc_container_refusals_total", "Refused starts, by the rule that refused.");
    let mut phases = MetricFamily::new(
        "cfc_container_start_seconds",
        MetricKind::Histogram,
        "How long the phases of starts took: admit, disk, launch, and from then until it listened, ready.",
    );
    let mut cpu = counter("cfc_container_cpu_seconds_total", "Time on processors.");
    let mut network = counter(
        "cfc_container_network_bytes_total",
        "Bytes over loopback devices: all that goes in and out, and what instances send to themselves.",
    );
    let mut received = counter(
        "cfc_container_network_receive_bytes_total",
        "Bytes that connections carried into instances; datagrams are not among them.",
    );
    let mut sent = counter(
        "cfc_container_network_transmit_bytes_total",
        "Bytes that connections carried out of instances; datagrams are not among them.",
    );
    let mut tunnels = gauge("cfc_container_tunnels_open", "Connections to and from instances that are open.");
    let mut memory = gauge("cfc_container_memory_bytes", "Memory of live instances, page cache included.");
    for (application, (counts, live)) in &all {
        let labels = [("application", application.as_str())];
        starts.add(&labels, counts.starts as f64);
        restarts.add(&labels, counts.restarts as f64);
        exits.add(&labels, counts.exits as f64);
        ooms.add(&labels, counts.oom_kills as f64);
        for (rule, count) in &counts.refusals {
            refusals.add(&[labels[0], ("rule", rule)], *count as f64);
        }
        add_phases(&mut phases, application, counts);
        let now = live.iter().map(|(_, usage)| usage.cpu().as_secs_f64()).sum::<f64>();
        cpu.add(&labels, grown(reported, "cpu", application, counts.ended_cpu.as_secs_f64() + now));
        let now = live.iter().map(|(_, usage)| usage.network_bytes).sum::<u64>() + counts.ended_network_bytes;
        network.add(&labels, grown(reported, "network", application, now as f64));
        received.add(&labels, grown(reported, "received", application, counts.received_bytes as f64));
        sent.add(&labels, grown(reported, "sent", application, counts.sent_bytes as f64));
        tunnels.add(&labels, counts.tunnels_open as f64);
        memory.add(&labels, sum_of(live, |usage| usage.usage.memory_bytes));
    }
    let mut instances = gauge("cfc_container_instances", "Instances by what they do.");
    for ((application, state), count) in count_states(&runtime.list()) {
        instances.add(&[("application", &application), ("state", state)], f64::from(count));
    }
    vec![starts, restarts, exits, ooms, refusals, phases, instances, cpu, memory, network, received, sent, tunnels]
}

fn add_phases(family: &mut MetricFamily, application: &str, counts: &ApplicationMetrics) {
    for (phase, histogram) in &counts.start_phases {
        let labels = [("application", application), ("phase", phase)];
        for (bucket, count) in histogram.cumulative() {
            family.add_part("_bucket", &[labels[0], labels[1], ("le", &bucket.to_string())], count as f64);
        }
        family.add_part("_bucket", &[labels[0], labels[1], ("le", "+Inf")], histogram.count as f64);
        family.add_part("_sum", &labels, histogram.sum.as_secs_f64());
        family.add_part("_count", &labels, histogram.count as f64);
    }
}

fn sum_of(live: &[(InstanceView, InstanceUsage)], of: impl Fn(&InstanceUsage) -> u64) -> f64 {
    live.iter().map(|(_, usage)| of(usage)).sum::<u64>() as f64
}

/// `value`, or what was reported before when that is more.
fn grown(reported: &Reported, what: &'static str, application: &str, value: f64) -> f64 {
    let mut reported = reported.lock().unwrap_or_else(PoisonError::into_inner);
    let last = reported.entry((what, application.to_string())).or_default();
    *last = last.max(value);
    *last
}

/// How many instances do what. Trials belong to nobody.
fn count_states(instances: &[InstanceView]) -> BTreeMap<(String, &'static str), u32> {
    let mut counts = BTreeMap::new();
    let is_trial = |view: &&InstanceView| view.spec.application == view.spec.name;
    for view in instances.iter().filter(|view| !is_trial(view)) {
        *counts.entry((view.spec.application.clone(), state(&view.phase))).or_default() += 1;
    }
    counts
}

fn state(phase: &Phase) -> &'static str {
    match phase {
        Phase::Created | Phase::Starting => "starting",
        Phase::Running { .. } => "running",
        Phase::Ready { .. } => "ready",
        Phase::Stopping { .. } => "stopping",
        Phase::Stopped(_) | Phase::Removed(_) => "stopped",
    }
}
