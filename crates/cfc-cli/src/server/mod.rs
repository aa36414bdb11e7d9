//! The platform in one process: opens the parts, wires them, and ends them in order.

pub mod client;
pub mod descriptors;
pub mod handover;
pub mod listen;
pub mod lock;
pub mod registry;
pub mod signals;

mod erase;
mod exec;
mod logs;
mod machine;
mod metrics;
mod operations;
mod prepare;
mod resolve;
mod secrets;
pub mod service_manager;
mod token;
mod trial;
mod until_serving;
mod views;
mod worker;
mod worker_log;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cfc_control::{Control, ControlOptions};
use cfc_gateway::{Gateway, GatewayOptions};
use cfc_runtime::{Capacity, Relays, Runtime, RuntimeConfig};
use cfc_sandbox::Launcher;
use cfc_store::Store;

use crate::failure::Failure;
use crate::images::build::sandbox_failure;
use crate::isolation::Isolations;
use crate::output;
use crate::server::handover::{Handover, check_program};
use crate::server::lock::DataLock;
use crate::server::machine::Machine;
use crate::server::signals::{Asked, Signals};
use crate::server::until_serving::UntilServing;
use crate::settings::{Addresses, Settings};
use crate::span::Span;

/// How long requests under way may go on when the server ends.
const GRACE: Duration = Duration::from_secs(5);
/// How often the store is told which images are needed. What is prepared but not in service yet stays for one such time.
const KEEP_IMAGES_EVERY: Duration = Duration::from_secs(15 * 60);

/// The ports to listen on; 0 chooses a free one.
pub struct Ports {
    pub gateway: u16,
    pub control: u16,
    pub registry: u16,
}

/// The program that a launcher is started from: this one.
pub fn launcher_program() -> Result<PathBuf, Failure> {
    cfc_sandbox::current_program().map_err(|error| Failure::because("cannot find the program that is running", &error))
}

/// Has a launcher go on with this program that an older or a newer cfc has left behind. Why it does not, if it does not:
/// everything works then too, as far as the two understand each other.
fn replace_launcher(launcher: &Launcher) -> Result<Option<String>, Failure> {
    if !launcher.is_of_another_program() {
        return Ok(None);
    }
    match launcher.replace(&launcher_program()?) {
        Ok(()) => Ok(None),
        Err(error) => {
            tracing::warn!(reason = %error, "the launcher goes on with its program");
            Ok(Some(error.to_string()))
        }
    }
}

/// What a server is started with.
pub struct Server {
    pub settings: Settings,
    pub ports: Ports,
    /// What this program got from the one before.
    pub inherited: Option<Handover>,
    /// What takes this program's place when it is upgraded.
    pub program: PathBuf,
    /// The data directory is this server's.
    pub lock: DataLock,
    pub isolations: Isolations,
}

/// Serves until a signal asks to end, or until another program shall take this one's place: then what it gets is
/// returned.
pub fn run(server: Server) -> Result<Option<Handover>, Failure> {
    let asynchronous = tokio::runtime::Runtime::new()
        .map_err(|error| Failure::because("cannot start the asynchronous runtime", &error))?;
    let served = asynchronous.block_on(serve(server));
    // Threads that wait for instances wait on; the next program has its own.
    asynchronous.shutdown_background();
    served
}

