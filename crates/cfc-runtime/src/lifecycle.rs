//! How instances come to run and to end: the effects of what the scheduler decides.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use cfc_sandbox::{ErrorKind, NetworkHandle};
use cfc_scheduler::{Action, Event, InstanceType, Refusal};

use crate::boost::boost;
use crate::ended::EndedInstance;
use crate::error::{RuntimeErrorKind, fail_at};
use crate::events::{InstanceEventKind, StartTimings};
use crate::instance::{ExitReport, Phase};
use crate::journal::Intent;
use crate::launch::{Place, sandbox_config};
use crate::runtime::{Inner, Runtime, Shared};
use crate::trial::is_trial;

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
                let is_again = launch > 1 || inner.ended.has(name);
                if let Some(record) = inner.records.get_mut(name) {
                    record.network = network.map(Arc::new);
                    record.started = Some(SystemTime::now());
                    record.executing = Some(Instant::now());
                    record.timings = Some(timings);
                    record.set_phase(Phase::Running { pid });
                    let running = InstanceEventKind::Running { pid, timings };
                    self.note_again(&record.journal.spec, running, is_again);
                }
                self.step(&mut inner, Event::Launched(name.to_string(), launch));
                let _ = fail_at("runtime.start.told");
                let over = inner.records.get_mut(name).and_then(|record| record.over.take());
                drop(inner);
                match over {
                    Some((report, usage)) => self.end_instance(name, report, &usage),
                    None => self.watch_ready(name),
                }
                Ok(())
            }
            Err(kind) => {
                let report = ExitReport { code: exit_code(&kind), error: Some(kind.to_string()), ..Default::default() };
                self.record_end(&mut inner, name, &report);
                self.tell_end(&mut inner, name, Event::LaunchFailed(name.to_string(), launch), report);
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
        let Shared { directories, store, images, launcher, .. } = &*self.shared;
        let directory = directories.of(name);
        let mut journal = match self.lock().records.get_mut(name) {
            Some(record) => {
                record.over = None;
                record.oom_kills = 0;
                record.unheard.clear();
                record.journal.clone()
            }
            None => return Err(Refusal::NoInstance(name.to_string()).into()),
        };
        let isolation = self.application(&journal.spec.application).map(|application| application.isolation);
        let isolation = isolation.unwrap_or_default();
        journal.intent = Intent::Run { launch, instance_type, started: SystemTime::now() };
        journal.isolation = Some(isolation.clone());
        fail_at("runtime.start.decided")?;
        journal.write(&directory)?;
        if let Some(record) = self.lock().records.get_mut(name) {
            record.journal = journal.clone();
        }
        fail_at("runtime.start.journal")?;
        let disks = self.shared.has_disks.then(|| directories.root());
        match disks {
            Some(_) => directory.discard_disk(directories)?,
            None => directory.make_disk(directories)?,
        }
        fail_at("runtime.start.disk")?;
        let network = self.network_of(name);
        let place = Place { directory: &directory, disks };
        let image = images.get(store, &journal.spec.image)?;
        let mut config = sandbox_config(&image, &journal.spec, &instance_type, launch, &place, network, &isolation)?;
        if self.is_boosted_at_start(&journal.spec.application) {
            boost(&mut config.spec)?;
            if let Some(record) = self.lock().records.get_mut(name) {
                record.boosted = Some(instance_type);
            }
        }
        fail_at("runtime.start.config")?;
        let disk = asked.elapsed();
        let started = match launcher.start(&config) {
            // One that has ended and could not be removed is in the way. One that runs stays, and this start fails.
            Err(error) if *error.kind() == ErrorKind::AlreadyExists && launcher.remove(name).is_ok() => {
                launcher.start(&config)?
            }
            started => started?,
        };
        // From here on it runs: these points are for being killed at.
        let _ = fail_at("runtime.start.launched");
        let timings = StartTimings { disk, launch: asked.elapsed() - disk, ..StartTimings::default() };
        let network = match launcher.network(name) {
            Ok(network) => Some(network),
            // An app may have ended by now, and its network with it.
            Err(error) if error.is_gone() => None,
            // What nobody could ever reach must not run.
            Err(error) => {
                let _ = launcher.kill_all(name).and_then(|()| launcher.wait(name)).and_then(|_| launcher.remove(name));
                return Err(error.into());
            }
        };
        Ok(Launched { pid: started.pid, network, timings })
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

    /// Takes note of the end of a process: its disk goes, and how it ended is written down, before the launcher may
    /// forget it.
    pub(crate) fn record_end(&self, inner: &mut Inner, name: &str, report: &ExitReport) {
        self.shared.relays.end(name);
        inner.disk_used_mb.remove(name);
        let directory = self.shared.directories.of(name);
        let _ = fail_at("runtime.end.seen");
        if let Err(error) = directory.discard_disk(&self.shared.directories) {
            tracing::warn!(instance = name, %error, "cannot remove the disk of an ended instance");
        }
        let _ = fail_at("runtime.end.disk");
        let Some(record) = inner.records.get_mut(name) else { return };
        record.network = None;
        record.journal.intent = record.journal.intent.ended(report.clone());
        if let Err(error) = record.journal.write(&directory) {
            tracing::warn!(instance = name, %error, "cannot write the journal");
        }
        let _ = fail_at("runtime.end.journal");
    }

    /// Tells everybody of the end of a process, of which nothing is left.
    pub(crate) fn tell_end(&self, inner: &mut Inner, name: &str, event: Event, report: ExitReport) {
        let _ = fail_at("runtime.end.removed");
        if let Some(record) = inner.records.get_mut(name) {
            record.boosted = None;
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
                    self.kill_all(inner, &name);
                }
                Action::Discard(name) => self.discard(inner, &name),
                Action::Refuse { instance, refusal } => tracing::debug!(instance, %refusal, "refused"),
                Action::Launch { instance, .. } => tracing::error!(instance, "a launch that nobody asked for"),
            }
        }
        self.keep_deadline(inner);
    }

    fn discard(&self, inner: &mut Inner, name: &str) {
        let _ = fail_at("runtime.remove.decided");
        if let Err(error) = self.shared.directories.remove(name) {
            tracing::warn!(instance = name, %error, "cannot remove the directory; the next start will try again");
        }
        let _ = fail_at("runtime.remove.directory");
        if let Some(mut record) = inner.records.remove(name) {
            if let Some(ended) = EndedInstance::of(&record) {
                inner.ended.push(&self.shared.directories.ended_directory(), ended);
            }
            if !is_trial(name) {
                self.shared.metrics.add_traffic(&record.journal.spec.application, &self.traffic(name));
            }
            self.note(&record.journal.spec, InstanceEventKind::Removed);
            let report = record.phase.borrow().exit().cloned().unwrap_or_default();
            record.set_phase(Phase::Removed(report));
        }
        self.shared.relays.forget(name);
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
