//! `cfc setup`: installs the pinned workerd and esbuild.

use std::process::ExitCode;

use cfc_workers::Toolchain;

use crate::failure::Failure;
use crate::output;
use crate::settings::Settings;

pub fn run(settings: &Settings) -> Result<ExitCode, Failure> {
    let directory = settings.tools();
    if directory.starts_with(&settings.data) {
        settings.create_data_directory()?;
    }
    let toolchain = Toolchain::install(&directory, &mut |line| output::tell(line)).map_err(workers_failure)?;
    output::tell(format!("workerd and esbuild are installed in {}", toolchain.directory.display()));
    Ok(ExitCode::SUCCESS)
}

/// The tools in their place, or what to do to get them there.
pub fn toolchain(settings: &Settings) -> Result<Toolchain, Failure> {
    Toolchain::locate(&settings.tools()).map_err(workers_failure)
}

/// An error of `cfc-workers` with its hint.
pub fn workers_failure(error: cfc_workers::WorkersError) -> Failure {
    let hint = error.hint.clone();
    Failure::from(error).maybe_hint(hint)
}
