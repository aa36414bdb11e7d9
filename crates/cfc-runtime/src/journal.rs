//! [`Journal`]: what is intended with an instance, on disk before it is done.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::time::SystemTime;

use cfc_scheduler::InstanceType;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::directory::InstanceDirectory;
use crate::error::{AtPath, RuntimeErrorKind, fail_at};
use crate::instance::{ExitReport, InstanceSpec, Isolation};

/// The record of one instance. A crash after any write leaves the old record or the new one, and what the record says
/// is enough to adopt the process or to clean up after it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Journal {
    /// What the instance was created from.
    pub spec: InstanceSpec,
    /// When that was.
    pub created: SystemTime,
    /// What is intended.
    pub intent: Intent,
    /// How its process is kept apart, or was last. Not in journals of before.
    #[serde(default)]
    pub isolation: Option<Isolation>,
}

/// What is intended with an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Intent {
    /// It is not to run, and never did.
    Rest,
    /// A process is to run, and may.
    Run {
        /// The number of its launch.
        launch: u64,
        /// The limits it has.
        instance_type: InstanceType,
        /// When it was started.
        started: SystemTime,
    },
    /// Its process has ended.
    Ended {
        /// The number of its launch.
        launch: u64,
        /// The limits it had.
        instance_type: InstanceType,
        /// When it was started.
        started: SystemTime,
        /// How it ended.
        report: ExitReport,
    },
}

impl Intent {
    /// What is left of a run when it has ended so.
    pub fn ended(&self, report: ExitReport) -> Intent {
        match self {
            Intent::Run { launch, instance_type, started } => {
                Intent::Ended { launch: *launch, instance_type: *instance_type, started: *started, report }
            }
            Intent::Rest | Intent::Ended { .. } => self.clone(),
        }
    }
}

impl Journal {
    /// Reads the journal of an instance; `None` where there is no readable one, because the crash came first.
    pub fn read(directory: &InstanceDirectory) -> Option<Journal> {
        let path = directory.journal();
        let bytes = fs::read(&path).ok()?;
        serde_json::from_slice(&bytes)
            .map_err(|error| tracing::warn!(path = %path.display(), %error, "unreadable journal"))
            .ok()
    }

    /// Replaces the journal, all of it or nothing.
    pub fn write(&self, directory: &InstanceDirectory) -> Result<(), RuntimeErrorKind> {
        let path = directory.journal();
        let temporary = path.with_extension("new");
        let bytes = serde_json::to_vec(self).map_err(io::Error::from).at("encode", &path)?;
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(false).open(&temporary).at("create", &temporary)?;
        // No sync: after a power cut no process is there to be adopted, and every directory is swept.
        file.write_all(&bytes).at("write", &temporary)?;
        file.set_len(bytes.len() as u64).at("write", &temporary)?;
        fail_at("runtime.journal.written")?;
        replace(&temporary, &path).at("replace", &path)
    }
}

/// Gives `path` what `new` is. What it was before stays as `new`, to be written over: a file that is deleted is in the way
/// of the next ones for a minute on ext4 (`recently_deleted` in the kernel's fs/ext4/ialloc.c), and one that takes another's
/// place, or was made empty before, is written to the disk at once (`auto_da_alloc` in ext4(5)).
fn replace(new: &Path, path: &Path) -> io::Result<()> {
    match renameat_with(CWD, new, CWD, path, RenameFlags::EXCHANGE) {
        // The first one, or a filesystem that cannot.
        Err(Errno::NOENT | Errno::INVAL | Errno::NOSYS) => fs::rename(new, path),
        done => Ok(done?),
    }
}
