//! [`Machine`]: the platform's side of the control API, wired to store, registry, runtime, workerd and gateway.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cfc_control::{
    ActivateError, ActivateErrorKind, ApplicationRecord, Control, Deployment, ExecError, ExecRequest, ExecSession,
    InstanceSize, InstanceView, LogError, LogRequest, Platform, PrepareError, TrialError,
};
use cfc_engine::{EgressPolicy, Engine};
use cfc_gateway::Gateway;
use cfc_oci::{Descriptor, Digest, Reference};
use cfc_registry::Registry;
use cfc_runtime::Runtime;
use cfc_sandbox::fail_point;
use cfc_store::Store;
use cfc_transfer::{NoProgress, Options};
use cfc_workers::Toolchain;
use futures::stream::BoxStream;
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::failure::Failure;
use crate::isolation::Isolations;
use crate::server::erase::Endings;
use crate::server::secrets::SecretFiles;
use crate::server::worker::{self, Place, RunningVersion, WorkerEngine};
use crate::server::{exec, logs, metrics, prepare, stop_grace, trial, views, worker_log};
use crate::settings::Settings;

/// How long instances of an application that is no more have to end.
pub const WITHDRAWAL: Duration = Duration::from_secs(10);

/// This machine.
pub struct Machine {
    settings: Settings,
    isolations: Isolations,
    transfer_options: Options,
    sockets: PathBuf,
    store: Store,
    registry: Registry,
    registry_host: String,
    runtime: Runtime,
    gateway: Gateway,
    workers: Arc<Mutex<HashMap<String, WorkerInService>>>,
    /// Containers of applications that were deleted.
    endings: Endings,
    secrets: SecretFiles,
    /// Counts the sockets, so that two versions of a Worker never share one.
    next_socket: AtomicU64,
    /// What `/metrics` told last.
    reported: metrics::Reported,
}

/// A Worker that answers requests.
pub struct WorkerInService {
    engine: WorkerEngine,
    version: RunningVersion,
    deployment: Deployment,
}

impl WorkerInService {
    /// The names of its applications.
    pub fn applications(&self) -> impl Iterator<Item = &str> {
        self.deployment.applications.iter().map(|application| application.name.as_str())
    }

    /// Ends its workerd, which would take its containers along, and leaves them to whoever comes next. What they are served
    /// by, and what was deployed.
    async fn end_process(self) -> (WorkerEngine, Deployment) {
        self.engine.engine().leave_containers();
        self.version.stop().await;
        (self.engine, self.deployment)
    }
}

impl Machine {
    pub fn new(
        settings: &Settings,
        sockets: PathBuf,
        store: Store,
        registry: Registry,
        registry_host: &str,
        runtime: Runtime,
        gateway: Gateway,
    ) -> Machine {
        Machine {
            settings: settings.clone(),
            isolations: Isolations::default(),
            transfer_options: Options::default(),
            sockets,
            store,
            registry,
            registry_host: registry_host.to_string(),
            runtime,
            gateway,
            workers: Arc::default(),
            endings: Endings::default(),
            secrets: SecretFiles::new(settings.data.join("secrets")),
            next_socket: AtomicU64::new(0),
            reported: metrics::Reported::default(),
        }
    }

    /// The same machine, on which applications are kept apart so.
    pub fn with_isolations(self, isolations: Isolations) -> Machine {
        Machine { isolations, ..self }
    }

    /// The same machine, which speaks so to the registries of others.
    pub fn with_transfer_options(self, transfer_options: Options) -> Machine {
        Machine { transfer_options, ..self }
    }

    /// Puts every recorded Worker back into service. One that cannot start does not keep the others from it: its
    /// requests are answered with the reason.
    pub async fn restore(&self, control: &Control) -> Result<(), Failure> {
        for deployment in control.restore().await? {
            let deployment = match deployment {
                Ok(deployment) => deployment,
                Err(error) => {
                    tracing::error!(%error, "a recorded Worker cannot be read");
                    continue;
                }
            };
            let name = deployment.worker.name.clone();
            if let Err(error) = self.activate(&deployment).await {
                tracing::error!(worker = %name, %error, "the Worker is not in service");
                self.gateway.fail_route(&name, &error.to_string());
            }
        }
        Ok(())
    }

    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// The Workers in service, by name.
    pub fn workers(&self) -> &Arc<Mutex<HashMap<String, WorkerInService>>> {
        &self.workers
    }

