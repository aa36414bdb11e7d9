//! Logging to stderr, in colour only on a terminal. `CFC_LOG` takes a filter in tracing's syntax, for example `cfc_engine=debug`.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Starts logging: warnings and errors, more with each `-v`, or what `CFC_LOG` says.
pub fn start(verbose: u8) {
    let level = match verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let filter = EnvFilter::builder().with_default_directive(level.into()).with_env_var("CFC_LOG").from_env_lossy();
    // The same rule as tracing's own, and a file or a pipe never gets escape sequences.
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colour).with_writer(|| crate::screen::Above).init();
}
