//! `cfc registry`: running a registry and looking after it.

mod ca;
mod credentials;
mod gc;
mod retain;
pub mod serve;
mod usage;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use cfc_registry::AskError;

use crate::args::Registry;
use crate::failure::Failure;
use crate::output;
use crate::server::lock::DataLock;
use crate::server::registry;
use crate::settings::Settings;

pub fn run(settings: &Settings, command: &Registry) -> Result<ExitCode, Failure> {
    match command {
        Registry::Serve(arguments) => serve::run(settings, arguments),
        Registry::Gc(arguments) => gc::run(settings, arguments),
        Registry::Retain(arguments) => retain::run(settings, arguments),
        Registry::Credentials(arguments) => credentials::run(settings, arguments),
        Registry::Ca(command) => ca::run(settings, command),
        Registry::Verify(arguments) => verify::run(settings, arguments),
        Registry::Usage(arguments) => usage::run(settings, arguments),
    }
}

/// What the server that runs on the data directory answers, else `None`; then the person is told by which rules we go
/// ourselves, which `settings` names, unless no server runs.
fn answered<T>(settings: &Settings, rules: &str, answer: Result<T, AskError>) -> Result<Option<T>, Failure> {
    let error = match answer {
        Ok(told) => return Ok(Some(told)),
        Err(AskError::Connect(error)) => error,
        // Of an earlier version, which does not know the question.
        Err(AskError::Refused { status, .. }) if status.as_u16() == 404 => {
            output::tell(format!(
                "the registry that runs here does not say what it would do; this goes by {rules} of your configuration file"
            ));
            return Ok(None);
        }
        Err(error) => return Err(Failure::because("the registry that is running here did not say", &error)),
    };
    let socket = settings.registry_socket()?;
    let who = match DataLock::holder(settings) {
        Ok(None) => return Ok(None),
        Ok(Some(holder)) => format!("a registry (process {holder}) may run here"),
        Err(error) => format!("a registry may run here (the data directory's lock cannot be looked at: {error})"),
    };
    output::tell(format!(
        "{who}, and its operator's socket `{}` cannot be reached ({error}): this goes by {rules} of your configuration file, \
         and not by what that registry does. Run it as the user who runs the registry",
        socket.display()
    ));
    Ok(None)
}

/// Who may change a registry that is in the data directory.
enum Writer {
    /// We, as long as we hold this.
    Us(DataLock),
    /// The server that runs there and listens to its operator at this socket.
    Server(PathBuf),
}

/// Who may change the registry in the data directory, in which there must be one.
///
/// # Errors
/// When there is no registry, and when another process has the directory and is not to be reached.
fn writer(settings: &Settings) -> Result<Writer, Failure> {
    registry::require(settings)?;
    let holder = match DataLock::take(settings)? {
        Ok(lock) => return Ok(Writer::Us(lock)),
        Err(holder) => holder,
    };
    let socket = settings.registry_socket()?;
    if socket.exists() {
        return Ok(Writer::Server(socket));
    }
    let (data, socket) = (settings.data.display(), socket.display());
    let what = format!(
        "a registry (process {holder}) runs on the data directory `{data}`, and its operator's socket is not at `{socket}`"
    );
    let hint = "run this as the user who runs the registry; if that process only collects \
                or retires tags, wait until it has ended";
    Err(Failure::new(what).hint(hint))
}
