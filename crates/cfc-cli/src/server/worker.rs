//! One Worker in service: its engine socket, its workerd process, and what restarts it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cfc_control::{ActivateErrorKind, ApplicationRecord, Deployment};
use cfc_engine::{EgressPolicy, Engine, WorkerNames};
use cfc_gateway::Gateway;
use cfc_runtime::Runtime;
use cfc_workers::{Bundle, ContainerBinding, Module, Toolchain, WorkerVersion, Workerd};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

/// The sidecar image that workerd is told to use. Nothing of this name is ever pulled: the engine plays it in process.
pub const SIDECAR_IMAGE: &str = "cfc/sidecar:1";

/// How long workerd may take to end after SIGTERM: for requests under way, while new ones wait at the gateway.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// Waits between restarts of a workerd that ends by itself: doubling from the first to the last.
const FIRST_RESTART_DELAY: Duration = Duration::from_millis(100);
const LAST_RESTART_DELAY: Duration = Duration::from_secs(30);

/// The engine of one Worker. It stays the same while versions of the Worker come and go, so that a new workerd finds the
/// containers of the old one.
pub struct WorkerEngine {
    engine: Engine,
    socket: PathBuf,
    serving: JoinHandle<()>,
}

impl WorkerEngine {
    /// Listens on `socket`. Containers may reach what `egress` says.
    pub fn start(runtime: Runtime, socket: PathBuf, egress: EgressPolicy) -> std::io::Result<WorkerEngine> {
        match std::fs::remove_file(&socket) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&socket)?;
        let engine = Engine::new(runtime, WorkerNames::default(), egress);
        let serving = tokio::spawn({
            let engine = engine.clone();
            async move {
                if let Err(error) = engine.serve(listener, std::future::pending()).await {
                    tracing::error!(%error, "a Worker's engine stopped listening");
                }
            }
        });
        Ok(WorkerEngine { engine, socket, serving })
    }

    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// What the names that the deployment's workerd uses mean, from now on.
    fn set_names(&self, deployment: &Deployment, unique_keys: &BTreeMap<String, String>) {
        let mut names = WorkerNames {
            worker: deployment.worker.name.clone(),
            sidecar_image: SIDECAR_IMAGE.to_string(),
            ..WorkerNames::default()
        };
        for binding in &deployment.worker.containers {
            let Some(application) = deployment.application_of(&binding.class_name) else { continue };
            let Some(key) = unique_keys.get(&binding.class_name) else { continue };
            names.applications.insert(key.clone(), application.name.clone());
            names.images.insert(image_name(application), application.image.manifest.clone());
        }
        self.engine.set_names(names);
    }
}

