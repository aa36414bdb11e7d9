//! `cfc registry retain`: removes tags that are not kept.

use std::process::ExitCode;

use cfc_registry::Retired;

use crate::args::RegistryRetain;
use crate::commands::client_runtime;
use crate::commands::registry::{Writer, answered, writer};
use crate::failure::Failure;
use crate::output;
use crate::server::registry;
use crate::settings::Settings;

pub fn run(settings: &Settings, arguments: &RegistryRetain) -> Result<ExitCode, Failure> {
    let retired = client_runtime()?.block_on(retain(settings, arguments))?;
    if arguments.json {
        output::data(serde_json::to_string_pretty(&retired)?);
        return Ok(ExitCode::SUCCESS);
    }
    for tag in &retired {
        output::data(format!("{}:{} {}", tag.repository, tag.tag, tag.digest));
    }
    let verb = if arguments.dry_run { "would be removed" } else { "removed" };
    output::tell(format!("{} tags {verb}; garbage collection removes what nothing refers to", retired.len()));
    Ok(ExitCode::SUCCESS)
}

/// In a bucket we do it ourselves, whoever serves it. In a data directory the server that runs does it, or says what it
/// would do, since it alone writes and knows its rules; without one we do it here.
async fn retain(settings: &Settings, arguments: &RegistryRetain) -> Result<Vec<Retired>, Failure> {
    let is_in_bucket = registry::bucket_location(settings, &arguments.place)?.is_some();
    if arguments.dry_run && !is_in_bucket {
        registry::require(settings)?;
        let asked = cfc_registry::ask_what_to_retain(&settings.registry_socket()?).await;
        if let Some(told) = answered(settings, "`[[registry.retention]]`", asked)? {
            return Ok(told);
        }
    }
    if arguments.dry_run || is_in_bucket {
        let registry = registry::open_beside(settings, &arguments.place).await?;
        return Ok(registry.retain(arguments.dry_run).await?);
    }
    match writer(settings)? {
        Writer::Us(_lock) => {
            let directory = registry::bucket_directory(settings);
            let registry = cfc_registry::Registry::open(&directory, registry::options(settings)?)?;
            Ok(registry.retain(false).await?)
        }
        Writer::Server(socket) => {
            let asked = cfc_registry::ask_to_retain(&socket).await;
            asked.map_err(|error| Failure::because("the registry that is running here did not do it", &error))
        }
    }
}
