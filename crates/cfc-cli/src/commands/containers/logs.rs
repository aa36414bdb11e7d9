//! `cfc containers logs`: what containers wrote.

use std::process::ExitCode;

use cfc_control::{Client, LogRequest};
use futures::StreamExt;

use super::since;
use crate::args::Logs;
use crate::failure::Failure;
use crate::output;
use crate::server::client::control_failure;

pub async fn run(client: &Client, arguments: &Logs) -> Result<ExitCode, Failure> {
    let request = LogRequest {
        instance: arguments.instance.clone(),
        tail_lines: arguments.tail,
        since: arguments.since.as_deref().map(since).transpose()?,
        stream: arguments.stream.clone(),
        timestamps: arguments.timestamps,
        follow: arguments.follow,
    };
    let mut stream = client.logs(&arguments.name, &request).await.map_err(control_failure)?;
    while let Some(bytes) = stream.next().await {
        let bytes = bytes.map_err(control_failure)?;
        output::bytes(&bytes);
    }
    Ok(ExitCode::SUCCESS)
}
