//! [`AuditLog`]: who did what, a JSON object a line. Names, digests and addresses; never a password, a token, or a
//! query.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use http::Method;
use serde::Serialize;

use crate::visit::{Kind, milliseconds};
use crate::{LoanRecord, StorageError};

/// Lines that wait to be written; when the disk is slower than clients for this long, further ones are lost, and that is
/// noted.
const WAITING: usize = 16 * 1024;

/// How long the end of a log may take to be written.
const FAREWELL: Duration = Duration::from_secs(2);

/// Files that are kept beside the one that is written to.
const KEPT: u32 = 9;

/// What is done with a request, or by the registry itself.
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
    /// Empty where nobody has asked.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub method: String,
    pub kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// The password that was made or taken back, but for itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lent: Option<LoanRecord>,
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
        let action = match (kind, method.as_str()) {
            (Kind::Token, _) => "token",
            (Kind::Collection, _) => "collect",
            (Kind::Retention, _) => "retain",
            (Kind::Loan, "GET") => "loans",
            (Kind::Loan, "DELETE") => "revoke",
            (Kind::Loan, _) => "lend",
            (Kind::Catalog, _) => "catalog",
            (Kind::Upload, _) => "push",
            (_, "DELETE") => "delete",
            (_, "PUT") => "push",
            _ => "pull",
        };
        self.method = method.as_str().chars().take(20).collect();
        self.end(action, kind, status, took);
        (self.bytes_in, self.bytes_out) = bytes;
    }

    /// Ends what the registry has done by itself, with the status that a client would get who asks for the same.
    pub(crate) fn end(&mut self, action: &'static str, kind: Kind, status: u16, took: Duration) {
        self.time = cfc_oci::rfc3339(crate::token::now() as i64);
        self.action = action;
        self.kind = kind.text();
        self.status = status;
        self.outcome = match status {
            200..=399 => "done",
            401 | 403 => "denied",
            499 => "broken off",
            _ => "failed",
        };
        self.milliseconds = milliseconds(took);
    }
}

/// Where entries go. They are written by a thread of its own, so that no client waits for it.
pub struct AuditLog {
    /// There until this is dropped.
    orders: Option<SyncSender<Order>>,
    /// Whether the file is to be opened again before anything else is written.
    reopen: Arc<AtomicBool>,
    writer: JoinHandle<()>,
    lost: AtomicU64,
}

/// What the thread that writes is to do.
enum Order {
    Write(String),
    /// See whether the file is to be opened again.
    Look,
}

/// What is written to.
enum Target {
    Stream(Lines<Box<dyn Write + Send>>),
    File(Rotated),
}

/// What waits is written, unless that takes too long.
impl Drop for AuditLog {
    fn drop(&mut self) {
        self.orders = None;
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
        Ok(AuditLog::to(Target::File(file)))
    }

    /// To the standard output.
    pub fn to_stdout() -> AuditLog {
        AuditLog::to(Target::Stream(Lines::new(Box::new(std::io::stdout()))))
    }

    /// To the standard error, for who has other things to say on the output.
    pub fn to_stderr() -> AuditLog {
        AuditLog::to(Target::Stream(Lines::new(Box::new(std::io::stderr()))))
    }

    fn to(target: Target) -> AuditLog {
        let (orders, waiting) = sync_channel(WAITING);
        let reopen = Arc::<AtomicBool>::default();
        let asked = reopen.clone();
        let writer = std::thread::spawn(move || write_all(&waiting, target, &asked));
        AuditLog { orders: Some(orders), reopen, writer, lost: AtomicU64::new(0) }
    }

    /// Writes down that a password was made (`lend`), or taken back (`revoke`), by no request to a registry.
    pub(crate) fn note_loan(&self, action: &'static str, record: LoanRecord) {
        let mut entry = Entry { lent: Some(record), ..Entry::default() };
        entry.end(action, Kind::Loan, 200, Duration::ZERO);
        self.write(&entry);
    }

