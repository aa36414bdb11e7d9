//! The `cfc` command: arguments, output, and the wiring of the other crates.
//!
//! Every command is one file under [`commands`], with one `run` function that takes its parsed arguments and the
//! [`settings::Settings`]. stdout is data, stderr is conversation.

mod args;
mod commands;
mod data_directory;
mod failure;
mod images;
mod interrupt;
mod isolation;
mod logging;
mod output;
mod project;
mod rights;
mod screen;
mod server;
mod settings;
mod size;
mod sockets;
mod span;
mod terminal;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Arguments;

fn main() -> ExitCode {
    // The launcher must be the program's only thread, so it is decided before anything else starts one.
    if std::env::args_os().next().is_some_and(|name| name == cfc_sandbox::LAUNCHER_ARGV0) {
        cfc_sandbox::launcher_main(std::env::args_os());
    }
    if std::env::args_os().next().is_some_and(|name| name == cfc_relay::RELAY_ARGV0) {
        cfc_relay::relay_main();
    }
    let arguments = Arguments::parse();
    logging::start(arguments.global.verbose);
    match commands::run(arguments) {
        Ok(code) => code,
        Err(failure) => {
            interrupt::wait_if_interrupted();
            output::print_failure(&failure);
            ExitCode::from(failure.exit_code)
        }
    }
}