impl Drop for WorkerEngine {
    fn drop(&mut self) {
        self.serving.abort();
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// What a Worker's configuration calls the image of an application.
fn image_name(application: &ApplicationRecord) -> String {
    format!("{}@{}", application.name, application.image.manifest.digest)
}

/// Sees whether workerd accepts and starts a version, without its state and without touching what serves now.
/// Works below `scratch`.
pub async fn try_version(
    toolchain: &Toolchain,
    scratch: &Path,
    deployment: &Deployment,
    secrets: &BTreeMap<String, String>,
) -> Result<(), ActivateErrorKind> {
    cfc_workers::try_version(toolchain, scratch, &worker_version(deployment, secrets)).await.map_err(rejected)
}

/// One version of a Worker, served by one workerd.
pub struct RunningVersion {
    workerd: Arc<Workerd>,
    socket: PathBuf,
    supervisor: JoinHandle<()>,
}

/// What a version needs of its surroundings.
pub struct Place<'a> {
    pub toolchain: &'a Toolchain,
    /// The Worker's directory: configuration, Durable Object storage, log.
    pub directory: PathBuf,
    pub engine: &'a WorkerEngine,
    /// The socket that this version's workerd shall listen on.
    pub http_socket: PathBuf,
    /// The values of the Worker's secrets, by name.
    pub secrets: &'a BTreeMap<String, String>,
    pub gateway: Gateway,
}

impl RunningVersion {
    /// Configures and starts workerd, and returns when it listens.
    pub async fn start(deployment: &Deployment, place: Place<'_>) -> Result<RunningVersion, ActivateErrorKind> {
        let version = worker_version(deployment, place.secrets);
        let config = {
            let toolchain = place.toolchain.clone();
            let directory = place.directory.clone();
            let engine_socket = place.engine.socket.clone();
            tokio::task::spawn_blocking(move || {
                cfc_workers::write_config(&toolchain, &directory, &version, &engine_socket, SIDECAR_IMAGE)
                    .map_err(rejected)
            })
            .await
            .map_err(|error| ActivateErrorKind::Other(error.to_string()))??
        };
        place.engine.set_names(deployment, &config.unique_keys);
        let launch = Launch {
            toolchain: place.toolchain.clone(),
            directory: place.directory,
            config: config.path,
            socket: place.http_socket.clone(),
        };
        let workerd = Arc::new(launch.start().await.map_err(rejected)?);
        let supervisor = tokio::spawn(supervise(
            deployment.worker.name.clone(),
            launch,
            workerd.clone(),
            place.gateway.clone(),
            place.engine.engine.clone(),
        ));
        Ok(RunningVersion { workerd, socket: place.http_socket, supervisor })
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Ends the process, which would remove its containers: unless its engine leaves them.
    pub async fn stop(self) {
        self.supervisor.abort();
        let _ = self.supervisor.await;
        self.workerd.stop(STOP_PATIENCE).await;
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// How to start a version's workerd, the first time and again.
struct Launch {
    toolchain: Toolchain,
    directory: PathBuf,
    config: PathBuf,
    socket: PathBuf,
}

impl Launch {
    async fn start(&self) -> Result<Workerd, cfc_workers::WorkersError> {
        let _ = std::fs::remove_file(&self.socket);
        Workerd::start(&self.toolchain, &self.directory, &self.config, &self.socket).await
    }
}

/// Starts workerd again whenever it ends by itself; requests wait at the gateway meanwhile.
async fn supervise(worker: String, launch: Launch, first: Arc<Workerd>, gateway: Gateway, engine: Engine) {
    let mut current = first;
    let mut delay = FIRST_RESTART_DELAY;
    loop {
        let started = tokio::time::Instant::now();
        let exited = current.exited().await;
        gateway.hold_route(&worker);
        engine.workerd_ended();
        tracing::error!(%worker, %exited, "workerd ended by itself, starting it again");
        if started.elapsed() > LAST_RESTART_DELAY {
            delay = FIRST_RESTART_DELAY;
        }
        current = loop {
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(LAST_RESTART_DELAY);
            match launch.start().await {
                Ok(workerd) => break Arc::new(workerd),
                Err(error) => {
                    let cause = super::prepare::one_line(&error);
                    tracing::error!(%worker, %cause, "workerd does not start");
                    gateway.fail_route(&worker, "its workerd process does not start; see the log of cfc serve");
                }
            }
        };
        gateway.set_route(&worker, launch.socket.clone());
    }
}

fn rejected(error: cfc_workers::WorkersError) -> ActivateErrorKind {
    let text = super::prepare::one_line(&error);
    match &error.hint {
        Some(hint) => ActivateErrorKind::Rejected(format!("{text} ({hint})")),
        None => ActivateErrorKind::Rejected(text),
    }
}

/// The deployment in the words of `cfc-workers`, for which secrets are variables.
fn worker_version(deployment: &Deployment, secrets: &BTreeMap<String, String>) -> WorkerVersion {
    let worker = &deployment.worker;
    let modules = deployment.modules.iter().map(|module| Module {
        name: module.name.clone(),
        content_type: module.content_type.clone(),
        bytes: module.bytes.to_vec(),
    });
    let containers = worker.containers.iter().filter_map(|binding| {
        let application = deployment.application_of(&binding.class_name)?;
        Some(ContainerBinding { class_name: binding.class_name.clone(), image: image_name(application) })
    });
    let secrets = secrets.iter().map(|(name, value)| (name.clone(), serde_json::Value::from(value.as_str())));
    WorkerVersion {
        name: worker.name.clone(),
        bundle: Bundle { main_module: worker.main_module.clone(), modules: modules.collect() },
        compatibility_date: worker.compatibility_date.clone(),
        compatibility_flags: worker.compatibility_flags.clone(),
        vars: worker.vars.clone().into_iter().chain(secrets).collect(),
        durable_objects: worker.durable_objects.clone(),
        migrations: worker.migrations.clone(),
        containers: containers.collect(),
        more: worker.more.clone(),
    }
}