    /// Goes on in the file that has the log's name by then, for who has renamed it or taken it away (as logrotate does). What
    /// cannot be opened leaves the log where it is, and the other log says so. Does not wait for it.
    pub(crate) fn reopen(&self) {
        self.reopen.store(true, Ordering::Release);
        if let Some(orders) = &self.orders {
            // Where no order has room, the next one that is carried out looks.
            let _ = orders.try_send(Order::Look);
        }
    }

    pub(crate) fn write(&self, entry: &Entry) {
        let Some(orders) = &self.orders else { return };
        let line = serde_json::to_string(entry).expect("an entry has only string keys");
        if orders.try_send(Order::Write(line)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 && orders.try_send(Order::Write(format!("{{\"lost\":{lost}}}"))).is_err() {
            self.lost.fetch_add(lost, Ordering::Relaxed);
        }
    }
}

fn write_all(orders: &Receiver<Order>, mut target: Target, reopen: &AtomicBool) {
    while let Ok(order) = orders.recv() {
        if reopen.swap(false, Ordering::AcqRel) {
            target.reopen();
        }
        let Order::Write(line) = order else { continue };
        let written = match &mut target {
            Target::Stream(lines) => lines.write(&line).1,
            Target::File(file) => file.write(&line),
        };
        if let Err(error) = written {
            tracing::error!(%error, line, "cannot write the audit log");
        }
    }
}

impl Target {
    fn reopen(&mut self) {
        let Target::File(file) = self else { return };
        match Rotated::open(&file.path, file.limit) {
            Ok(opened) => *file = opened,
            Err(error) => {
                tracing::error!(file = %file.path.display(), %error, "cannot open the audit log again, going on in the old file");
            }
        }
    }
}

/// Whole lines, each on its own: one of which only a part could be written, as on a full disk, is ended before the next.
struct Lines<W> {
    target: W,
    is_broken: bool,
}

impl<W: Write> Lines<W> {
    fn new(target: W) -> Lines<W> {
        Lines { target, is_broken: false }
    }

    /// How many bytes were written, and whether that was all.
    fn write(&mut self, line: &str) -> (usize, std::io::Result<()>) {
        let start = if self.is_broken { "\n" } else { "" };
        let text = format!("{start}{line}\n");
        let mut written = 0;
        let mut write = || {
            while written < text.len() {
                match self.target.write(&text.as_bytes()[written..]) {
                    Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
                    Ok(count) => written += count,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            self.target.flush()
        };
        let done = write();
        if written > 0 {
            self.is_broken = !text.as_bytes()[..written].ends_with(b"\n");
        }
        (written, done)
    }
}

/// A file that makes room for another when it is full.
struct Rotated {
    path: PathBuf,
    limit: u64,
    lines: Lines<File>,
    length: u64,
}

impl Rotated {
    fn open(path: &Path, limit: u64) -> std::io::Result<Rotated> {
        let file = File::options().append(true).create(true).mode(0o600).open(path)?;
        let metadata = file.metadata()?;
        let length = metadata.len();
        // An end that cannot be read may be that of half a line, and an empty one does no harm.
        let is_broken = metadata.is_file() && length > 0 && last_byte(path, length).ok() != Some(b'\n');
        Ok(Rotated { path: path.to_path_buf(), limit, lines: Lines { target: file, is_broken }, length })
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
        (self.lines, self.length) = (Lines::new(file), 0);
        Ok(())
    }

    fn write(&mut self, line: &str) -> std::io::Result<()> {
        let size = line.len() as u64 + 1;
        if self.length > 0
            && self.length + size > self.limit
            && let Err(error) = self.rotate()
        {
            tracing::error!(file = %self.path.display(), %error, "the full audit log is gone on with");
            // It is tried again when as much again has been written.
            self.length = 0;
        }
        let (written, done) = self.lines.write(line);
        self.length += written as u64;
        done
    }
}

fn last_byte(path: &Path, length: u64) -> std::io::Result<u8> {
    let mut byte = [0];
    File::open(path)?.read_exact_at(&mut byte, length - 1)?;
    Ok(byte[0])
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
            file.write(&format!("{number:07}")).expect("writes");
        }
        assert_eq!(std::fs::read_to_string(&path).expect("reads"), "0000024\n");
        let name = |number| directory.path().join(format!("audit.log.{number}"));
        assert_eq!(std::fs::read_to_string(name(9)).expect("reads"), "0000015\n");
        assert!(!name(10).exists());
        // What is there already is gone on with.
        let mut again = Rotated::open(&path, 20).expect("opens");
        again.write("more").expect("writes");
        assert_eq!(std::fs::read_to_string(&path).expect("reads"), "0000024\nmore\n");
    }

