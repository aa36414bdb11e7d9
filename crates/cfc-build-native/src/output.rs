//! [`Capture`]: the output of a program, passed on as it comes, its last lines kept for the error message.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{PipeReader, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use cfc_plan::OutputStream;

use crate::failure::{OnPath, Result};
use crate::run::Listener;

/// How many lines an error message shows.
const TAIL_LINES: usize = 20;
/// A longer line is cut, in bytes.
const MAX_LINE_BYTES: usize = 1000;

/// The reading end of a program's output.
pub(crate) struct Capture {
    output: PipeReader,
}

/// What the program gets.
pub(crate) struct Files {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

impl Capture {
    /// One pipe for both streams, and nothing to read for the program. Two would lose the order in which it wrote, and with it
    /// which line an error belongs to.
    pub(crate) fn start() -> Result<(Capture, Files)> {
        let nothing = Path::new("/dev/null");
        let stdin = File::open(nothing).on("open", nothing)?;
        let (output, end) = std::io::pipe().on("make a pipe for", Path::new("stdout"))?;
        let stderr = end.try_clone().on("duplicate the pipe for", Path::new("stderr"))?;
        let files = Files { stdin: stdin.into(), stdout: end.into(), stderr: stderr.into() };
        Ok((Capture { output }, files))
    }

    /// Reads until nobody writes any more. Returns the last lines.
    pub(crate) fn read_to_end(mut self, listener: Listener<'_>) -> Vec<String> {
        let mut tail = Tail::default();
        let mut buffer = [0; 8192];
        let mut unfinished = Vec::new();
        // A pipe that cannot be read has no more output: the exit status tells what happened.
        while let Ok(length @ 1..) = self.output.read(&mut buffer) {
            listener(OutputStream::Stdout, &buffer[..length]);
            tail.add(&mut unfinished, &buffer[..length]);
        }
        tail.finish(&mut unfinished);
        tail.lines.into()
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
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn output_is_passed_on_and_its_end_is_kept() {
        let (capture, files) = Capture::start().expect("pipes");
        let writer = std::thread::spawn(move || {
            let mut streams = [File::from(files.stdout), File::from(files.stderr)];
            for number in 0..30 {
                writeln!(streams[number % 2], "line {number}").expect("writes");
            }
            write!(streams[0], "no end").expect("writes");
        });
        let heard = Mutex::new(Vec::new());
        let tail = capture.read_to_end(&|_, bytes| heard.lock().expect("no panic").extend_from_slice(bytes));
        writer.join().expect("no panic");
        assert_eq!(tail.len(), TAIL_LINES);
        assert_eq!(tail.first().map(String::as_str), Some("line 11"));
        assert_eq!(tail.last().map(String::as_str), Some("no end"));
        let expected: String = (0..30).map(|number| format!("line {number}\n")).collect();
        let heard = heard.into_inner().expect("no panic");
        assert_eq!(String::from_utf8_lossy(&heard), expected + "no end", "both streams, in the order of writing");
    }
}
