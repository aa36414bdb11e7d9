//! `cfc containers events`: what happened to instances.

use std::process::ExitCode;

use cfc_control::{Client, EventRequest, EventView};
use futures::StreamExt;

use super::{short, since};
use crate::args::Events;
use crate::failure::Failure;
use crate::output;
use crate::server::client::control_failure;

/// Prints an event a line: as text, or with `--json` as it came.
pub async fn run(client: &Client, arguments: &Events) -> Result<ExitCode, Failure> {
    let since = arguments.since.as_deref().map(since).transpose()?;
    let request = EventRequest { since, follow: arguments.follow };
    let mut stream = client.events(&request).await.map_err(control_failure)?;
    let mut received = Vec::new();
    while let Some(bytes) = stream.next().await {
        let bytes = bytes.map_err(control_failure)?;
        if arguments.json {
            output::bytes(&bytes);
            continue;
        }
        received.extend_from_slice(&bytes);
        while let Some(end) = received.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = received.drain(..=end).collect();
            output::data(describe(&serde_json::from_slice(&line)?));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(event: &EventView) -> String {
    let detail = |(key, value): (&String, &serde_json::Value)| match value.as_str() {
        Some(text) => format!(" {key}={text:?}"),
        None => format!(" {key}={value}"),
    };
    let details: String = event.details.iter().map(detail).collect();
    format!("{} {} {} {}{details}", event.time, event.application, short(&event.name), event.event)
}
