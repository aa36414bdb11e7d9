//! `cfc registry`: running a registry and looking after it.

mod ca;
mod gc;
mod retain;
pub mod serve;
mod usage;
mod verify;

use std::process::ExitCode;

use crate::args::Registry;
use crate::failure::Failure;
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
