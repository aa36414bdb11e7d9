//! [`Store`]: the directory and the way to its parts.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

use crate::error::Context;
use crate::uses::{self, Used, Uses};
use crate::{BlobStore, Cache, ImageStore, LayerStore, Pruner, Result, changing};

/// A handle on the store; cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    // Before the notes: a session without notes is one of an earlier version.
    session: Session,
    uses: Uses,
}

/// How names in `tmp/` begin that are of no session, but wait to be deleted.
pub(crate) const GONE: &str = "gone-";

/// The directories of a store, below its root.
const DIRECTORIES: [&str; 10] =
    ["blobs/sha256", "blobs/sha512", "refs", "kept", "layers", "cache", "making", "empty", "uses", "tmp"];

impl Store {
    /// Opens the store below `root`, making what is not there, and sweeps what crashed processes left in `tmp/`.
    ///
    /// ```text
    /// <root>/                        mode 0700: layers hold set-user-id files and device nodes
    ///   lock                         flock: shared while something is noted in uses/, exclusive while something is
    ///                                taken away, tmp/ is looked through or a session starts
    ///   blobs/<algorithm>/<hex>      content by digest
    ///   refs/<escaped reference>.json
    ///   kept/<algorithm>-<hex>.json  images that the platform needs, whatever they are called
    ///   layers/<algorithm>-<hex>/    unpacked, by diff id: whiteouts are char 0:0, opaque directories carry
    ///                                user.overlay.opaque=y, owners are the image's own
    ///   cache/<key>.json             small records of the build cache
    ///   making/<key>                 flocked while a process makes what a record is to name
    ///   mounts/<sha256 of the id>/   cache mounts of builds; the builder makes and locks them
    ///   lent/<build>                 what builds on a Docker engine leave there until they have it; the builder makes them
    ///   empty/                       what an image without layers consists of
    ///   uses/<session>+<n>           what a process found or made, which is not to be pruned while it lives
    ///   tmp/<session>/               one directory a process, flocked while the process lives
    ///   tmp/gone-<name>/             what is being deleted, flocked by who does that
    /// ```
    pub fn open(root: &Path) -> Result<Store> {
        make_directory(root)?;
        let root = fs::canonicalize(root).on("resolve", root)?;
        for name in DIRECTORIES {
            make_directory(&root.join(name))?;
        }
        for name in ["", "layers", "tmp"] {
            let path = root.join(name);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).on("protect", &path)?;
        }
        let (session, uses) = Session::start(&root)?;
        Ok(Store { shared: Arc::new(Shared { root, uses, session }) })
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

    /// Takes away what nobody needs.
    pub fn pruner(&self) -> Pruner {
        Pruner::of(self.root())
    }

    /// For a process that lives long: what it found before the last call of this may be pruned from now on, unless
    /// somebody else needs it.
    pub fn forget_older_uses(&self) -> Result<()> {
        self.shared.uses.forget_older()
    }

    /// A fresh directory on the store's file system, removed when dropped. Renames from it into the store are atomic.
    pub fn temp_dir(&self) -> Result<TempDir> {
        let session = &self.shared.session.path;
        TempDir::new_in(session).on("make a temporary directory in", session)
    }

    /// For a process that is about to exit while its threads still work: removes what is unfinished. What they write now,
    /// the next process sweeps.
    pub fn abandon_unfinished(&self) {
        let _ = fs::remove_dir_all(self.session_directory());
        uses::remove_notes(self.root(), &changing::name(self.session_directory()));
    }

    /// What this process needs.
    pub(crate) fn uses(&self) -> &Uses {
        &self.shared.uses
    }

    /// Whether `path` is there; if so, it stays as `used` for as long as this process lives.
    pub(crate) fn finds(&self, used: Used, path: &Path) -> Result<bool> {
        self.uses().find(used, path)
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
    fn start(root: &Path) -> Result<(Session, Uses)> {
        // Without this lock, a sweeper could find our directory in the instant before we lock it, and a pruner could
        // find it before our notes.
        let guard = uses::lock(root, FlockOperation::LockExclusive)?;
        let tmp = root.join("tmp");
        let dead = dead_sessions(&tmp);
        uses::remove_orphans(root);
        let path = tempfile::Builder::new().tempdir_in(&tmp).on("make a directory in", &tmp)?.keep();
        let lock = File::open(&path).on("open", &path)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).on("lock", &path)?;
        let uses = Uses::start(root, changing::name(&path))?;
        drop(guard);
        dead.iter().for_each(DeadSession::sweep);
        crate::cache::sweep_locks(root);
        Ok((Session { path, _lock: lock }, uses))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// What a process left that died. It is locked, so that only one sweeps it.
struct DeadSession {
    path: PathBuf,
    _lock: File,
}

impl DeadSession {
    /// What cannot be removed is left for the next time.
    fn sweep(&self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "cannot sweep");
        }
    }
}

/// What dead processes left. It is renamed, so that nobody takes the one who sweeps it for one who lives in it, and so
/// that its notes are nobody's any more.
fn dead_sessions(tmp: &Path) -> Vec<DeadSession> {
    let entries = fs::read_dir(tmp).into_iter().flatten().flatten();
    let dead = entries.filter_map(|entry| dead_session(&entry.path()));
    dead.map(|session| {
        let name = changing::name(&session.path);
        let gone = tmp.join(format!("{GONE}{name}"));
        match !name.starts_with(GONE) && fs::rename(&session.path, &gone).is_ok() {
            true => DeadSession { path: gone, ..session },
            false => session,
        }
    })
    .collect()
}

/// The session in `path`, if nobody lives in it. To be called with the lock held exclusively.
fn dead_session(path: &Path) -> Option<DeadSession> {
    let lock = File::open(path).ok()?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive).ok()?;
    Some(DeadSession { path: path.to_path_buf(), _lock: lock })
}

/// Whether the process of a session lives. To be called with the lock held exclusively.
pub(crate) fn is_session_alive(root: &Path, session: &str) -> bool {
    let path = root.join("tmp").join(session);
    path.exists() && dead_session(&path).is_none()
}

fn make_directory(path: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(path).on("make the directory", path)
}
