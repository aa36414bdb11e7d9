//! Questions before what cannot be undone.

use std::io::{BufRead, IsTerminal, Write};
use std::process::exit;
use std::sync::mpsc;

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};

use crate::commands::client_runtime;
use crate::failure::Failure;

/// What is said when the person says no.
const DECLINED: &str = "nothing was changed";

/// Asks whether to do it, unless `force` says so.
///
/// # Errors
/// When the answer is no, and when there is no terminal to ask at.
pub fn confirm(question: &str, force: bool) -> Result<(), Failure> {
    if force {
        return Ok(());
    }
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(Failure::new(format!("{question} There is no terminal to ask at")).hint("add `--force`"));
    }
    let mut stderr = std::io::stderr();
    let asked = write!(stderr, "{question} [y/N] ").and_then(|()| stderr.flush());
    let mut answer = String::new();
    asked
        .and_then(|()| stdin.lock().read_line(&mut answer))
        .map_err(|error| Failure::because("cannot ask at the terminal", &error))?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure::new(DECLINED)),
    }
}

/// Asks at the terminal for what nobody shall see there.
pub fn ask_secretly(question: &str) -> Result<String, Failure> {
    let failed = |error: std::io::Error| Failure::because("cannot ask at the terminal", &error);
    let stdin = std::io::stdin();
    let before = tcgetattr(&stdin).map_err(|error| failed(error.into()))?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    let mut stderr = std::io::stderr();
    end_in_order(before.clone())?;
    write!(stderr, "{question}").and_then(|()| stderr.flush()).map_err(failed)?;
    tcsetattr(&stdin, OptionalActions::Now, &silent).map_err(|error| failed(error.into()))?;
    let mut answer = String::new();
    let read = stdin.lock().read_line(&mut answer);
    let restored = tcsetattr(&stdin, OptionalActions::Now, &before);
    // The end of the line was not shown either.
    let _ = writeln!(stderr);
    read.map_err(failed)?;
    restored.map_err(|error| failed(error.into()))?;
    Ok(answer)
}

/// Puts the terminal back before a signal ends the program, from now on.
fn end_in_order(before: Termios) -> Result<(), Failure> {
    let runtime = client_runtime()?;
    let (caught, ready) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        let number = runtime.block_on(async {
            let kinds = [SignalKind::interrupt(), SignalKind::quit(), SignalKind::terminate(), SignalKind::hangup()];
            let [interrupt, quit, terminate, hangup] = kinds.map(signal);
            let (Ok(mut interrupt), Ok(mut quit), Ok(mut terminate), Ok(mut hangup)) =
                (interrupt, quit, terminate, hangup)
            else {
                return None;
            };
            drop(caught);
            Some(tokio::select! {
                _ = interrupt.recv() => 2,
                _ = quit.recv() => 3,
                _ = terminate.recv() => 15,
                _ = hangup.recv() => 1,
            })
        });
        if let Some(number) = number {
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &before);
            eprintln!();
            exit(128 + number);
        }
    });
    // Nothing is ever sent: the sender goes when the signals are caught, or cannot be.
    let _ = ready.recv();
    Ok(())
}
