//! [`LogReader`]: an instance's output, read from the file that the launcher writes.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::directory::rotated;
use crate::instance::Phase;

/// How often the end of a log is looked at for more.
const POLL: Duration = Duration::from_millis(100);

/// One line of output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// When it was read, RFC 3339.
    pub time: String,
    /// Where it was written to.
    pub stream: LogStream,
    /// The line without its end.
    pub line: String,
    /// Whether it goes on: a long line is cut into pieces, of which only the last has its end.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

/// Where a line was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// Said about the instance, not by it.
    #[serde(other)]
    System,
}

/// Reads the lines of one instance, oldest first.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    pending: VecDeque<PathBuf>,
    file: Option<BufReader<File>>,
    partial: String,
    follow: Option<watch::Receiver<Phase>>,
}

impl LogReader {
    /// Reads what there is: the rotated file, then the current one.
    pub(crate) fn new(path: PathBuf) -> LogReader {
        let pending = VecDeque::from([rotated(&path), path.clone()]);
        LogReader { path, pending, file: None, partial: String::new(), follow: None }
    }

    /// Goes on reading until the instance has ended.
    pub(crate) fn following(self, phase: watch::Receiver<Phase>) -> LogReader {
        LogReader { follow: Some(phase), ..self }
    }

    /// Only the last `count` of the lines that are there now, then (when following) all that come.
    pub async fn tail(mut self, count: usize) -> (Vec<LogLine>, LogReader) {
        let mut lines = VecDeque::new();
        while let Ok(Some(line)) = self.read_line() {
            lines.push_back(line);
            if lines.len() > count {
                lines.pop_front();
            }
        }
        (lines.into(), self)
    }

    /// The next line; `None` at the end. When following, waits for more until the instance has ended.
    pub async fn next(&mut self) -> io::Result<Option<LogLine>> {
        loop {
            // Asked before reading: what was written before the end is read after it was seen.
            let is_live = self.follow.as_ref().is_some_and(|phase| phase.borrow().is_live());
            if let Some(line) = self.read_line()? {
                return Ok(Some(line));
            }
            if self.was_rotated() {
                self.pending.push_back(self.path.clone());
                self.file = None;
            } else if is_live {
                tokio::time::sleep(POLL).await;
            } else {
                return Ok(None);
            }
        }
    }

    /// The next whole line of what is on disk now.
    fn read_line(&mut self) -> io::Result<Option<LogLine>> {
        loop {
            if self.file.is_none() && !self.open_next()? {
                return Ok(None);
            }
            let Some(file) = &mut self.file else { return Ok(None) };
            let read = file.read_line(&mut self.partial)?;
            if self.partial.ends_with('\n') {
                let text = std::mem::take(&mut self.partial);
                return Ok(Some(parse(text.trim_end_matches('\n'))));
            }
            if read == 0 {
                if self.pending.is_empty() {
                    return Ok(None);
                }
                self.file = None;
            }
        }
    }

    fn open_next(&mut self) -> io::Result<bool> {
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
        // A log that does not exist yet is looked for again.
        if self.follow.is_some() {
            self.pending.push_back(self.path.clone());
        }
        Ok(false)
    }

    fn was_rotated(&self) -> bool {
        let open = self.file.as_ref().and_then(|file| file.get_ref().metadata().ok());
        let current = std::fs::metadata(&self.path).ok();
        matches!((open, current), (Some(open), Some(current)) if open.ino() != current.ino())
    }
}

/// A line as the launcher wrote it; one that is not of its form is passed on as it is.
fn parse(text: &str) -> LogLine {
    serde_json::from_str(text).unwrap_or_else(|_| LogLine {
        time: String::new(),
        stream: LogStream::System,
        line: text.to_string(),
        partial: false,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn append(path: &std::path::Path, line: &str) {
        let mut file = File::options().create(true).append(true).open(path).expect("opens");
        writeln!(file, r#"{{"time":"2026-01-01T00:00:00Z","stream":"stdout","line":"{line}"}}"#).expect("writes");
    }

    #[tokio::test]
    async fn a_followed_log_survives_rotation_and_ends_with_the_instance() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("log");
        let (phase, watched) = watch::channel(Phase::Running { pid: 1 });
        let mut reader = LogReader::new(path.clone()).following(watched);
        append(&path, "one");
        assert_eq!(reader.next().await.expect("reads").map(|line| line.line).as_deref(), Some("one"));
        append(&path, "two");
        std::fs::rename(&path, directory.path().join("log.1")).expect("rotates");
        append(&path, "three");
        phase.send_replace(Phase::Stopped(Default::default()));
        for expected in [Some("two"), Some("three"), None] {
            assert_eq!(reader.next().await.expect("reads").map(|line| line.line).as_deref(), expected);
        }
    }

    #[tokio::test]
    async fn the_tail_is_the_last_lines() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("log");
        ["one", "two", "three"].iter().for_each(|line| append(&path, line));
        let (lines, _) = LogReader::new(path).tail(2).await;
        assert_eq!(lines.iter().map(|line| line.line.as_str()).collect::<Vec<_>>(), ["two", "three"]);
    }
}
