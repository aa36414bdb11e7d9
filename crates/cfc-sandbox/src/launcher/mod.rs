//! The launcher process.

use std::ffi::OsString;

/// The `argv[0]` that makes a program a launcher.
pub const LAUNCHER_ARGV0: &str = "cfc-launcher";

/// The launcher's whole life. `args` are the process's arguments, `argv[0]` included. Call it before any thread starts.
#[allow(clippy::todo)]
pub fn launcher_main(_args: impl IntoIterator<Item = OsString>) -> ! {
    todo!()
}
