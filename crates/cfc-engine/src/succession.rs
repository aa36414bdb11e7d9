//! How containers come through a change of their Worker's version.
//!
//! workerd takes its containers along when it ends, as it would a Durable Object's that is evicted. So the one that ends is
//! not heeded ([`Engine::leave_containers`]), and its successor finds those that are as the new version wants them, as it
//! finds them after a crash. The others are told to end and have their time for it. The new version does not see them: a
//! Durable Object that wants its container meanwhile waits a moment for the old one to end, then no longer.

use std::time::Duration;

use cfc_runtime::InstanceView;
use tokio::sync::watch;

use crate::Engine;
use crate::container::own;
use crate::worker::sidecar_of;

/// How long a start waits for the end of the container that an earlier version has left. A Durable Object gives up on its
/// container after eight seconds (`instanceGetTimeoutMS` of `@cloudflare/containers`).
const PATIENCE: Duration = Duration::from_secs(5);

impl Engine {
    /// The Worker's workerd has ended, and one of another version comes next: it gets the containers of which `is_current`
    /// is true.
    ///
    /// Must be called within a tokio runtime.
    pub fn pass_on(&self, is_current: impl Fn(&InstanceView) -> bool) {
        self.workerd_ended();
        let (current, outdated): (Vec<_>, Vec<_>) =
            own(self).into_iter().filter(|view| view.phase.is_live()).partition(is_current);
        for view in outdated {
            let name = view.spec.name;
            self.take_over(&name);
            // Its way out was the old version's.
            self.with_sidecar(&sidecar_of(&name), Option::take);
            self.with_outdated(|outdated| outdated.insert(name, watch::Sender::new(())));
        }
        for view in current {
            self.expect_owner(&view.spec.name);
        }
        self.return_to_containers();
    }

    /// The new version serves: containers of the one before are told to end, and are killed after `grace`.
    ///
    /// Must be called within a tokio runtime.
    pub fn end_outdated(&self, grace: Duration) {
        let names: Vec<String> = self.with_outdated(|outdated| outdated.keys().cloned().collect());
        for name in names {
            tracing::info!(instance = name, "of an earlier version of its Worker: told to end");
            let engine = self.clone();
            tokio::spawn(async move {
                // It may have ended by itself.
                let _ = engine.runtime().stop(&name, grace).await;
                engine.runtime().remove(&name).await;
                engine.with_outdated(|outdated| outdated.remove(&name));
            });
        }
    }

    /// Whether the container is of an earlier version, and ends.
    pub(crate) fn is_outdated(&self, name: &str) -> bool {
        self.with_outdated(|outdated| outdated.contains_key(name))
    }

    /// Waits until nothing is left of the container that an earlier version has left, and kills it if that takes too long.
    pub(crate) async fn outlive(&self, name: &str) {
        let Some(mut ended) = self.with_outdated(|outdated| outdated.get(name).map(watch::Sender::subscribe)) else {
            return;
        };
        // Nothing is ever sent: the sender goes with the container.
        if tokio::time::timeout(PATIENCE, ended.changed()).await.is_err() {
            tracing::warn!(instance = name, "killed: it did not end in time for its successor");
            let _ = self.runtime().stop(name, Duration::ZERO).await;
            let _ = ended.changed().await;
        }
    }

    /// Ends the container after a while if no Durable Object asks for it.
    fn expect_owner(&self, name: &str) {
        if self.is_ownerless(name) {
            return;
        }
        self.set_unclaimed(name);
        let because = "its Worker was deployed anew, and no Durable Object asked for it";
        self.stop_later(name, self.ownerless_max(), Engine::claim, because);
    }
}
