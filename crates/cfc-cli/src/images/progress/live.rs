//! [`Live`]: what is done stays as a line; what runs is drawn below, with times and its last lines.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cfc_plan::{NodeOutcome, OutputStream};

use super::step::Step;
use super::{Display, Shared};
use crate::{output, screen};

/// Between two frames.
const FRAME: Duration = Duration::from_millis(100);
/// How many of its last lines a running step shows.
const TAIL: usize = 6;
/// A line beyond this many characters is of no use on any terminal.
const MAX_TAIL_CHARACTERS: usize = 400;

/// A display that draws itself until it is dropped.
pub struct Live {
    running: Shared<BTreeMap<usize, RunningStep>>,
    is_over: Arc<AtomicBool>,
    drawer: Option<JoinHandle<()>>,
}

struct RunningStep {
    name: String,
    began: Instant,
    tail: VecDeque<String>,
}

impl Live {
    pub fn start() -> Live {
        let running: Shared<BTreeMap<usize, RunningStep>> = Shared::default();
        let is_over = Arc::new(AtomicBool::new(false));
        let (drawn, ended) = (running.clone(), is_over.clone());
        let drawer = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                screen::redraw(frame(&drawn.lock().unwrap_or_else(PoisonError::into_inner)));
                std::thread::park_timeout(FRAME);
            }
            screen::redraw(Vec::new());
        });
        Live { running, is_over, drawer: Some(drawer) }
    }

    fn with(&self, act: impl FnOnce(&mut BTreeMap<usize, RunningStep>)) {
        act(&mut self.running.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Leaves `step` behind as a line.
    fn end(&self, step: &Step, word: &str, colour: &str) {
        self.with(|running| {
            running.remove(&step.number);
            screen::redraw(frame(running));
        });
        let (columns, _) = screen::size();
        let line = aligned(&format!(" => {word}{}", step.name), step.seconds(), columns);
        screen::write_lines(&painted(&line, colour));
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(drawer) = self.drawer.take() {
            drawer.thread().unpark();
            let _ = drawer.join();
        }
    }
}

impl Display for Live {
    fn started(&mut self, step: &Step) {
        let new = RunningStep { name: step.name.clone(), began: step.began, tail: VecDeque::new() };
        self.with(|running| drop(running.insert(step.number, new)));
    }

    fn output(&mut self, step: &Step, _: OutputStream, line: &str) {
        let line = harmless(line);
        self.with(|running| {
            let Some(step) = running.get_mut(&step.number) else { return };
            if step.tail.len() == TAIL {
                step.tail.pop_front();
            }
            step.tail.push_back(line);
        });
    }

    fn finished(&mut self, step: &Step, outcome: NodeOutcome) {
        match outcome {
            NodeOutcome::Built => self.end(step, "", "34"),
            NodeOutcome::Cached => self.end(step, "CACHED ", "34"),
        }
    }

    fn failed(&mut self, step: &Step, _: &str) {
        self.end(step, "ERROR ", "31");
    }
}

/// What is drawn: the steps that run, the first of them with their last lines as far as there is room.
fn frame(running: &BTreeMap<usize, RunningStep>) -> Vec<String> {
    let (columns, rows) = screen::size();
    let mut lines = Vec::new();
    // A frame that is higher than the terminal could not be taken away again.
    let mut room = rows.saturating_sub(2).max(1).saturating_sub(running.len());
    for step in running.values() {
        lines.push(aligned(&format!(" => {}", step.name), step.began.elapsed().as_secs_f64(), columns));
        let shown = step.tail.len().min(room);
        room -= shown;
        let tail = step.tail.iter().skip(step.tail.len() - shown);
        lines.extend(tail.map(|line| cut(&format!(" => => # {line}"), columns)));
    }
    lines.truncate(rows.saturating_sub(2).max(1));
    lines
}

/// `text` to the left, the time at the right end.
fn aligned(text: &str, seconds: f64, columns: usize) -> String {
    let time = format!(" {seconds:.1}s");
    let width = columns.saturating_sub(time.len() + 1);
    format!("{:width$}{time}", cut(text, width))
}

fn cut(text: &str, width: usize) -> String {
    text.chars().take(width).collect()
}

fn painted(line: &str, colour: &str) -> String {
    if output::use_colour() { format!("\u{1b}[{colour}m{line}\u{1b}[0m") } else { line.to_string() }
}

/// A line that moves no cursor: of what was written over itself the last, without escapes and control characters.
fn harmless(line: &str) -> String {
    let line = line.trim_end_matches('\r');
    let last = line.rsplit('\r').next().unwrap_or_default();
    let mut text = String::new();
    let mut characters = last.chars().take(MAX_TAIL_CHARACTERS).peekable();
    while let Some(character) = characters.next() {
        match character {
            '\u{1b}' => {
                // A sequence ends with a letter.
                if characters.next_if_eq(&'[').is_some() {
                    while characters.next_if(|next| !next.is_ascii_alphabetic()).is_some() {}
                }
                characters.next();
            }
            '\t' => text.push(' '),
            _ if character.is_control() => {}
            _ => text.push(character),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_cannot_move_the_cursor() {
        assert_eq!(harmless("10%\r50%\r100%\r"), "100%");
        assert_eq!(harmless("\u{1b}[1;31mred\u{1b}[0m\tand\u{7} \u{1b}[2Jdone"), "red and done");
    }

    #[test]
    fn lines_fit_the_terminal() {
        assert_eq!(aligned(" => [1/2] COPY a /", 0.05, 30), " => [1/2] COPY a /       0.1s");
        assert_eq!(aligned(" => [1/2] COPY a /", 1.0, 12).chars().count(), 11);
        assert_eq!(aligned("x", 1.0, 0), " 1.0s");
    }
}
