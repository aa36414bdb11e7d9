//! [`LogFile`]: a sandbox's output as JSON lines, in a file of bounded size.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::succession::{LogState, Passing};
use crate::error::ErrorKind;
use crate::step::Step;
use crate::time::rfc3339;

/// A longer line is cut into entries marked `partial`, the last one excepted.
const LINE_LENGTH_MAX: usize = 16 << 10;

/// Which of the two streams a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stream {
    Stdout,
    Stderr,
    /// Said by the launcher about the sandbox.
    System,
}

/// Collects two streams' bytes into lines and appends them.
///
/// Nothing here fails: a log that cannot be written must not stop the sandbox. The file is opened anew with each rotation.
pub(crate) struct LogFile {
    path: PathBuf,
    max_bytes: u64,
    file: File,
    length: u64,
    unfinished: [Vec<u8>; 3],
}

#[derive(Serialize)]
struct Entry<'a> {
    time: &'a str,
    stream: Stream,
    line: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    partial: bool,
}

impl LogFile {
    /// Opens `path` for appending, making it when absent.
    pub(crate) fn open(path: &Path, max_bytes: u64) -> Result<LogFile, ErrorKind> {
        let file = open(path).step(|| format!("open the log {}", path.display()))?;
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        Ok(LogFile { path: path.to_owned(), max_bytes, file, length, unfinished: Default::default() })
    }

    /// For the next program.
    pub(crate) fn save(&self, passing: &Passing) -> LogState {
        let LogFile { path, max_bytes, file, unfinished, .. } = self;
        let (path, unfinished) = (path.clone(), unfinished.clone());
        LogState { path, max_bytes: *max_bytes, file: passing.pass(file), unfinished }
    }

    pub(crate) fn restore(state: LogState) -> std::io::Result<LogFile> {
        let LogState { path, max_bytes, file, unfinished } = state;
        let file = File::from(file.take()?);
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        Ok(LogFile { path, max_bytes, file, length, unfinished })
    }

