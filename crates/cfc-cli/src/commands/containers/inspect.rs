//! `cfc containers inspect`: everything that is known of an instance.

use std::process::ExitCode;

use cfc_control::Client;

use super::print_json;
use crate::failure::Failure;
use crate::server::client::control_failure;

pub async fn run(client: &Client, instance: &str) -> Result<ExitCode, Failure> {
    print_json(&client.inspect(instance).await.map_err(control_failure)?)?;
    Ok(ExitCode::SUCCESS)
}
