//! What is on stderr: lines that stay, and below them, on a terminal, lines that are drawn again and again. One place,
//! since two writers that do not know of each other would overwrite each other's lines.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::termios::tcgetwinsize;

/// Where a width is asked for and there is none.
const USUAL_WIDTH: usize = 80;
/// Erases from the cursor to the end of the screen.
const ERASE_BELOW: &str = "\u{1b}[J";
/// Long lines are cut by the terminal meanwhile: one that became narrower would move everything else.
const WITHOUT_WRAP: (&str, &str) = ("\u{1b}[?7l", "\u{1b}[?7h");

static SCREEN: Mutex<Screen> =
    Mutex::new(Screen { lines: Vec::new(), drawn_width: 0, mode: Mode::Text, is_closed: false });

/// How lines that stay are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As they are.
    Text,
    /// Each as an event, so that every line of stderr is JSON.
    Json,
    /// Not at all.
    Quiet,
}

struct Screen {
    /// What is drawn below all else.
    lines: Vec<String>,
    drawn_width: usize,
    mode: Mode,
    /// Nothing is drawn any more.
    is_closed: bool,
}

/// Sets how [`tell`] speaks from now on.
pub fn set_mode(mode: Mode) {
    screen().mode = mode;
}

/// How [`tell`] speaks.
pub fn mode() -> Mode {
    screen().mode
}

/// Tells the person at the terminal how things go.
pub fn tell(line: &str) {
    match mode() {
        Mode::Text => write_lines(line),
        Mode::Json => write_event(serde_json::json!({ "event": "message", "text": line })),
        Mode::Quiet => {}
    }
}

/// Writes an event, an object, with the time at which it was.
pub fn write_event(mut event: serde_json::Value) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    event["time"] = ((now * 1000.0).round() / 1000.0).into();
    write_lines(&event.to_string());
}

/// Writes lines that stay, as they are.
pub fn write_lines(text: &str) {
    let mut screen = screen();
    let mut out = screen.erase();
    out += text;
    out.push('\n');
    out += &screen.draw();
    put(&out);
}

/// Draws `lines` below all else, in place of those drawn before. Only for a terminal.
pub fn redraw(lines: Vec<String>) {
    let mut screen = screen();
    let mut out = screen.erase();
    screen.lines = if screen.is_closed { Vec::new() } else { lines };
    out += &screen.draw();
    put(&out);
}

/// Takes away what is drawn, for good: the process is about to end.
pub fn close() {
    screen().is_closed = true;
    redraw(Vec::new());
}

/// The number of columns, and of rows.
pub fn size() -> (usize, usize) {
    let size = tcgetwinsize(io::stderr()).ok();
    let size = size.map(|size| (usize::from(size.ws_col), usize::from(size.ws_row)));
    size.filter(|(columns, rows)| *columns > 0 && *rows > 0).unwrap_or((USUAL_WIDTH, 24))
}

/// Whether stderr is a terminal that can be drawn on.
pub fn is_terminal() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

impl Screen {
    /// What takes away the drawn lines.
    fn erase(&self) -> String {
        if self.lines.is_empty() {
            return String::new();
        }
        // A terminal that became narrower has broken what was drawn into more rows.
        let (columns, _) = size();
        let rows_of = |line: &String| {
            let length = visible_length(line).min(self.drawn_width.max(1));
            length.div_ceil(columns.max(1)).max(1)
        };
        let rows: usize = self.lines.iter().map(rows_of).sum();
        format!("\r\u{1b}[{rows}A{ERASE_BELOW}")
    }

    fn draw(&mut self) -> String {
        if self.lines.is_empty() {
            return String::new();
        }
        (self.drawn_width, _) = size();
        let (begin, end) = WITHOUT_WRAP;
        format!("{begin}{}\n{end}", self.lines.join("\n"))
    }
}

/// How many columns a line takes, without what only paints it.
fn visible_length(line: &str) -> usize {
    let mut is_escape = false;
    let visible = line.chars().filter(|character| {
        let was_escape = is_escape;
        is_escape = (*character == '\u{1b}') || (is_escape && !character.is_ascii_alphabetic());
        !was_escape && !is_escape
    });
    visible.count()
}

fn screen() -> MutexGuard<'static, Screen> {
    SCREEN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn put(text: &str) {
    let mut stderr = io::stderr().lock();
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}

/// For those who write whole lines to stderr themselves: the log.
pub struct Above;

impl Write for Above {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        match mode() {
            Mode::Json => tell(text.trim_end()),
            Mode::Text | Mode::Quiet => write_lines(text.trim_end_matches('\n')),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paint_takes_no_columns() {
        assert_eq!(visible_length("\u{1b}[1;31merror\u{1b}[0m: x"), 8);
        assert_eq!(visible_length("plain"), 5);
    }
}
