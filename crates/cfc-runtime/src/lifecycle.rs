//! How instances come to run and to end: the effects of what the scheduler decides.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use cfc_sandbox::NetworkHandle;
use cfc_scheduler::{Action, Event, InstanceType, Refusal};

use crate::error::RuntimeErrorKind;
use crate::events::{InstanceEventKind, StartTimings};
use crate::instance::{ExitReport, Phase};
use crate::journal::Intent;
use crate::launch::sandbox_config;
use crate::runtime::{Inner, Runtime, Shared};
use crate::stop::SIGKILL;

impl Runtime {
    /// Carries out the launch that was decided, and tells the scheduler how it went.
    pub(crate) fn launch(
        &self,
        name: &str,
        launch: u64,
        instance_type: InstanceType,
        admit: Duration,
    ) -> std::result::Result<(), RuntimeErrorKind> {
        let launched = self.launch_process(name, launch, instance_type);
        let mut inner = self.lock();
        match launched {
            Ok(Launched { pid, network, timings }) => {
                let timings = StartTimings { admit, ..timings };
                if let Some(record) = inner.records.get_mut(name) {
                    record.network = network.map(Arc::new);
                    record.started = Some(SystemTime::now());
                    record.executing = Some(Instant::now());
                    record.timings = Some(timings);
                    record.set_phase(Phase::Running { pid });
                    self.note(&record.journal.spec, InstanceEventKind::Running { pid, timings });
                }
                self.step(&mut inner, Event::Launched(name.to_string(), launch));
                drop(inner);
                self.watch(name, launch);
                Ok(())
            }
            Err(kind) => {
                let report = ExitReport { code: exit_code(&kind), error: Some(kind.to_string()), ..Default::default() };
                self.note_end(&mut inner, name, Event::LaunchFailed(name.to_string(), launch), report);
                Err(kind)
            }
        }
    }

    fn launch_process(
        &self,
        name: &str,
        launch: u64,
        instance_type: InstanceType,
    ) -> std::result::Result<Launched, RuntimeErrorKind> {
        let asked = Instant::now();
        let Shared { directories, store, launcher, .. } = &*self.shared;
        let directory = directories.of(name);
        let mut journal = match self.lock().records.get(name) {
            Some(record) => record.journal.clone(),
            None => return Err(Refusal::NoInstance(name.to_string()).into()),
        };
        journal.intent = Intent::Run { launch, instance_type, started: SystemTime::now() };
        journal.write(&directory)?;
        directory.make_disk(directories)?;
        let config = sandbox_config(store, &journal.spec, &instance_type, launch, &directory, self.network_of(name))?;
        let disk = asked.elapsed();
        let started = launcher.start(&config)?;
        let timings = StartTimings { disk, launch: asked.elapsed() - disk, ..StartTimings::default() };
        // An app may have ended by now, and its network with it.
        Ok(Launched { pid: started.pid, network: launcher.network(name).ok(), timings })
    }

    /// Takes note that the instance listens.
    pub(crate) fn note_ready(&self, name: &str) {
        let mut inner = self.lock();
        let Some(record) = inner.records.get_mut(name) else { return };
        let Phase::Running { pid } = *record.phase.borrow() else { return };
        record.set_phase(Phase::Ready { pid });
        // One that was adopted began to listen nobody knows when.
        let Some(after) = record.executing.map(|executing| executing.elapsed()) else { return };
        record.ready_after = Some(after);
        self.note(&record.journal.spec, InstanceEventKind::Ready { after });
    }

    /// Reports the end of a launch when it comes. One small thread an instance waits for it.
    pub(crate) fn watch(&self, name: &str, launch: u64) {
        const STACK_BYTES: usize = 256 << 10;
        let (shared, name) = (Arc::downgrade(&self.shared), name.to_string());
        let launcher = self.shared.launcher.clone();
        let thread = std::thread::Builder::new().name("cfc-instance".to_string()).stack_size(STACK_BYTES);
        let watcher = move || {
            let report = match launcher.wait(&name) {
                Ok(exit) => ExitReport { code: exit.status.shell_code(), oom_killed: exit.oom_killed, error: None },
                Err(error) => ExitReport { code: 128 + SIGKILL, oom_killed: false, error: Some(error.to_string()) },
            };
            if let Err(error) = launcher.remove(&name) {
                tracing::warn!(instance = name, %error, "cannot remove the ended sandbox");
            }
            if let Some(shared) = Weak::upgrade(&shared) {
                let runtime = Runtime { shared };
                tracing::info!(instance = name, code = report.code, oom_killed = report.oom_killed, "instance ended");
                let mut inner = runtime.lock();
                runtime.note_end(&mut inner, &name, Event::Exited(name.clone(), launch), report);
            }
        };
        if let Err(error) = thread.spawn(watcher) {
            tracing::error!(%error, "cannot watch an instance: no thread");
        }
    }

    /// Takes note of the end of a process: its disk goes, then everybody is told.
    fn note_end(&self, inner: &mut Inner, name: &str, event: Event, report: ExitReport) {
        let directory = self.shared.directories.of(name);
        if let Err(error) = directory.discard_disk(&self.shared.directories) {
            tracing::warn!(instance = name, %error, "cannot remove the disk of an ended instance");
        }
        if let Some(record) = inner.records.get_mut(name) {
            record.journal.intent = Intent::Rest;
            record.network = None;
            if let Err(error) = record.journal.write(&directory) {
                tracing::warn!(instance = name, %error, "cannot write the journal");
            }
            if report.oom_killed {
                self.note(&record.journal.spec, InstanceEventKind::OomKilled);
            }
            self.note(&record.journal.spec, InstanceEventKind::Exited(report.clone()));
            record.set_phase(Phase::Stopped(report));
        }
        self.step(inner, event);
    }

    /// Tells the scheduler of `event` and does what it decides, other than launching.
    pub(crate) fn step(&self, inner: &mut Inner, event: Event) {
        for action in inner.scheduler.step(self.now(), event) {
            match action {
                Action::Terminate(name, _) => self.terminate(inner, &name),
                Action::Kill(name, _) => {
                    self.note_stopping(inner, &name);
                    self.signal(&name, || SIGKILL);
                }
                Action::Discard(name) => self.discard(inner, &name),
                Action::Refuse { instance, refusal } => tracing::debug!(instance, %refusal, "refused"),
                Action::Launch { instance, .. } => tracing::error!(instance, "a launch that nobody asked for"),
            }
        }
        self.keep_deadline(inner);
    }

    fn discard(&self, inner: &mut Inner, name: &str) {
        if let Err(error) = self.shared.directories.remove(name) {
            tracing::warn!(instance = name, %error, "cannot remove the directory; the next start will try again");
        }
        if let Some(mut record) = inner.records.remove(name) {
            self.note(&record.journal.spec, InstanceEventKind::Removed);
            let report = record.phase.borrow().exit().cloned().unwrap_or_default();
            record.set_phase(Phase::Removed(report));
        }
    }
}

/// A process whose command executes.
struct Launched {
    pid: i32,
    network: Option<NetworkHandle>,
    timings: StartTimings,
}

/// The code a shell gives for a command that could not be started.
fn exit_code(kind: &RuntimeErrorKind) -> i32 {
    const GENERAL: i32 = 125;
    match kind {
        RuntimeErrorKind::Sandbox(error) => error.exit_code().unwrap_or(GENERAL),
        _ => GENERAL,
    }
}
