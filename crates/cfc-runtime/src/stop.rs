//! How instances are asked to end, and what holds them to it.

use std::sync::Weak;
use std::time::{Duration, Instant};

use cfc_oci::{Descriptor, parse_signal};
use cfc_sandbox::Launcher;
use cfc_scheduler::{Event, Refusal};
use cfc_store::Store;

use crate::error::{Result, RuntimeErrorKind, fail_at};
use crate::events::InstanceEventKind;
use crate::instance::{ExitReport, Phase};
use crate::runtime::{Inner, Runtime, Shared, blocking};

pub(crate) const SIGTERM: i32 = 15;

/// How long an instance that was asked to end may take, unless somebody says otherwise: Cloudflare's 15 minutes.
pub const STOP_GRACE: Duration = Duration::from_secs(15 * 60);

/// How often it is tried again to kill what could not be killed.
const KILL_AGAIN: Duration = Duration::from_secs(1);

impl Runtime {
    /// Asks the instance's process to end, with the image's `STOPSIGNAL` or SIGTERM, kills everything in it when `grace` is
    /// over, and returns when it has ended. When it is stopping already, the earlier of the two deadlines holds.
    pub async fn stop(&self, name: &str, grace: Duration) -> Result<ExitReport> {
        let failed = |kind: RuntimeErrorKind| kind.of("stop", name);
        let mut phase = self.phase(name).ok_or_else(|| failed(Refusal::NoInstance(name.to_string()).into()))?;
        if !phase.borrow().is_live() {
            return Err(failed(RuntimeErrorKind::NotRunning));
        }
        self.step(&mut self.lock(), Event::Stop { instance: name.to_string(), grace });
        let ended = phase.wait_for(|phase| !phase.is_live()).await;
        // An error says that the record is gone, and the instance with it.
        Ok(ended.ok().and_then(|phase| phase.exit().cloned()).unwrap_or_default())
    }

    /// Sends `signal` to the instance's process. SIGTERM, or the image's own `STOPSIGNAL`, also begins a stop: a process
    /// that does not heed it is killed when [`RuntimeConfig::stop_grace`](crate::RuntimeConfig::stop_grace) is over.
    pub async fn kill(&self, name: &str, signal: i32) -> Result<()> {
        let failed = |kind: RuntimeErrorKind| kind.of("signal", name);
        let Some(mut phase) = self.phase(name) else {
            return Err(failed(Refusal::NoInstance(name.to_string()).into()));
        };
        // A signal is for the application, not for what is about to become it.
        let _ = phase.wait_for(|phase| !matches!(phase, Phase::Starting)).await;
        let view = self.inspect(name);
        let process = view.and_then(|view| view.phase.pid().map(|pid| (pid, view.spec.image)));
        let Some((pid, image)) = process else {
            return Err(failed(RuntimeErrorKind::NotRunning));
        };
        let (runtime, instance) = (self.clone(), name.to_string());
        let sent = blocking(move || {
            let Shared { launcher, store, stop_grace, .. } = runtime.shared();
            launcher.kill_process(&instance, pid, signal)?;
            if signal == SIGTERM || signal == stop_signal(store, &image) {
                runtime.begin_stop(&instance, *stop_grace);
            }
            Ok(())
        });
        sent.await.map_err(failed)
    }

    /// Takes note that a process was told to end by somebody else, which gives it a deadline.
    fn begin_stop(&self, name: &str, grace: Duration) {
        let mut inner = self.lock();
        let event = Event::Stop { instance: name.to_string(), grace };
        if !inner.scheduler.step(self.now(), event).is_empty() {
            self.note_stopping(&mut inner, name);
        }
        self.keep_deadline(&inner);
    }

    /// Sends the image's stop signal.
    pub(crate) fn terminate(&self, inner: &mut Inner, name: &str) {
        self.note_stopping(inner, name);
        let Some(image) = inner.records.get(name).map(|record| record.journal.spec.image.clone()) else { return };
        let store = self.shared().store.clone();
        self.signal(inner, name, move || stop_signal(&store, &image));
    }

