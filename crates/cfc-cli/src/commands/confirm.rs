//! Questions before what cannot be undone.

use std::io::{BufRead, IsTerminal, Write};

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
