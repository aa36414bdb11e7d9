//! [`LogReader`]: the lines of a log, also while they are written.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::file::rotated;

/// A line that a workerd has printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// When it was read, RFC 3339 in UTC with milliseconds; empty where the log does not say.
    pub time: String,
    /// The line without its end.
    pub text: String,
}

/// Reads the lines of a Worker's log, oldest first.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    pending: VecDeque<PathBuf>,
    file: Option<BufReader<File>>,
    partial: Vec<u8>,
}

impl LogReader {
    /// Begins with the oldest line of the Worker whose directory this is. There need not be one yet.
    pub fn open(directory: &Path) -> LogReader {
        let path = directory.join("log");
        let pending = VecDeque::from([rotated(&path), path.clone()]);
        LogReader { path, pending, file: None, partial: Vec::new() }
    }

    /// The next line of those that are there now. After `None` there may be more later. Reads a file: blocks for a moment.
    pub fn next_line(&mut self) -> io::Result<Option<LogLine>> {
        loop {
            if self.file.is_none() && !self.open_next()? {
                return Ok(None);
            }
            // Asked before reading: what was written before it was put aside is read after that was seen.
            let was_put_aside = self.was_put_aside();
            let Some(file) = &mut self.file else { return Ok(None) };
            file.read_until(b'\n', &mut self.partial)?;
            if self.partial.ends_with(b"\n") {
                let line = std::mem::take(&mut self.partial);
                return Ok(Some(parse(&line[..line.len() - 1])));
            }
            if !was_put_aside {
                return Ok(None);
            }
            self.partial.clear();
            self.file = None;
        }
    }

    fn open_next(&mut self) -> io::Result<bool> {
        if self.pending.is_empty() {
            self.pending.push_back(self.path.clone());
        }
        while let Some(path) = self.pending.pop_front() {
            match File::open(&path) {
                Ok(file) => {
                    self.file = Some(BufReader::new(file));
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Whether lines are added to another file than the one that is open.
    fn was_put_aside(&self) -> bool {
        let open = self.file.as_ref().and_then(|file| file.get_ref().metadata().ok());
        let current = std::fs::metadata(&self.path).ok();
        matches!((open, current), (Some(open), Some(current)) if open.ino() != current.ino())
    }
}

/// A line as `LogFile` wrote it; one without a time, as earlier versions wrote them, is passed on as it is.
fn parse(line: &[u8]) -> LogLine {
    let line = String::from_utf8_lossy(line);
    let is_time = |text: &str| text.len() == 24 && text.ends_with('Z') && text.as_bytes()[10] == b'T';
    match line.split_once(' ') {
        Some((time, text)) if is_time(time) => LogLine { time: time.to_string(), text: text.to_string() },
        _ => LogLine { time: String::new(), text: line.into_owned() },
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn lines_are_followed_into_the_next_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("log");
        let append = |text: &str| {
            let mut file = File::options().create(true).append(true).open(&path).expect("opens");
            file.write_all(text.as_bytes()).expect("writes");
        };
        let mut reader = LogReader::open(directory.path());
        let mut next = || reader.next_line().expect("reads").map(|line| line.text);
        assert_eq!(next(), None);
        append("an old line\n2026-01-31T12:00:00.000Z one\n2026-01-31T12:00:00.000Z ha");
        assert_eq!(next().as_deref(), Some("an old line"));
        assert_eq!(next().as_deref(), Some("one"));
        assert_eq!(next(), None);
        append("lf\n2026-01-31T12:00:00.000Z two\n");
        std::fs::rename(&path, rotated(&path)).expect("renames");
        append("2026-01-31T12:00:00.000Z three\n");
        assert_eq!([next(), next(), next()].map(Option::unwrap_or_default), ["half", "two", "three"]);
        assert_eq!(next(), None);
    }
}
