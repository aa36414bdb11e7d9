//! Cache mounts: directories of the store that outlive builds.
//!
//! ```text
//! <store>/mounts/<sha256 of the id>/
//!   id              what the cache is called
//!   lock-<n>        flock: shared by those who share the cache, exclusive for `locked` and `private`; its time is when
//!                   the cache was used last
//!   data-<n>/       what is in it; n is 0 except for `private` ones in use at the same time
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use cfc_dockerfile::Sharing;
use cfc_oci::Digest;
use cfc_plan::{FileOwner, Mount, MountKind, NodeId};
use cfc_store::{Store, is_at};
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};

use super::copy_tree::copy_tree;
use crate::failure::{Failure, OnPath, Result};
use crate::run::Running;
use crate::view::View;

/// How long a waiting step sleeps before it asks for a cache again.
const POLL: Duration = Duration::from_millis(20);
/// More caches of one id at the same time are a mistake.
const MAX_PRIVATE: usize = 1000;

/// What a new cache begins with.
type Seed<'a> = &'a dyn Fn(NodeId, &str) -> Result<(View, PathBuf)>;

/// The caches of one program, by id.
pub(crate) struct Caches(BTreeMap<String, CacheLock>);

/// A cache that nobody may use in a way that its sharing forbids, while this lives.
pub(crate) struct CacheLock {
    directory: PathBuf,
    lock: File,
}

impl Drop for CacheLock {
    fn drop(&mut self) {
        // It may have grown while it was used. Pruning is all that asks, so a failure is none.
        let _ = self.lock.set_modified(SystemTime::now());
    }
}

/// What one or several mounts of one program want of a cache.
struct Wanted<'a> {
    sharing: Sharing,
    node: Option<NodeId>,
    path: &'a str,
    owner: FileOwner,
}

impl Caches {
    /// Takes the caches that `mounts` name, each once and in the order of their ids, so that no two programs wait for each
    /// other. Gives up when the build is stopped.
    pub(crate) fn take(store: &Store, mounts: &[Mount], running: &Running, seed: Seed<'_>) -> Result<Caches> {
        let mut wanted: BTreeMap<&String, Wanted<'_>> = BTreeMap::new();
        for mount in mounts {
            let MountKind::Cache { id, sharing, node, path, owner, .. } = &mount.kind else { continue };
            let new = || Wanted { sharing: *sharing, node: *node, path, owner: *owner };
            let entry = wanted.entry(id).or_insert_with(new);
            // A program that asks twice gets one, as strict as the stricter of both.
            if entry.sharing == Sharing::Shared {
                entry.sharing = *sharing;
            }
        }
        let mut taken = BTreeMap::new();
        for (id, wanted) in wanted {
            taken.insert(id.clone(), take(store, id, &wanted, running, seed)?);
        }
        Ok(Caches(taken))
    }

    /// Where the cache `id` is; one of those that were taken.
    pub(crate) fn directory(&self, id: &str) -> PathBuf {
        self.0.get(id).map(|cache| cache.directory.clone()).unwrap_or_default()
    }

    pub(crate) fn into_locks(self) -> Vec<CacheLock> {
        self.0.into_values().collect()
    }
}

fn take(store: &Store, id: &str, wanted: &Wanted<'_>, running: &Running, seed: Seed<'_>) -> Result<CacheLock> {
    let home = store.root().join("mounts").join(Digest::of(id.as_bytes()).hex());
    let (number, lock) = lock(&home, wanted.sharing, running)?;
    // A prune takes a cache with all its files, so only those who have locked it write some.
    let name = home.join("id");
    if !name.exists() {
        fs::write(&name, id).on("write", &name)?;
    }
    let directory = home.join(format!("data-{number}"));
    if !directory.is_dir() {
        make(store, &directory, wanted, seed)?;
    }
    lock.set_modified(SystemTime::now()).on("set the time of", &home)?;
    Ok(CacheLock { directory, lock })
}

fn lock(home: &Path, sharing: Sharing, running: &Running) -> Result<(usize, File)> {
    let operation = match sharing {
        Sharing::Shared => FlockOperation::NonBlockingLockShared,
        Sharing::Private | Sharing::Locked => FlockOperation::NonBlockingLockExclusive,
    };
    let mut number = 0;
    loop {
        let path = home.join(format!("lock-{number}"));
        let Some(file) = open_lock(home, &path)? else { continue };
        match flock(&file, operation) {
            Ok(()) if is_at(&file, &path) => return Ok((number, file)),
            // It was pruned between our opening and our locking it.
            Ok(()) => continue,
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(error) => return Err(error).on("lock", &path),
        }
        if running.is_stopped() {
            return Err(Failure::new("the build was stopped while it waited for a cache"));
        }
        match sharing {
            Sharing::Private if number < MAX_PRIVATE => number += 1,
            _ => std::thread::sleep(POLL),
        }
    }
}

/// Opens or makes the lock; none when the cache is being pruned.
fn open_lock(home: &Path, path: &Path) -> Result<Option<File>> {
    fs::create_dir_all(home).on("make the directory", home)?;
    match File::options().create(true).append(true).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).on("open", path),
    }
}

/// Makes a cache's directory, whole, or finds that another was faster.
fn make(store: &Store, directory: &Path, wanted: &Wanted<'_>, seed: Seed<'_>) -> Result<()> {
    let temporary = store.temp_dir()?;
    let new = temporary.path().join("cache");
    fs::create_dir(&new).on("make the directory", &new)?;
    if let Some(node) = wanted.node {
        let (view, path) = seed(node, wanted.path)?;
        copy_tree(&view, &path, &new)?;
    }
    let FileOwner { uid, gid, mode } = wanted.owner;
    chown(&new, Some(uid), Some(gid)).on("give away", &new)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(mode)).on("set the mode of", &new)?;
    match renameat_with(CWD, &new, CWD, directory, RenameFlags::NOREPLACE) {
        Err(rustix::io::Errno::EXIST) => Ok(()),
        result => result.on("make the cache", directory),
    }
}
