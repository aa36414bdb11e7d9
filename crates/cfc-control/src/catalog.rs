//! [`Catalog`]: everything that is recorded, in the terms of Workers and applications.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use object_store::ObjectStore;
use uuid::Uuid;

use crate::modules::ModuleStore;
use crate::records::{RecordError, RecordErrorKind, Records, Revision};
use crate::rollout::RolloutRecord;
use crate::{ApplicationRecord, ControlError, Deployment, WorkerRecord, error::Code};

/// ```text
/// control/
///   workers/<name>/<revision>.json          WorkerRecord, with the application records its deployment made
///   applications/<id>/<version>.json        ApplicationRecord
///   rollouts/<id>/<revision>.json           RolloutRecord
///   modules/<sha256>                        see ModuleStore
/// ```
///
/// A deployment is one object: the Worker's revision. The application revisions that follow it repeat what it holds;
/// until they are written, readers take the newer version from the Worker.
#[derive(Clone)]
pub(crate) struct Catalog {
    workers: Records,
    applications: Records,
    rollouts: Records,
    modules: ModuleStore,
}

/// The applications, deleted ones included; a revision's number is the application's version.
pub(crate) type ApplicationSlots = BTreeMap<Uuid, Revision<ApplicationRecord>>;

impl Catalog {
    pub fn new(bucket: Arc<dyn ObjectStore>) -> Catalog {
        Catalog {
            workers: Records::new(bucket.clone(), "control/workers"),
            applications: Records::new(bucket.clone(), "control/applications"),
            rollouts: Records::new(bucket.clone(), "control/rollouts"),
            modules: ModuleStore::new(bucket),
        }
    }

    pub fn modules(&self) -> &ModuleStore {
        &self.modules
    }

    pub async fn worker(&self, name: &str) -> Result<Revision<WorkerRecord>, ControlError> {
        self.workers.newest(name).await.map_err(unreadable)
    }

    /// The Worker, or the error that says that there is none.
    pub async fn existing_worker(&self, name: &str) -> Result<Revision<WorkerRecord>, ControlError> {
        let revision = self.worker(name).await?;
        match revision.value {
            Some(_) => Ok(revision),
            None => Err(no_such_worker(name)),
        }
    }

    /// The Workers whose records can be read. What is wrong with the others tells [`damage`](Catalog::damage).
    pub async fn workers(&self) -> Result<Vec<WorkerRecord>, ControlError> {
        let all = self.workers.all().await.map_err(unreadable)?;
        Ok(all.into_iter().filter_map(|(_, revision)| revision.ok()?.value).collect())
    }

    /// The records that cannot be read, with the Workers whose they are.
    pub async fn damage(&self) -> Result<Vec<(Option<String>, ControlError)>, ControlError> {
        let workers = self.workers.all::<WorkerRecord>().await.map_err(unreadable)?;
        let workers = workers.into_iter().filter_map(|(name, read)| Some((Some(name), unreadable(read.err()?))));
        let applications = self.applications.all::<ApplicationRecord>().await.map_err(unreadable)?;
        let applications = applications.into_iter().filter_map(|(_, read)| Some((None, unreadable(read.err()?))));
        Ok(workers.chain(applications).collect())
    }

    /// Makes `record` the Worker's next revision; `None` deletes it.
    pub async fn write_worker(
        &self,
        name: &str,
        number: u64,
        record: Option<&WorkerRecord>,
    ) -> Result<(), RecordError> {
        self.workers.create(name, number, record).await
    }

    /// The Workers that were there and are deleted.
    pub async fn deleted_workers(&self) -> Result<BTreeSet<String>, ControlError> {
        let all = self.workers.all::<WorkerRecord>().await.map_err(unreadable)?;
        let is_deleted = |read: &Result<Revision<WorkerRecord>, RecordError>| {
            read.as_ref().is_ok_and(|revision| revision.number > 0 && revision.value.is_none())
        };
        Ok(all.into_iter().filter(|(_, read)| is_deleted(read)).map(|(name, _)| name).collect())
    }

    /// The applications of a deleted Worker whose own records do not say yet that they are deleted, too.
    pub async fn left_by(&self, worker: &str) -> Result<Vec<ApplicationRecord>, ControlError> {
        let live = self.recorded_slots().await?.into_values().filter_map(|slot| slot.value);
        Ok(live.filter(|application| application.attachment.as_ref().is_some_and(|of| of.worker == worker)).collect())
    }

    /// Removes what is recorded of a Worker but the newest revision: of a deleted one, that it is.
    pub async fn forget_older(&self, worker: &str) -> Result<(), ControlError> {
        let what = format!("cannot remove the older records of Worker `{worker}`");
        let newest = self.workers.newest::<serde_json::Value>(worker).await.map_err(unreadable)?;
        let forgotten = self.workers.remove_before(worker, newest.number).await;
        forgotten.map_err(|error| ControlError::new(Code::Bucket, what).because(error))
    }

    /// Every application's newest version, from its own record or from its Worker's, whichever is newer. Those of a deleted
    /// Worker are deleted.
    pub async fn application_slots(&self) -> Result<ApplicationSlots, ControlError> {
        let deleted = self.deleted_workers().await?;
        let is_left = |application: &ApplicationRecord| {
            application.attachment.as_ref().is_some_and(|attachment| deleted.contains(&attachment.worker))
        };
        let mut slots = self.recorded_slots().await?;
        for slot in slots.values_mut() {
            slot.value = slot.value.take().filter(|application| !is_left(application));
        }
        Ok(slots)
    }

