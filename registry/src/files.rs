//! What metadata and blobs do with files: write whole, sync, and remove what garbage collection finds unused without
//! racing those who are about to use it. Everything here blocks on the disk.

use std::ffi::OsString;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use futures::{StreamExt, TryStreamExt};
use rustix::fs::{AtFlags, CWD, RenameFlags, Timespec, Timestamps, UTIME_NOW};
use uuid::Uuid;

use crate::StorageError;

/// Objects looked at at the same time where there are many to look at, each perhaps in a store that is far away.
const EACH_AT_ONCE: usize = 16;

/// Runs `work`, which blocks on the disk or hashes, off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only a runtime that is shutting down cancels blocking work; nobody is left to read an answer then.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Does what [`blocking`] does for each of `items`, some at the same time; what comes of them in their order.
pub(crate) async fn blocking_each<T: Send + 'static, R: Send + 'static>(
    items: Vec<T>,
    work: impl Fn(T) -> Result<R, StorageError> + Clone + Send + 'static,
) -> Result<Vec<R>, StorageError> {
    let each = |item| {
        let work = work.clone();
        blocking(move || work(item))
    };
    futures::stream::iter(items).map(each).buffered(EACH_AT_ONCE).try_collect().await
}

/// What changes with a file's content: its inode, size, and times of modification and of change.
#[derive(PartialEq)]
pub(crate) struct Version(u64, u64, [(i64, i64); 2]);

impl Version {
    pub(crate) fn of(path: &Path) -> std::io::Result<Version> {
        let file = path.metadata()?;
        let times = [(file.mtime(), file.mtime_nsec()), (file.ctime(), file.ctime_nsec())];
        Ok(Version(file.ino(), file.size(), times))
    }
}

/// A file that is complete and synced, but has no name yet that anybody looks for. Removed if it never gets one.
pub(crate) struct Staged {
    path: PathBuf,
    is_published: bool,
}

/// Directories with a new entry that is not on stable storage yet.
#[must_use]
pub(crate) struct Unsynced(Vec<PathBuf>);

impl Staged {
    /// A new empty file in `directory`, not synced.
    pub(crate) fn new(directory: &Path) -> Result<Staged, StorageError> {
        let path = directory.join(Uuid::new_v4().to_string());
        write_new(&path, b"")?;
        Ok(Staged { path, is_published: false })
    }

    /// Writes `bytes` to a new file in `directory`, which is on the same filesystem as where it will go.
    pub(crate) fn write(directory: &Path, bytes: &[u8]) -> Result<Staged, StorageError> {
        let path = directory.join(Uuid::new_v4().to_string());
        let file = write_new(&path, bytes)?;
        let staged = Staged { path, is_published: false };
        file.sync_data().map_err(|e| StorageError::new("sync", staged.path.display(), e))?;
        Ok(staged)
    }

