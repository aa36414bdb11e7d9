//! `cfc serve`: registry, control API, gateway and runtime in one process, on loopback.

use std::process::ExitCode;

use crate::args::Serve;
use crate::failure::Failure;
use crate::isolation::Isolations;
use crate::server::handover::{Handover, own_program};
use crate::server::lock::DataLock;
use crate::server::{self, Ports, Server};
use crate::settings::Settings;

/// Where the gateway listens unless told otherwise (wrangler dev's port).
pub const GATEWAY_PORT: u16 = 8787;
/// Where the control API listens unless told otherwise.
pub const CONTROL_PORT: u16 = 8790;
/// Where the registry listens unless told otherwise.
pub const REGISTRY_PORT: u16 = 5000;

pub fn run(settings: &Settings, arguments: &Serve) -> Result<ExitCode, Failure> {
    let program = own_program()?;
    cfc_sandbox::keep_freed_memory(crate::commands::registry::serve::KEPT_MEMORY);
    // Before anything is made: a runtime that is missing is the operator's to install.
    let isolations = Isolations::resolve(settings, arguments.runtime.as_deref())?;
    settings.create_data_directory()?;
    let handover = Handover::receive()?;
    let lock = match &handover {
        Some(handover) => handover.lock.try_clone().map(DataLock::inherited).map_err(Failure::from)?,
        None => DataLock::acquire(settings)?,
    };
    let gateway = arguments.port.or(settings.file.port).unwrap_or(GATEWAY_PORT);
    // A free port for the gateway means that fixed ones are not wanted: it is how two servers run side by side. Said on the
    // command line it is stronger than what the file says of the others.
    let otherwise = |flag: Option<u16>, file: Option<u16>, default: u16| {
        let file = file.filter(|_| arguments.port != Some(0));
        flag.or(file).unwrap_or(if gateway == 0 { 0 } else { default })
    };
    let ports = Ports {
        gateway,
        control: otherwise(arguments.control_port, settings.file.control_port, CONTROL_PORT),
        registry: otherwise(arguments.registry_port, settings.file.registry_port, REGISTRY_PORT),
    };
    let settings = settings.clone();
    let server = Server { settings, ports, inherited: handover, program: program.clone(), lock, isolations };
    match server::run(server)? {
        None => Ok(ExitCode::SUCCESS),
        Some(handover) => {
            let error = handover.execute(&program);
            Err(Failure::because(format!("cannot execute `{}`", program.display()), &error)
                .hint("instances live on: start `cfc serve` again to adopt them"))
        }
    }
}
