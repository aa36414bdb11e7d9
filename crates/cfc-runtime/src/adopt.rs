//! What a runtime does when it opens: it takes over the instances that still run, and removes what is left of others.

use std::collections::BTreeMap;

use cfc_sandbox::{State, Status};
use cfc_scheduler::Event;
use tokio::sync::watch;

use crate::error::RuntimeErrorKind;
use crate::events::InstanceEventKind;
use crate::instance::Phase;
use crate::journal::{Intent, Journal};
use crate::launch::LAUNCH_ANNOTATION;
use crate::runtime::{Record, Runtime};
use crate::trial::is_trial;

impl Runtime {
    /// Compares the journals with what the launcher knows. An instance whose journal wants exactly the process that
    /// runs is adopted; any other process is killed, any other directory removed (its log is kept).
    pub(crate) fn adopt(&self) -> Result<(), RuntimeErrorKind> {
        let shared = self.shared();
        shared.directories.empty_trash();
        let mut sandboxes: BTreeMap<String, Status> =
            shared.launcher.list()?.into_iter().map(|status| (status.id.clone(), status)).collect();
        for name in shared.directories.names()? {
            let journal = Journal::read(&shared.directories.of(&name));
            let is_wanted = |status: &Status| {
                !is_trial(&name) && journal.as_ref().is_some_and(|journal| is_intended(journal, status))
            };
            match (sandboxes.remove(&name), journal.clone()) {
                (Some(status), Some(journal)) if is_wanted(&status) => self.take_over(&name, journal, &status),
                (status, _) => {
                    if let Some(status) = status {
                        self.end(&status);
                    }
                    shared.directories.remove(&name)?;
                }
            }
        }
        sandboxes.values().for_each(|status| self.end(status));
        Ok(())
    }

    fn take_over(&self, name: &str, journal: Journal, status: &Status) {
        let Intent::Run { launch, instance_type, started } = journal.intent else { return };
        tracing::info!(instance = name, pid = status.started.pid, "instance adopted");
        let network = self.shared().launcher.network(name).ok().map(std::sync::Arc::new);
        let (phase, _) = watch::channel(Phase::Running { pid: status.started.pid });
        let (instance, application) = (name.to_string(), journal.spec.application.clone());
        self.note(&journal.spec, InstanceEventKind::Adopted { pid: status.started.pid });
        let mut inner = self.lock();
        let record = Record { network, started: Some(started), ..Record::new(journal, phase) };
        inner.records.insert(instance.clone(), record);
        self.step(&mut inner, Event::Adopt { instance, application, instance_type, launch });
        drop(inner);
        self.watch(name, launch);
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

/// Whether the sandbox runs, and is the launch that the journal speaks of.
fn is_intended(journal: &Journal, status: &Status) -> bool {
    let Intent::Run { launch, .. } = journal.intent else { return false };
    let is_that_launch = status.annotations.get(LAUNCH_ANNOTATION).is_some_and(|text| *text == launch.to_string());
    status.state == State::Running && is_that_launch
}
