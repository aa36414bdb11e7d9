//! `cfc logs`: what a Worker has printed.

use std::path::Path;
use std::process::ExitCode;

use cfc_control::LogRequest;
use futures::StreamExt;

use crate::args::WorkerLogs;
use crate::commands::client_runtime;
use crate::commands::containers::follow::Position;
use crate::commands::containers::since;
use crate::failure::Failure;
use crate::output;
use crate::project::open_project;
use crate::server::client::{connect, control_failure};
use crate::settings::Settings;

pub fn run(settings: &Settings, arguments: &WorkerLogs) -> Result<ExitCode, Failure> {
    let name = match &arguments.name {
        Some(name) => name.clone(),
        None => open_project(Path::new("."), &arguments.project)?.name,
    };
    let asked = LogRequest {
        tail_lines: arguments.tail,
        since: arguments.since.as_deref().map(since).transpose()?,
        timestamps: arguments.timestamps,
        follow: arguments.follow,
        ..LogRequest::default()
    };
    client_runtime()?.block_on(print(settings, &name, asked))
}

async fn print(settings: &Settings, name: &str, asked: LogRequest) -> Result<ExitCode, Failure> {
    let client = connect(settings)?;
    let mut position = Position::start(settings);
    loop {
        // What was told already is not told again.
        let tail_lines = asked.tail_lines.filter(|_| !position.has_begun());
        let request = LogRequest { since: position.since(asked.since), tail_lines, ..asked.clone() };
        let mut stream = client.worker_logs(name, &request).await.map_err(control_failure)?;
        let cut_off = loop {
            match stream.next().await {
                None => return Ok(ExitCode::SUCCESS),
                Some(Ok(bytes)) => {
                    output::bytes(&bytes);
                    position.advance();
                }
                Some(Err(error)) if asked.follow => break error,
                Some(Err(error)) => return Err(control_failure(error)),
            }
        };
        position.outlast_upgrade(cut_off).await?;
    }
}
