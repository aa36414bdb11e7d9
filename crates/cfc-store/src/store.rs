//! [`Store`]: the directory and the way to its parts.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

use crate::error::Context;
use crate::{BlobStore, Cache, ImageStore, LayerStore, Result};

/// A handle on the store; cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    session: Session,
}

impl Store {
    /// Opens the store below `root`, making what is not there, and sweeps what crashed processes left in `tmp/`.
    ///
    /// ```text
    /// <root>/                        mode 0700: layers hold set-user-id files and device nodes
    ///   lock                         flock: held while tmp/ is swept or a session starts
    ///   blobs/<algorithm>/<hex>      content by digest
    ///   refs/<escaped reference>.json
    ///   layers/<algorithm>-<hex>/    unpacked, by diff id: whiteouts are char 0:0, opaque directories carry
    ///                                user.overlay.opaque=y, owners are the image's own
    ///   cache/<key>.json             small records of the build cache
    ///   mounts/<sha256 of the id>/   cache mounts of builds; the builder makes and locks them
    ///   empty/                       what an image without layers consists of
    ///   tmp/<session>/               one directory a process, flocked while the process lives
    /// ```
    pub fn open(root: &Path) -> Result<Store> {
        make_directory(root)?;
        let root = fs::canonicalize(root).on("resolve", root)?;
        for name in ["blobs/sha256", "blobs/sha512", "refs", "layers", "cache", "empty", "tmp"] {
            make_directory(&root.join(name))?;
        }
        for name in ["", "layers", "tmp"] {
            let path = root.join(name);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).on("protect", &path)?;
        }
        let session = Session::start(&root)?;
        Ok(Store { shared: Arc::new(Shared { root, session }) })
    }

    /// The directory the store lives in.
    pub fn root(&self) -> &Path {
        &self.shared.root
    }

    /// Content by digest.
    pub fn blobs(&self) -> BlobStore {
        BlobStore::new(self.clone())
    }

    /// Images by reference.
    pub fn images(&self) -> ImageStore {
        ImageStore::new(self.clone())
    }

    /// Unpacked layers by diff id.
    pub fn layers(&self) -> LayerStore {
        LayerStore::new(self.clone())
    }

    /// Small records by key.
    pub fn cache(&self) -> Cache {
        Cache::new(self.clone())
    }

    /// A fresh directory on the store's file system, removed when dropped. Renames from it into the store are atomic.
    pub fn temp_dir(&self) -> Result<TempDir> {
        let session = &self.shared.session.path;
        TempDir::new_in(session).on("make a temporary directory in", session)
    }

    /// Where this process keeps what is not finished.
    pub(crate) fn session_directory(&self) -> &Path {
        &self.shared.session.path
    }
}

/// This process's part of `tmp/`. Others see by the lock on it that we live.
#[derive(Debug)]
struct Session {
    path: PathBuf,
    _lock: File,
}

impl Session {
    fn start(root: &Path) -> Result<Session> {
        // Without this lock, a sweeper could find our directory in the instant before we lock it.
        let guard_path = root.join("lock");
        let guard = File::options().create(true).append(true).open(&guard_path).on("open", &guard_path)?;
        flock(&guard, FlockOperation::LockExclusive).on("lock", &guard_path)?;
        let tmp = root.join("tmp");
        sweep(&tmp);
        let path = tempfile::Builder::new().tempdir_in(&tmp).on("make a directory in", &tmp)?.keep();
        let lock = File::open(&path).on("open", &path)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).on("lock", &path)?;
        Ok(Session { path, _lock: lock })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes the sessions of dead processes. What cannot be removed is left for the next time.
fn sweep(tmp: &Path) {
    let Ok(entries) = fs::read_dir(tmp) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(directory) = File::open(&path) else { continue };
        let is_dead = flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok();
        if is_dead && let Err(error) = fs::remove_dir_all(&path) {
            tracing::debug!(path = %path.display(), %error, "cannot sweep");
        }
    }
}

fn make_directory(path: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(path).on("make the directory", path)
}
