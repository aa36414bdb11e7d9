//! `cfc containers logs`: what containers wrote.

use std::process::ExitCode;

use cfc_control::{Client, LogRequest};

use super::follow::print_log;
use super::since;
use crate::args::Logs;
use crate::failure::Failure;
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
    print_log(settings, asked, async |request| client.logs(&arguments.name, &request).await).await?;
    Ok(ExitCode::SUCCESS)
}
