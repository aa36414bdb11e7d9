//! Restarts from outside, by whoever runs the platform.
//!
//! workerd has no word for them. It hears of the end as of any other (its `wait` is answered, the class's `onStop` runs),
//! and its Durable Object takes the container for stopped. The new process then runs on the same name without an
//! owner, until the Durable Object takes it over: with the `create` and `start` of its next request (a container that is
//! created as it was is the one that runs already), or by its `wait` when it was just loaded and found it running. The
//! `DELETE` of a Durable Object that is evicted meanwhile means the process before. A container that nobody takes over is
//! stopped after a while, as the `Container` class would stop it for idling. That it has no owner is kept with it: an engine
//! that adopts it counts on, and the time in which there was none counts too.

use std::time::{Duration, SystemTime};

use cfc_runtime::{InstanceSpec, Refusal, RuntimeError, RuntimeErrorKind, fail_point};

use crate::Engine;
use crate::container::own;
use crate::worker::sidecar_of;

/// How long a container runs without an owner, unless somebody says otherwise: the class's own `sleepAfter`.
pub(crate) const OWNERLESS_MAX: Duration = Duration::from_secs(600);

impl Engine {
    /// Ends the container's process as [`Runtime::stop`](cfc_runtime::Runtime::stop) does, and starts it again with the same
    /// spec on a fresh disk. One that has ended already is only started, and one that might not start again goes on.
    pub async fn restart(&self, name: &str, grace: Duration) -> cfc_runtime::Result<()> {
        self.runtime().may_restart(name)?;
        match self.runtime().stop(name, grace).await {
            Err(RuntimeError { kind: RuntimeErrorKind::NotRunning, .. }) | Ok(_) => {}
            Err(error) => return Err(error),
        }
        fail_point("engine.restart.stopped").map_err(|error| stopped_there(name, error))?;
        self.runtime().keep_ownerless(name)?;
        self.set_ownerless(name);
        let _ = fail_point("engine.restart.ownerless");
        match self.runtime().start(name).await {
            Ok(()) => self.carry(name),
            // Its Durable Object was faster: it runs anew, as it should.
            Err(RuntimeError { kind: RuntimeErrorKind::Refused(Refusal::AlreadyRunning(_)), .. }) => {}
            Err(error) => {
                self.take_over(name);
                return Err(error);
            }
        }
        let _ = fail_point("engine.restart.started");
        self.end_ownerless_later(name, self.ownerless_max());
        Ok(())
    }

    /// Whether `spec` is that of a restarted container, which from now on belongs to whoever created it so.
    pub(crate) fn take_over_as(&self, spec: &InstanceSpec) -> bool {
        let is_same = self.runtime().inspect(&spec.name).is_some_and(|view| view.phase.is_live() && view.spec == *spec);
        if is_same && self.take_over(&spec.name) {
            self.expect_start(&spec.name);
            self.carry(&spec.name);
            return true;
        }
        false
    }

    /// Lets the sidecar carry what the container sends out.
    fn carry(&self, name: &str) {
        self.with_sidecar(&sidecar_of(name), |sidecar| {
            if let Some(sidecar) = sidecar {
                sidecar.carry(self, name);
            }
        });
    }

    /// Goes on with those that an earlier engine has restarted and that nobody took over since.
    pub(crate) fn find_ownerless(&self) {
        for name in own(self).into_iter().filter(|view| view.phase.is_live()).map(|view| view.spec.name) {
            let Some(since) = self.runtime().kept_ownerless(&name) else { continue };
            if self.set_ownerless(&name) {
                self.end_ownerless_later(&name, left(self.ownerless_max(), since, SystemTime::now()));
            }
        }
    }

    fn end_ownerless_later(&self, name: &str, left: Duration) {
        self.stop_later(name, left, Engine::take_over, "it was restarted, and its Durable Object never asked for it");
    }

    /// Stops the container after a while, `because` nobody has asked for it: if `take` says then that nobody had.
    pub(crate) fn stop_later(
        &self,
        name: &str,
        left: Duration,
        take: fn(&Engine, &str) -> bool,
        because: &'static str,
    ) {
        let (engine, name) = (self.clone(), name.to_string());
        tokio::spawn(async move {
            tokio::time::sleep(left).await;
            if take(&engine, &name) {
                tracing::info!(instance = name, "stopped: {because}");
                let _ = engine.runtime().stop(&name, engine.runtime().stop_grace()).await;
            }
        });
    }
}

/// How long one may go on, of `most`, that has had no owner since then. A clock that was set back gives it no more than a new one has.
fn left(most: Duration, since: SystemTime, now: SystemTime) -> Duration {
    most.saturating_sub(now.duration_since(since).unwrap_or_default())
}

fn stopped_there(name: &str, error: std::io::Error) -> RuntimeError {
    RuntimeError { operation: format!("restart instance `{name}`"), kind: RuntimeErrorKind::Invalid(error.to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_without_an_owner_is_over_after_ten_minutes_whatever_the_clock_does() {
        let now = SystemTime::now();
        let ago = |seconds| now.checked_sub(Duration::from_secs(seconds)).expect("a time");
        assert_eq!(left(OWNERLESS_MAX, ago(0), now), OWNERLESS_MAX);
        assert_eq!(left(OWNERLESS_MAX, ago(599), now), Duration::from_secs(1));
        assert_eq!(left(OWNERLESS_MAX, ago(86_400), now), Duration::ZERO, "cfc was away for a day");
        assert_eq!(left(OWNERLESS_MAX, now + Duration::from_secs(3_600), now), OWNERLESS_MAX, "the clock was set back");
    }
}
