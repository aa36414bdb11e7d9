//! What a deleted Worker leaves on this machine, and how it goes: its containers in their own time, its state at once.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cfc_control::{Control, Deployment};
use cfc_runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::server::machine::{Machine, WITHDRAWAL, WorkerInService};

/// The containers that end because their application was deleted. What is sent is nothing: the sender goes with the
/// container.
#[derive(Clone, Default)]
pub struct Endings(Arc<Mutex<BTreeMap<String, watch::Receiver<()>>>>);

impl Endings {
    fn all(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, watch::Receiver<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a container end within `grace`, and forgets it.
    async fn end(&self, runtime: &Runtime, name: String, grace: Duration) {
        let (ends, ended) = watch::channel(());
        self.all().insert(name.clone(), ended);
        // It may have ended by itself.
        let _ = runtime.stop(&name, grace).await;
        runtime.remove(&name).await;
        self.all().remove(&name);
        drop(ends);
    }

    /// Kills those of the application that still have time, and returns when nothing of them is left.
    async fn cut_short(&self, runtime: &Runtime, application: &str) {
        let is_of_it = |name: &str| runtime.inspect(name).is_some_and(|view| view.spec.application == application);
        let of_it: Vec<_> = self
            .all()
            .iter()
            .filter(|(name, _)| is_of_it(name))
            .map(|(name, ended)| (name.clone(), ended.clone()))
            .collect();
        for (name, mut ended) in of_it {
            tracing::warn!(instance = name, "killed: its Worker was deleted, and is deployed again");
            let _ = runtime.stop(&name, Duration::ZERO).await;
            let _ = ended.changed().await;
        }
    }
}

impl Machine {
    /// Tells the containers of these applications to end, and forgets the applications when they have. Returns how many
    /// still use their time after a while.
    pub async fn end_applications(&self, applications: &[String]) -> usize {
        let all = applications.iter().map(|application| self.end_application(application));
        let _ = tokio::time::timeout(WITHDRAWAL, futures::future::join_all(all.collect::<Vec<_>>())).await;
        applications.iter().map(|application| instances_of(self.runtime(), application).len()).sum()
    }

    fn end_application(&self, application: &str) -> JoinHandle<()> {
        let (runtime, endings, application) = (self.runtime().clone(), self.endings().clone(), application.to_string());
        let (workers, grace) = (self.workers().clone(), self.stop_grace());
        tokio::spawn(async move {
            let names = instances_of(&runtime, &application);
            futures::future::join_all(names.into_iter().map(|name| endings.end(&runtime, name, grace))).await;
            forget(&runtime, &*workers.lock().await, &application).await;
        })
    }

    /// A Worker comes that none in service precedes: what a deleted one of its name has left must not be taken for its own.
    pub async fn make_room(&self, deployment: &Deployment) {
        for application in &deployment.applications {
            self.endings().cut_short(self.runtime(), &application.name).await;
        }
    }

    /// Goes on with deletions that the end of an earlier program came into.
    pub async fn finish_deletions(&self, control: &Control) {
        let finished = async {
            control.finish_deletions().await?;
            let mut names: Vec<String> = self.runtime().list().into_iter().map(|view| view.spec.application).collect();
            names.sort();
            names.dedup();
            control.deleted_applications(&names).await
        };
        match finished.await {
            Ok(deleted) => deleted.iter().for_each(|application| {
                tracing::info!(application, "was deleted: its containers are told to end");
                self.end_application(application);
            }),
            Err(error) => tracing::error!(error = error.chain(), "what was deleted may have left something"),
        }
    }

    /// Removes a Worker's directory. Half of it is never found under its name.
    pub async fn remove_state(&self, worker: &str) -> io::Result<()> {
        let directory = self.worker_directory(worker);
        // No Worker's name begins with a point.
        let aside = directory.with_file_name(format!(".{worker}.deleted"));
        let removed = tokio::task::spawn_blocking(move || remove_by_way_of(&directory, &aside)).await;
        removed.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}

fn instances_of(runtime: &Runtime, application: &str) -> Vec<String> {
    let instances = runtime.list().into_iter().filter(|view| view.spec.application == application);
    instances.map(|view| view.spec.name).collect()
}

/// The runtime forgets the application, unless a Worker has it again.
async fn forget(runtime: &Runtime, workers: &HashMap<String, WorkerInService>, application: &str) {
    let has_it = |worker: &WorkerInService| worker.applications().any(|name| name == application);
    if !workers.values().any(has_it) {
        runtime.remove_application(application).await;
    }
}

fn remove_by_way_of(directory: &Path, aside: &Path) -> io::Result<()> {
    remove_tree(aside)?;
    match std::fs::rename(directory, aside) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(named("put aside", directory, &error)),
        Ok(()) => {}
    }
    remove_tree(aside)
}

/// Removes a directory that may be there.
pub fn remove_tree(directory: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(named("remove", directory, &error)),
        _ => Ok(()),
    }
}

/// The error with what could not be done to which path.
pub fn named(what: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {what} `{}`: {error}", path.display()))
}