    /// Gives the file its name, in place of whatever had it.
    pub(crate) fn publish(mut self, path: &Path) -> Result<Unsynced, StorageError> {
        let unsynced = with_parents(path, || std::fs::rename(&self.path, path))?;
        self.is_published = true;
        Ok(unsynced)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.is_published {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Unsynced {
    /// Puts the entries on stable storage, the deepest first.
    pub(crate) fn sync(self) -> Result<(), StorageError> {
        self.0.iter().try_for_each(|directory| sync_directory(directory))
    }
}

/// Makes a file that its owner alone may read, whole. One that has the name `path` already stays: whoever came first has
/// made it.
pub(crate) fn create_secret(path: &Path, text: &str) -> std::io::Result<()> {
    let new = write_beside(path, text.as_bytes(), 0o600)?;
    let linked = std::fs::hard_link(&new, path);
    std::fs::remove_file(&new)?;
    match linked {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => sync_parent(path),
    }
}

/// Writes a file whole, in the place of one that is there.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    let new = write_beside(path, bytes, mode)?;
    let renamed = std::fs::rename(&new, path).inspect_err(|_| drop(std::fs::remove_file(&new)));
    renamed.and_then(|()| sync_parent(path))
}

/// Writes a new file, synced, under a name of its own beside `path`; that name. Nothing is left of one that fails.
fn write_beside(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<PathBuf> {
    let new = path.with_extension(format!("new-{}", Uuid::new_v4().simple()));
    let mut file = File::options().write(true).create_new(true).mode(mode).open(&new)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    written.inspect_err(|_| drop(std::fs::remove_file(&new)))?;
    Ok(new)
}

fn sync_parent(path: &Path) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

/// Creates an empty file, or makes the one that is there as young as a new one, and syncs it.
pub(crate) fn put_marker(path: &Path) -> Result<(), StorageError> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    let unsynced = with_parents(path, || {
        let file = options.open(path)?;
        rustix::fs::futimens(&file, &now())?;
        file.sync_all()
    })?;
    unsynced.sync()
}

/// Does `make`, which adds an entry at `path`, and creates the directories for it that are missing. Those may vanish
/// again at any time, since whoever removes the last entry of a directory removes the directory.
fn with_parents(path: &Path, mut make: impl FnMut() -> std::io::Result<()>) -> Result<Unsynced, StorageError> {
    let parent = path.parent().expect("below a root");
    let mut unsynced = vec![parent.to_path_buf()];
    loop {
        match make() {
            Ok(()) => return Ok(Unsynced(unsynced)),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                create_parents(parent, &mut unsynced).map_err(|e| StorageError::new("create", parent.display(), e))?;
            }
            Err(e) => return Err(StorageError::new("write", path.display(), e)),
        }
    }
}

fn create_parents(directory: &Path, unsynced: &mut Vec<PathBuf>) -> std::io::Result<()> {
    let parent = directory.parent().ok_or(ErrorKind::NotFound)?;
    match std::fs::create_dir(directory) {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
        Err(e) if e.kind() == ErrorKind::NotFound => {
            create_parents(parent, unsynced)?;
            match std::fs::create_dir(directory) {
                // Gone again between the two calls: the caller tries once more.
                Err(e) if !matches!(e.kind(), ErrorKind::AlreadyExists | ErrorKind::NotFound) => return Err(e),
                _ => {}
            }
        }
        Err(e) => return Err(e),
    }
    if !unsynced.iter().any(|known| known == parent) {
        unsynced.push(parent.to_path_buf());
    }
    Ok(())
}

/// Where garbage collection puts a file while it looks a last time whether somebody wants it. No name that the registry
/// uses ends with a tilde.
fn aside(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push("~");
    name.into()
}

/// Whether a file was put aside.
pub(crate) fn is_aside(name: &str) -> bool {
    name.ends_with('~')
}

/// The name that a file has when it is not put aside.
pub(crate) fn in_place(name: &str) -> &str {
    name.strip_suffix('~').unwrap_or(name)
}

/// Brings back a file that was put aside, as young as a new one; false when there is none.
pub(crate) fn rescue(path: &Path) -> std::io::Result<bool> {
    match std::fs::rename(aside(path), path) {
        Ok(()) => touch(path),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Makes a file as young as a new one; false when there is none.
pub(crate) fn touch(path: &Path) -> std::io::Result<bool> {
    match rustix::fs::utimensat(CWD, path, &now(), AtFlags::empty()) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn now() -> Timestamps {
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    Timestamps { last_access: now, last_modification: now }
}

/// Removes a file that was not touched since `cutoff` and that nobody wants.
///
/// It is put aside first and looked at again there. Whoever misses it meanwhile takes it back with [`rescue`], and one
/// of the two wins: either it is gone for everybody or it was never away. So nobody needs a lock, provided that those
/// who rely on a file touch it, or make `is_wanted` true, before they look whether it is there.
pub(crate) fn remove_if_stale(
    path: &Path,
    cutoff: SystemTime,
    is_wanted: impl Fn() -> Result<bool, StorageError>,
) -> Result<bool, StorageError> {
    let error = |e| StorageError::new("remove", path.display(), e);
    let aside = aside(path);
    match std::fs::rename(path, &aside) {
        Ok(()) => {}
        // What a collection that was killed had put aside.
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(error(e)),
    }
    let touched = match aside.metadata().and_then(|metadata| metadata.modified()) {
        Ok(touched) => touched,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(error(e)),
    };
    if touched > cutoff || is_wanted()? {
        return put_back(&aside, path).map(|()| false).map_err(error);
    }
    remove_if_there(&aside)
}

fn put_back(aside: &Path, path: &Path) -> std::io::Result<()> {
    use rustix::io::Errno;
    match rustix::fs::renameat_with(CWD, aside, CWD, path, RenameFlags::NOREPLACE) {
        // There is a new one, as good as this.
        Err(Errno::EXIST) => std::fs::remove_file(aside),
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        // Not every filesystem knows the flag. The file that may be replaced is the same, only younger.
        Err(Errno::INVAL | Errno::NOSYS) => std::fs::rename(aside, path).and_then(|()| touch(path).map(|_| ())),
        Err(e) => Err(e.into()),
    }
}

/// Removes a file, whether it was put aside or not; false when there is none.
pub(crate) fn remove_wherever(path: &Path) -> Result<bool, StorageError> {
    // Twice, since a collection may put it back between the two.
    let removed = remove_if_there(path)?;
    let removed = remove_if_there(&aside(path))? || removed;
    let removed = remove_if_there(path)? || removed;
    match path.parent() {
        Some(directory) if removed => sync_directory(directory).map(|()| true),
        _ => Ok(removed),
    }
}

/// Removes `directory` and those above it that are empty, up to `root`, which stays.
pub(crate) fn remove_empty(directory: &Path, root: &Path) {
    let mut directory = directory;
    while directory != root && directory.starts_with(root) && std::fs::remove_dir(directory).is_ok() {
        let Some(parent) = directory.parent() else { return };
        directory = parent;
    }
}

pub(crate) fn remove_if_there(path: &Path) -> Result<bool, StorageError> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(StorageError::new("remove", path.display(), e)),
    }
}

/// The entries of a directory; none when it is not there.
pub(crate) fn read_directory(directory: &Path) -> Result<Vec<std::fs::DirEntry>, StorageError> {
    let error = |e| StorageError::new("list", directory.display(), e);
    match std::fs::read_dir(directory) {
        Ok(entries) => entries.collect::<Result<_, _>>().map_err(error),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(error(e)),
    }
}

/// Syncs the entries of a directory. One that was removed meanwhile has none.
pub(crate) fn sync_directory(directory: &Path) -> Result<(), StorageError> {
    match File::open(directory).and_then(|file| file.sync_all()) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(StorageError::new("sync", directory.display(), e)),
        _ => Ok(()),
    }
}

/// Writes a new file; the caller decides when it is synced.
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> Result<File, StorageError> {
    let error = |e| StorageError::new("write", path.display(), e);
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path).map_err(error)?;
    file.write_all(bytes).map_err(error)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn put(path: &Path) {
        Staged::write(path.parent().expect("parent"), b"x")
            .expect("staged")
            .publish(path)
            .expect("named")
            .sync()
            .expect("synced");
    }

