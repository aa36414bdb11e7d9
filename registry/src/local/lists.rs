//! [`Lists`]: names of listed objects in order in memory, so that a page of a list costs what the page is long.

use std::collections::{BTreeSet, HashMap};
use std::fs::{File, Metadata};
use std::io::Read;
use std::ops::Bound;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::StorageError;
use crate::files::{Staged, Unsynced, remove_wherever};
use crate::objects::{MayReplace, Seen};

/// Names kept in memory; beyond this, all are forgotten and read again when somebody asks. About 100 bytes each.
const MAX_NAMES: usize = 1_000_000;

/// The lists that somebody has read, by key, as they are on disk. This process is the only one that changes them.
#[derive(Default)]
pub(super) struct Lists(Mutex<HashMap<String, Arc<Names>>>);

/// The names of one list; `None` until somebody asks for them. Whoever gives a file its name, or takes it, holds the lock
/// and changes both.
#[derive(Default)]
pub(super) struct Names(Mutex<Option<BTreeSet<String>>>);

impl Lists {
    pub(super) fn of(&self, list: &str) -> Arc<Names> {
        let mut lists = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lists.entry(list.to_string()).or_default().clone()
    }

    /// Keeps the memory bounded: forgets an empty list, whose key anybody may have made up, and all of them when they
    /// are too many. One that somebody is changing right now is left alone.
    pub(super) fn shrink(&self, list: &str) {
        let mut lists = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_unused = |names: &Arc<Names>| Arc::strong_count(names) == 1;
        let count = |names: &Arc<Names>| names.lock().as_ref().map_or(0, BTreeSet::len);
        if lists.get(list).is_some_and(|names| is_unused(names) && count(names) == 0) {
            lists.remove(list);
        }
        let total: usize = lists.values().filter(|names| is_unused(names)).map(count).sum();
        if total > MAX_NAMES {
            lists.retain(|_, names| !is_unused(names));
        }
    }
}

impl Names {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<BTreeSet<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a file its name; `None` when there is one already that must stay.
    pub(super) fn put(
        &self,
        staged: Staged,
        path: &Path,
        name: String,
        may_replace: Option<MayReplace>,
    ) -> Result<Option<Unsynced>, StorageError> {
        let mut names = self.lock();
        if let Some(may_replace) = may_replace
            && let Some(bytes) = read(path)?
            && !may_replace(&bytes)
        {
            return Ok(None);
        }
        let unsynced = staged.publish(path)?;
        if let Some(names) = names.as_mut() {
            names.insert(name);
        }
        Ok(Some(unsynced))
    }

    /// Removes a file if it is the one that was seen; false when there is none or another.
    pub(super) fn remove(&self, path: &Path, name: &str, seen: &Seen) -> Result<bool, StorageError> {
        let mut names = self.lock();
        let found = path.metadata().and_then(|metadata| Ok((metadata.modified()?, version(&metadata))));
        if found.is_ok_and(|(put, version)| put != seen.put || version != seen.version) {
            return Ok(false);
        }
        let removed = remove_wherever(path)?;
        if let Some(names) = names.as_mut() {
            names.remove(name);
        }
        Ok(removed)
    }

    /// At most `limit` names after `after`, if they are known and nobody is changing them.
    pub(super) fn known_page(&self, after: Option<&str>, limit: usize) -> Option<Vec<String>> {
        let names = self.0.try_lock().ok()?;
        names.as_ref().map(|names| page(names, after, limit))
    }

    /// As [`known_page`](Self::known_page), with names from `list` when they are not known.
    pub(super) fn page(
        &self,
        after: Option<&str>,
        limit: usize,
        list: impl FnOnce() -> Result<Vec<String>, StorageError>,
    ) -> Result<Vec<String>, StorageError> {
        let mut names = self.lock();
        if names.is_none() {
            *names = Some(list()?.into_iter().collect());
        }
        Ok(names.as_ref().map(|names| page(names, after, limit)).unwrap_or_default())
    }
}

/// What tells two files of one time apart: each is written anew.
fn version(metadata: &Metadata) -> String {
    metadata.ino().to_string()
}

/// The object of a list at `path`, as it can be removed.
pub(super) fn see(path: &Path) -> Result<Option<Seen>, StorageError> {
    let see = |mut file: File| {
        let metadata = file.metadata()?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(Seen { bytes: bytes.into(), put: metadata.modified()?, version: version(&metadata), before: Vec::new() })
    };
    if_there(path, File::open(path).and_then(see))
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, StorageError> {
    if_there(path, std::fs::read(path))
}

fn if_there<T>(path: &Path, read: std::io::Result<T>) -> Result<Option<T>, StorageError> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(StorageError::new("read", path.display(), e)),
    }
}

fn page(names: &BTreeSet<String>, after: Option<&str>, limit: usize) -> Vec<String> {
    let start = after.map_or(Bound::Unbounded, Bound::Excluded);
    names.range::<str, _>((start, Bound::Unbounded)).take(limit).cloned().collect()
}
