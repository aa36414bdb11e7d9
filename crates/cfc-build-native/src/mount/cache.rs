//! Cache mounts: directories of the store that outlive builds.
//!
//! ```text
//! <store>/mounts/<sha256 of the id>/
//!   id              what the cache is called
//!   lock-<n>        flock: shared by those who share the cache, exclusive for `locked` and `private`
//!   data-<n>/       what is in it; n is 0 except for `private` ones in use at the same time
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cfc_dockerfile::Sharing;
use cfc_oci::Digest;
use cfc_plan::{FileOwner, Mount, MountKind, NodeId};
use cfc_store::Store;
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
    _lock: File,
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
    fs::create_dir_all(&home).on("make the directory", &home)?;
    let name = home.join("id");
    if !name.exists() {
        fs::write(&name, id).on("write", &name)?;
    }
    let (number, lock) = lock(&home, wanted.sharing, running)?;
    let directory = home.join(format!("data-{number}"));
    if !directory.is_dir() {
        make(store, &directory, wanted, seed)?;
    }
    Ok(CacheLock { directory, _lock: lock })
}

fn lock(home: &Path, sharing: Sharing, running: &Running) -> Result<(usize, File)> {
    let operation = match sharing {
        Sharing::Shared => FlockOperation::NonBlockingLockShared,
        Sharing::Private | Sharing::Locked => FlockOperation::NonBlockingLockExclusive,
    };
    let mut number = 0;
    loop {
        let path = home.join(format!("lock-{number}"));
        let file = File::options().create(true).append(true).open(&path).on("open", &path)?;
        match flock(&file, operation) {
            Ok(()) => return Ok((number, file)),
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
