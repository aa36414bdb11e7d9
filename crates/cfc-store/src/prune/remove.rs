//! [`Trash`]: what was taken out of a store and waits to be deleted, when nobody waits for us any more.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

use super::inventory::size_record;
use crate::store::GONE;

/// Things that are renamed away, in a directory of `tmp/`, where the next process sweeps them if we do not get to it.
pub(super) struct Trash {
    root: PathBuf,
    /// None on a disk that is too full for a directory.
    directory: Option<(TempDir, File)>,
    count: usize,
}

impl Trash {
    pub(super) fn new(root: &Path) -> Trash {
        let directory = tempfile::Builder::new().prefix(GONE).tempdir_in(root.join("tmp")).ok().and_then(|directory| {
            let lock = File::open(directory.path()).ok()?;
            // A sweeper that was here before us holds it, and then has it swept.
            flock(&lock, FlockOperation::NonBlockingLockExclusive).ok()?;
            Some((directory, lock))
        });
        Trash { root: root.to_path_buf(), directory, count: 0 }
    }

    /// Removes a small file. That it is gone already is as good.
    pub(super) fn remove_file(&self, path: &Path) {
        if let Err(error) = fs::remove_file(path) {
            tracing::debug!(path = %path.display(), %error, "cannot remove");
        }
    }

    /// Takes `path`, a blob or an unpacked layer, out of the store.
    pub(super) fn take(&mut self, path: &Path) {
        if path.is_dir() {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let _ = fs::remove_file(size_record(&self.root, &name));
        }
        self.count += 1;
        let renamed = match &self.directory {
            Some((directory, _)) => fs::rename(path, directory.path().join(self.count.to_string())),
            None => Err(std::io::ErrorKind::StorageFull.into()),
        };
        if renamed.is_err() {
            self.remove_in_place(path);
        }
    }

    fn remove_in_place(&self, path: &Path) {
        if !path.is_dir() {
            return self.remove_file(path);
        }
        // Never half a layer under its name.
        let name = format!("{GONE}{}-{}", std::process::id(), self.count);
        let gone = self.root.join("tmp").join(name);
        if fs::rename(path, &gone).is_ok() {
            let _ = fs::remove_dir_all(&gone);
        }
    }

    /// Takes the cache mount in `home`, unless somebody uses it; says whether it is gone.
    pub(super) fn take_mount(&mut self, home: &Path) -> bool {
        let Some((locks, others)) = lock_mount(home) else { return false };
        let name = home.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let _ = fs::remove_file(size_record(&self.root, &format!("mount-{name}")));
        others.iter().for_each(|path| self.take(path));
        // Who waits for one of these looks, when it has it, whether it is still there.
        locks.iter().for_each(|(path, _)| self.remove_file(path));
        fs::remove_dir(home).is_ok()
    }

    /// Deletes it all.
    pub(super) fn empty(self) {
        if let Some((directory, _lock)) = self.directory
            && let Err(error) = directory.close()
        {
            tracing::debug!(%error, "cannot delete all that was pruned");
        }
    }
}

/// Whether nobody uses the cache mount in `home`.
pub(super) fn is_unused(home: &Path) -> bool {
    lock_mount(home).is_some()
}

/// A path with the lock on it.
type Locked = (PathBuf, File);

/// All locks of the cache mount in `home`, held, and what else is in there; none when somebody uses it.
fn lock_mount(home: &Path) -> Option<(Vec<Locked>, Vec<PathBuf>)> {
    let (mut locks, mut others) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(home).ok()?.flatten() {
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with("lock-") {
            let lock = File::options().append(true).open(&path).ok()?;
            flock(&lock, FlockOperation::NonBlockingLockExclusive).ok()?;
            locks.push((path, lock));
        } else {
            others.push(path);
        }
    }
    Some((locks, others))
}
