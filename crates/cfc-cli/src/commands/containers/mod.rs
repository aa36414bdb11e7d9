//! `cfc containers`: what runs on a platform. One file a command.

mod delete;
mod events;
mod exec;
pub mod follow;
mod inspect;
mod instances;
mod list;
mod logs;
mod stats;
mod stop;

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cfc_control::Timestamp;

use crate::args::Containers;
use crate::commands::client_runtime;
use crate::failure::Failure;
use crate::output;
use crate::server::client::connect;
use crate::settings::Settings;
use crate::span::Span;

pub fn run(settings: &Settings, command: &Containers) -> Result<ExitCode, Failure> {
    let client = connect(settings)?;
    client_runtime()?.block_on(async {
        match command {
            Containers::List { json } => list::run(&client, *json).await,
            Containers::Instances { name, json } => instances::run(&client, name, *json).await,
            Containers::Logs(arguments) => logs::run(settings, &client, arguments).await,
            Containers::Stop(arguments) => stop::stop(&client, arguments).await,
            Containers::Restart(arguments) => stop::restart(&client, arguments).await,
            Containers::Inspect { instance } => inspect::run(&client, instance).await,
            Containers::Stats(arguments) => stats::run(&client, arguments).await,
            Containers::Events(arguments) => events::run(settings, &client, arguments).await,
            Containers::Delete { name, force } => delete::run(&client, name, *force).await,
            Containers::Exec(arguments) => exec::run(&client, arguments).await,
        }
    })
}

fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    output::data(serde_json::to_string_pretty(value)?);
    Ok(())
}

/// How much of a Durable Object's id is shown in tables and lines; enough to name it by.
const SHORT_ID: usize = 12;

fn short(id: &str) -> String {
    id.chars().take(SHORT_ID).collect()
}

/// How long ago `--since` says: a time in UTC, or a length of time.
pub fn since(text: &str) -> Result<Duration, Failure> {
    if let Ok(time) = text.parse::<Timestamp>() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        return Ok(now.saturating_sub(Duration::from_millis(time.milliseconds())));
    }
    text.parse().map(Span::duration).map_err(|_| {
        Failure::new(format!("`--since {text}` is neither a time nor a length of time"))
            .hint("write a time in UTC, `2026-01-31T12:00:00Z`, or how long ago, `10m`")
    })
}
