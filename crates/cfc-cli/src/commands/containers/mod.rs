//! `cfc containers`: what runs on a platform. One file a command.

mod instances;
mod list;
mod logs;

use std::process::ExitCode;

use crate::args::Containers;
use crate::commands::client_runtime;
use crate::failure::Failure;
use crate::output;
use crate::server::client::connect;
use crate::settings::Settings;

pub fn run(settings: &Settings, command: &Containers) -> Result<ExitCode, Failure> {
    let client = connect(settings)?;
    client_runtime()?.block_on(async {
        match command {
            Containers::List { json } => list::run(&client, *json).await,
            Containers::Instances { name, json } => instances::run(&client, name, *json).await,
            Containers::Logs { name, follow, instance } => logs::run(&client, name, *follow, instance.clone()).await,
        }
    })
}

fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    output::data(serde_json::to_string_pretty(value)?);
    Ok(())
}
