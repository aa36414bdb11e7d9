//! Everything that is printed. stdout carries data, stderr everything meant for a person.

use std::io::{IsTerminal, Write};

use crate::failure::Failure;
use crate::images::progress;
use crate::screen;

/// Prints a line of data to stdout. A closed pipe ends the program quietly, as it does any Unix tool; any other failure ends
/// it with an error.
pub fn data(line: impl std::fmt::Display) {
    if let Err(error) = try_data(line) {
        end(&error);
    }
}

/// The same, for a program that has more to do than to print.
pub fn try_data(line: impl std::fmt::Display) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}").and_then(|()| stdout.flush())
}

/// Ends the program after its data could not be printed.
fn end(error: &std::io::Error) -> ! {
    if error.kind() == std::io::ErrorKind::BrokenPipe {
        std::process::exit(0);
    }
    print_failure(&Failure::because("cannot write to the standard output", error));
    std::process::exit(1);
}

/// Tells the person at the terminal how things go.
pub fn tell(line: impl std::fmt::Display) {
    screen::tell(&line.to_string());
}

/// Prints why a command failed.
pub fn print_failure(failure: &Failure) {
    if progress::failed(failure) {
        return;
    }
    let text = failure.to_string();
    let painted = match text.strip_prefix("error:") {
        Some(rest) if use_colour() => format!("\u{1b}[1;31merror\u{1b}[0m:{rest}"),
        _ => text,
    };
    // Also where nothing else is said.
    screen::write_lines(&painted);
}

/// Whether stderr is a terminal that wants colour (`NO_COLOR`, no-color.org).
pub fn use_colour() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Prints `rows` below `header` as columns that line up.
pub fn table(header: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        rows.iter().map(|row| row[column].chars().count()).chain([header[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_string()
    };
    data(line(header.to_vec()));
    for row in rows {
        data(line(row.iter().map(String::as_str).collect()));
    }
}

/// Writes raw bytes of data to stdout.
pub fn bytes(bytes: &[u8]) {
    let mut stdout = std::io::stdout().lock();
    if let Err(error) = stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        end(&error);
    }
}
