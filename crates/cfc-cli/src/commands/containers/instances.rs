//! `cfc containers instances`: what runs of an application.

use std::process::ExitCode;

use cfc_control::{Client, InstanceState};

use super::print_json;
use crate::failure::Failure;
use crate::output;
use crate::server::client::control_failure;

pub async fn run(client: &Client, name: &str, json: bool) -> Result<ExitCode, Failure> {
    let instances = client.instances(name).await.map_err(control_failure)?;
    if json {
        print_json(&instances)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = instances
        .iter()
        .map(|instance| {
            vec![
                instance.name.clone(),
                describe(&instance.state),
                instance.since.to_string(),
                instance.image.to_string(),
                instance.pid.map_or("-".to_string(), |pid| pid.to_string()),
                instance.exit_code.map_or("-".to_string(), |code| code.to_string()),
            ]
        })
        .collect();
    output::table(&["INSTANCE", "STATE", "SINCE", "IMAGE", "PID", "EXIT"], &rows);
    Ok(ExitCode::SUCCESS)
}

fn describe(state: &InstanceState) -> String {
    match state {
        InstanceState::Starting => "starting".to_string(),
        InstanceState::Running => "running".to_string(),
        InstanceState::Ready => "ready".to_string(),
        InstanceState::Stopping => "stopping".to_string(),
        InstanceState::Stopped { .. } => "stopped".to_string(),
        InstanceState::Failed { reason } => format!("failed ({reason})"),
    }
}
