//! The runtime's instances in the control API's words.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cfc_control::{
    ApplicationRecord, InstanceSize, InstanceState, InstanceView, IsolationView, Timestamp, UserNamespaceView,
};
use cfc_runtime::{Confinement, EndedInstance, IdRange, InstanceType, Isolation, Phase, Runtime};

/// How long an instance that was removed stays among those of its application.
const ENDED_SHOWN: Duration = Duration::from_secs(3600);

/// The instances of an application: those that exist, then those that were removed lately.
pub fn instances(runtime: &Runtime, application: &ApplicationRecord) -> Vec<InstanceView> {
    let all = runtime.list().into_iter().filter(|instance| instance.spec.application == application.name);
    let views: Vec<InstanceView> = all.map(|instance| view(Some(application), &instance)).collect();
    let is_shown = |instance: &EndedInstance| {
        let age = instance.ended.elapsed().unwrap_or_default();
        let exists = views.iter().any(|view| view.id == instance.name);
        instance.application == application.name && age < ENDED_SHOWN && !exists
    };
    let removed: Vec<InstanceView> = runtime.ended_instances().iter().filter(|one| is_shown(one)).map(ended).collect();
    views.into_iter().chain(removed).collect()
}

/// One instance. With its application its version is known, when it has the application's image.
pub fn view(application: Option<&ApplicationRecord>, instance: &cfc_runtime::InstanceView) -> InstanceView {
    let exit = instance.phase.exit();
    let current = application.filter(|application| instance.spec.image.digest == application.image.manifest.digest);
    InstanceView {
        id: instance.spec.name.clone(),
        name: object_id(&instance.spec.name).to_string(),
        application: instance.spec.application.clone(),
        state: match &instance.refused {
            Some(refusal) => InstanceState::Failed { reason: format!("its start was refused: {refusal}") },
            None => state(&instance.phase),
        },
        since: timestamp(instance.since),
        started: timestamp(instance.started.unwrap_or(instance.created)),
        image: instance.spec.image.digest.clone(),
        version: current.map(|application| application.version),
        pid: instance.phase.pid(),
        ended: exit.filter(|_| instance.refused.is_none()).map(|_| timestamp(instance.since)),
        exit_code: exit.map(|exit| exit.code),
        oom_killed: exit.is_some_and(|exit| exit.oom_killed),
        removed: false,
    }
}

/// One instance that was removed.
pub fn ended(instance: &EndedInstance) -> InstanceView {
    InstanceView {
        id: instance.name.clone(),
        name: object_id(&instance.name).to_string(),
        application: instance.application.clone(),
        state: state(&Phase::Stopped(instance.exit.clone())),
        since: timestamp(instance.ended),
        started: timestamp(instance.started),
        image: instance.image.digest.clone(),
        version: None,
        pid: None,
        ended: Some(timestamp(instance.ended)),
        exit_code: Some(instance.exit.code),
        oom_killed: instance.exit.oom_killed,
        removed: true,
    }
}

/// An instance type in the control API's words.
pub fn size(instance_type: &InstanceType) -> InstanceSize {
    let InstanceType { micro_cpus, memory_mib, disk_mb, .. } = *instance_type;
    InstanceSize { vcpu: micro_cpus as f64 / 1_000_000.0, memory_mib, disk_mb }
}

/// How an instance is kept apart, as the platform started it, its Worker says (`internet`) and the kernel does.
pub fn isolation(
    started: Option<&Isolation>,
    internet: Option<bool>,
    confinement: Option<Confinement>,
) -> IsolationView {
    let runtime = started.map(|started| started.runtime.as_ref().map_or("cfc", |runtime| runtime.name()).to_string());
    let grants =
        started.into_iter().flat_map(|started| &started.grants).map(|grant| grant.name().to_string()).collect();
    let known = IsolationView { runtime, grants, internet, ..IsolationView::default() };
    let Some(confinement) = confinement else { return known };
    let ids = |ranges: &[IdRange]| ranges.iter().map(|range| [range.inside, range.outside, range.count]).collect();
    let (users, groups) = (ids(&confinement.user_ids), ids(&confinement.group_ids));
    IsolationView {
        user_namespace: Some(UserNamespaceView { users, groups }),
        capabilities: Some(confinement.capabilities),
        seccomp: Some(confinement.has_seccomp),
        no_new_privileges: Some(confinement.no_new_privileges),
        ..known
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

#[cfg(test)]
mod tests {
    use cfc_runtime::{ExitReport, InstanceSpec};

    use super::*;

    #[test]
    fn an_instance_whose_start_was_refused_is_not_shown_as_one_that_starts() {
        let spec = InstanceSpec {
            name: "workerd-app-abc".to_string(),
            application: "app".to_string(),
            image: cfc_oci::Descriptor::new("type", cfc_oci::Digest::of(b"image"), 1),
            command: None,
            env: Vec::new(),
            labels: Default::default(),
        };
        for phase in [Phase::Created, Phase::Stopped(ExitReport::default())] {
            let instance = cfc_runtime::InstanceView {
                spec: spec.clone(),
                phase,
                since: SystemTime::now(),
                created: SystemTime::now(),
                started: None,
                timings: None,
                ready_after: None,
                refused: Some("the machine is full".to_string()),
                isolation: None,
                instance_type: None,
                launches: 0,
            };
            let shown = view(None, &instance);
            assert_eq!(
                shown.state,
                InstanceState::Failed { reason: "its start was refused: the machine is full".to_string() }
            );
            assert!(!shown.state.is_live() && shown.ended.is_none());
        }
    }
}
