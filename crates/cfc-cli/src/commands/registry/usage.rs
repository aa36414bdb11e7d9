//! `cfc registry usage`: what each repository takes.

use std::process::ExitCode;

use crate::args::RegistryUsage;
use crate::commands::client_runtime;
use crate::failure::Failure;
use crate::output;
use crate::server::registry;
use crate::settings::Settings;

const HEADER: [&str; 6] = ["REPOSITORY", "TAGS", "MANIFESTS", "BLOBS", "BYTES", "OWN BYTES"];

pub fn run(settings: &Settings, arguments: &RegistryUsage) -> Result<ExitCode, Failure> {
    let usage = client_runtime()?.block_on(async {
        let registry = registry::open_beside(settings, &arguments.place).await?;
        Ok::<_, Failure>(registry.usage().await?)
    })?;
    if arguments.json {
        output::data(serde_json::to_string_pretty(&usage)?);
        return Ok(ExitCode::SUCCESS);
    }
    let row = |(name, usage): (&String, &cfc_registry::Usage)| {
        let numbers = [usage.tags, usage.manifests, usage.blobs, usage.bytes, usage.own_bytes];
        std::iter::once(name.clone()).chain(numbers.map(|number| number.to_string())).collect()
    };
    output::table(&HEADER, &usage.iter().map(row).collect::<Vec<_>>());
    Ok(ExitCode::SUCCESS)
}
