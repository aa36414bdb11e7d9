//! How the runtime learns that processes have ended or ran out of memory: one thread listens to the launcher, for all
//! instances.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use cfc_sandbox::{Exit, Happening, Status, Usage};
use cfc_scheduler::Event;

use crate::error::RuntimeErrorKind;
use crate::events::InstanceEventKind;
use crate::instance::{ExitReport, Phase};
use crate::journal::Intent;
use crate::runtime::{Inner, Record, Runtime, Shared};
use crate::trial::is_trial;

const SIGKILL: i32 = 9;

/// How long to leave off when there is no launcher. The next start of an instance makes a new one.
const PAUSE: Duration = Duration::from_millis(50);

impl Runtime {
    /// Takes note of every end from now on, for as long as there is this runtime.
    pub(crate) fn watch_ends(&self) -> Result<(), RuntimeErrorKind> {
        let shared = Arc::downgrade(&self.shared);
        let thread = std::thread::Builder::new().name("cfc-ends".to_string());
        let spawned = thread.spawn(move || while watch_once(&shared).is_some() {});
        spawned.map(drop).map_err(|error| RuntimeErrorKind::Invalid(format!("cannot start a thread: {error}")))
    }

    /// The launches that run, as far as is known.
    fn running(&self) -> BTreeMap<String, u64> {
        let inner = self.lock();
        inner.records.iter().filter_map(|(name, record)| Some((name.clone(), running_launch(record)?))).collect()
    }

    fn running_launch(&self, name: &str) -> Option<u64> {
        self.lock().records.get(name).and_then(running_launch)
    }

    /// Ends those of `running` that are not `known` to the launcher.
    fn end_lost(&self, running: BTreeMap<String, u64>, known: &[Status]) {
        for (name, launch) in running {
            let is_known = known.iter().any(|status| status.id == name);
            let is_that_launch = self.running_launch(&name) == Some(launch);
            if !is_known && is_that_launch {
                let error = Some("its launcher has died, and the container with it".to_string());
                let report = ExitReport { code: 128 + SIGKILL, oom_killed: false, error };
                self.end_instance(&name, report, &Usage::default());
            }
        }
    }

    /// Tells that the kernel has killed processes of an instance at its memory limit, `kills` of them by now.
    fn note_oom_kills(&self, name: &str, kills: u64) {
        let mut inner = self.lock();
        let size = inner.scheduler.instance(name).and_then(|instance| instance.state.occupies());
        let limit_mib = size.map_or(0, |size| size.memory_mib);
        let Some(record) = inner.records.get_mut(name).filter(|record| kills > record.oom_kills) else { return };
        let news = kills - record.oom_kills;
        record.oom_kills = kills;
        tracing::warn!(
            instance = name,
            kills = news,
            "out of memory: the kernel killed a process of the container at its limit of {limit_mib} MiB; a larger \
             `instance_type` gives it more"
        );
        self.note(&record.journal.spec, InstanceEventKind::OomKilled { kills: news, limit_mib });
    }

    fn on_end(&self, name: &str, exit: Exit) {
        let (report, usage) = (ExitReport::from(exit), exit.usage);
        {
            let mut inner = self.lock();
            let Some(record) = inner.records.get_mut(name) else { return };
            // Its start is still being taken note of, and then this will be.
            if matches!(*record.phase.borrow(), Phase::Starting) {
                record.over = Some((report, usage));
                return;
            }
        }
        self.end_instance(name, report, &usage);
    }

    /// Takes down what is left of an instance's process, then tells everybody.
    pub(crate) fn end_instance(&self, name: &str, report: ExitReport, usage: &Usage) {
        let Some(launch) = self.running_launch(name) else { return };
        let report = with_limit(&self.lock(), name, report);
        tracing::info!(instance = name, code = report.code, oom_killed = report.oom_killed, "instance ended");
        self.note_oom_kills(name, usage.oom_kills);
        let network_bytes = self.network_bytes(name);
        // The disk goes first: after the sandbox is removed, its host ids may be another's.
        self.record_end(&mut self.lock(), name, &report);
        if let Err(error) = self.shared().launcher.remove(name) {
            tracing::debug!(instance = name, %error, "cannot remove the ended sandbox");
        }
        let mut inner = self.lock();
        if let Some(record) = inner.records.get(name).filter(|_| !is_trial(name)) {
            self.shared().metrics.add_ended(&record.journal.spec.application, usage, network_bytes);
        }
        self.tell_end(&mut inner, name, Event::Exited(name.to_string(), launch), report);
    }
}

/// Says at which limit a process ran out of memory. To be called before the scheduler hears of its end.
fn with_limit(inner: &Inner, name: &str, report: ExitReport) -> ExitReport {
    let size = inner.scheduler.instance(name).and_then(|instance| instance.state.occupies());
    match (size, report.oom_killed, &report.error) {
        (Some(size), true, None) => {
            ExitReport { error: Some(format!("out of memory: its limit is {} MiB", size.memory_mib)), ..report }
        }
        _ => report,
    }
}

/// Listens until the launcher ends. `None` when the runtime has ended.
fn watch_once(shared: &Weak<Shared>) -> Option<()> {
    let runtime = Runtime { shared: shared.upgrade()? };
    let running = runtime.running();
    let launcher = &runtime.shared().launcher;
    let (happenings, known) = match launcher.watch().and_then(|happenings| Ok((happenings, launcher.list()?))) {
        Ok(both) => both,
        Err(error) => {
            // A launcher that only cannot be reached just now keeps what runs.
            if !error.is_out_of_descriptors() {
                runtime.end_lost(running, &[]);
            }
            drop(runtime);
            std::thread::sleep(PAUSE);
            return Some(());
        }
    };
    runtime.end_lost(running, &known);
    drop(runtime);
    for happening in happenings {
        let runtime = Runtime { shared: shared.upgrade()? };
        match happening {
            Happening::Ended { id, exit } => runtime.on_end(&id, exit),
            Happening::OutOfMemory { id, kills, .. } => runtime.note_oom_kills(&id, kills),
        }
    }
    Some(())
}

fn running_launch(record: &Record) -> Option<u64> {
    match record.journal.intent {
        Intent::Run { launch, .. } if record.phase.borrow().pid().is_some() => Some(launch),
        _ => None,
    }
}
