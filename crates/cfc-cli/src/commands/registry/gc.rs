//! `cfc registry gc`: removes what nothing refers to.

use std::process::ExitCode;

use cfc_registry::{Collected, CollectionRequest, Listing, Removed, Rules};

use crate::args::RegistryGc;
use crate::commands::client_runtime;
use crate::commands::registry::{Writer, answered, writer};
use crate::failure::Failure;
use crate::output;
use crate::server::registry;
use crate::settings::Settings;

pub fn run(settings: &Settings, arguments: &RegistryGc) -> Result<ExitCode, Failure> {
    let listing = client_runtime()?.block_on(collect(settings, arguments))?;
    if arguments.list && listing.removed.is_none() {
        let hint = "it is of an earlier version: upgrade it, or leave out --list";
        return Err(Failure::new("the registry that is running here does not say what each thing is").hint(hint));
    }
    match (arguments.json, &listing.removed) {
        (true, _) => output::data(serde_json::to_string_pretty(&listing)?),
        (false, None) => output::data(summary(&listing.counts, arguments.dry_run)),
        (false, Some(removed)) => {
            list(removed);
            output::tell(summary(&listing.counts, arguments.dry_run));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A bucket's we collect ourselves, whoever serves it. Of a data directory the server that runs does it, or says what it
/// would do, since it alone knows its rules and what its clients are about; without one we do it here.
async fn collect(settings: &Settings, arguments: &RegistryGc) -> Result<Listing, Failure> {
    let request = CollectionRequest { is_dry_run: arguments.dry_run, is_listed: arguments.list };
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
        && let asked = cfc_registry::ask_to_collect(&settings.registry_socket()?, request).await
        && let Some(told) = answered(settings, "`gc_grace` and `gc_untagged`", asked)?
    {
        return Ok(told);
    }
    if arguments.dry_run {
        let registry = registry::open_beside(settings, &arguments.place).await?;
        return Ok(match request.is_listed {
            true => registry.collect_and_list(rules, true).await?,
            false => Listing { counts: registry.collect(rules, true).await?, removed: None },
        });
    }
    let by_hand = async {
        // How often what is found is touched, is what those who serve it go by.
        let kept = if is_in_bucket { options.collection } else { rules };
        let registry = registry::open_by_hand(settings, &arguments.place, kept).await?;
        Ok(registry.collect_by_itself(rules, request.is_listed).await?)
    };
    if is_in_bucket {
        return by_hand.await;
    }
    match writer(settings)? {
        Writer::Us(_lock) => by_hand.await,
        Writer::Server(_) if has_rules => {
            let hint =
                "set `gc_grace` and `gc_untagged` below `[registry]` in the configuration file, or stop it first";
            Err(Failure::new("a registry is running here and collects by its own rules").hint(hint))
        }
        Writer::Server(socket) => {
            let asked = cfc_registry::ask_to_collect(&socket, request).await;
            asked.map_err(|error| Failure::because("the registry that is running here did not collect", &error))
        }
    }
}

const HEADER: [&str; 5] = ["KIND", "DIGEST", "BYTES", "REPOSITORIES", "WHY"];

fn list(removed: &[Removed]) {
    let row = |removed: &Removed| {
        let repositories: Vec<&str> = removed.repositories.iter().map(|name| name.as_str()).collect();
        let repositories = if repositories.is_empty() { "-".to_string() } else { repositories.join(",") };
        let Removed { kind, digest, bytes, reason, .. } = removed;
        vec![kind.to_string(), digest.to_string(), bytes.to_string(), repositories, reason.to_string()]
    };
    output::table(&HEADER, &removed.iter().map(row).collect::<Vec<_>>());
}

/// In one line. What a dry run does not look for is left out.
fn summary(collected: &Collected, is_dry_run: bool) -> String {
    let Collected { blobs, bytes, manifests, unlinked, uploads } = collected;
    let what =
        format!("{blobs} blobs ({bytes} bytes), {manifests} manifests, {unlinked} links of blobs to repositories");
    match is_dry_run {
        true => format!("would remove {what}"),
        false => format!("removed {what}, {uploads} uploads"),
    }
}
