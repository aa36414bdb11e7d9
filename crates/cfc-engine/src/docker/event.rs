//! What happened to containers, as `GET /events` tells it.

use std::time::UNIX_EPOCH;

use cfc_runtime::{InstanceEvent, InstanceEventKind};
use serde_json::{Value, json};

use crate::container::id_of;

/// An event, where Docker has a word for it.
pub(crate) fn event(event: &InstanceEvent) -> Option<Value> {
    let mut attributes = json!({ "name": event.instance, "application": event.application });
    let action = match &event.kind {
        InstanceEventKind::Created => "create",
        InstanceEventKind::Running { .. } => "start",
        InstanceEventKind::OomKilled { .. } => "oom",
        InstanceEventKind::Removed => "destroy",
        InstanceEventKind::Exited(report) => {
            attributes["exitCode"] = json!(report.code.to_string());
            "die"
        }
        _ => return None,
    };
    let since = event.time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let id = id_of(&event.instance);
    Some(json!({
        "Type": "container",
        "Action": action,
        "status": action,
        "id": id,
        "Actor": { "ID": id, "Attributes": attributes },
        "scope": "local",
        "time": since.as_secs(),
        "timeNano": u64::try_from(since.as_nanos()).unwrap_or(u64::MAX),
    }))
}