    #[test]
    fn where_no_file_can_be_made_nothing_of_the_log_goes() {
        let directory = tempfile::TempDir::new().expect("directory");
        let path = directory.path().join("audit.log");
        std::fs::create_dir(directory.path().join("audit.log.new")).expect("stands in the way");
        let mut file = Rotated::open(&path, 16).expect("opens");
        let lines: Vec<String> = (0..25).map(|number| format!("{number:07}\n")).collect();
        lines.iter().for_each(|line| file.write(line.trim_end()).expect("writes"));
        assert_eq!(std::fs::read_to_string(&path).expect("reads"), lines.concat());
        std::fs::remove_dir(directory.path().join("audit.log.new")).expect("makes room");
        (0..2).for_each(|_| file.write("further").expect("writes"));
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

    #[test]
    fn a_line_that_was_written_in_part_does_not_spoil_the_next() {
        use std::io::Read;
        // Takes what has room and refuses the rest, as a disk does.
        let (target, mut reader) = std::os::unix::net::UnixStream::pair().expect("a pair");
        target.set_nonblocking(true).expect("does not wait");
        reader.set_nonblocking(true).expect("does not wait");
        let mut read = || {
            let mut bytes = Vec::new();
            let end = reader.read_to_end(&mut bytes).expect_err("it goes on");
            assert_eq!(end.kind(), std::io::ErrorKind::WouldBlock);
            String::from_utf8(bytes).expect("text")
        };
        let mut lines = Lines::new(target);
        let (written, refused) = lines.write(&"x".repeat(100 << 20));
        assert!(refused.is_err() && written > 0);
        // Nothing of the next one has room.
        assert_eq!(lines.write("lost").0, 0);
        assert_eq!(read().len(), written);
        lines.write("second").1.expect("writes");
        lines.write("third").1.expect("writes");
        assert_eq!(read(), "\nsecond\nthird\n");
    }

    #[test]
    fn half_a_line_that_an_earlier_process_left_is_ended() {
        let directory = tempfile::TempDir::new().expect("directory");
        let path = directory.path().join("audit.log");
        std::fs::write(&path, "whole\nhal").expect("writes");
        let mut file = Rotated::open(&path, 1000).expect("opens");
        file.write("next").expect("writes");
        Rotated::open(&path, 1000).expect("opens").write("last").expect("writes");
        assert_eq!(std::fs::read_to_string(&path).expect("reads"), "whole\nhal\nnext\nlast\n");
    }

    #[test]
    fn a_log_that_was_renamed_is_begun_anew_when_asked() {
        let directory = tempfile::TempDir::new().expect("directory");
        let path = |name: &str| directory.path().join(name);
        let log = AuditLog::to_file(&path("audit.log"), 1 << 30).expect("opens");
        let read = |name: &str| std::fs::read_to_string(path(name)).unwrap_or_default();
        log.write(&Entry::default());
        while read("audit.log").is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::fs::rename(path("audit.log"), path("audit.log.old")).expect("renames");
        log.reopen();
        log.write(&Entry::default());
        drop(log);
        assert_eq!((read("audit.log").lines().count(), read("audit.log.old").lines().count()), (1, 1));
    }
}
