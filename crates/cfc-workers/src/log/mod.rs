//! What a workerd prints: lines with their times, in files of bounded size. Whoever floods his log loses older lines, and
//! fills no disk.
//!
//! ```text
//! dir/log      the lines of now, at most 16 MiB: `2026-01-31T12:00:00.000Z what it printed`
//! dir/log.1    those before
//! ```

mod file;
mod reader;

use std::io::{PipeReader, PipeWriter, Read};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

pub use reader::{LogLine, LogReader};

use crate::{WorkersError, WorkersErrorKind};
use file::LogFile;

/// A file of this size is put aside, in place of the one before.
const MAX_BYTES: u64 = 16 << 20;
/// How much of the end an error message quotes.
const QUOTED_BYTES: usize = 4 << 10;
/// How much is read at once.
const CHUNK_BYTES: usize = 64 << 10;
/// How long the last words of a process that has ended may take to the file.
const DRAINED_WITHIN: Duration = Duration::from_secs(2);

/// The log of a process: a pipe that it prints to, and a thread that brings what comes to the file. The thread ends with the
/// last descriptor of the pipe.
#[derive(Debug)]
pub(crate) struct Log {
    /// The end of what was printed.
    last: Arc<Mutex<Vec<u8>>>,
    drained: watch::Receiver<()>,
}

impl Log {
    /// Adds to the file `path` what is written to the pipe that comes with the log.
    pub fn start(path: &Path) -> Result<(Log, PipeWriter), WorkersError> {
        let file = LogFile::open(path, MAX_BYTES).map_err(WorkersError::io("open", path))?;
        let failed = |error| WorkersError::new("start a log", WorkersErrorKind::Io(error));
        let (reader, writer) = std::io::pipe().map_err(failed)?;
        let last = Arc::new(Mutex::default());
        let (drains, drained) = watch::channel(());
        let kept = last.clone();
        std::thread::Builder::new()
            .name("worker-log".to_string())
            .spawn(move || {
                carry(reader, file, &kept);
                drop(drains);
            })
            .map_err(failed)?;
        Ok((Log { last, drained }, writer))
    }

    /// What was printed, at most its last few kilobytes.
    pub fn last(&self) -> String {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&last).trim().to_string()
    }

    /// Waits until all that a process has printed, which has ended, is in the file.
    pub async fn drained(&self) {
        let mut drained = self.drained.clone();
        // Nothing is ever sent: the sender goes with the thread.
        let _ = tokio::time::timeout(DRAINED_WITHIN, drained.changed()).await;
    }
}

fn carry(mut reader: PipeReader, mut file: LogFile, last: &Mutex<Vec<u8>>) {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match reader.read(&mut chunk) {
            Ok(0) => break,
            Ok(length) => {
                keep_last(last, &chunk[..length]);
                file.take(&chunk[..length]);
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::error!(%error, "what a Worker prints cannot be read any more");
                break;
            }
        }
    }
    file.finish();
}

fn keep_last(last: &Mutex<Vec<u8>>, bytes: &[u8]) {
    let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
    last.extend_from_slice(bytes);
    let surplus = last.len().saturating_sub(QUOTED_BYTES);
    last.drain(..surplus);
}
