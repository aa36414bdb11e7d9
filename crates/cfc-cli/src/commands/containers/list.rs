//! `cfc containers list`: the applications.

use std::process::ExitCode;

use cfc_control::{ApplicationRecord, ApplicationStatus, Client};
use serde::Serialize;

use super::print_json;
use crate::failure::Failure;
use crate::output;
use crate::server::client::control_failure;

/// An application, as `--json` has it.
#[derive(Serialize)]
struct Listed<'a> {
    #[serde(flatten)]
    record: &'a ApplicationRecord,
    running: usize,
    isolation: &'a str,
}

fn running(status: &ApplicationStatus) -> usize {
    status.instances.iter().filter(|instance| instance.state.is_running()).count()
}

pub async fn run(client: &Client, json: bool) -> Result<ExitCode, Failure> {
    let applications = client.applications().await.map_err(control_failure)?;
    if json {
        let listed = applications.iter().map(|status| Listed {
            record: &status.record,
            running: running(status),
            isolation: &status.isolation,
        });
        print_json(&listed.collect::<Vec<_>>())?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = Vec::new();
    for status in &applications {
        let (application, live) = (&status.record, running(status));
        rows.push(vec![
            application.name.clone(),
            application.attachment.as_ref().map_or("-".to_string(), |attachment| attachment.worker.clone()),
            application.version.to_string(),
            format!("{live}/{}", application.max_instances),
            application.updated_at.to_string(),
            application.image.manifest.digest.to_string(),
            status.isolation.clone(),
        ]);
    }
    output::table(&["NAME", "WORKER", "VERSION", "RUNNING", "UPDATED", "IMAGE", "ISOLATION"], &rows);
    Ok(ExitCode::SUCCESS)
}