    /// From now on the instance shows as one that ends.
    pub(crate) fn note_stopping(&self, inner: &mut Inner, name: &str) {
        let Some(record) = inner.records.get_mut(name) else { return };
        let pid = match *record.phase.borrow() {
            Phase::Running { pid } | Phase::Ready { pid } => pid,
            _ => return,
        };
        record.set_phase(Phase::Stopping { pid });
        self.note(&record.journal.spec, InstanceEventKind::Stopping);
    }

    /// Signals the process that runs now, without waiting.
    pub(crate) fn signal(&self, inner: &Inner, name: &str, signal: impl FnOnce() -> i32 + Send + 'static) {
        let Some(pid) = inner.records.get(name).and_then(|record| record.phase.borrow().pid()) else { return };
        let (launcher, name) = (self.shared().launcher.clone(), name.to_string());
        // On tokio's threads: they are there also when no further one is to be had.
        self.shared().tasks.spawn_blocking(move || {
            let signal = signal();
            match launcher.kill_process(&name, pid, signal) {
                Ok(()) => {}
                Err(error) if error.is_gone() => {}
                Err(error) => tracing::warn!(
                    instance = name,
                    signal,
                    %error,
                    "not asked to end: it is killed when its time is over"
                ),
            }
        });
    }

    /// Kills the process that runs now, and all in its sandbox, without waiting. What could not be killed is tried again for
    /// as long as it lives: nobody else would.
    pub(crate) fn kill_all(&self, inner: &Inner, name: &str) {
        let Some(record) = inner.records.get(name) else { return };
        let (phase, name) = (record.phase.subscribe(), name.to_string());
        let Some(pid) = phase.borrow().pid() else { return };
        let launcher = self.shared().launcher.clone();
        self.shared().tasks.spawn_blocking(move || {
            let mut has_warned = false;
            while phase.has_changed().is_ok() && phase.borrow().pid() == Some(pid) {
                match kill_sandbox(&launcher, &name, pid) {
                    Ok(()) => return,
                    Err(RuntimeErrorKind::Sandbox(error)) if error.is_gone() => return,
                    Err(error) if !has_warned => {
                        has_warned = true;
                        tracing::warn!(instance = name, %error, "not killed yet: it is tried again each second");
                    }
                    Err(_) => {}
                }
                std::thread::sleep(KILL_AGAIN);
            }
        });
    }

    /// To be called after the scheduler decided: its next deadline may be another.
    pub(crate) fn keep_deadline(&self, inner: &Inner) {
        let next = inner.scheduler.next_deadline();
        self.shared().deadline.send_if_modified(|deadline| std::mem::replace(deadline, next) != next);
    }

    /// Starts the one task that wakes the scheduler at its deadlines. It ends with the runtime.
    pub(crate) fn watch_deadlines(&self, opened: Instant) {
        let mut deadline = self.shared().deadline.subscribe();
        let shared = std::sync::Arc::downgrade(&self.shared);
        self.shared().tasks.spawn(async move {
            loop {
                let due = *deadline.borrow_and_update();
                let wait = async {
                    match due {
                        Some(due) => tokio::time::sleep(due.saturating_sub(opened.elapsed())).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    changed = deadline.changed() => match changed {
                        Ok(()) => continue,
                        Err(_) => return,
                    },
                    () = wait => {}
                }
                let Some(shared) = Weak::upgrade(&shared) else { return };
                let runtime = Runtime { shared };
                runtime.step(&mut runtime.lock(), Event::Tick);
            }
        });
    }
}

fn kill_sandbox(launcher: &Launcher, name: &str, pid: i32) -> std::result::Result<(), RuntimeErrorKind> {
    fail_at("runtime.stop.kill")?;
    Ok(launcher.kill_all_with(name, pid)?)
}

/// The signal that asks processes of the image to end.
fn stop_signal(store: &Store, image: &Descriptor) -> i32 {
    let config = store.images().load(image).map(|image| image.config.config);
    let named = config.ok().and_then(|config| config.stop_signal);
    named.as_deref().and_then(parse_signal).unwrap_or(SIGTERM)
}
