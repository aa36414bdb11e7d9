//! The deletion of a Worker. It is gone the moment its record says so. What it leaves (records of its applications,
//! containers, state, its older records) goes after that; where a crash comes in between, after the next start, or before
//! a Worker of its name is deployed.

use serde::{Deserialize, Serialize};

use crate::catalog::unwritten;
use crate::control::Inner;
use crate::error::Code;
use crate::{Control, ControlError};

/// What went with a Worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleted {
    /// The names of its applications.
    pub applications: Vec<String>,
    /// How many of its containers have been told to end and use the time that they have for it.
    pub ending: usize,
}

impl Inner {
    /// Deletes a Worker with its applications, its state and its records. A deployment of it comes before or after.
    ///
    /// # Errors
    /// Nothing is deleted, unless the error says that it is and what of it is left.
    pub async fn delete_worker(&self, name: &str) -> Result<Deleted, ControlError> {
        let _turn = self.lock(name).await;
        let recorded = self.catalog.existing_worker(name).await?;
        let slots = self.catalog.application_slots().await?;
        let mut deployment = None;
        if let Some(worker) = recorded.value {
            // Some may be in the Worker's record only, which will not say any more what has to go.
            self.follow_up(&worker.applications, &[]).await;
            deployment = self.catalog.deployment(worker, &slots).await.ok();
        }
        self.platform.suspend_worker(name).await;
        if let Err(error) = self.catalog.write_worker(name, recorded.number + 1, None).await {
            self.go_back(name, deployment.as_ref()).await;
            return Err(unwritten(&format!("cannot record that Worker `{name}` is deleted"), error));
        }
        self.finish_deletion(name).await
    }

    /// Removes what a Worker has left whose record says that it is deleted. To be called by whoever has its lock.
    pub async fn finish_deletion(&self, name: &str) -> Result<Deleted, ControlError> {
        let left = |error: ControlError| {
            ControlError::new(Code::Bucket, format!("Worker `{name}` is deleted, and not all that it has left is gone"))
                .because(error)
                .hint("the next start of `cfc serve` removes the rest, or the next deployment of a Worker of that name")
        };
        let applications = self.catalog.left_by(name).await.map_err(left)?;
        let names: Vec<String> = applications.iter().map(|application| application.name.clone()).collect();
        let ending = self.platform.erase_worker(name, &names).await.map_err(|error| {
            left(ControlError::new(Code::Bucket, "its containers or its state are left").because(error))
        })?;
        for application in &applications {
            let written = self.catalog.write_application(application.id, application.version + 1, None).await;
            let what = format!("cannot record that container application `{}` is deleted", application.name);
            written.map_err(|error| left(unwritten(&what, error)))?;
        }
        self.catalog.forget_older(name).await.map_err(left)?;
        Ok(Deleted { applications: names, ending })
    }
}

impl Control {
    /// Removes what deleted Workers have left because a crash came in between, and values of secrets that were never
    /// recorded. What cannot be removed is in the log.
    pub async fn finish_deletions(&self) -> Result<(), ControlError> {
        for worker in self.inner.catalog.workers().await? {
            let _turn = self.inner.lock(&worker.name).await;
            let recorded = self.inner.catalog.worker(&worker.name).await?;
            self.inner.drop_unused_secrets(&worker.name, recorded.value.as_ref()).await;
        }
        for name in self.inner.catalog.deleted_workers().await? {
            let _turn = self.inner.lock(&name).await;
            let recorded = self.inner.catalog.worker(&name).await?;
            if recorded.value.is_none()
                && let Err(error) = self.inner.finish_deletion(&name).await
            {
                tracing::error!(worker = name, error = error.chain(), "what a deleted Worker has left is not all gone");
            }
        }
        Ok(())
    }

    /// Those of `applications`, by name, that were there and are deleted.
    pub async fn deleted_applications(&self, applications: &[String]) -> Result<Vec<String>, ControlError> {
        let slots = self.inner.catalog.application_slots().await?;
        let is_deleted =
            |name: &&String| slots.get(&crate::application_id(name)).is_some_and(|slot| slot.value.is_none());
        Ok(applications.iter().filter(is_deleted).cloned().collect())
    }
}
