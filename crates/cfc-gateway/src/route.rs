//! [`Routes`]: the Workers and where they are.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::upstream::Upstream;

/// Where a Worker's requests go.
#[derive(Clone)]
pub(crate) enum Route {
    /// To its process.
    Up(Arc<Upstream>),
    /// Nowhere yet: a process is coming.
    Held,
    /// Nowhere, for this reason.
    Down(Arc<str>),
}

/// The routes by Worker. Whoever waits for a change of one can watch it.
#[derive(Default)]
pub(crate) struct Routes {
    routes: Mutex<BTreeMap<String, watch::Sender<Route>>>,
}

impl Routes {
    pub fn set(&self, worker: &str, socket: PathBuf) {
        self.change(worker, Route::Up(Arc::new(Upstream::new(socket))));
    }

    pub fn hold(&self, worker: &str) {
        self.change(worker, Route::Held);
    }

    pub fn fail(&self, worker: &str, reason: &str) {
        self.change(worker, Route::Down(reason.into()));
    }

    pub fn remove(&self, worker: &str) {
        self.lock().remove(worker);
    }

    pub fn names(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// The route of `worker` and its changes to come.
    pub fn watch(&self, worker: &str) -> Option<watch::Receiver<Route>> {
        self.lock().get(worker).map(watch::Sender::subscribe)
    }

    /// The only Worker, where there is just one.
    pub fn only(&self) -> Option<String> {
        let routes = self.lock();
        let mut names = routes.keys();
        names.next().filter(|_| names.next().is_none()).cloned()
    }

    fn change(&self, worker: &str, route: Route) {
        let mut routes = self.lock();
        match routes.get(worker) {
            Some(sender) => drop(sender.send_replace(route)),
            None => drop(routes.insert(worker.to_string(), watch::channel(route).0)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, watch::Sender<Route>>> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
