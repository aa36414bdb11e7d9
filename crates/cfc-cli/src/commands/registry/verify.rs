//! `cfc registry verify`: hashes everything again.

use std::process::ExitCode;

use crate::args::RegistryVerify;
use crate::commands::client_runtime;
use crate::failure::Failure;
use crate::output;
use crate::server::registry;
use crate::settings::Settings;

/// Prints a line for each finding; exits with 1 if there are any.
pub fn run(settings: &Settings, arguments: &RegistryVerify) -> Result<ExitCode, Failure> {
    settings.create_data_directory()?;
    let directory = registry::bucket_directory(settings);
    let registry = cfc_registry::Registry::open_beside(&directory, registry::options(settings)?)?;
    let verified = client_runtime()?.block_on(registry.verify(arguments.quarantine))?;
    verified.findings.iter().for_each(output::data);
    output::tell(format!(
        "{} blobs ({} bytes) and {} manifests read, {} findings",
        verified.blobs,
        verified.bytes,
        verified.manifests,
        verified.findings.len()
    ));
    if !verified.findings.is_empty() && arguments.quarantine {
        output::tell(format!("what was corrupt is in `{}`", directory.join("registry/quarantine").display()));
    }
    Ok(if verified.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
