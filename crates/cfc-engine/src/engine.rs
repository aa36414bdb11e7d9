//! [`Engine`]: the container engine of one Worker's workerd.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cfc_egress::EgressPolicy;
use cfc_runtime::Runtime;
use tokio::net::UnixListener;
use tokio::sync::watch;

use crate::WorkerNames;
use crate::execs::Execs;
use crate::restart::OWNERLESS_MAX;
use crate::sidecar::Sidecar;
use crate::stillborn::Stillborn;
use crate::worker::sidecar_of;

/// The container engine of one Worker's workerd. Cheap to clone; all clones are the same engine.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    runtime: Runtime,
    egress: Arc<EgressPolicy>,
    execs: Execs,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    is_leaving: bool,
    /// How long a container goes on that nobody owns, where that is not [`OWNERLESS_MAX`].
    ownerless_max: Option<Duration>,
    names: Arc<WorkerNames>,
    sidecars: BTreeMap<String, Sidecar>,
    stillborn: BTreeMap<String, Stillborn>,
    /// Containers that were restarted from outside and that no Durable Object has taken over yet.
    ownerless: BTreeSet<String>,
    /// Those of them that were created over and are to be started over.
    taken_over: BTreeSet<String>,
    /// Containers of a version before, which end; with each, what is dropped when nothing is left of it.
    outdated: BTreeMap<String, watch::Sender<()>>,
    /// Containers that the version before has left to this one, for which no Durable Object has asked yet.
    unclaimed: BTreeSet<String>,
}

impl Engine {
    /// An engine that answers with instances of `runtime`, which may reach what `egress` says. Must be called within a
    /// tokio runtime.
    pub fn new(runtime: Runtime, names: WorkerNames, egress: EgressPolicy) -> Engine {
        let shared = Shared { runtime, egress: Arc::new(egress), execs: Execs::default(), inner: Mutex::default() };
        let engine = Engine { shared: Arc::new(shared) };
        engine.set_names(names);
        engine
    }

    /// Answers on `listener` until `shutdown` is there. Connections that are open then end with their clients.
    pub async fn serve(&self, listener: UnixListener, shutdown: impl Future<Output = ()>) -> io::Result<()> {
        tokio::select! {
            served = axum::serve(listener, crate::api::router(self.clone())) => served,
            () = shutdown => Ok(()),
        }
    }

    /// From now on names mean this: the Worker has a new version. Containers that exist keep what they have.
    ///
    /// Must be called within a tokio runtime.
    pub fn set_names(&self, names: WorkerNames) {
        self.lock().names = Arc::new(names);
        self.find_ownerless();
    }

    /// The Worker's workerd has ended. Containers go on; what they send out waits until the next one says where it
    /// takes connections.
    pub fn workerd_ended(&self) {
        self.lock().sidecars.values().for_each(Sidecar::lose_workerd);
    }

    /// From now on containers are neither started, ended nor removed: a workerd that is told to end leaves them to the
    /// next one.
    pub fn leave_containers(&self) {
        self.lock().is_leaving = true;
    }

    /// From now on they are again: the workerd that was told to end has ended.
    pub(crate) fn return_to_containers(&self) {
        self.lock().is_leaving = false;
    }

    /// Looks at, or changes, which containers are of a version before.
    pub(crate) fn with_outdated<T>(&self, look: impl FnOnce(&mut BTreeMap<String, watch::Sender<()>>) -> T) -> T {
        look(&mut self.lock().outdated)
    }

    /// No Durable Object has asked for the container since its Worker has another version.
    pub(crate) fn set_unclaimed(&self, name: &str) {
        self.lock().unclaimed.insert(name.to_string());
    }

    /// A Durable Object asks for the container. Whether none had.
    pub(crate) fn claim(&self, name: &str) -> bool {
        self.lock().unclaimed.remove(name)
    }

    /// From now on a container that no Durable Object asks for is stopped after so long, not after ten minutes.
    pub fn set_ownerless_max(&self, most: Duration) {
        self.lock().ownerless_max = Some(most);
    }

    pub(crate) fn ownerless_max(&self) -> Duration {
        self.lock().ownerless_max.unwrap_or(OWNERLESS_MAX)
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.lock().is_leaving
    }

    pub(crate) fn names(&self) -> Arc<WorkerNames> {
        self.lock().names.clone()
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        &self.shared.runtime
    }

    /// The commands that were asked for in its containers.
    pub(crate) fn execs(&self) -> &Execs {
        &self.shared.execs
    }

    pub(crate) fn egress(&self) -> &Arc<EgressPolicy> {
        &self.shared.egress
    }

    /// The container `name`, if it is one that could not start.
    pub(crate) fn stillborn(&self, name: &str) -> Option<Stillborn> {
        self.lock().stillborn.get(name).cloned()
    }

    pub(crate) fn set_stillborn(&self, name: &str, stillborn: Stillborn) {
        self.lock().stillborn.insert(name.to_string(), stillborn);
    }

    /// Forgets that the container could not start; whoever waits for its end hears of it now.
    pub(crate) fn forget_stillborn(&self, name: &str) {
        if let Some(stillborn) = self.lock().stillborn.remove(name) {
            stillborn.end();
        }
    }

    /// Nobody owns the container from now on. Whether somebody did.
    pub(crate) fn set_ownerless(&self, name: &str) -> bool {
        self.lock().ownerless.insert(name.to_string())
    }

    /// Whether the container was restarted from outside, and no Durable Object has asked for it since.
    pub(crate) fn is_ownerless(&self, name: &str) -> bool {
        self.lock().ownerless.contains(name)
    }

    /// From now on the container has an owner. Whether it had none.
    pub(crate) fn take_over(&self, name: &str) -> bool {
        let had_none = self.lock().ownerless.remove(name);
        if had_none {
            self.runtime().forget_ownerless(name);
        }
        had_none
    }

    /// The container runs, and whoever created it thinks that it does not yet.
    pub(crate) fn expect_start(&self, name: &str) {
        self.lock().taken_over.insert(name.to_string());
    }

    /// Whether that is so; from now on it is not.
    pub(crate) fn was_start_expected(&self, name: &str) -> bool {
        self.lock().taken_over.remove(name)
    }

    /// Whether the container `name` reaches the internet, by its Worker's word. `None` when it has no way out here.
    pub fn has_internet(&self, name: &str) -> Option<bool> {
        self.lock().sidecars.get(&sidecar_of(name)).map(Sidecar::has_internet)
    }

    /// Changes the sidecar `name`, or makes or removes it.
    pub(crate) fn with_sidecar<T>(&self, name: &str, change: impl FnOnce(&mut Option<Sidecar>) -> T) -> T {
        let mut inner = self.lock();
        let mut sidecar = inner.sidecars.remove(name);
        let result = change(&mut sidecar);
        if let Some(sidecar) = sidecar {
            inner.sidecars.insert(name.to_string(), sidecar);
        }
        result
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics halfway through a change; what a poisoned lock guards is whole.
        self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
