//! [`SecretFiles`]: the values of Workers' secrets, each in a file that only its owner can read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::server::erase::{named, remove_tree};

/// ```text
/// <root>/<worker>/<id>      a value, mode 0600; never changed
/// ```
///
/// A value is there before a record names it, and goes when none does any more.
#[derive(Clone)]
pub struct SecretFiles {
    root: PathBuf,
}

impl SecretFiles {
    pub fn new(root: PathBuf) -> SecretFiles {
        SecretFiles { root }
    }

    /// Keeps a value, also if the power is cut, and returns what it is called.
    pub fn keep(&self, worker: &str, value: &str) -> io::Result<Uuid> {
        let directory = self.root.join(worker);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(|error| named("make", &directory, &error))?;
        let id = Uuid::new_v4();
        let path = directory.join(id.to_string());
        write(&path, value).map_err(|error| named("write", &path, &error))?;
        for parent in [Some(directory.as_path()), directory.parent(), self.root.parent()].into_iter().flatten() {
            File::open(parent).and_then(|parent| parent.sync_all()).map_err(|error| named("sync", parent, &error))?;
        }
        Ok(id)
    }

    /// The values of a version's secrets, by their names.
    pub fn read(&self, worker: &str, secrets: &BTreeMap<String, Uuid>) -> io::Result<BTreeMap<String, String>> {
        let read = |(name, id): (&String, &Uuid)| {
            let path = self.root.join(worker).join(id.to_string());
            let value = std::fs::read_to_string(&path).map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!("secret `{name}` in `{}`: {error} (`cfc secret put {name}` sets it anew)", path.display()),
                )
            })?;
            Ok((name.clone(), value))
        };
        secrets.iter().map(read).collect()
    }

    /// Removes all values of the Worker but these.
    pub fn retain(&self, worker: &str, used: &BTreeSet<Uuid>) -> io::Result<()> {
        let directory = self.root.join(worker);
        let entries = match std::fs::read_dir(&directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(|error| named("read", &directory, &error))?,
        };
        for entry in entries {
            let entry = entry.map_err(|error| named("read", &directory, &error))?;
            let is_used =
                entry.file_name().to_str().and_then(|name| name.parse().ok()).is_some_and(|id| used.contains(&id));
            if !is_used {
                std::fs::remove_file(entry.path()).map_err(|error| named("remove", &entry.path(), &error))?;
            }
        }
        Ok(())
    }

    /// Removes all values of the Worker.
    pub fn remove(&self, worker: &str) -> io::Result<()> {
        remove_tree(&self.root.join(worker))
    }
}

fn write(path: &Path, value: &str) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(value.as_bytes())?;
    file.sync_all()
}
