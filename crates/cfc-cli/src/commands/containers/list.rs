//! `cfc containers list`: the applications.

use std::process::ExitCode;

use cfc_control::Client;

use super::print_json;
use crate::failure::Failure;
use crate::output;
use crate::server::client::control_failure;

pub async fn run(client: &Client, json: bool) -> Result<ExitCode, Failure> {
    let applications = client.applications().await.map_err(control_failure)?;
    let applications: Vec<_> = applications.into_iter().map(|status| (status.record, status.instances)).collect();
    if json {
        print_json(&applications.iter().map(|(record, _)| record).collect::<Vec<_>>())?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = Vec::new();
    for (application, instances) in &applications {
        let live = instances.iter().filter(|instance| instance.state.is_running()).count();
        rows.push(vec![
            application.name.clone(),
            application.attachment.as_ref().map_or("-".to_string(), |attachment| attachment.worker.clone()),
            application.version.to_string(),
            format!("{live}/{}", application.max_instances),
            application.updated_at.to_string(),
            application.image.manifest.digest.to_string(),
        ]);
    }
    output::table(&["NAME", "WORKER", "VERSION", "RUNNING", "UPDATED", "IMAGE"], &rows);
    Ok(ExitCode::SUCCESS)
}