async fn serve(server: Server) -> Result<Option<Handover>, Failure> {
    let Server { settings, ports, inherited, program, lock, isolations } = server;
    // Before others look how many they may have.
    descriptors::raise();
    let (settings, program) = (&settings, program.as_path());
    let mut signals = Signals::catch();
    let hangups = signals::hangups();
    let generation = inherited.as_ref().map_or(0, |handover| handover.generation);
    // Ports first: a refusal must leave nothing half made.
    let (gateway_listener, control_listener, registry_listener) = match &inherited {
        Some(handover) => (
            listen::inherited(&handover.gateway)?,
            listen::inherited(&handover.control)?,
            listen::inherited(&handover.registry)?,
        ),
        None => (
            listen::bind("gateway", ports.gateway, "--port").await?,
            listen::bind("control API", ports.control, "--control-port").await?,
            listen::bind("registry", ports.registry, "--registry-port").await?,
        ),
    };
    drop(inherited);
    let (gateway_listener, gateway_kept) = listen::share(gateway_listener)?;
    let (control_listener, control_kept) = listen::share(control_listener)?;
    let (registry_listener, registry_kept) = listen::share(registry_listener)?;
    let mut addresses = Addresses {
        pid: std::process::id(),
        gateway: listen::address(&gateway_listener)?.to_string(),
        control: listen::address(&control_listener)?.to_string(),
        registry: listen::address(&registry_listener)?.to_string(),
        version: env!("CARGO_PKG_VERSION").to_string(),
        generation,
        refusals: 0,
        refusal: None,
        launcher_refusal: None,
    };

    let token = token::load_or_create(settings)?;
    let sockets = settings.socket_directory()?;
    settings.record_sockets(&sockets)?;
    let launcher_socket = settings.launcher_socket()?;
    // What a launcher left that did not end in order; one that still runs keeps its sandboxes.
    for swept in cfc_sandbox::sweep(&launcher_socket).map_err(sandbox_failure)? {
        tracing::warn!(sandbox = %swept, "removed what an earlier launcher left");
    }
    let launcher = Launcher::connect_or_start(&launcher_program()?, &launcher_socket).map_err(sandbox_failure)?;
    let coming_up = UntilServing::new(&launcher);
    addresses.launcher_refusal = replace_launcher(&launcher)?;
    let store = settings.open_store()?;
    let runtime = Runtime::open(runtime_config(settings, &store, &launcher)?).await.map_err(runtime_failure)?;
    runtime.share_machine(settings.file.shares()?);
    let (registry, registry_passwords) = registry::open(settings)?;
    let gateway = Gateway::new(gateway_options());
    let machine = Machine::new(
        settings,
        sockets.clone(),
        store,
        registry.clone(),
        &addresses.registry,
        runtime.clone(),
        gateway.clone(),
    );
    let machine = machine.with_isolations(isolations).with_transfer_options(settings.transfer_options()?);
    let machine = Arc::new(machine);
    let options = ControlOptions {
        token,
        account_id: settings.account_id(),
        gateway_url: format!("http://localhost:{}", listen::address(&gateway_listener)?.port()),
        registry_host: addresses.registry.clone(),
        registry_passwords,
    };
    let control = Control::open(registry::bucket(settings)?, machine.clone(), options).await?;

    // Registry and control API answer before the Workers are back, the gateway holds or refuses meanwhile.
    let registry_socket = settings.registry_socket()?;
    let serving_operator = tokio::spawn({
        let registry = registry.clone();
        async move {
            if let Err(error) = cfc_registry::serve_operator(&registry_socket, registry).await {
                tracing::error!(%error, socket = %registry_socket.display(), "`cfc registry gc` cannot reach the registry");
            }
        }
    });
    tokio::spawn(registry::reload(hangups, registry.clone()));
    let serving_registry = tokio::spawn(cfc_registry::serve(registry_listener, registry));
    let serving_control = tokio::spawn(axum::serve(control_listener, control.router()).into_future());
    tell_of_damage(&control, &gateway).await?;
    machine.restore(&control).await?;
    tokio::spawn({
        let (machine, control) = (machine.clone(), control.clone());
        async move { machine.finish_deletions(&control).await }
    });
    for warning in control.unused_settings().await? {
        tracing::warn!("{}", warning.replace("\nhint: ", "; "));
    }
    let keeping = tokio::spawn(keep_images(machine.clone()));
    let serving_gateway = tokio::spawn({
        let gateway = gateway.clone();
        async move { gateway.serve(gateway_listener).await }
    });
    write_addresses(settings, &addresses)?;
    print_addresses(&addresses);
    service_manager::tell_ready();
    coming_up.serves();

    while signals.next().await == Asked::ToUpgrade {
        if let Err(reason) = check_program(program) {
            tracing::error!(%reason, "not upgraded");
            addresses.refusals += 1;
            addresses.refusal = Some(reason);
            write_addresses(settings, &addresses)?;
            continue;
        }
        // New connections wait in the listening sockets, which go to the new program.
        tracing::info!(program = %program.display(), "a new program takes over");
        gateway.shutdown(GRACE).await;
        keeping.abort();
        machine.leave().await;
        runtime.settle(GRACE).await;
        let lock = lock.share()?;
        let (gateway, control, registry) = (gateway_kept, control_kept, registry_kept);
        return Ok(Some(Handover { generation, gateway, control, registry, lock }));
    }
    service_manager::tell_stopping();
    // Connections that come now are refused, not left waiting.
    drop((gateway_kept, control_kept, registry_kept));
    let _ = std::fs::remove_file(settings.addresses_file());
    serving_control.abort();
    keeping.abort();
    let in_order = async {
        gateway.shutdown(GRACE).await;
        serving_gateway.abort();
        machine.leave().await;
        runtime.stop_all(GRACE).await;
    };
    tokio::select! {
        () = in_order => {}
        () = signals.asked_to_end() => {
            tracing::warn!("asked again to end: requests under way and containers that still run are ended at once");
        }
    }
    serving_registry.abort();
    serving_operator.abort();
    launcher.shutdown().map_err(sandbox_failure)?;
    // Sockets, and the launcher's lock and log: nobody uses them any more.
    let _ = std::fs::remove_dir_all(&sockets);
    Ok(None)
}

