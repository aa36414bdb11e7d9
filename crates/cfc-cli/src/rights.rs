//! The rights to make sandboxes, for the commands that make some.
//!
//! To be acquired while the process has a single thread. Commands that make no sandbox do without, and cost no
//! namespace.

use std::path::PathBuf;

use crate::args::Command;
use crate::failure::Failure;
use crate::images::build::sandbox_failure;
use crate::output;
use crate::settings::Settings;

/// Acquires what `command` needs, and says once what containers will have to do without.
pub fn acquire(settings: &Settings, command: &Command) -> Result<(), Failure> {
    match command {
        Command::Build(_) | Command::Prune(_) | Command::Deploy(_) | Command::Unshare(_) => enter(None),
        Command::Run(_) => enter(None).map(|()| warn_of_missing_limits()),
        Command::Serve(_) => enter(Some(settings.launcher_socket()?)).map(|()| warn_of_missing_limits()),
        // What is in the way is what it is there to tell.
        Command::Doctor => {
            let _ = enter(None);
            Ok(())
        }
        Command::Images(_) | Command::Push(_) | Command::Registry(_) | Command::Containers(_) => Ok(()),
        Command::Delete(_) | Command::Logs(_) | Command::Secret(_) | Command::Upgrade | Command::Setup => Ok(()),
    }
}

fn enter(launcher: Option<PathBuf>) -> Result<(), Failure> {
    cfc_sandbox::enter_rootless(launcher.as_deref()).map_err(sandbox_failure)
}

fn warn_of_missing_limits() {
    if let Some(finding) = cfc_sandbox::missing_limits() {
        output::tell(format!("warning: {}\nhint: {}", finding.what, finding.remedy));
    }
}
