//! `cfc containers logs`: what containers wrote.

use std::process::ExitCode;

use cfc_control::{Client, LogRequest};
use futures::StreamExt;

use super::follow::Position;
use super::since;
use crate::args::Logs;
use crate::failure::Failure;
use crate::output;
use crate::server::client::control_failure;
use crate::settings::Settings;

pub async fn run(settings: &Settings, client: &Client, arguments: &Logs) -> Result<ExitCode, Failure> {
    let asked = LogRequest {
        instance: arguments.instance.clone(),
        tail_lines: arguments.tail,
        since: arguments.since.as_deref().map(since).transpose()?,
        stream: arguments.stream.clone(),
        timestamps: arguments.timestamps,
        follow: arguments.follow,
    };
    let mut position = Position::start(settings);
    loop {
        // What was told already is not told again.
        let tail_lines = asked.tail_lines.filter(|_| !position.has_begun());
        let request = LogRequest { since: position.since(asked.since), tail_lines, ..asked.clone() };
        let mut stream = client.logs(&arguments.name, &request).await.map_err(control_failure)?;
        let cut_off = loop {
            match stream.next().await {
                None => return Ok(ExitCode::SUCCESS),
                Some(Ok(bytes)) => {
                    output::bytes(&bytes);
                    position.advance();
                }
                Some(Err(error)) if arguments.follow => break error,
                Some(Err(error)) => return Err(control_failure(error)),
            }
        };
        position.outlast_upgrade(cut_off).await?;
    }
}
