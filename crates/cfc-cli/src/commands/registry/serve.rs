//! `cfc registry serve`: the registry alone.

use std::process::ExitCode;

use crate::args::RegistryServe;
use crate::failure::Failure;
use crate::output;
use crate::server::lock::DataLock;
use crate::server::{listen, registry, signals};
use crate::settings::Settings;

pub fn run(settings: &Settings, arguments: &RegistryServe) -> Result<ExitCode, Failure> {
    settings.create_data_directory()?;
    let _lock = DataLock::acquire(settings)?;
    let port = arguments.port.or(settings.file.registry_port).unwrap_or(crate::commands::serve::REGISTRY_PORT);
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|error| Failure::because("cannot start the asynchronous runtime", &error))?;
    runtime.block_on(async {
        let listener = listen::bind("registry", port, "--port").await?;
        let address = listen::address(&listener)?;
        let registry = registry::open(settings)?;
        let told = settings.registry_address_file();
        std::fs::write(&told, address.to_string())
            .map_err(|error| Failure::because(format!("cannot write `{}`", told.display()), &error))?;
        output::data(format!("registry  http://{address}"));
        tokio::select! {
            served = cfc_registry::serve(listener, registry) => served.map_err(Failure::from),
            () = signals::asked_to_end() => Ok(()),
        }
    })?;
    Ok(ExitCode::SUCCESS)
}
