//! `cfc registry serve`: the registry alone.

use std::process::ExitCode;
use std::time::Duration;

use cfc_registry::Registry;
use tokio::sync::oneshot;

use crate::args::RegistryServe;
use crate::failure::Failure;
use crate::output;
use crate::server::lock::DataLock;
use crate::server::signals::{self, Signals};
use crate::server::{listen, registry, service_manager};
use crate::settings::Settings;

pub fn run(settings: &Settings, arguments: &RegistryServe) -> Result<ExitCode, Failure> {
    cfc_sandbox::keep_freed_memory(KEPT_MEMORY);
    let location = registry::bucket_location(settings, &arguments.place)?;
    let _lock = match &location {
        Some(_) => None,
        None => {
            settings.create_data_directory()?;
            Some(DataLock::acquire(settings)?)
        }
    };
    check_exposure(settings, arguments)?;
    let port = arguments.port.or(settings.file.registry_port).unwrap_or(crate::commands::serve::REGISTRY_PORT);
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|error| Failure::because("cannot start the asynchronous runtime", &error))?;
    runtime.block_on(async {
        let hangups = signals::hangups();
        let listener = match arguments.listen {
            Some(address) => listen::bind_to("registry", address, "--listen").await?,
            None => listen::bind("registry", port, "--port").await?,
        };
        let address = listen::address(&listener)?;
        let registry = registry::open_alone(settings, location.as_ref()).await?;
        let scheme = if settings.file.registry.is_encrypted() { "https" } else { "http" };
        output::data(format!("registry  {scheme}://{address}"));
        service_manager::tell_ready();
        let (end, ended) = oneshot::channel::<()>();
        let serving = cfc_registry::serve_until(listener, registry.clone(), async {
            let _ = ended.await;
        });
        tokio::select! {
            served = serving => served.map_err(Failure::from),
            served = serve_operator(settings, location.is_some(), registry.clone()) => served,
            () = registry::reload(hangups, registry) => Ok(()),
            () = asked_to_end(end) => Ok(()),
        }
    })?;
    // What is on its way to the disk; the next process finds it as after a crash.
    runtime.shutdown_timeout(PATIENCE);
    if location.is_none() {
        let _ = std::fs::remove_file(settings.registry_socket()?);
    }
    Ok(ExitCode::SUCCESS)
}

/// For how long requests under way go on when the registry is asked to end, and what they have begun to write.
const PATIENCE: Duration = Duration::from_secs(5);

/// Returns when the registry is to end: so long after it was asked to, of which it is told by `end`, or at once if it is
/// asked again.
async fn asked_to_end(end: oneshot::Sender<()>) {
    let mut signals = Signals::catch();
    signals.asked_to_end().await;
    service_manager::tell_stopping();
    // It may have ended.
    let _ = end.send(());
    let _ = tokio::time::timeout(PATIENCE, signals.asked_to_end()).await;
}

/// What a push receives while as much is being written.
pub const KEPT_MEMORY: u32 = 4 << 20;

/// The operator's socket, through which `cfc registry gc` reaches the one that alone may change the data directory. A
/// bucket may be changed by anybody at any time.
async fn serve_operator(settings: &Settings, is_in_bucket: bool, registry: Registry) -> Result<(), Failure> {
    if is_in_bucket {
        return std::future::pending().await;
    }
    settings.record_sockets(&settings.socket_directory()?)?;
    Ok(cfc_registry::serve_operator(&settings.registry_socket()?, registry).await?)
}

/// Whoever can reach the registry from elsewhere must say who he is.
fn check_exposure(settings: &Settings, arguments: &RegistryServe) -> Result<(), Failure> {
    let Some(address) = arguments.listen.filter(|address| !address.ip().is_loopback()) else { return Ok(()) };
    if settings.file.registry.htpasswd.is_some() {
        return Ok(());
    }
    let hint = "name a file that `htpasswd -B` has made as `htpasswd` below `[registry]` in the configuration file";
    Err(Failure::new(format!("everybody who reaches {address} could push and delete")).hint(hint))
}
