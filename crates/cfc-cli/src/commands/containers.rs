//! `cfc containers`: what runs on a platform.

use std::process::ExitCode;

use cfc_control::{Client, InstanceState, LogRequest};
use futures::StreamExt;

use crate::args::Containers;
use crate::commands::client_runtime;
use crate::failure::Failure;
use crate::output;
use crate::server::client::{connect, control_failure};
use crate::settings::Settings;

pub fn run(settings: &Settings, command: &Containers) -> Result<ExitCode, Failure> {
    let client = connect(settings)?;
    client_runtime()?.block_on(async {
        match command {
            Containers::List { json } => list(&client, *json).await,
            Containers::Instances { name, json } => instances(&client, name, *json).await,
            Containers::Logs { name, follow, instance } => logs(&client, name, *follow, instance.clone()).await,
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn list(client: &Client, json: bool) -> Result<(), Failure> {
    let applications = client.applications().await.map_err(control_failure)?;
    let applications: Vec<_> = applications.into_iter().map(|status| (status.record, status.instances)).collect();
    if json {
        return print_json(&applications.iter().map(|(record, _)| record).collect::<Vec<_>>());
    }
    let mut rows = Vec::new();
    for (application, instances) in &applications {
        let live = instances.iter().filter(|instance| matches!(instance.state, InstanceState::Running)).count();
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
    Ok(())
}

async fn instances(client: &Client, name: &str, json: bool) -> Result<(), Failure> {
    let instances = client.instances(name).await.map_err(control_failure)?;
    if json {
        return print_json(&instances);
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
            ]
        })
        .collect();
    output::table(&["INSTANCE", "STATE", "SINCE", "IMAGE", "PID"], &rows);
    Ok(())
}

fn describe(state: &InstanceState) -> String {
    match state {
        InstanceState::Starting => "starting".to_string(),
        InstanceState::Running => "running".to_string(),
        InstanceState::Stopping => "stopping".to_string(),
        InstanceState::Stopped { exit_code: Some(code) } => format!("stopped ({code})"),
        InstanceState::Stopped { exit_code: None } => "stopped".to_string(),
        InstanceState::Failed { reason } => format!("failed ({reason})"),
    }
}

async fn logs(client: &Client, name: &str, follow: bool, instance: Option<String>) -> Result<(), Failure> {
    let request = LogRequest { instance, follow, ..LogRequest::default() };
    let mut stream = client.logs(name, &request).await.map_err(control_failure)?;
    while let Some(bytes) = stream.next().await {
        let bytes = bytes.map_err(control_failure)?;
        output::bytes(&bytes);
    }
    Ok(())
}

fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    output::data(serde_json::to_string_pretty(value)?);
    Ok(())
}