    /// Takes bytes as they came from `stream`.
    pub(crate) fn take(&mut self, stream: Stream, bytes: &[u8]) {
        let time = rfc3339(SystemTime::now());
        let mut entries = Vec::new();
        let unfinished = &mut self.unfinished[stream as usize];
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            unfinished.extend_from_slice(piece);
            if unfinished.last() == Some(&b'\n') {
                unfinished.pop();
                encode(&mut entries, &time, stream, unfinished);
                unfinished.clear();
            }
        }
        // What is left has no newline yet. At its limit it is written as it is.
        while unfinished.len() >= LINE_LENGTH_MAX {
            let rest = unfinished.split_off(cut(unfinished));
            encode_part(&mut entries, &time, stream, unfinished, true);
            *unfinished = rest;
        }
        self.append(&entries);
    }

    /// Writes what had no newline at its end.
    pub(crate) fn finish(&mut self) {
        let time = rfc3339(SystemTime::now());
        let mut entries = Vec::new();
        for stream in [Stream::Stdout, Stream::Stderr] {
            let rest = std::mem::take(&mut self.unfinished[stream as usize]);
            if !rest.is_empty() {
                encode(&mut entries, &time, stream, &rest);
            }
        }
        self.append(&entries);
    }

    /// Notes something about the sandbox itself.
    pub(crate) fn say(&mut self, line: &str) {
        let mut entries = Vec::new();
        encode(&mut entries, &rfc3339(SystemTime::now()), Stream::System, line.as_bytes());
        self.append(&entries);
    }

    fn append(&mut self, entries: &[u8]) {
        if entries.is_empty() {
            return;
        }
        if self.length > 0 && self.length + entries.len() as u64 > self.max_bytes {
            self.rotate();
        }
        match self.file.write_all(entries) {
            Ok(()) => self.length += entries.len() as u64,
            // A full disk may have taken half an entry, which would spoil the next one when there is space again.
            Err(_) => drop(self.file.set_len(self.length)),
        }
    }

    fn rotate(&mut self) {
        let mut older = OsString::from(&self.path);
        older.push(".1");
        if std::fs::rename(&self.path, older).is_err() {
            // What cannot be moved away must not grow.
            let _ = self.file.set_len(0);
        }
        // Where there is no descriptor to be had, the file that is open goes on.
        if let Ok(file) = open(&self.path) {
            self.file = file;
        }
        self.length = self.file.metadata().map_or(0, |metadata| metadata.len());
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// One line, in as many entries as it needs.
fn encode(entries: &mut Vec<u8>, time: &str, stream: Stream, line: &[u8]) {
    let mut rest = line;
    while rest.len() > LINE_LENGTH_MAX {
        let (part, after) = rest.split_at(cut(rest));
        encode_part(entries, time, stream, part, true);
        rest = after;
    }
    encode_part(entries, time, stream, rest, false);
}

/// Where to cut a line that is too long: not within a character of UTF-8, which has four bytes at most.
fn cut(line: &[u8]) -> usize {
    let is_boundary = |index: &usize| line.get(*index).is_none_or(|byte| byte & 0xc0 != 0x80);
    (LINE_LENGTH_MAX - 3..=LINE_LENGTH_MAX).rev().find(is_boundary).unwrap_or(LINE_LENGTH_MAX)
}

fn encode_part(entries: &mut Vec<u8>, time: &str, stream: Stream, line: &[u8], partial: bool) {
    let line = String::from_utf8_lossy(line);
    if serde_json::to_writer(&mut *entries, &Entry { time, stream, line: &line, partial }).is_ok() {
        entries.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_put_together_cut_and_rotated() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("log");
        let mut log = LogFile::open(&path, 2 * LINE_LENGTH_MAX as u64).expect("opens");
        log.take(Stream::Stdout, b"hel");
        log.take(Stream::Stderr, b"oops\n\n");
        log.take(Stream::Stdout, b"lo\nrest");
        log.finish();
        let read = |path: &Path| -> Vec<(String, String, bool)> {
            let text = std::fs::read_to_string(path).expect("reads");
            let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("is JSON"));
            lines
                .map(|v| {
                    let text = |key: &str| v[key].as_str().unwrap_or_default().to_owned();
                    (text("stream"), text("line"), v["partial"].as_bool().unwrap_or(false))
                })
                .collect()
        };
        let entry = |stream: &str, line: &str| (stream.to_owned(), line.to_owned(), false);
        let expected =
            [entry("stderr", "oops"), entry("stderr", ""), entry("stdout", "hello"), entry("stdout", "rest")];
        assert_eq!(read(&path), expected);

        log.take(Stream::Stdout, &[b'x'; 2 * LINE_LENGTH_MAX + 1]);
        let older = directory.path().join("log.1");
        assert_eq!(read(&older).len(), 4, "the older entries were moved away");
        let lengths =
            |path: &Path| read(path).iter().map(|(_, line, partial)| (line.len(), *partial)).collect::<Vec<_>>();
        assert_eq!(lengths(&path), [(LINE_LENGTH_MAX, true), (LINE_LENGTH_MAX, true)]);
        log.take(Stream::Stdout, b"\n");
        assert_eq!((lengths(&older).len(), lengths(&path)), (2, vec![(1, false)]));
    }

    #[test]
    fn characters_are_whole_and_binary_does_no_harm() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("log");
        let mut log = LogFile::open(&path, 1 << 20).expect("opens");
        let long = "a".to_string() + &"é".repeat(LINE_LENGTH_MAX);
        log.take(Stream::Stdout, long.as_bytes());
        log.take(Stream::Stdout, b"\n\xff\x00\x80binary\n");
        log.take(Stream::Stdout, &[0x80; 2 * LINE_LENGTH_MAX + 1]);
        log.finish();
        let text = std::fs::read_to_string(&path).expect("is text");
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("each entry is JSON")).collect();
        let together: String = lines[..3].iter().filter_map(|line| line["line"].as_str()).collect();
        assert_eq!(together, long);
        assert_eq!(lines[3]["line"], "\u{fffd}\0\u{fffd}binary");
        assert!(lines[4..].len() >= 2 && lines.last().is_some_and(|line| line["partial"].is_null()));
    }
}
