//! `cfc containers events`: what happened to instances.

use std::process::ExitCode;

use cfc_control::{Client, EventRequest, EventView};
use futures::StreamExt;

use super::follow::Position;
use super::{short, since};
use crate::args::Events;
use crate::failure::Failure;
use crate::output;
use crate::server::client::control_failure;
use crate::settings::Settings;

/// Prints an event a line: as text, or with `--json` as it came.
pub async fn run(settings: &Settings, client: &Client, arguments: &Events) -> Result<ExitCode, Failure> {
    let since = arguments.since.as_deref().map(since).transpose()?;
    let mut position = Position::start(settings);
    loop {
        let request = EventRequest { since: position.since(since), follow: arguments.follow };
        let mut stream = client.events(&request).await.map_err(control_failure)?;
        let mut received = Vec::new();
        let cut_off = loop {
            match stream.next().await {
                None => return Ok(ExitCode::SUCCESS),
                Some(Ok(bytes)) => {
                    received.extend_from_slice(&bytes);
                    print_lines(&mut received, arguments.json)?;
                    position.advance();
                }
                Some(Err(error)) if arguments.follow => break error,
                Some(Err(error)) => return Err(control_failure(error)),
            }
        };
        position.outlast_upgrade(cut_off).await?;
    }
}

/// Prints the events that are there as a whole; the beginning of another stays.
fn print_lines(received: &mut Vec<u8>, json: bool) -> Result<(), Failure> {
    while let Some(end) = received.iter().position(|byte| *byte == b'\n') {
        let line: Vec<u8> = received.drain(..=end).collect();
        match json {
            true => output::bytes(&line),
            false => output::data(describe(&serde_json::from_slice(&line)?)),
        }
    }
    Ok(())
}

fn describe(event: &EventView) -> String {
    let detail = |(key, value): (&String, &serde_json::Value)| match value.as_str() {
        Some(text) => format!(" {key}={text:?}"),
        None => format!(" {key}={value}"),
    };
    let details: String = event.details.iter().map(detail).collect();
    format!("{} {} {} {}{details}", event.time, event.application, short(&event.name), event.event)
}
