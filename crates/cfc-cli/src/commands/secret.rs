//! `cfc secret`: what a Worker has as `env.NAME` and nobody else is told.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Read};
use std::path::Path;
use std::process::ExitCode;

use cfc_control::Client;

use crate::args::{Secret, SecretWorker};
use crate::commands::client_runtime;
use crate::commands::confirm::{ask_secretly, confirm};
use crate::commands::dotenv;
use crate::failure::Failure;
use crate::output;
use crate::project::worker_name;
use crate::server::client::{connect, control_failure};
use crate::settings::Settings;

type Changes = BTreeMap<String, Option<String>>;

pub fn run(settings: &Settings, command: &Secret) -> Result<ExitCode, Failure> {
    match command {
        Secret::Put { key, worker } => {
            let (client, worker) = (connect(settings)?, name(worker)?);
            let value = match std::io::stdin().is_terminal() {
                true => ask_secretly(&format!("Value of `{key}`: "))?,
                false => read_input()?,
            };
            // As wrangler does: what `echo` puts at the end is not meant.
            let value = value.trim_end().to_string();
            change(&client, &worker, Changes::from([(key.clone(), Some(value))]))
        }
        Secret::List { worker, json } => list(&connect(settings)?, &name(worker)?, *json),
        Secret::Delete { key, worker, force } => {
            let (client, worker) = (connect(settings)?, name(worker)?);
            confirm(&format!("Delete secret `{key}` of Worker `{worker}`, for good?"), *force)?;
            change(&client, &worker, Changes::from([(key.clone(), None)]))
        }
        Secret::Bulk { file, worker } => {
            let (client, worker) = (connect(settings)?, name(worker)?);
            change(&client, &worker, read_bulk(file.as_deref())?)
        }
    }
}

fn name(worker: &SecretWorker) -> Result<String, Failure> {
    worker_name(worker.name.as_deref(), &worker.project)
}

fn change(client: &Client, worker: &str, changes: Changes) -> Result<ExitCode, Failure> {
    let version = client_runtime()?.block_on(client.change_secrets(worker, &changes)).map_err(control_failure)?;
    for (key, value) in &changes {
        output::data(key);
        let what = if value.is_some() { "set" } else { "deleted" };
        output::tell(format!("`{key}` of Worker `{worker}` is {what}"));
    }
    output::tell(format!("version {version} serves with it"));
    Ok(ExitCode::SUCCESS)
}

fn list(client: &Client, worker: &str, json: bool) -> Result<ExitCode, Failure> {
    let names = client_runtime()?.block_on(client.secrets(worker)).map_err(control_failure)?;
    if json {
        let views = names.iter().map(|name| serde_json::json!({"name": name, "type": "secret_text"}));
        output::data(serde_json::to_string_pretty(&views.collect::<Vec<_>>())?);
    } else {
        names.iter().for_each(output::data);
    }
    Ok(ExitCode::SUCCESS)
}

fn read_input() -> Result<String, Failure> {
    let mut text = String::new();
    let read = std::io::stdin().read_to_string(&mut text);
    read.map_err(|error| Failure::because("cannot read the standard input", &error))?;
    Ok(text)
}

/// The secrets of a JSON object, or of a file in the form of `.env`.
fn read_bulk(file: Option<&Path>) -> Result<Changes, Failure> {
    let (text, place) = match file {
        Some(path) => {
            let place = format!("`{}`", path.display());
            let text = std::fs::read_to_string(path);
            (text.map_err(|error| Failure::because(format!("cannot read {place}"), &error))?, place)
        }
        None => (read_input()?, "the standard input".to_string()),
    };
    let secrets: BTreeMap<String, String> = match text.trim_start().starts_with('{') {
        // serde's words could quote a value.
        true => serde_json::from_str(&text).map_err(|error| {
            Failure::new(format!(
                "{place} is not a JSON object of texts: line {}, column {}",
                error.line(),
                error.column()
            ))
        })?,
        false => dotenv::parse(&text).map_err(|line| {
            Failure::new(format!("line {line} of {place} is not of the form NAME=VALUE"))
                .hint("write NAME=VALUE, with a value of several lines as \"one\\ntwo\"; or a JSON object")
        })?,
    };
    match secrets.is_empty() {
        true => Err(Failure::new(format!("there are no secrets in {place}"))),
        false => Ok(secrets.into_iter().map(|(name, value)| (name, Some(value))).collect()),
    }
}
