//! What a runtime does when it opens: it takes over the instances that still run and those that have ended, and removes
//! what is left of others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use cfc_sandbox::{State, Status};
use cfc_scheduler::{Event, InstanceType};
use tokio::sync::watch;

use crate::error::{RuntimeErrorKind, fail_at};
use crate::events::InstanceEventKind;
use crate::instance::{ExitReport, Phase};
use crate::journal::{Intent, Journal};
use crate::launch::LAUNCH_ANNOTATION;
use crate::runtime::{Record, Runtime};
use crate::trial::is_trial;

impl Runtime {
    /// Compares the journals with what the launcher knows. An instance is taken over when its journal wants exactly the
    /// process that runs or has ended meanwhile, or tells how its process ended before. Any other process is killed, any
    /// other directory removed (its log is kept).
    pub(crate) fn adopt(&self) -> Result<(), RuntimeErrorKind> {
        let shared = self.shared();
        shared.directories.empty_trash();
        let mut sandboxes: BTreeMap<String, Status> =
            shared.launcher.list()?.into_iter().map(|status| (status.id.clone(), status)).collect();
        fail_at("runtime.adopt.listed")?;
        for name in shared.directories.names()? {
            fail_at("runtime.adopt.next")?;
            let status = sandboxes.remove(&name);
            let journal = Journal::read(&shared.directories.of(&name)).filter(|_| !is_trial(&name));
            if !journal.is_some_and(|journal| self.take_over(&name, journal, status.as_ref())) {
                if let Some(status) = status {
                    self.end(&status);
                }
                // One that cannot be removed is in nobody's way: its name is not known, and the next start tries again.
                if let Err(error) = shared.directories.remove(&name) {
                    tracing::warn!(instance = name, %error, "cannot remove what is left of an instance");
                }
            }
        }
        sandboxes.values().for_each(|status| self.end(status));
        Ok(())
    }

    /// Makes the instance known again, as it is now. False when its journal and the launcher do not agree.
    fn take_over(&self, name: &str, journal: Journal, status: Option<&Status>) -> bool {
        let found = match (&journal.intent, status) {
            (Intent::Run { launch, instance_type, started }, Some(status)) if is_launch(status, *launch) => {
                let phase = match status.state {
                    State::Running => Phase::Running { pid: status.started.pid },
                    State::Exited(exit) => Phase::Stopped(ExitReport::from(exit)),
                    State::Starting => return false,
                };
                Found { launch: *launch, instance_type: *instance_type, started: *started, phase }
            }
            (Intent::Ended { launch, instance_type, started, report }, _) => {
                let phase = Phase::Stopped(report.clone());
                Found { launch: *launch, instance_type: *instance_type, started: *started, phase }
            }
            _ => return false,
        };
        self.insert(name, journal, found, status);
        true
    }

    fn insert(&self, name: &str, journal: Journal, found: Found, status: Option<&Status>) {
        let Found { launch, instance_type, started, phase } = found;
        let report = phase.exit().cloned();
        tracing::info!(instance = name, ?phase, "instance adopted");
        let network = match report {
            None => self.shared().launcher.network(name).ok().map(Arc::new),
            Some(_) => None,
        };
        let (instance, application) = (name.to_string(), journal.spec.application.clone());
        match (&report, status) {
            (None, Some(status)) => self.note(&journal.spec, InstanceEventKind::Adopted { pid: status.started.pid }),
            // It ended while nobody looked.
            (Some(report), Some(_)) => self.note(&journal.spec, InstanceEventKind::Exited(report.clone())),
            _ => {}
        }
        let (phase, _) = watch::channel(phase);
        // Those of before were told to whoever listened then, and are in the log.
        let oom_kills = self.shared().launcher.usage(name).map_or(0, |usage| usage.oom_kills);
        let record = Record { network, started: Some(started), oom_kills, ..Record::new(journal, phase) };
        let mut inner = self.lock();
        inner.records.insert(instance.clone(), record);
        self.step(&mut inner, Event::Adopt { instance: instance.clone(), application, instance_type, launch });
        let Some(report) = report else {
            drop(inner);
            // It may have been boosted when nobody was left to end that.
            self.begin_limit(name, instance_type);
            return self.watch_ready(name);
        };
        self.record_end(&mut inner, name, &report);
        self.step(&mut inner, Event::Exited(instance, launch));
        drop(inner);
        if let Some(status) = status {
            self.end(status);
        }
    }

    /// Ends a process that nobody wants, and everything in its sandbox.
    fn end(&self, status: &Status) {
        let launcher = &self.shared().launcher;
        let ended = launcher
            .kill_all(&status.id)
            .and_then(|()| launcher.wait(&status.id))
            .and_then(|_| launcher.remove(&status.id));
        match ended {
            Ok(()) => tracing::info!(instance = status.id, "removed a process that nobody wants"),
            Err(error) => tracing::warn!(instance = status.id, %error, "cannot remove a process that nobody wants"),
        }
    }
}

/// An instance of an earlier run of the platform.
struct Found {
    launch: u64,
    instance_type: InstanceType,
    started: SystemTime,
    phase: Phase,
}

fn is_launch(status: &Status, launch: u64) -> bool {
    status.annotations.get(LAUNCH_ANNOTATION).is_some_and(|text| *text == launch.to_string())
}
