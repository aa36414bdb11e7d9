//! [`Directories`]: where instances are on disk, and [`InstanceDirectory`]: one of them.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use crate::error::{AtPath, RuntimeErrorKind, fail_at};

/// How many logs of removed instances are kept, and how many bytes of them.
const ENDED_LOGS_KEPT: usize = 200;
const ENDED_BYTES_KEPT: u64 = 256 << 20;

/// The directory of all instances.
///
/// ```text
/// <instances>/
///   <name>/            one instance
///     journal          what is intended with it, written before it is done
///     egress           how it may reach out, as its sidecar was told
///     ownerless        since when nobody owns it, in seconds since 1970, after a restart from outside
///     upper/ work/     its disk where disks cannot be limited, fresh at each start; gone when it does not run
///     etc/             hosts, resolv.conf and hostname, mounted into it
///     log, log.1       its output
///   .ended/<name>.log  the last log of an instance that was removed (and log.1); the newest are kept, of all 256 MiB
///   .ended/<name>.ended  how its last process ended
///   .trash/<number>/   what is being deleted
/// ```
#[derive(Clone, Debug)]
pub(crate) struct Directories {
    root: PathBuf,
}

impl Directories {
    /// Opens the directory below `root`, making it when it is not there.
    pub fn open(root: &Path) -> Result<Directories, RuntimeErrorKind> {
        for path in [root.join(".ended"), root.join(".trash")] {
            fs::create_dir_all(&path).at("make the directory", &path)?;
        }
        // Journals hold environments, and those hold secrets.
        fs::set_permissions(root, fs::Permissions::from_mode(0o700)).at("protect", root)?;
        let root = fs::canonicalize(root).at("resolve", root)?;
        Ok(Directories { root })
    }

    /// The directory that holds all of them.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of the instance `name`, whether it exists or not. The name was checked.
    pub fn of(&self, name: &str) -> InstanceDirectory {
        InstanceDirectory { path: self.root.join(name) }
    }

    /// The names of all instances that have a directory.
    pub fn names(&self) -> Result<Vec<String>, RuntimeErrorKind> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.root).at("list", &self.root)? {
            let name = entry.at("list", &self.root)?.file_name().to_string_lossy().into_owned();
            if !name.starts_with('.') {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// Removes `path` from where it is at once; deletes what is in it in its own time.
    pub fn discard(&self, path: &Path) -> Result<(), RuntimeErrorKind> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        // A later process may have the same pid, and then finds what this one did not come to delete.
        static OPENED: LazyLock<u128> = LazyLock::new(|| {
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_nanos())
        });
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let trash = self.root.join(".trash").join(format!("{}-{}-{number}", std::process::id(), *OPENED));
        match fs::rename(path, &trash) {
            Ok(()) => delete_in_background(vec![trash]),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).at("remove", path),
        }
        Ok(())
    }

    /// Deletes, in its own time, what an earlier process left in the trash.
    pub fn empty_trash(&self) {
        let Ok(entries) = fs::read_dir(self.root.join(".trash")) else { return };
        let paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        if !paths.is_empty() {
            delete_in_background(paths);
        }
    }

    /// Removes the instance's directory and keeps its log.
    pub fn remove(&self, name: &str) -> Result<(), RuntimeErrorKind> {
        let directory = self.of(name);
        let has_output = fs::metadata(directory.log()).is_ok_and(|metadata| metadata.len() > 0);
        if has_output {
            let ended = self.ended_log(name);
            fs::rename(directory.log(), &ended).at("keep the log", &ended)?;
            // There is one where the log was long.
            let _ = fs::rename(rotated(&directory.log()), rotated(&ended));
            self.prune_ended_logs();
            fail_at("runtime.remove.log")?;
        }
        self.discard(&directory.path)
    }

    /// Where what is left of removed instances is kept.
    pub fn ended_directory(&self) -> PathBuf {
        self.root.join(".ended")
    }

    /// Where the log of a removed instance is kept.
    pub fn ended_log(&self, name: &str) -> PathBuf {
        self.root.join(".ended").join(format!("{name}.log"))
    }

    /// The removed instances whose logs are kept, with the time of the last line, oldest first.
    pub fn ended(&self) -> Vec<(SystemTime, String)> {
        let Ok(entries) = fs::read_dir(self.root.join(".ended")) else { return Vec::new() };
        let log = |entry: fs::DirEntry| {
            let name = entry.file_name().to_str()?.strip_suffix(".log")?.to_string();
            Some((entry.metadata().ok()?.modified().ok()?, name))
        };
        let mut logs: Vec<_> = entries.flatten().filter_map(log).collect();
        logs.sort();
        logs
    }

    fn prune_ended_logs(&self) {
        let length = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
        let (mut count, mut bytes) = (0, 0);
        for (_, name) in self.ended().iter().rev() {
            let path = self.ended_log(name);
            count += 1;
            bytes += length(&path) + length(&rotated(&path));
            if count > ENDED_LOGS_KEPT || bytes > ENDED_BYTES_KEPT {
                let _ = fs::remove_file(rotated(&path));
                if let Err(error) = fs::remove_file(&path) {
                    tracing::debug!(path = %path.display(), %error, "cannot remove an old log");
                }
            }
        }
    }
}

