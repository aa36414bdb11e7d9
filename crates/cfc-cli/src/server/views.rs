//! The runtime's instances in the control API's words.

use std::time::{SystemTime, UNIX_EPOCH};

use cfc_control::{ApplicationRecord, InstanceState, InstanceView, Timestamp};
use cfc_runtime::{Phase, Runtime};

/// The instances of an application.
pub fn instances(runtime: &Runtime, application: &ApplicationRecord) -> Vec<InstanceView> {
    let all = runtime.list().into_iter().filter(|instance| instance.spec.application == application.name);
    all.map(|instance| view(application, &instance)).collect()
}

fn view(application: &ApplicationRecord, instance: &cfc_runtime::InstanceView) -> InstanceView {
    let started = timestamp(instance.started.unwrap_or(instance.created));
    let is_current = instance.spec.image.digest == application.image.manifest.digest;
    InstanceView {
        id: instance.spec.name.clone(),
        name: object_id(&instance.spec.name).to_string(),
        application: application.name.clone(),
        state: state(&instance.phase),
        since: timestamp(instance.since),
        started,
        image: instance.spec.image.digest.clone(),
        version: is_current.then_some(application.version),
        pid: instance.phase.pid(),
    }
}

fn state(phase: &Phase) -> InstanceState {
    match phase {
        Phase::Created | Phase::Starting => InstanceState::Starting,
        Phase::Running { .. } => InstanceState::Running,
        Phase::Ready { .. } => InstanceState::Ready,
        Phase::Stopping { .. } => InstanceState::Stopping,
        Phase::Stopped(report) | Phase::Removed(report) => match &report.error {
            Some(reason) => InstanceState::Failed { reason: reason.clone() },
            None if report.oom_killed => InstanceState::Failed { reason: "out of memory".to_string() },
            None => InstanceState::Stopped { exit_code: Some(report.code) },
        },
    }
}

/// The Durable Object's id: the last part of the name that workerd gives a container, `workerd-<key>-<id>`.
pub fn object_id(name: &str) -> &str {
    name.rsplit_once('-').map_or(name, |(_, id)| id)
}

pub fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_milliseconds(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