    #[test]
    fn what_is_stale_and_unwanted_goes_and_everything_else_stays() {
        let directory = tempfile::TempDir::new().expect("directory");
        let path = directory.path().join("x");
        let (past, future) = (SystemTime::now() - Duration::from_secs(60), SystemTime::now() + Duration::from_secs(60));
        put(&path);
        assert!(!remove_if_stale(&path, past, || Ok(false)).expect("works"), "young");
        assert!(!remove_if_stale(&path, future, || Ok(true)).expect("works"), "wanted");
        assert!(path.exists());
        assert!(remove_if_stale(&path, future, || Ok(false)).expect("works"));
        assert!(!path.exists() && !rescue(&path).expect("works"));
        assert!(!remove_if_stale(&path, future, || Ok(false)).expect("works"), "not there");
    }

    #[test]
    fn what_is_taken_back_while_it_is_aside_stays() {
        let directory = tempfile::TempDir::new().expect("directory");
        let path = directory.path().join("x");
        let future = SystemTime::now() + Duration::from_secs(60);
        put(&path);
        let taken_back = || {
            assert!(rescue(&path).expect("works"), "it is aside");
            Ok(false)
        };
        assert!(!remove_if_stale(&path, future, taken_back).expect("works"));
        assert!(path.exists());
        // Written anew while the old one is aside: the new one stays.
        let written = || {
            put(&path);
            Ok(true)
        };
        assert!(!remove_if_stale(&path, future, written).expect("works"));
        assert!(path.exists() && !aside(&path).exists());
    }

    #[test]
    fn what_a_killed_collection_left_aside_is_found() {
        let directory = tempfile::TempDir::new().expect("directory");
        let path = directory.path().join("x");
        put(&aside(&path));
        assert!(rescue(&path).expect("works") && path.exists());
        std::fs::rename(&path, aside(&path)).expect("renames");
        assert!(remove_if_stale(&path, SystemTime::now() + Duration::from_secs(60), || Ok(false)).expect("works"));
        assert_eq!(std::fs::read_dir(directory.path()).expect("lists").count(), 0);
    }
}