    /// Containers that end because their application was deleted.
    pub fn endings(&self) -> &Endings {
        &self.endings
    }

    /// A Worker's directory: configuration, Durable Object storage, log.
    pub fn worker_directory(&self, worker: &str) -> PathBuf {
        self.settings.data.join("workers").join(worker)
    }

    /// What `/metrics` told last.
    pub fn reported(&self) -> &metrics::Reported {
        &self.reported
    }

    /// How long instances may take to end.
    pub fn stop_grace(&self) -> Duration {
        stop_grace(&self.settings)
    }

    /// The engine of the Worker in service that has this application.
    pub async fn engine_of(&self, application: &str) -> Option<Engine> {
        let workers = self.workers.lock().await;
        let has_it =
            |worker: &&WorkerInService| worker.deployment.applications.iter().any(|other| other.name == application);
        workers.values().find(has_it).map(|worker| worker.engine.engine().clone())
    }

    /// Ends every workerd and leaves the containers to the next program, or to who ends them.
    pub async fn leave(&self) {
        let workers = std::mem::take(&mut *self.workers.lock().await);
        futures::future::join_all(workers.into_values().map(WorkerInService::end_process)).await;
    }

    /// A socket path of its own for `worker`.
    fn socket(&self, worker: &str, kind: &str) -> PathBuf {
        let number = self.next_socket.fetch_add(1, Ordering::Relaxed);
        self.sockets.join(format!("{}-{number}.{kind}", Digest::of(worker.as_bytes()).short()))
    }

    /// From now on, pruning leaves the images of all applications and instances, and no others for our sake. What is being
    /// prepared stays for another while.
    pub fn keep_images(&self) {
        let kept = self.store.images().keep_only(&self.runtime.images());
        if let Err(error) = kept.and_then(|()| self.store.forget_older_uses()) {
            tracing::error!(error = %prepare::one_line(&error), "`cfc prune` may leave or take what it should not");
        }
    }

    fn set_applications(&self, deployment: &Deployment) -> Result<(), ActivateErrorKind> {
        for application in &deployment.applications {
            let kept = self.store.images().keep(&application.image.manifest);
            kept.map_err(|error| ActivateErrorKind::Other(prepare::one_line(&error)))?;
            self.runtime.set_application(cfc_runtime::Application {
                name: application.name.clone(),
                image: application.image.manifest.clone(),
                max_instances: application.max_instances,
                instance_type: trial::instance_type(&application.size),
                startup_cpu_boost: self.settings.file.startup_cpu_boost,
                isolation: self.isolations.of(&application.name),
            });
        }
        Ok(())
    }

    /// What containers may reach besides the internet.
    fn egress(&self) -> EgressPolicy {
        EgressPolicy { allowed: self.settings.file.egress_allow.clone(), ..EgressPolicy::default() }
    }

    fn start_engine(&self, worker: &str) -> Result<WorkerEngine, ActivateErrorKind> {
        let socket = self.socket(worker, "engine");
        WorkerEngine::start(self.runtime.clone(), socket.clone(), self.egress()).map_err(|error| {
            self.gateway.remove_route(worker);
            ActivateErrorKind::Other(format!("cannot listen on `{}`: {error}", socket.display()))
        })
    }