    async fn recorded_slots(&self) -> Result<ApplicationSlots, ControlError> {
        let mut slots = ApplicationSlots::new();
        for (key, revision) in self.applications.all().await.map_err(unreadable)? {
            if let (Ok(id), Ok(revision)) = (key.parse(), revision) {
                slots.insert(id, revision);
            }
        }
        for application in self.workers().await?.into_iter().flat_map(|worker| worker.applications) {
            let slot = slots.entry(application.id).or_insert(Revision { number: 0, value: None });
            if application.version > slot.number {
                *slot = Revision { number: application.version, value: Some(application) };
            }
        }
        Ok(slots)
    }

    pub async fn applications(&self) -> Result<Vec<ApplicationRecord>, ControlError> {
        let mut applications: Vec<_> =
            self.application_slots().await?.into_values().filter_map(|slot| slot.value).collect();
        applications.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(applications)
    }

    /// The application with this id or name.
    pub async fn application(&self, id_or_name: &str) -> Result<ApplicationRecord, ControlError> {
        let applications = self.applications().await?;
        let is_it = |application: &&ApplicationRecord| {
            application.name == id_or_name || id_or_name.parse() == Ok(application.id)
        };
        applications.iter().find(is_it).cloned().ok_or_else(|| no_such_application(id_or_name, &applications))
    }

    /// Writes version `number` of an application; `None` deletes it.
    pub async fn write_application(
        &self,
        id: Uuid,
        number: u64,
        record: Option<&ApplicationRecord>,
    ) -> Result<(), RecordError> {
        self.applications.create(&id.to_string(), number, record).await
    }

    pub async fn rollout(&self, id: Uuid) -> Result<Option<RolloutRecord>, ControlError> {
        Ok(self.rollouts.newest(&id.to_string()).await.map_err(unreadable)?.value)
    }

    pub async fn rollouts_of(&self, application: Uuid) -> Result<Vec<RolloutRecord>, ControlError> {
        let all = self.rollouts.all::<RolloutRecord>().await.map_err(unreadable)?;
        let values = all.into_iter().filter_map(|(_, revision)| revision.ok()?.value);
        let mut rollouts: Vec<_> = values.filter(|rollout| rollout.application_id == application).collect();
        rollouts.sort_by_key(|rollout| std::cmp::Reverse(rollout.created_at));
        Ok(rollouts)
    }

    pub async fn write_rollout(&self, rollout: &RolloutRecord) -> Result<(), ControlError> {
        let written = self.rollouts.create(&rollout.id.to_string(), 1, Some(rollout)).await;
        written.map_err(|error| unwritten("cannot record the rollout", error))
    }

    /// The Worker with its modules' bytes and its applications: what a platform activates.
    pub async fn deployment(&self, worker: WorkerRecord, slots: &ApplicationSlots) -> Result<Deployment, ControlError> {
        let mut modules = Vec::with_capacity(worker.modules.len());
        for record in &worker.modules {
            let unreadable = |error| {
                ControlError::new(
                    Code::Bucket,
                    format!("cannot read version {} of Worker `{}`", worker.version_id, worker.name),
                )
                .because(error)
            };
            modules.push(self.modules.get(record).await.map_err(unreadable)?);
        }
        let applications = attached_applications(&worker, slots);
        Ok(Deployment { worker, modules, applications })
    }
}

/// One application for each class that has one: that of the Worker's own deployment, else the one changed last.
pub(crate) fn attached_applications(worker: &WorkerRecord, slots: &ApplicationSlots) -> Vec<ApplicationRecord> {
    let live: Vec<&ApplicationRecord> = slots.values().filter_map(|slot| slot.value.as_ref()).collect();
    let is_deployed_with_it = |id| worker.applications.iter().any(|application| application.id == id);
    let application_of = |class_name: &str| {
        let attachment = worker.attachment(class_name);
        let attached = live.iter().filter(|application| application.attachment.as_ref() == Some(&attachment));
        attached.max_by_key(|application| (is_deployed_with_it(application.id), application.updated_at))
    };
    worker.containers.iter().filter_map(|container| application_of(&container.class_name).cloned().cloned()).collect()
}

pub(crate) fn no_such_worker(name: &str) -> ControlError {
    ControlError::new(Code::NoSuchWorker, format!("there is no Worker `{name}`"))
        .hint("`cfc deploy` in the project's directory deploys it")
}

fn no_such_application(id_or_name: &str, applications: &[ApplicationRecord]) -> ControlError {
    let error = ControlError::new(Code::NotFound, format!("there is no container application `{id_or_name}`"));
    let names: Vec<_> = applications.iter().map(|application| format!("`{}`", application.name)).collect();
    match names.is_empty() {
        true => error.hint("none is deployed yet; `cfc deploy` in a project's directory deploys its containers"),
        false => error.hint(format!("there are {}", names.join(", "))),
    }
}

fn unreadable(error: RecordError) -> ControlError {
    let hint = match error.kind {
        RecordErrorKind::Malformed(_) => Some(format!(
            "move `bucket/{}` of the data directory away: the revision before it holds then; `cfc serve` reads it at its start",
            error.path
        )),
        _ => None,
    };
    let read = ControlError::new(Code::Bucket, "cannot read what is deployed").because(error);
    match hint {
        Some(hint) => read.hint(hint),
        None => read,
    }
}

/// `what` could not be recorded: another writer was first, or the bucket failed.
pub(crate) fn unwritten(what: &str, error: RecordError) -> ControlError {
    match error.kind {
        crate::records::RecordErrorKind::Conflict => ControlError::new(Code::Conflict, what)
            .because(error)
            .hint("another change of the same thing was recorded meanwhile; look at it, then try again"),
        _ => ControlError::new(Code::Bucket, what).because(error),
    }
}
