//! What a container uses, as `GET /containers/<name>/stats` tells it.

use std::time::{Duration, SystemTime};

use cfc_runtime::{InstanceUsage, InstanceView, rfc3339};
use serde_json::{Value, json};

use crate::container::id_of;

/// One look at a container and at the machine.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub time: SystemTime,
    pub usage: InstanceUsage,
    /// What the machine's processors have done since it was booted, idling included.
    pub machine_cpu: Duration,
    pub processors: usize,
}

/// A look and the one before.
pub(crate) fn stats(view: &InstanceView, now: &Sample, before: Option<&Sample>) -> Value {
    let usage = &now.usage.usage;
    let (received, sent) = (now.usage.traffic.received_bytes(), now.usage.traffic.sent_bytes());
    json!({
        "id": id_of(&view.spec.name),
        "name": format!("/{}", view.spec.name),
        "read": rfc3339(now.time),
        "preread": before.map_or("0001-01-01T00:00:00Z".to_string(), |before| rfc3339(before.time)),
        "num_procs": 0,
        "pids_stats": { "current": usage.pids },
        "cpu_stats": cpu(Some(now)),
        "precpu_stats": cpu(before),
        "memory_stats": {
            "usage": usage.memory_bytes,
            "max_usage": usage.memory_peak_bytes,
            "limit": view.instance_type.map_or(0, |limits| limits.memory_mib << 20),
            "stats": {
                "anon": usage.memory_anonymous_bytes,
                "file": usage.memory_bytes.saturating_sub(usage.memory_anonymous_bytes),
            },
        },
        "blkio_stats": { "io_service_bytes_recursive": null },
        "storage_stats": {},
        "networks": {
            "tunnels": {
                "rx_bytes": received, "rx_packets": 0, "rx_errors": 0, "rx_dropped": 0,
                "tx_bytes": sent, "tx_packets": 0, "tx_errors": 0, "tx_dropped": 0,
            },
        },
    })
}

/// What a container uses that does not run.
pub(crate) fn no_stats(view: &InstanceView) -> Value {
    json!({
        "id": id_of(&view.spec.name),
        "name": format!("/{}", view.spec.name),
        "read": "0001-01-01T00:00:00Z",
        "preread": "0001-01-01T00:00:00Z",
        "pids_stats": {},
        "cpu_stats": cpu(None),
        "precpu_stats": cpu(None),
        "memory_stats": {},
        "blkio_stats": {},
    })
}

fn cpu(sample: Option<&Sample>) -> Value {
    let used = sample.map_or(0, |sample| nanoseconds(sample.usage.cpu()));
    let mut cpu = json!({
        "cpu_usage": { "total_usage": used, "usage_in_kernelmode": 0, "usage_in_usermode": 0 },
        "throttling_data": { "periods": 0, "throttled_periods": 0, "throttled_time": 0 },
    });
    if let Some(sample) = sample {
        cpu["system_cpu_usage"] = json!(nanoseconds(sample.machine_cpu));
        cpu["online_cpus"] = json!(sample.processors);
    }
    cpu
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
