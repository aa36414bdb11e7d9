//! `cfc containers logs`: what containers wrote.

use std::process::ExitCode;

use cfc_control::{Client, LogRequest};
use futures::StreamExt;

use crate::failure::Failure;
use crate::output;
use crate::server::client::control_failure;

pub async fn run(client: &Client, name: &str, follow: bool, instance: Option<String>) -> Result<ExitCode, Failure> {
    let request = LogRequest { instance, follow, ..LogRequest::default() };
    let mut stream = client.logs(name, &request).await.map_err(control_failure)?;
    while let Some(bytes) = stream.next().await {
        let bytes = bytes.map_err(control_failure)?;
        output::bytes(&bytes);
    }
    Ok(ExitCode::SUCCESS)
}
