//! The file that a workerd prints to: opened so that its size stays bounded, and read back for error messages.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::WorkersError;

/// A log of this size is put aside as `log.1`, in place of the one before, when the next process starts.
const TURN_OVER_AT_BYTES: u64 = 16 << 20;
/// How much of the end an error message quotes.
const QUOTED_BYTES: u64 = 4 << 10;

/// An opened log.
pub(crate) struct Log {
    pub file: File,
    path: PathBuf,
    opened_at_bytes: u64,
}

/// Opens the log for adding to it.
pub(crate) fn open(path: &Path) -> Result<Log, WorkersError> {
    let is_full = std::fs::metadata(path).is_ok_and(|metadata| metadata.len() >= TURN_OVER_AT_BYTES);
    if is_full {
        std::fs::rename(path, path.with_extension("1")).map_err(WorkersError::io("put aside", path))?;
    }
    let file = OpenOptions::new().create(true).append(true).open(path).map_err(WorkersError::io("open", path))?;
    let opened_at_bytes = file.metadata().map_err(WorkersError::io("open", path))?.len();
    Ok(Log { file, path: path.to_path_buf(), opened_at_bytes })
}

impl Log {
    /// What was written since the log was opened, at most its last few kilobytes.
    pub fn since_opened(&self) -> String {
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = File::open(&self.path)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(self.opened_at_bytes.max(length.saturating_sub(QUOTED_BYTES))))?;
            let mut bytes = Vec::new();
            file.take(QUOTED_BYTES).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        String::from_utf8_lossy(&read().unwrap_or_default()).trim().to_string()
    }
}
