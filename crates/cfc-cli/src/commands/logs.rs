//! `cfc logs`: what a Worker has printed.

use std::process::ExitCode;

use cfc_control::LogRequest;

use crate::args::WorkerLogs;
use crate::commands::client_runtime;
use crate::commands::containers::follow::print_log;
use crate::commands::containers::since;
use crate::failure::Failure;
use crate::project::worker_name;
use crate::server::client::connect;
use crate::settings::Settings;

pub fn run(settings: &Settings, arguments: &WorkerLogs) -> Result<ExitCode, Failure> {
    let name = worker_name(arguments.name.as_deref(), &arguments.project)?;
    let asked = LogRequest {
        tail_lines: arguments.tail,
        since: arguments.since.as_deref().map(since).transpose()?,
        timestamps: arguments.timestamps,
        follow: arguments.follow,
        ..LogRequest::default()
    };
    client_runtime()?.block_on(async {
        let client = connect(settings)?;
        print_log(settings, asked, async |request| client.worker_logs(&name, &request).await).await
    })?;
    Ok(ExitCode::SUCCESS)
}
