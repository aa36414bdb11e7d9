//! [`LogFile`]: lines with their times, in a file that is put aside when it is full.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// A longer line is cut into several.
const LINE_LENGTH_MAX: usize = 16 << 10;

/// Collects bytes into lines and appends them.
///
/// Nothing here fails: a log that cannot be written must not stop the Worker. What was lost is said where it is missing.
pub(super) struct LogFile {
    path: PathBuf,
    max_bytes: u64,
    file: File,
    length: u64,
    unfinished: Vec<u8>,
    /// Lines that could not be written since the last one that could.
    lost: u64,
}

/// Where a log is put aside.
pub(super) fn rotated(path: &Path) -> PathBuf {
    path.with_extension("1")
}

impl LogFile {
    /// Opens `path` for appending, making it when absent.
    pub fn open(path: &Path, max_bytes: u64) -> std::io::Result<LogFile> {
        let file = open(path)?;
        let length = file.metadata()?.len();
        Ok(LogFile { path: path.to_path_buf(), max_bytes, file, length, unfinished: Vec::new(), lost: 0 })
    }

    /// Takes bytes as they came.
    pub fn take(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.unfinished.extend_from_slice(piece);
            while self.unfinished.len() > LINE_LENGTH_MAX {
                let rest = self.unfinished.split_off(cut(&self.unfinished));
                let line = std::mem::replace(&mut self.unfinished, rest);
                self.append(&line);
            }
            if self.unfinished.last() == Some(&b'\n') {
                self.finish();
            }
        }
    }

    /// Writes what there is of a line.
    pub fn finish(&mut self) {
        let line = std::mem::take(&mut self.unfinished);
        if !line.is_empty() {
            self.append(line.strip_suffix(b"\n").unwrap_or(&line));
        }
    }

    fn append(&mut self, line: &[u8]) {
        let time = now();
        let mut entry = match self.lost {
            0 => String::new(),
            lost => format!("{time} cfc: {lost} lines are missing here, which could not be written\n"),
        };
        entry.push_str(&format!("{time} {}\n", String::from_utf8_lossy(line).trim_end_matches('\r')));
        if self.length > 0 && self.length + entry.len() as u64 > self.max_bytes {
            self.rotate();
        }
        match self.file.write_all(entry.as_bytes()) {
            Ok(()) => {
                self.length += entry.len() as u64;
                self.lost = 0;
            }
            Err(error) => {
                if self.lost == 0 {
                    tracing::warn!(log = %self.path.display(), %error, "what a Worker prints cannot be written");
                }
                self.lost += 1;
                // Half an entry would spoil the next one.
                let _ = self.file.set_len(self.length);
            }
        }
    }

    fn rotate(&mut self) {
        if std::fs::rename(&self.path, rotated(&self.path)).is_err() {
            // What cannot be moved away must not grow.
            let _ = self.file.set_len(0);
        }
        // Where there is no descriptor to be had, the file that is open goes on, emptied.
        match open(&self.path) {
            Ok(file) => self.file = file,
            Err(_) => drop(self.file.set_len(0)),
        }
        self.length = self.file.metadata().map_or(0, |metadata| metadata.len());
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// Where to cut a line that is too long: not within a character of UTF-8, which has four bytes at most.
fn cut(line: &[u8]) -> usize {
    let is_boundary = |index: &usize| line.get(*index).is_none_or(|byte| byte & 0xc0 != 0x80);
    (LINE_LENGTH_MAX - 3..=LINE_LENGTH_MAX).rev().find(is_boundary).unwrap_or(LINE_LENGTH_MAX)
}

/// The time in UTC with milliseconds: `2026-01-31T12:00:00.000Z`.
fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = cfc_oci::rfc3339(i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
    format!("{}.{:03}Z", seconds.trim_end_matches('Z'), since.subsec_millis())
}

#[cfg(test)]
mod tests {
    use super::super::LogReader;
    use super::*;

    fn lines(directory: &Path) -> Vec<String> {
        let mut reader = LogReader::open(directory);
        std::iter::from_fn(|| reader.next_line().expect("readable")).map(|line| line.text).collect()
    }

    #[test]
    fn a_flood_takes_two_files_and_the_newest_lines_stay() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("log");
        let mut file = LogFile::open(&path, 1000).expect("opens");
        for number in 0..1000 {
            file.take(format!("line {number}\n").as_bytes());
        }
        let size = |path: &Path| std::fs::metadata(path).expect("is there").len();
        assert!(size(&path) <= 1000 && size(&rotated(&path)) <= 1000);
        let lines = lines(directory.path());
        assert_eq!(lines.last().map(String::as_str), Some("line 999"));
        let numbers: Vec<usize> = lines.iter().map(|line| line[5..].parse().expect("a number")).collect();
        assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{numbers:?}");
    }

    #[test]
    fn lines_come_in_pieces_and_a_long_one_is_cut() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut file = LogFile::open(&directory.path().join("log"), 1 << 20).expect("opens");
        file.take(b"one ");
        file.take(b"line\r\nanother\n");
        file.take("ä".repeat(LINE_LENGTH_MAX).as_bytes());
        file.finish();
        let lines = lines(directory.path());
        assert_eq!(&lines[..2], ["one line", "another"]);
        assert_eq!(lines[2..].concat(), "ä".repeat(LINE_LENGTH_MAX));
        assert!(lines.iter().all(|line| line.len() <= LINE_LENGTH_MAX));
    }

    #[test]
    fn what_a_full_disk_lost_is_said() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("log");
        let mut file = LogFile::open(&path, 1 << 20).expect("opens");
        let good =
            std::mem::replace(&mut file.file, OpenOptions::new().write(true).open("/dev/full").expect("there is one"));
        file.take(b"lost\nlost too\n");
        file.file = good;
        file.take(b"there\n");
        assert_eq!(lines(directory.path()), ["cfc: 2 lines are missing here, which could not be written", "there"]);
    }
}