    async fn activate_kind(&self, deployment: &Deployment) -> Result<(), ActivateErrorKind> {
        let name = &deployment.worker.name;
        let toolchain = Toolchain::locate(&self.settings.tools())
            .map_err(|error| ActivateErrorKind::Other(format!("{} (run `cfc setup`)", prepare::one_line(&error))))?;
        for application in &deployment.applications {
            // Restored Workers come here without a preparation; for all others this finds everything in its place.
            self.unpack(application).await?;
        }
        let secrets = self.secrets.read(name, &deployment.worker.secrets);
        let secrets = secrets.map_err(|error| ActivateErrorKind::Other(format!("cannot read {error}")))?;
        let mut workers = self.workers.lock().await;
        worker::try_version(&toolchain, &self.sockets, deployment, &secrets).await?;

        // Two workerd processes must not use one Durable Object storage, so requests wait until the old one has ended.
        self.gateway.hold_route(name);
        let (engine, previous) = match workers.remove(name) {
            Some(old) => {
                let (engine, previous) = old.end_process().await;
                engine.engine().pass_on(|view| is_current(view, &previous, deployment));
                (engine, Some(previous))
            }
            None => {
                self.make_room(deployment).await;
                (self.start_engine(name)?, None)
            }
        };
        // Before workerd starts: an alarm that is due may want a container at once.
        if let Err(error) = self.set_applications(deployment) {
            drop(workers);
            drop(engine);
            return Err(self.back_to(name, previous, error).await);
        }
        let place = Place {
            toolchain: &toolchain,
            directory: self.worker_directory(name),
            engine: &engine,
            http_socket: self.socket(name, "http"),
            secrets: &secrets,
            gateway: self.gateway.clone(),
        };
        let version = match RunningVersion::start(deployment, place).await {
            Ok(version) => version,
            Err(error) => {
                drop(workers);
                drop(engine);
                return Err(self.back_to(name, previous, error).await);
            }
        };
        self.gateway.set_route(name, version.socket().to_path_buf());
        engine.engine().end_outdated(self.stop_grace());
        for dropped in previous.iter().flat_map(|previous| &previous.applications) {
            if !deployment.applications.iter().any(|application| application.name == dropped.name) {
                self.withdraw(&dropped.name).await;
            }
        }
        workers.insert(name.clone(), WorkerInService { engine, version, deployment: deployment.clone() });
        Ok(())
    }

    /// Has an application's instances end, and forgets it. They have less time than others: their names are free then.
    async fn withdraw(&self, application: &str) {
        let grace = self.stop_grace().min(WITHDRAWAL);
        let instances = self.runtime.list().into_iter().filter(|view| view.spec.application == application);
        let names: Vec<String> = instances.map(|view| view.spec.name).collect();
        futures::future::join_all(names.iter().map(|name| self.runtime.stop(name, grace))).await;
        self.runtime.remove_application(application).await;
    }

    /// Puts `previous` back into service after its successor did not start, which its trial had not shown.
    async fn back_to(&self, name: &str, previous: Option<Deployment>, error: ActivateErrorKind) -> ActivateErrorKind {
        let Some(previous) = previous else {
            self.gateway.remove_route(name);
            return error;
        };
        if let Err(again) = Box::pin(self.activate_kind(&previous)).await {
            tracing::error!(worker = name, error = %again, "the previous version does not start again");
            self.gateway.fail_route(name, "neither its newest version nor the one before starts");
        }
        error
    }

    async fn unpack(&self, application: &ApplicationRecord) -> Result<(), ActivateErrorKind> {
        let image = &application.image;
        let prepared = match self.store.images().describe(&image.manifest.digest) {
            Ok(Some(_)) => prepare::unpack(&self.store, &image.manifest).await,
            _ => {
                let pinned = image.reference.with_digest(image.manifest.digest.clone());
                return self
                    .prepare_image(&pinned)
                    .await
                    .map(|_| ())
                    .map_err(|error| ActivateErrorKind::Other(prepare::one_line(&error)));
            }
        };
        prepared.map_err(|kind| ActivateErrorKind::Other(kind.to_string()))
    }

    async fn bring(&self, reference: &Reference) -> Result<Descriptor, PrepareError> {
        let is_ours = reference.registry.as_ref().is_none_or(|registry| *registry == self.registry_host);
        if is_ours {
            let brought = prepare::from_own_registry(&self.store, &self.registry, reference).await;
            return brought.map_err(|kind| prepare::error(reference, kind));
        }
        let pulled = cfc_transfer::pull(&self.store, reference, &self.transfer_options, &NoProgress).await;
        pulled.map_err(|error| prepare::pull_error(reference, error))
    }
}

