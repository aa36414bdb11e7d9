//! `cfc containers delete`: an application with its instances.

use std::process::ExitCode;

use cfc_control::Client;

use crate::commands::confirm::confirm;
use crate::failure::Failure;
use crate::output;
use crate::server::client::control_failure;

pub async fn run(client: &Client, given: &str, force: bool) -> Result<ExitCode, Failure> {
    let name = client.application(given).await.map_err(control_failure)?.record.name;
    confirm(&format!("Delete container application `{name}` and its instances, for good?"), force)?;
    client.delete_application(&name).await.map_err(control_failure)?;
    output::data(&name);
    output::tell(format!(
        "deleted `{name}`; its image stays in the registry until its tags are removed or not retained any more"
    ));
    Ok(ExitCode::SUCCESS)
}
