//! [`Capture`]: the output of a program, passed on as it comes, its last lines kept for the error message.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{PipeReader, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use cfc_plan::OutputStream;

use crate::failure::{OnPath, Result};
use crate::run::Listener;

/// How many lines an error message shows.
const TAIL_LINES: usize = 20;
/// A longer line is cut, in bytes.
const MAX_LINE_BYTES: usize = 1000;

/// The reading ends of a program's output.
pub(crate) struct Capture {
    stdout: PipeReader,
    stderr: PipeReader,
}

/// What the program gets.
pub(crate) struct Files {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

impl Capture {
    /// Two pipes, and nothing to read for the program.
    pub(crate) fn start() -> Result<(Capture, Files)> {
        let nothing = Path::new("/dev/null");
        let stdin = File::open(nothing).on("open", nothing)?;
        let (stdout, stdout_end) = std::io::pipe().on("make a pipe for", Path::new("stdout"))?;
        let (stderr, stderr_end) = std::io::pipe().on("make a pipe for", Path::new("stderr"))?;
        let files = Files { stdin: stdin.into(), stdout: stdout_end.into(), stderr: stderr_end.into() };
        Ok((Capture { stdout, stderr }, files))
    }

    /// Reads until nobody writes any more. Returns the last lines.
    pub(crate) fn read_to_end(self, listener: Listener<'_>) -> Vec<String> {
        let tail = Mutex::new(Tail::default());
        let pass = |stream: OutputStream, mut pipe: PipeReader| {
            let mut buffer = [0; 8192];
            let mut unfinished = Vec::new();
            // A pipe that cannot be read has no more output: the exit status tells what happened.
            while let Ok(length @ 1..) = pipe.read(&mut buffer) {
                listener(stream, &buffer[..length]);
                let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
                tail.add(&mut unfinished, &buffer[..length]);
            }
            let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
            tail.finish(&mut unfinished);
        };
        std::thread::scope(|scope| {
            scope.spawn(|| pass(OutputStream::Stderr, self.stderr));
            pass(OutputStream::Stdout, self.stdout);
        });
        tail.into_inner().unwrap_or_else(PoisonError::into_inner).lines.into()
    }
}

#[derive(Default)]
struct Tail {
    lines: VecDeque<String>,
}

impl Tail {
    fn add(&mut self, unfinished: &mut Vec<u8>, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                b'\n' => self.finish(unfinished),
                _ if unfinished.len() < MAX_LINE_BYTES => unfinished.push(*byte),
                _ => {}
            }
        }
    }

    fn finish(&mut self, unfinished: &mut Vec<u8>) {
        if unfinished.is_empty() {
            return;
        }
        if self.lines.len() == TAIL_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(String::from_utf8_lossy(unfinished).trim_end_matches('\r').to_string());
        unfinished.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn output_is_passed_on_and_its_end_is_kept() {
        let (capture, files) = Capture::start().expect("pipes");
        let writer = std::thread::spawn(move || {
            let mut stdout = File::from(files.stdout);
            for number in 0..30 {
                writeln!(stdout, "line {number}").expect("writes");
            }
            write!(stdout, "no end").expect("writes");
            drop(files.stderr);
        });
        let heard = Mutex::new(Vec::new());
        let tail = capture.read_to_end(&|_, bytes| heard.lock().expect("no panic").extend_from_slice(bytes));
        writer.join().expect("no panic");
        assert_eq!(tail.len(), TAIL_LINES);
        assert_eq!(tail.first().map(String::as_str), Some("line 11"));
        assert_eq!(tail.last().map(String::as_str), Some("no end"));
        assert!(heard.into_inner().expect("no panic").starts_with(b"line 0\nline 1\n"));
    }
}
