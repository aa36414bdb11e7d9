//! `cfc registry gc`: removes what nothing refers to.

use std::process::ExitCode;

use cfc_registry::{AskError, Collected, Options, Rules};

use crate::args::RegistryGc;
use crate::commands::client_runtime;
use crate::commands::registry::{Writer, writer};
use crate::failure::Failure;
use crate::output;
use crate::server::registry;
use crate::settings::Settings;

pub fn run(settings: &Settings, arguments: &RegistryGc) -> Result<ExitCode, Failure> {
    let collected = client_runtime()?.block_on(collect(settings, arguments))?;
    tell(&collected, arguments.dry_run);
    Ok(ExitCode::SUCCESS)
}

/// A bucket's we collect ourselves, whoever serves it. Of a data directory the server that runs does it, or says what it
/// would do, since it alone knows its rules and what its clients are about; without one we do it here.
async fn collect(settings: &Settings, arguments: &RegistryGc) -> Result<Collected, Failure> {
    let options = registry::options(settings)?;
    // A registry that serves notes at most so much later that somebody has asked for something.
    let lag = options.collection.refresh();
    let rules = Rules {
        grace: arguments.grace.map_or(options.collection.grace, |grace| grace.duration() + lag),
        untagged: arguments.untagged.map(|age| age.duration() + lag).or(options.collection.untagged),
    };
    let is_in_bucket = registry::bucket_location(settings, &arguments.place)?.is_some();
    let has_rules = arguments.grace.is_some() || arguments.untagged.is_some();
    if is_in_bucket {
        output::tell(
            "by `gc_grace` and `gc_untagged` of this machine's configuration file, which must be those of all who serve the bucket",
        );
    }
    if !is_in_bucket {
        registry::require(settings)?;
    }
    if arguments.dry_run
        && !is_in_bucket
        && !has_rules
        && let Some(told) = ask(settings).await?
    {
        return Ok(told);
    }
    if is_in_bucket || arguments.dry_run {
        let registry = registry::open_beside(settings, &arguments.place).await?;
        return Ok(registry.collect(rules, arguments.dry_run).await?);
    }
    match writer(settings)? {
        Writer::Us(_lock) => {
            let options = Options { collection: rules, ..options };
            let registry = cfc_registry::Registry::open(&registry::bucket_directory(settings), options)?;
            Ok(registry.collect(rules, false).await?)
        }
        Writer::Server(_) if has_rules => {
            let hint =
                "set `gc_grace` and `gc_untagged` below `[registry]` in the configuration file, or stop it first";
            Err(Failure::new("a registry is running here and collects by its own rules").hint(hint))
        }
        Writer::Server(socket) => {
            let asked = cfc_registry::ask_to_collect(&socket).await;
            asked.map_err(|error| Failure::because("the registry that is running here did not collect", &error))
        }
    }
}

/// What the server that runs on the data directory would remove; `None` when none runs.
async fn ask(settings: &Settings) -> Result<Option<Collected>, Failure> {
    match cfc_registry::ask_what_to_collect(&settings.registry_socket()?).await {
        Ok(told) => Ok(Some(told)),
        Err(AskError::Connect(_)) => Ok(None),
        Err(error) => Err(Failure::because("the registry that is running here did not say", &error)),
    }
}

fn tell(collected: &Collected, is_dry_run: bool) {
    let verb = if is_dry_run { "would remove" } else { "removed" };
    output::data(format!(
        "{verb} {} blobs ({} bytes), {} manifests, {} links of blobs to repositories, {} uploads",
        collected.blobs, collected.bytes, collected.manifests, collected.unlinked, collected.uploads
    ));
}
