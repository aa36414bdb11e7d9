//! [`AuditLog`]: who did what, a JSON object a line. Names, digests and addresses; never a password, a token, or a
//! query.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use http::Method;
use serde::Serialize;

use crate::StorageError;
use crate::visit::{Kind, milliseconds};

/// Lines that wait to be written; when the disk is slower than clients for this long, further ones are lost, and that is
/// noted.
const WAITING: usize = 16 * 1024;

/// How long the end of a log may take to be written.
const FAREWELL: Duration = Duration::from_secs(2);

/// Files that are kept beside the one that is written to.
const KEPT: u32 = 9;

/// What is done with a request.
#[derive(Default, Serialize)]
pub(crate) struct Entry {
    pub time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The name that a client gave without showing that it is the right one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claimed_user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    pub action: &'static str,
    pub method: String,
    pub kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    pub status: u16,
    pub outcome: &'static str,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub milliseconds: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<String>,
}

impl Entry {
    pub(crate) fn finish(&mut self, method: &Method, kind: Kind, status: u16, took: Duration, bytes: (u64, u64)) {
        self.time = cfc_oci::rfc3339(crate::token::now() as i64);
        self.action = match (kind, method.as_str()) {
            (Kind::Token, _) => "token",
            (Kind::Collection, _) => "collect",
            (Kind::Catalog, _) => "catalog",
            (Kind::Upload, _) => "push",
            (_, "DELETE") => "delete",
            (_, "PUT") => "push",
            _ => "pull",
        };
        self.method = method.as_str().chars().take(20).collect();
        self.kind = kind.text();
        self.status = status;
        self.outcome = match status {
            200..=399 => "done",
            401 | 403 => "denied",
            499 => "broken off",
            _ => "failed",
        };
        self.milliseconds = milliseconds(took);
        (self.bytes_in, self.bytes_out) = bytes;
    }
}

/// Where entries go. They are written by a thread of its own, so that no client waits for it.
pub struct AuditLog {
    /// There until this is dropped.
    lines: Option<SyncSender<String>>,
    writer: JoinHandle<()>,
    lost: AtomicU64,
}

/// What waits is written, unless that takes too long.
impl Drop for AuditLog {
    fn drop(&mut self) {
        self.lines = None;
        let started = Instant::now();
        while !self.writer.is_finished() && started.elapsed() < FAREWELL {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl AuditLog {
    /// To the end of a file, which is renamed to `<name>.1` when it has `limit` bytes, `<name>.1` to `<name>.2`, and so
    /// on; ten are kept.
    pub fn to_file(path: &Path, limit: u64) -> Result<AuditLog, StorageError> {
        let file = Rotated::open(path, limit).map_err(|e| StorageError::new("write", path.display(), e))?;
        Ok(AuditLog::to(file))
    }

    /// To the standard output.
    pub fn to_stdout() -> AuditLog {
        AuditLog::to(std::io::stdout())
    }

    fn to(target: impl Write + Send + 'static) -> AuditLog {
        let (lines, waiting) = sync_channel(WAITING);
        let writer = std::thread::spawn(move || write_all(&waiting, target));
        AuditLog { lines: Some(lines), writer, lost: AtomicU64::new(0) }
    }

    pub(crate) fn write(&self, entry: &Entry) {
        let Some(lines) = &self.lines else { return };
        let line = serde_json::to_string(entry).expect("an entry has only string keys");
        if lines.try_send(line).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 && lines.try_send(format!("{{\"lost\":{lost}}}")).is_err() {
            self.lost.fetch_add(lost, Ordering::Relaxed);
        }
    }
}

fn write_all(lines: &Receiver<String>, mut target: impl Write) {
    while let Ok(line) = lines.recv() {
        if let Err(error) = target.write_all(format!("{line}\n").as_bytes()).and_then(|()| target.flush()) {
            tracing::error!(%error, line, "cannot write the audit log");
        }
    }
}

/// A file that makes room for another when it is full.
struct Rotated {
    path: PathBuf,
    limit: u64,
    file: File,
    length: u64,
}

impl Rotated {
    fn open(path: &Path, limit: u64) -> std::io::Result<Rotated> {
        let file = File::options().append(true).create(true).mode(0o600).open(path)?;
        let length = file.metadata()?.len();
        Ok(Rotated { path: path.to_path_buf(), limit, file, length })
    }

    fn numbered(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        if number > 0 {
            name.push(format!(".{number}"));
        }
        name.into()
    }

    /// Nothing is moved before there is a file to go on with.
    fn rotate(&mut self) -> std::io::Result<()> {
        let mut new = self.path.clone().into_os_string();
        new.push(".new");
        let file = File::options().append(true).create(true).mode(0o600).open(&new)?;
        file.set_len(0)?;
        for number in (0..KEPT).rev() {
            match std::fs::rename(self.numbered(number), self.numbered(number + 1)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        std::fs::rename(&new, &self.path)?;
        (self.file, self.length) = (file, 0);
        Ok(())
    }
}

impl Write for Rotated {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.length > 0
            && self.length + bytes.len() as u64 > self.limit
            && let Err(error) = self.rotate()
        {
            tracing::error!(file = %self.path.display(), %error, "the full audit log is gone on with");
            // It is tried again when as much again has been written.
            self.length = 0;
        }
        let written = self.file.write(bytes)?;
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_makes_room_and_the_oldest_goes() {
        let directory = tempfile::TempDir::new().expect("directory");
        let path = directory.path().join("audit.log");
        let mut file = Rotated::open(&path, 10).expect("opens");
        for number in 0..25 {
            file.write_all(format!("{number:07}\n").as_bytes()).expect("writes");
        }
        assert_eq!(std::fs::read_to_string(&path).expect("reads"), "0000024\n");
        let name = |number| directory.path().join(format!("audit.log.{number}"));
        assert_eq!(std::fs::read_to_string(name(9)).expect("reads"), "0000015\n");
        assert!(!name(10).exists());
        // What is there already is gone on with.
        let mut again = Rotated::open(&path, 20).expect("opens");
        again.write_all(b"more\n").expect("writes");
        assert_eq!(std::fs::read_to_string(&path).expect("reads"), "0000024\nmore\n");
    }

    #[test]
    fn where_no_file_can_be_made_nothing_of_the_log_goes() {
        let directory = tempfile::TempDir::new().expect("directory");
        let path = directory.path().join("audit.log");
        std::fs::create_dir(directory.path().join("audit.log.new")).expect("stands in the way");
        let mut file = Rotated::open(&path, 16).expect("opens");
        let lines: Vec<String> = (0..25).map(|number| format!("{number:07}\n")).collect();
        lines.iter().for_each(|line| file.write_all(line.as_bytes()).expect("writes"));
        assert_eq!(std::fs::read_to_string(&path).expect("reads"), lines.concat());
        std::fs::remove_dir(directory.path().join("audit.log.new")).expect("makes room");
        (0..2).for_each(|_| file.write_all(b"further\n").expect("writes"));
        assert_eq!(std::fs::read_to_string(directory.path().join("audit.log.1")).expect("reads").lines().count(), 26);
    }

    #[test]
    fn the_end_of_a_log_is_written() {
        let directory = tempfile::TempDir::new().expect("directory");
        let path = directory.path().join("audit.log");
        let log = AuditLog::to_file(&path, 1 << 30).expect("opens");
        (0..1000).for_each(|_| log.write(&Entry::default()));
        drop(log);
        assert_eq!(std::fs::read_to_string(&path).expect("reads").lines().count(), 1000);
    }
}