fn delete_in_background(paths: Vec<PathBuf>) {
    let paths = Arc::new(paths);
    let delete_all = {
        let paths = paths.clone();
        move || paths.iter().for_each(|path| delete(path))
    };
    // Where there is no thread to be had, whoever came must wait.
    if std::thread::Builder::new().name("cfc-delete".to_string()).spawn(delete_all).is_err() {
        paths.iter().for_each(|path| delete(path));
    }
}

/// Where the launcher moves a log that is full.
pub(crate) fn rotated(log: &Path) -> PathBuf {
    PathBuf::from(format!("{}.1", log.display()))
}

fn delete(path: &Path) {
    let deleted = match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => fs::remove_file(path),
        deleted => deleted,
    };
    if let Err(error) = deleted {
        tracing::warn!(path = %path.display(), %error, "cannot delete; the next start will try again");
    }
}

/// The directory of one instance.
#[derive(Clone, Debug)]
pub(crate) struct InstanceDirectory {
    path: PathBuf,
}

impl InstanceDirectory {
    /// The directory `path`, outside of those of the runtime.
    pub fn at(path: &Path) -> InstanceDirectory {
        InstanceDirectory { path: path.to_path_buf() }
    }

    pub fn journal(&self) -> PathBuf {
        self.path.join("journal")
    }

    pub fn egress(&self) -> PathBuf {
        self.path.join("egress")
    }

    pub fn ownerless(&self) -> PathBuf {
        self.path.join("ownerless")
    }

    pub fn upper(&self) -> PathBuf {
        self.path.join("upper")
    }

    pub fn work(&self) -> PathBuf {
        self.path.join("work")
    }

    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    pub fn etc(&self, file: &str) -> PathBuf {
        self.path.join("etc").join(file)
    }

    /// Makes the directory, with the log that an earlier instance of this name left.
    pub fn create(&self, all: &Directories, name: &str) -> Result<(), RuntimeErrorKind> {
        let etc = self.path.join("etc");
        fs::create_dir_all(&etc).at("make the directory", &etc)?;
        let ended = all.ended_log(name);
        let _ = fs::rename(rotated(&ended), rotated(&self.log()));
        match fs::rename(&ended, self.log()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).at("take over the log", &ended),
            _ => Ok(()),
        }
    }

    /// Gives the instance empty directories to write into.
    pub fn make_disk(&self, all: &Directories) -> Result<(), RuntimeErrorKind> {
        self.discard_disk(all)?;
        for path in [self.upper(), self.work()] {
            fs::create_dir(&path).at("make the directory", &path)?;
        }
        Ok(())
    }

    /// Takes its disk away.
    pub fn discard_disk(&self, all: &Directories) -> Result<(), RuntimeErrorKind> {
        all.discard(&self.upper())?;
        all.discard(&self.work())
    }
}
