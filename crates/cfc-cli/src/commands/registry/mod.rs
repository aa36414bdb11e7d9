//! `cfc registry`: running a registry and looking after it.

mod ca;
mod gc;
mod retain;
pub mod serve;
mod usage;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use crate::args::Registry;
use crate::failure::Failure;
use crate::server::lock::DataLock;
use crate::server::registry;
use crate::settings::Settings;

pub fn run(settings: &Settings, command: &Registry) -> Result<ExitCode, Failure> {
    match command {
        Registry::Serve(arguments) => serve::run(settings, arguments),
        Registry::Gc(arguments) => gc::run(settings, arguments),
        Registry::Retain(arguments) => retain::run(settings, arguments),
        Registry::Ca(command) => ca::run(settings, command),
        Registry::Verify(arguments) => verify::run(settings, arguments),
        Registry::Usage(arguments) => usage::run(settings, arguments),
    }
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
    let hint = "run this as the user who runs the registry, with the same XDG_RUNTIME_DIR; if that process only collects \
                or retires tags, wait until it has ended";
    Err(Failure::new(what).hint(hint))
}
