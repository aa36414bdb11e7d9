//! `cfc registry verify`: hashes everything again.

use std::process::ExitCode;

use crate::args::RegistryVerify;
use crate::commands::client_runtime;
use crate::failure::Failure;
use crate::output;
use crate::server::registry;
use crate::settings::Settings;

/// Prints a line for each finding, or JSON; exits with 1 if there are any.
pub fn run(settings: &Settings, arguments: &RegistryVerify) -> Result<ExitCode, Failure> {
    let verified = client_runtime()?.block_on(async {
        let registry = registry::open_beside(settings, &arguments.place).await?;
        Ok::<_, Failure>(registry.verify(arguments.quarantine).await?)
    })?;
    match arguments.json {
        true => output::data(serde_json::to_string_pretty(&verified)?),
        false => verified.findings.iter().for_each(output::data),
    }
    output::tell(format!(
        "{} blobs ({} bytes) and {} manifests read, {} findings",
        verified.blobs,
        verified.bytes,
        verified.manifests,
        verified.findings.len()
    ));
    if !verified.findings.is_empty() && arguments.quarantine {
        let place = match registry::bucket_location(settings, &arguments.place)? {
            Some(location) => location.to_string(),
            None => format!("{}/", registry::bucket_directory(settings).display()),
        };
        output::tell(format!("what was corrupt is in `{place}registry/quarantine`"));
    }
    Ok(if verified.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
