//! The trial start of a deploy: does a container of this image run, and does it listen where it says?
//!
//! An image that EXPOSEs ports must listen on one of them; one that exposes none may be a job that ends with 0, but must
//! not fail at once.

use std::time::Duration;

use cfc_control::{InstanceSize, TrialError, TrialErrorKind};
use cfc_oci::Descriptor;
use cfc_runtime::{Application, ExitReport, InstanceSpec, InstanceType, Isolation, Runtime};
use cfc_store::Store;
use tokio::time::Instant;

/// How long an image that exposes a port may take to listen: the `Container` class's own `portReadyTimeoutMS`.
const LISTEN_PATIENCE: Duration = Duration::from_secs(20);
/// How long an image that exposes no port is watched.
const WATCH: Duration = Duration::from_millis(300);
/// How many of the last lines of output an error quotes.
const QUOTED_LINES: usize = 10;

/// The runtime's word for a size.
pub fn instance_type(size: &InstanceSize) -> InstanceType {
    InstanceType::custom(size.vcpu, size.memory_mib, size.disk_mb)
}

/// Starts one instance of `image`, kept apart as those of the application will be, watches it, and removes it again.
pub async fn run(
    runtime: &Runtime,
    store: &Store,
    image: &Descriptor,
    size: &InstanceSize,
    isolation: Isolation,
) -> Result<(), TrialError> {
    let ports = exposed_ports(store, image).await?;
    let name = format!("cfc-trial-{}", uuid::Uuid::new_v4());
    let application = Application {
        name: name.clone(),
        image: image.clone(),
        max_instances: 1,
        instance_type: instance_type(size),
        startup_cpu_boost: true,
        isolation,
    };
    runtime.set_application(application);
    let spec = InstanceSpec {
        name: name.clone(),
        application: name.clone(),
        image: image.clone(),
        command: None,
        env: Vec::new(),
        labels: Default::default(),
    };
    let tried = start_and_watch(runtime, spec, &ports).await;
    let tried = match tried {
        Ok(()) => Ok(()),
        Err(kind) => {
            Err(TrialError { hint: Some(hint(&kind).to_string()), kind, output: last_lines(runtime, &name).await })
        }
    };
    runtime.remove_application(&name).await;
    tried
}

async fn start_and_watch(runtime: &Runtime, spec: InstanceSpec, ports: &[u16]) -> Result<(), TrialErrorKind> {
    let name = spec.name.clone();
    let not_started = |error: cfc_runtime::RuntimeError| TrialErrorKind::NotStarted(super::prepare::one_line(&error));
    runtime.create(spec).await.map_err(not_started)?;
    runtime.start(&name).await.map_err(not_started)?;
    let started = Instant::now();
    let ended = |report: Option<ExitReport>| TrialErrorKind::Exited {
        status: report.as_ref().map_or("unknown status".to_string(), describe),
        after: started.elapsed(),
    };
    if ports.is_empty() {
        return match tokio::time::timeout(WATCH, runtime.wait(&name)).await {
            Ok(Some(report)) if report.code != 0 => Err(ended(Some(report))),
            _ => Ok(()),
        };
    }
    let listening = ports.iter().map(|port| Box::pin(runtime.connect(&name, *port, LISTEN_PATIENCE)));
    tokio::select! {
        biased;
        report = runtime.wait(&name) => Err(ended(report)),
        connected = futures::future::select_ok(listening) => match connected {
            Ok(_) => Ok(()),
            Err(_) => {
                let listens_on = runtime.listening_ports(&name).await.unwrap_or_default();
                Err(TrialErrorKind::NotListening { ports: ports.to_vec(), listens_on, waited: LISTEN_PATIENCE })
            }
        },
    }
}

/// The TCP ports that the image's config names.
async fn exposed_ports(store: &Store, image: &Descriptor) -> Result<Vec<u16>, TrialError> {
    let (store, image) = (store.clone(), image.clone());
    let loaded = tokio::task::spawn_blocking(move || store.images().load(&image)).await;
    let text = match loaded {
        Ok(Ok(image)) => return Ok(tcp_ports(&image.config.config)),
        Ok(Err(error)) => super::prepare::one_line(&error),
        Err(error) => error.to_string(),
    };
    Err(TrialError { kind: TrialErrorKind::NotStarted(text), output: String::new(), hint: None })
}

fn tcp_ports(config: &cfc_oci::ContainerConfig) -> Vec<u16> {
    let exposed = config.exposed_ports.iter().flatten().map(|(port, _)| port.as_str());
    let tcp = exposed.filter_map(|port| match port.split_once('/') {
        None => Some(port),
        Some((port, "tcp")) => Some(port),
        Some(_) => None,
    });
    tcp.filter_map(|port| port.parse().ok()).collect()
}

fn describe(report: &ExitReport) -> String {
    match (&report.error, report.oom_killed) {
        (Some(error), true) => format!("{}, {error}", report.code),
        (Some(error), false) => error.clone(),
        (None, true) => format!("{}, out of memory", report.code),
        (None, false) => report.code.to_string(),
    }
}

fn hint(kind: &TrialErrorKind) -> &'static str {
    match kind {
        TrialErrorKind::NotListening { listens_on, .. } if !listens_on.is_empty() => {
            "EXPOSE the port that it listens on, which is the one for the class's `defaultPort`, or have it listen on the one that is EXPOSEd"
        }
        TrialErrorKind::NotListening { .. } => {
            "listen on the port that the Dockerfile EXPOSEs, or deploy with --skip-trial if it needs the Worker's variables to start"
        }
        TrialErrorKind::Exited { .. } => {
            "try the image with `cfc run`; if it needs the Worker's variables to start, deploy with --skip-trial"
        }
        _ => "`cfc doctor` checks what this machine allows",
    }
}

async fn last_lines(runtime: &Runtime, name: &str) -> String {
    let Some(reader) = runtime.logs(name) else { return String::new() };
    let (lines, _) = reader.tail(QUOTED_LINES).await;
    lines.into_iter().map(|line| line.line).collect::<Vec<_>>().join("\n")
}
