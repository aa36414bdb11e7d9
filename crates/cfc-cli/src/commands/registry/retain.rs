//! `cfc registry retain`: removes tags that are not kept.

use std::process::ExitCode;
use std::time::Duration;

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
    if arguments.dry_run {
        let registry = registry::open_beside(settings, &arguments.place).await?;
        return Ok(registry.retain(true).await?);
    }
    if is_in_bucket {
        return by_hand(settings, arguments).await;
    }
    match writer(settings)? {
        Writer::Us(_lock) => by_hand(settings, arguments).await,
        Writer::Server(socket) => {
            let asked = cfc_registry::ask_to_retain(&socket).await;
            asked.map_err(|error| Failure::because("the registry that is running here did not do it", &error))
        }
    }
}

/// How long the receivers of webhooks are waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// As a registry that is served does by itself: the audit log has each tag, and receivers of webhooks are told before we end.
async fn by_hand(settings: &Settings, arguments: &RegistryRetain) -> Result<Vec<Retired>, Failure> {
    let rules = registry::options(settings)?.collection;
    let registry = registry::open_by_hand(settings, &arguments.place, rules).await?;
    let retired = registry.retain(false).await;
    // Also of what had been removed when something failed.
    let untold = registry.finish_telling(PATIENCE).await;
    if untold > 0 {
        tracing::warn!(
            events = untold,
            "receivers of `[[registry.webhook]]` were not told of all tags that were removed"
        );
    }
    Ok(retired?)
}
