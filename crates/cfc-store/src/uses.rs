//! [`Uses`]: what this process needs of the store, written down so that a [`crate::Pruner`] of any process leaves it.
//!
//! Whoever finds something in the store, or puts something into it, notes its name first, under a shared lock on
//! `<root>/lock`. A pruner holds that lock exclusively while it reads the notes of all living processes and takes away
//! what nobody noted. So what was found once stays for as long as the process that found it.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cfc_oci::Digest;
use rustix::fs::{FlockOperation, flock};

use crate::Result;
use crate::error::Context;

/// Between a session's name and the number of its file.
const SEPARATOR: char = '+';

/// Something in the store that is used.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Used {
    /// The blob with this digest.
    Blob(Digest),
    /// The unpacked layer with this diff id.
    Layer(Digest),
}

impl Used {
    fn to_line(&self) -> String {
        match self {
            Used::Blob(digest) => format!("blob {digest}\n"),
            Used::Layer(diff_id) => format!("layer {diff_id}\n"),
        }
    }

    fn parse(line: &str) -> Option<Used> {
        let (kind, digest) = line.split_once(' ')?;
        let digest = digest.parse().ok()?;
        match kind {
            "blob" => Some(Used::Blob(digest)),
            "layer" => Some(Used::Layer(digest)),
            _ => None,
        }
    }
}

/// What this process needs.
#[derive(Debug)]
pub(crate) struct Uses {
    root: PathBuf,
    session: String,
    notes: Mutex<Notes>,
}

#[derive(Debug, Default)]
struct Notes {
    number: u64,
    /// Made by the first note: many commands look at nothing.
    file: Option<File>,
    /// What is in the file. What is in the one before counts, too, and is noted again when it is found again.
    current: HashSet<Used>,
}

/// While this lives, nothing in the store is taken away.
pub(crate) struct Guard(#[expect(dead_code, reason = "closing it unlocks")] File);

impl Uses {
    /// Those of the session that is called `session`.
    pub(crate) fn new(root: &Path, session: String) -> Uses {
        Uses { root: root.to_path_buf(), session, notes: Mutex::default() }
    }

    /// Keeps pruners waiting. Several may be held at once, also by one thread.
    pub(crate) fn guard(&self) -> Result<Guard> {
        lock(&self.root, FlockOperation::LockShared)
    }

    /// Notes `used` if it is there, at `path`; says whether it is.
    pub(crate) fn find(&self, used: Used, path: &Path) -> Result<bool> {
        if self.notes().current.contains(&used) {
            return Ok(path.exists());
        }
        let guard = self.guard()?;
        if !path.exists() {
            return Ok(false);
        }
        self.note(&guard, used)?;
        Ok(true)
    }

    /// Notes what is, or is about to be, in the store.
    pub(crate) fn note(&self, _guard: &Guard, used: Used) -> Result<()> {
        let mut notes = self.notes();
        if notes.current.contains(&used) {
            return Ok(());
        }
        let path = self.path(notes.number);
        if notes.file.is_none() {
            notes.file = Some(File::options().create(true).append(true).open(&path).on("open", &path)?);
        }
        if let Some(file) = &mut notes.file {
            file.write_all(used.to_line().as_bytes()).on("write", &path)?;
        }
        notes.current.insert(used);
        Ok(())
    }

    /// Forgets what was noted before the last call. What is noted stays noted until the second call from then.
    pub(crate) fn forget_older(&self) -> Result<()> {
        let _guard = self.guard()?;
        let mut notes = self.notes();
        if notes.number > 0 {
            let _ = fs::remove_file(self.path(notes.number - 1));
        }
        notes.current.clear();
        notes.file = None;
        notes.number += 1;
        Ok(())
    }

    fn path(&self, number: u64) -> PathBuf {
        self.root.join("uses").join(format!("{}{SEPARATOR}{number}", self.session))
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Uses {
    fn drop(&mut self) {
        remove_notes(&self.root, &self.session);
    }
}

/// Takes the lock that keeps pruners and users apart.
pub(crate) fn lock(root: &Path, operation: FlockOperation) -> Result<Guard> {
    let path = root.join("lock");
    // A file of its own for each holder: the lock belongs to the open file, not to the process.
    let file = File::options().create(true).append(true).open(&path).on("open", &path)?;
    loop {
        match flock(&file, operation) {
            Err(rustix::io::Errno::INTR) => continue,
            result => result.on("lock", &path)?,
        }
        return Ok(Guard(file));
    }
}

/// Forgets what a session noted that is over.
pub(crate) fn remove_notes(root: &Path, session: &str) {
    let Ok(entries) = fs::read_dir(root.join("uses")) else { return };
    for entry in entries.flatten() {
        if session_of(&entry.file_name().to_string_lossy()) == Some(session) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Forgets what sessions noted that have no directory any more. To be called with the lock held exclusively.
pub(crate) fn remove_orphans(root: &Path) {
    let Ok(entries) = fs::read_dir(root.join("uses")) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if session_of(&name).is_none_or(|session| !root.join("tmp").join(session).exists()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// What the sessions that `is_alive` noted. To be called with the lock held exclusively.
pub(crate) fn noted(root: &Path, is_alive: impl Fn(&str) -> bool) -> Result<HashSet<Used>> {
    let directory = root.join("uses");
    let mut noted = HashSet::new();
    for entry in fs::read_dir(&directory).on("list", &directory)? {
        let entry = entry.on("list", &directory)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if session_of(&name).is_some_and(&is_alive) {
            let path = entry.path();
            let text = fs::read_to_string(&path).on("read", &path)?;
            noted.extend(text.lines().filter_map(Used::parse));
        }
    }
    Ok(noted)
}

fn session_of(name: &str) -> Option<&str> {
    name.rsplit_once(SEPARATOR).map(|(session, _)| session)
}
