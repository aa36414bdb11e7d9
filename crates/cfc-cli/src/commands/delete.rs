//! `cfc delete`: a Worker with all that belongs to it.

use std::process::ExitCode;

use cfc_control::Deleted;

use crate::args::Delete;
use crate::commands::client_runtime;
use crate::commands::confirm::confirm;
use crate::failure::Failure;
use crate::output;
use crate::project::worker_name;
use crate::server::client::{connect, control_failure};
use crate::settings::Settings;

pub fn run(settings: &Settings, arguments: &Delete) -> Result<ExitCode, Failure> {
    let name = worker_name(arguments.name.as_deref(), &arguments.project)?;
    let client = connect(settings)?;
    let runtime = client_runtime()?;
    let workers = runtime.block_on(client.workers()).map_err(control_failure)?;
    if !workers.iter().any(|(worker, _)| *worker == name) {
        return Err(no_such_worker(&name, &workers));
    }
    let question = format!("Delete Worker `{name}`, its containers and all that its Durable Objects keep, for good?");
    confirm(&question, arguments.force)?;
    let deleted = runtime.block_on(client.delete_worker(&name)).map_err(control_failure)?;
    output::data(&name);
    output::tell(summary(&name, &deleted));
    Ok(ExitCode::SUCCESS)
}

fn no_such_worker(name: &str, workers: &[(String, String)]) -> Failure {
    let names: Vec<String> = workers.iter().map(|(worker, _)| format!("`{worker}`")).collect();
    let hint = match names.is_empty() {
        true => "none is deployed".to_string(),
        false => format!("there are {}", names.join(", ")),
    };
    Failure::new(format!("there is no Worker `{name}`")).hint(hint)
}

/// What is gone, and what is not.
fn summary(name: &str, Deleted { applications, ending }: &Deleted) -> String {
    let names: Vec<String> = applications.iter().map(|application| format!("`{application}`")).collect();
    let mut text = format!("deleted Worker `{name}` and what its Durable Objects kept");
    if !names.is_empty() {
        text.push_str(&format!(
            ", with {}; images stay in the registry until their tags are removed or not retained any more",
            names.join(", ")
        ));
    }
    if *ending > 0 {
        text.push_str(&format!("\n{ending} of its containers were told to end and still use their `stop_grace`"));
    }
    text
}
