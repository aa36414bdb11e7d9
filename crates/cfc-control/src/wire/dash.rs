//! The shapes of `dash/…`: lists for people.

use serde_json::{Value, json};

use crate::{ApplicationRecord, InstanceState, InstanceView};

/// Cloudflare's counts of instances by what they do.
pub(crate) fn health(instances: &[InstanceView]) -> Value {
    let count = |is_one: fn(&InstanceState) -> bool| {
        instances.iter().filter(|view| !view.removed && is_one(&view.state)).count()
    };
    let running = count(InstanceState::is_running);
    json!({
        "active": running,
        "healthy": running,
        "failed": count(|state| matches!(state, InstanceState::Failed { .. })),
        "starting": count(|state| matches!(state, InstanceState::Starting)),
        "scheduling": 0,
    })
}

/// One row of `wrangler containers list`.
pub(crate) fn application(record: &ApplicationRecord, instances: &[InstanceView], isolation: &str) -> Value {
    json!({
        "id": record.id,
        "created_at": record.created_at,
        "updated_at": record.updated_at,
        "name": record.name,
        "version": record.version,
        "instances": instances.iter().filter(|view| view.state.is_live()).count(),
        "image": record.image.reference,
        "health": {"instances": health(instances)},
        "cfc": {"record": record, "instances": instances, "isolation": isolation},
    })
}

/// What `wrangler containers instances` reads: the instances, and the Durable Objects they belong to.
pub(crate) fn instances(record: &ApplicationRecord, instances: &[InstanceView]) -> Value {
    let durable_objects = instances
        .iter()
        .map(|view| json!({"id": view.name, "name": view.name, "deployment_id": view.id, "assigned_at": view.started}));
    json!({
        "instances": instances.iter().map(|view| instance(record, view)).collect::<Vec<_>>(),
        "durable_objects": durable_objects.collect::<Vec<_>>(),
    })
}

fn instance(record: &ApplicationRecord, view: &InstanceView) -> Value {
    let (health, container_status) = match view.state {
        InstanceState::Starting => ("placed", "placed"),
        InstanceState::Running | InstanceState::Ready => ("running", "running"),
        InstanceState::Stopping => ("stopping", "stopping"),
        InstanceState::Stopped { .. } => ("stopped", "stopped"),
        InstanceState::Failed { .. } => ("failed", "failed"),
    };
    json!({
        "id": view.id,
        "name": view.name,
        "created_at": view.started,
        "type": "durable_object",
        "location": "local",
        "region": "local",
        "app_version": view.version.unwrap_or(record.version),
        "image": view.image,
        "current_placement": {"status": {"health": health, "container_status": container_status}},
        "cfc": view,
    })
}
