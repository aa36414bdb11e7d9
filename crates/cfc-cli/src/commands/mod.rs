//! One file a command; each has `run`.

mod build;
mod confirm;
mod containers;
mod delete;
mod deploy;
mod doctor;
mod dotenv;
mod images;
mod logs;
mod prune;
mod push;
mod registry;
mod run;
mod secret;
mod serve;
mod setup;
mod unshare;
mod upgrade;

use std::process::ExitCode;

use crate::args::{Arguments, Command};
use crate::failure::Failure;
use crate::rights;
use crate::settings::Settings;

/// Does what the user asked for. The exit code is the program's, unless there is a failure.
pub fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    let settings = Settings::load(&arguments.global)?;
    rights::acquire(&settings, &arguments.command)?;
    match arguments.command {
        Command::Build(arguments) => build::run(&settings, &arguments),
        Command::Prune(arguments) => prune::run(&settings, &arguments),
        Command::Images(command) => images::run(&settings, &command),
        Command::Push(arguments) => push::run(&settings, &arguments),
        Command::Deploy(arguments) => deploy::run(&settings, &arguments),
        Command::Delete(arguments) => delete::run(&settings, &arguments),
        Command::Logs(arguments) => logs::run(&settings, &arguments),
        Command::Secret(command) => secret::run(&settings, &command),
        Command::Serve(arguments) => serve::run(&settings, &arguments),
        Command::Registry(command) => registry::run(&settings, &command),
        Command::Containers(command) => containers::run(&settings, &command),
        Command::Run(arguments) => run::run(&settings, &arguments),
        Command::Upgrade => upgrade::run(&settings),
        Command::Setup => setup::run(&settings),
        Command::Doctor => doctor::run(&settings),
        Command::Unshare(arguments) => unshare::run(&arguments),
    }
}

/// The runtime of the commands that talk to a server: one thread is enough for them.
pub fn client_runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::because("cannot start the asynchronous runtime", &error))
}
