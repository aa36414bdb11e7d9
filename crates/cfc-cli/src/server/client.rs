//! The way from a command to the running server's control API.

use cfc_control::Client;

use crate::failure::Failure;
use crate::settings::Settings;

/// A client of the server that runs on this data directory.
pub fn connect(settings: &Settings) -> Result<Client, Failure> {
    let addresses = settings.addresses()?;
    let token = settings.token()?;
    Client::new(&format!("http://{}", addresses.control), &token, &settings.account_id()).map_err(control_failure)
}

/// An error of the control API with its hint.
pub fn control_failure(error: cfc_control::ClientError) -> Failure {
    let hint = error.hint().map(str::to_string);
    Failure::from(error).maybe_hint(hint)
}
