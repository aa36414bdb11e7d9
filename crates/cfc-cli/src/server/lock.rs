//! [`DataLock`]: one server a data directory.

use std::fs::File;
use std::io::{Read, Seek, Write};

use rustix::fs::FlockOperation;

use crate::failure::Failure;
use crate::settings::Settings;

/// Held while a server uses a data directory. The kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct DataLock {
    file: File,
}

impl DataLock {
    /// The lock that this process's earlier program has taken.
    pub fn inherited(file: File) -> DataLock {
        DataLock { file }
    }

    /// For the program that takes this one's place.
    pub fn share(&self) -> std::io::Result<File> {
        self.file.try_clone()
    }

    /// Takes the lock.
    ///
    /// # Errors
    /// When another process has it, and when there can be none.
    pub fn acquire(settings: &Settings) -> Result<DataLock, Failure> {
        DataLock::take(settings)?.map_err(|holder| {
            let data = settings.data.display();
            Failure::new(format!("another cfc server (process {holder}) uses the data directory `{data}`"))
                .hint("stop that one, or give this one its own directory with --data DIR")
        })
    }

    /// The id of the process that has the lock, as it has written it down; `None` when none has it. For who need not be able
    /// to write there.
    pub fn holder(settings: &Settings) -> std::io::Result<Option<String>> {
        let mut file = match File::open(settings.data.join("lock")) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(None),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                file.read_to_string(&mut holder)?;
                Ok(Some(holder.trim().to_string()))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Takes the lock; else the id of the process that has it, as it has written it down.
    ///
    /// # Errors
    /// When there can be no lock, as where the data directory is another user's.
    pub fn take(settings: &Settings) -> Result<Result<DataLock, String>, Failure> {
        let path = settings.data.join("lock");
        let cannot =
            |error: &dyn std::error::Error| Failure::because(format!("cannot lock `{}`", path.display()), error);
        let mut file =
            File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(|e| cannot(&e))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                return Ok(Err(holder.trim().to_string()));
            }
            Err(error) => return Err(cannot(&std::io::Error::from(error))),
        }
        let write = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        write(&mut file).map_err(|e| cannot(&e))?;
        Ok(Ok(DataLock { file }))
    }
}