/// Tells the log, and whoever asks for a Worker, of records that cannot be read. They keep no other Worker from its service.
async fn tell_of_damage(control: &Control, gateway: &Gateway) -> Result<(), Failure> {
    for (worker, error) in control.damage().await? {
        let reason = prepare::one_line(&error);
        tracing::error!(worker, error = reason, hint = error.hint.as_deref(), "a record cannot be read");
        if let Some(worker) = worker {
            gateway.fail_route(&worker, &reason);
        }
    }
    Ok(())
}

/// Tells now and then which images the platform needs, for those who prune. What was deployed is told at once elsewhere.
async fn keep_images(machine: Arc<Machine>) {
    let mut times = tokio::time::interval(KEEP_IMAGES_EVERY);
    loop {
        times.tick().await;
        let machine = machine.clone();
        let _ = tokio::task::spawn_blocking(move || machine.keep_images()).await;
    }
}

/// Tells whoever has started the server where it listens. It serves all the same where nobody can read it.
fn print_addresses(addresses: &Addresses) {
    let Addresses { gateway, control, registry, .. } = addresses;
    let lines = format!("gateway   http://{gateway}\ncontrol   http://{control}\nregistry  http://{registry}");
    if let Err(error) = output::try_data(lines) {
        tracing::warn!(%error, "cannot write to the standard output");
    }
}

/// Tells the other commands where the server listens: the whole file or none.
fn write_addresses(settings: &Settings, addresses: &Addresses) -> Result<(), Failure> {
    let path = settings.addresses_file();
    let temporary = settings.data.join(format!(".serve-{}.json", std::process::id()));
    let text = serde_json::to_vec_pretty(addresses)?;
    std::fs::write(&temporary, text)
        .and_then(|()| std::fs::rename(&temporary, &path))
        .map_err(|error| Failure::because(format!("cannot write `{}`", path.display()), &error))
}

fn runtime_failure(error: cfc_runtime::RuntimeError) -> Failure {
    let hint = error.kind.hint().map(str::to_string);
    Failure::from(error).maybe_hint(hint)
}

/// How long instances may take to end.
fn stop_grace(settings: &Settings) -> Duration {
    settings.file.stop_grace.map_or(cfc_runtime::STOP_GRACE, Span::duration)
}

/// With as many connections as there are descriptors for.
fn gateway_options() -> GatewayOptions {
    let usual = GatewayOptions::default();
    let max_connections = descriptors::connections(descriptors::Server::Gateway, usual.max_connections);
    GatewayOptions { max_connections, ..usual }
}

fn runtime_config(settings: &Settings, store: &Store, launcher: &Launcher) -> Result<RuntimeConfig, Failure> {
    let relays = Relays::start(&launcher_program()?)
        .map_err(|error| Failure::because("cannot start what carries connections", &error))?;
    Ok(RuntimeConfig {
        instances_dir: settings.data.join("instances"),
        store: store.clone(),
        launcher: launcher.clone(),
        relays,
        capacity: Capacity::default(),
        stop_grace: stop_grace(settings),
    })
}
