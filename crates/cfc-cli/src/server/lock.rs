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

    /// Takes the lock, or says which process has it.
    pub fn acquire(settings: &Settings) -> Result<DataLock, Failure> {
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
                let data = settings.data.display();
                return Err(Failure::new(format!(
                    "another cfc server (process {}) uses the data directory `{data}`",
                    holder.trim()
                ))
                .hint("stop that one, or give this one its own directory with --data DIR"));
            }
            Err(error) => return Err(cannot(&std::io::Error::from(error))),
        }
        let write = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        write(&mut file).map_err(|e| cannot(&e))?;
        Ok(DataLock { file })
    }
}
