//! [`Control`]: the control API as a whole. Owns the order in which things change: platform first, record second, and
//! back again when the record cannot be written, so that what is recorded is what served last.

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use object_store::ObjectStore;

use crate::catalog::{Catalog, unwritten};
use crate::error::Code;
use crate::records::RecordError;
use crate::{ActivateError, ControlError, Deployment, Platform};

/// What the control API must be told.
#[derive(Clone)]
pub struct ControlOptions {
    /// What a client must send as `Authorization: Bearer …`.
    pub token: String,
    /// 32 hexadecimal digits that stand in every path; any account is accepted, this one is answered.
    pub account_id: String,
    /// Where the gateway answers, for example `http://localhost:8787`.
    pub gateway_url: String,
    /// Host and port of the registry.
    pub registry_host: String,
    /// Makes the passwords that the credentials endpoint hands out; `None` for a registry that asks for none.
    pub registry_passwords: Option<RegistryPasswords>,
}

/// Makes a password for the registry's user `v1`; fails when it cannot be written down that there is one.
pub type RegistryPasswords =
    Arc<dyn Fn(RegistryGrant) -> BoxFuture<'static, Result<String, Box<dyn Error + Send + Sync>>> + Send + Sync>;

/// What a password for the registry is to be good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryGrant {
    /// Pull from every repository, and list them.
    pub pull: bool,
    /// Push to every repository, delete there and collect garbage.
    pub push: bool,
    /// How long.
    pub lifetime: Duration,
}

/// The control API over records in a bucket. Cheap to clone; every clone is the same.
#[derive(Clone)]
pub struct Control {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub catalog: Catalog,
    pub platform: Arc<dyn Platform>,
    pub options: ControlOptions,
    locks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Control {
    /// Opens the records of `bucket`, and fails when they cannot be read.
    pub async fn open(
        bucket: Arc<dyn ObjectStore>,
        platform: Arc<dyn Platform>,
        options: ControlOptions,
    ) -> Result<Control, ControlError> {
        let catalog = Catalog::new(bucket);
        catalog.workers().await?;
        Ok(Control { inner: Arc::new(Inner { catalog, platform, options, locks: Mutex::default() }) })
    }

    /// The API: everything below `/client/v4`; and beside it, for whoever watches the machine, `/metrics` and `/healthz`.
    pub fn router(&self) -> axum::Router {
        crate::routes::router(self.clone())
    }

    /// What is recorded and cannot be read, with the Workers whose it is. Everything else is as if it were not there.
    pub async fn damage(&self) -> Result<Vec<(Option<String>, ControlError)>, ControlError> {
        self.inner.catalog.damage().await
    }

    /// A text for each application that the operator has settings for, and that is not there.
    pub async fn unused_settings(&self) -> Result<Vec<String>, ControlError> {
        let applications = self.inner.catalog.applications().await?;
        let names: Vec<String> = applications.into_iter().map(|application| application.name).collect();
        let there_are = match names.is_empty() {
            true => "no application is deployed".to_string(),
            false => format!("there are `{}`", names.join("`, `")),
        };
        let text = |name: &String| {
            format!(
                "`[applications.{name}]` of the server's configuration file is of no application, so nothing that it says \
                 holds\nhint: correct its name; {there_are}"
            )
        };
        Ok(self.inner.platform.unused_settings(&names).iter().map(text).collect())
    }

    /// Every recorded Worker with its modules and applications, for the caller to activate after a restart. A Worker
    /// whose modules cannot be read is an error of its own and does not hold back the others.
    pub async fn restore(&self) -> Result<Vec<Result<Deployment, ControlError>>, ControlError> {
        let catalog = &self.inner.catalog;
        let slots = catalog.application_slots().await?;
        let mut deployments = Vec::new();
        for worker in catalog.workers().await? {
            deployments.push(catalog.deployment(worker, &slots).await);
        }
        Ok(deployments)
    }
}

impl Inner {
    /// Waits for its turn to change the Worker (or the application without a Worker) called `name`.
    pub async fn lock(&self, name: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            locks.entry(name.to_string()).or_default().clone()
        };
        lock.lock_owned().await
    }

    /// Activates `next`, then records it; when that fails, activates `previous` again.
    pub async fn switch(
        &self,
        previous: Option<&Deployment>,
        next: &Deployment,
        record: impl Future<Output = Result<(), RecordError>>,
    ) -> Result<(), ControlError> {
        let name = &next.worker.name;
        self.platform.activate(next).await.map_err(|error| activation(previous, error))?;
        match record.await {
            Ok(()) => Ok(()),
            Err(error) => {
                self.go_back(name, previous).await;
                Err(unwritten(&format!("cannot record the deployment of Worker `{name}`"), error))
            }
        }
    }

    /// Makes the platform serve what is recorded, after a change could not be.
    pub async fn go_back(&self, name: &str, recorded: Option<&Deployment>) {
        let result = match recorded {
            Some(recorded) => self.platform.activate(recorded).await,
            None => self.platform.remove_worker(name).await,
        };
        if let Err(error) = result {
            tracing::error!(worker = name, %error, "cannot go back to the version that is recorded; a restart does");
        }
    }
}

fn activation(previous: Option<&Deployment>, error: ActivateError) -> ControlError {
    let consequence = match previous {
        Some(_) => "nothing was deployed, the previous version keeps serving",
        None => "nothing was deployed",
    };
    let hint = error.hint.clone();
    let error = ControlError::new(Code::Activation, consequence).because(error);
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}