#[async_trait]
impl Platform for Machine {
    async fn prepare_image(&self, reference: &Reference) -> Result<Descriptor, PrepareError> {
        let image = self.bring(reference).await?;
        prepare::unpack(&self.store, &image).await.map_err(|kind| prepare::error(reference, kind))?;
        Ok(image)
    }

    async fn try_image(&self, application: &str, image: &Descriptor, size: &InstanceSize) -> Result<(), TrialError> {
        trial::run(&self.runtime, &self.store, image, size, self.isolations.of(application)).await
    }

    async fn activate(&self, deployment: &Deployment) -> Result<(), ActivateError> {
        self.activate_kind(deployment).await.map_err(|kind| ActivateError {
            worker: deployment.worker.name.clone(),
            kind,
            hint: None,
        })
    }

    async fn clamps(&self, application: &ApplicationRecord) -> Vec<String> {
        self.runtime.clamps(&application.name)
    }

    fn isolation(&self, application: &str) -> String {
        self.isolations.describe(application)
    }

    fn unused_settings(&self, applications: &[String]) -> Vec<String> {
        let named = self.settings.file.applications.keys();
        named.filter(|name| !applications.contains(name)).cloned().collect()
    }

    async fn remove_worker(&self, name: &str) -> Result<(), ActivateError> {
        let removed = self.workers.lock().await.remove(name);
        self.gateway.remove_route(name);
        if let Some(worker) = removed {
            let (_engine, deployment) = worker.end_process().await;
            for application in &deployment.applications {
                self.withdraw(&application.name).await;
            }
        }
        Ok(())
    }

    async fn keep_secret(&self, worker: &str, value: &str) -> io::Result<Uuid> {
        let (files, worker, value) = (self.secrets.clone(), worker.to_string(), value.to_string());
        let kept = tokio::task::spawn_blocking(move || files.keep(&worker, &value)).await;
        kept.unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    async fn retain_secrets(&self, worker: &str, used: &BTreeSet<Uuid>) -> io::Result<()> {
        self.secrets.retain(worker, used)
    }

    async fn suspend_worker(&self, name: &str) {
        let removed = self.workers.lock().await.remove(name);
        self.gateway.remove_route(name);
        if let Some(worker) = removed {
            worker.end_process().await;
        }
        // Nothing here can fail; a test can let it die.
        let _ = fail_point("server.delete.suspended");
    }

    async fn erase_worker(&self, name: &str, applications: &[String]) -> io::Result<usize> {
        fail_point("server.delete.recorded")?;
        let ending = self.end_applications(applications).await;
        fail_point("server.delete.ended")?;
        self.remove_state(name).await?;
        self.secrets.remove(name)?;
        fail_point("server.delete.erased")?;
        Ok(ending)
    }

    async fn instances(&self, application: &ApplicationRecord) -> Vec<InstanceView> {
        views::instances(&self.runtime, application)
    }

    async fn exec(&self, instance: &str, request: ExecRequest) -> Result<ExecSession, ExecError> {
        exec::exec(&self.runtime, instance, request).await
    }

    async fn logs(
        &self,
        application: &ApplicationRecord,
        request: &LogRequest,
    ) -> Result<BoxStream<'static, io::Result<Bytes>>, LogError> {
        logs::logs(&self.runtime, application, request).await
    }

    async fn worker_logs(&self, name: &str, request: &LogRequest) -> BoxStream<'static, io::Result<Bytes>> {
        worker_log::read(self.worker_directory(name), request)
    }
}

/// Whether a container of `old` is as `new` wants it, so that it goes on. What it was started with is its Worker's matter.
fn is_current(view: &cfc_runtime::InstanceView, old: &Deployment, new: &Deployment) -> bool {
    let of = |deployment: &Deployment| {
        let mut applications = deployment.applications.iter();
        applications.find(|application| application.name == view.spec.application).cloned()
    };
    let (Some(old), Some(new)) = (of(old), of(new)) else { return false };
    new.image.manifest == view.spec.image && new.size == old.size
}
