//! How instances come to run and to end: the effects of what the scheduler decides.

use std::sync::{Arc, Weak};
use std::time::SystemTime;

use cfc_sandbox::NetworkHandle;
use cfc_scheduler::{Action, Event, InstanceType, Refusal};

use crate::error::RuntimeErrorKind;
use crate::instance::{ExitReport, Phase};
use crate::journal::Intent;
use crate::launch::sandbox_config;
use crate::runtime::{Inner, Runtime, Shared};

const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;

impl Runtime {
    /// Carries out the launch that was decided, and tells the scheduler how it went.
    pub(crate) fn launch(
        &self,
        name: &str,
        launch: u64,
        instance_type: InstanceType,
    ) -> std::result::Result<(), RuntimeErrorKind> {
        let launched = self.launch_process(name, launch, instance_type);
        let mut inner = self.lock();
        match launched {
            Ok((pid, network)) => {
                if let Some(record) = inner.records.get_mut(name) {
                    record.network = network.map(Arc::new);
                    record.started = Some(SystemTime::now());
                    record.phase.send_replace(Phase::Running { pid });
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
    ) -> std::result::Result<(i32, Option<NetworkHandle>), RuntimeErrorKind> {
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
        let started = launcher.start(&config)?;
        // An app may have ended by now, and its network with it.
        Ok((started.pid, launcher.network(name).ok()))
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
            record.phase.send_replace(Phase::Stopped(report));
        }
        self.step(inner, event);
    }

    /// Tells the scheduler of `event` and does what it decides, other than launching.
    pub(crate) fn step(&self, inner: &mut Inner, event: Event) {
        for action in inner.scheduler.step(self.now(), event) {
            match action {
                Action::Terminate(name, _) => {
                    self.signal(&name, SIGTERM);
                    self.schedule_tick(inner);
                }
                Action::Kill(name, _) => self.signal(&name, SIGKILL),
                Action::Discard(name) => self.discard(inner, &name),
                Action::Refuse { instance, refusal } => tracing::debug!(instance, %refusal, "refused"),
                Action::Launch { instance, .. } => tracing::error!(instance, "a launch that nobody asked for"),
            }
        }
    }

    /// Signals without waiting. A failure means that it has ended, of which the watcher will tell.
    fn signal(&self, name: &str, signal: i32) {
        let (launcher, name) = (self.shared.launcher.clone(), name.to_string());
        std::thread::spawn(move || {
            let sent = if signal == SIGKILL { launcher.kill_all(&name) } else { launcher.kill(&name, signal) };
            if let Err(error) = sent {
                tracing::debug!(instance = name, %error, "not signalled");
            }
        });
    }

    fn discard(&self, inner: &mut Inner, name: &str) {
        if let Err(error) = self.shared.directories.remove(name) {
            tracing::warn!(instance = name, %error, "cannot remove the directory; the next start will try again");
        }
        if let Some(record) = inner.records.remove(name) {
            let report = record.phase.borrow().exit().cloned().unwrap_or_default();
            record.phase.send_replace(Phase::Removed(report));
        }
    }

    /// Wakes the scheduler when the next deadline is over.
    fn schedule_tick(&self, inner: &Inner) {
        let Some(deadline) = inner.scheduler.next_deadline() else { return };
        let (shared, wait) = (Arc::downgrade(&self.shared), deadline.saturating_sub(self.now()));
        self.shared.tasks.spawn(async move {
            tokio::time::sleep(wait).await;
            if let Some(shared) = Weak::upgrade(&shared) {
                let runtime = Runtime { shared };
                let mut inner = runtime.lock();
                runtime.step(&mut inner, Event::Tick);
                runtime.schedule_tick(&inner);
            }
        });
    }
}

/// The code a shell gives for a command that could not be started.
fn exit_code(kind: &RuntimeErrorKind) -> i32 {
    const GENERAL: i32 = 125;
    match kind {
        RuntimeErrorKind::Sandbox(error) => error.exit_code().unwrap_or(GENERAL),
        _ => GENERAL,
    }
}
