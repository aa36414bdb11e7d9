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

use crate::error::Context;
use crate::store::GONE;
use crate::{Result, StoreError, StoreErrorKind, changing};

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

#[derive(Debug)]
struct Notes {
    number: u64,
    /// There from the beginning, also for who needs nothing: a session without is one of a version that notes nothing.
    file: File,
    /// What is in the file. What is in the one before counts, too, and is noted again when it is found again.
    current: HashSet<Used>,
}

/// While this lives, nothing in the store is taken away.
pub(crate) struct Guard(#[expect(dead_code, reason = "closing it unlocks")] File);

impl Uses {
    /// Those of the session that is called `session`, nothing at first.
    pub(crate) fn start(root: &Path, session: String) -> Result<Uses> {
        let file = notes_file(&notes_path(root, &session, 0))?;
        let notes = Mutex::new(Notes { number: 0, file, current: HashSet::new() });
        Ok(Uses { root: root.to_path_buf(), session, notes })
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
        notes.file.write_all(used.to_line().as_bytes()).on("write", &path)?;
        notes.current.insert(used);
        Ok(())
    }

    /// Forgets what was noted before the last call. What is noted stays noted until the second call from then.
    pub(crate) fn forget_older(&self) -> Result<()> {
        let _guard = self.guard()?;
        let mut notes = self.notes();
        notes.file = notes_file(&self.path(notes.number + 1))?;
        if notes.number > 0 {
            let _ = fs::remove_file(self.path(notes.number - 1));
        }
        notes.current.clear();
        notes.number += 1;
        Ok(())
    }

    fn path(&self, number: u64) -> PathBuf {
        notes_path(&self.root, &self.session, number)
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

fn notes_path(root: &Path, session: &str, number: u64) -> PathBuf {
    root.join("uses").join(format!("{session}{SEPARATOR}{number}"))
}

fn notes_file(path: &Path) -> Result<File> {
    File::options().create(true).append(true).open(path).on("open", path)
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
///
/// # Errors
/// Also when one of them notes nothing.
pub(crate) fn noted(root: &Path, is_alive: impl Fn(&str) -> bool) -> Result<HashSet<Used>> {
    let (mut noted, mut sessions) = (HashSet::new(), HashSet::new());
    for path in changing::entries(&root.join("uses"))? {
        let name = changing::name(&path);
        let Some(session) = session_of(&name).filter(|session| is_alive(session)) else { continue };
        sessions.insert(session.to_string());
        // A session that ends takes its notes away without asking pruners.
        let Some(bytes) = changing::content(&path)? else { continue };
        noted.extend(String::from_utf8_lossy(&bytes).lines().filter_map(Used::parse));
    }
    for path in changing::entries(&root.join("tmp"))? {
        let name = changing::name(&path);
        if !name.starts_with(GONE) && !sessions.contains(&name) && is_alive(&name) {
            return Err(StoreError::new(
                format!("cannot prune `{}`", root.display()),
                StoreErrorKind::InUse(unnoted(&path)),
            ));
        }
    }
    Ok(noted)
}

/// What to say of the session in `path`, which notes nothing.
fn unnoted(path: &Path) -> String {
    let does_not_say = "is of an earlier cfc, which does not say what it needs";
    match holder(path) {
        Some((pid, command)) => format!(
            "process {pid} (`{command}`) uses it and {does_not_say}: let it end or restart it; `cfc upgrade` restarts `cfc serve`"
        ),
        None => format!(
            "the process that holds `{}` {does_not_say}: let it end or restart it, or if there is none, remove that directory",
            path.display()
        ),
    }
}

/// The process that has the directory `path` open, and its command line.
fn holder(path: &Path) -> Option<(u32, String)> {
    let path = fs::canonicalize(path).ok()?;
    let pids = fs::read_dir("/proc").ok()?.flatten();
    let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let pid = pids.find(|pid| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files.into_iter().any(|file| fs::read_link(file.path()).is_ok_and(|target| target == path))
    })?;
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = command.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    let words: Vec<_> = words.map(String::from_utf8_lossy).collect();
    Some((pid, words.join(" ")))
}

fn session_of(name: &str) -> Option<&str> {
    name.rsplit_once(SEPARATOR).map(|(session, _)| session)
}
