//! `cfc containers stop` and `restart`.

use std::process::ExitCode;

use cfc_control::Client;

use crate::args::StopInstances;
use crate::failure::Failure;
use crate::output;
use crate::server::client::control_failure;
use crate::span::Span;

/// Stops instances one after another; prints each one's id when it has ended.
pub async fn stop(client: &Client, arguments: &StopInstances) -> Result<ExitCode, Failure> {
    for instance in &arguments.instances {
        let stopped = client.stop(instance, arguments.time.map(Span::duration)).await.map_err(control_failure)?;
        output::data(&stopped.id);
        output::tell(format!("`{}` ended with {}", stopped.id, stopped.exit_code));
    }
    Ok(ExitCode::SUCCESS)
}

/// Restarts instances one after another; prints each one's id when it runs again.
pub async fn restart(client: &Client, arguments: &StopInstances) -> Result<ExitCode, Failure> {
    for instance in &arguments.instances {
        let view = client.restart(instance, arguments.time.map(Span::duration)).await.map_err(control_failure)?;
        output::data(&view.id);
    }
    Ok(ExitCode::SUCCESS)
}
