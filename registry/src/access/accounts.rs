//! Users and their passwords, from an htpasswd file.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use sha2::Digest as _;
use tokio::sync::Semaphore;

use super::User;
use crate::StorageError;
use crate::files::blocking;

/// Passwords checked at the same time. Each check takes a processor for tens of milliseconds, on purpose; more at once
/// would let whoever guesses keep all of them busy.
const CHECKS_AT_ONCE: usize = 1;

/// Checked passwords that are remembered, as hashes.
const REMEMBERED: usize = 1000;

/// Compared with when there is no such user, so that the time an answer takes does not tell.
const NOBODY: &str = "$2y$10$abcdefghijklmnopqrstuuKTVuVvhkVOUTlRGqqtSjhCSKQmAKbPm";

/// The users of a file.
pub(super) struct Accounts {
    path: PathBuf,
    trusted: Option<(String, String)>,
    loaded: Mutex<Arc<Loaded>>,
    checks: Semaphore,
    /// Keeps what is remembered from being of use elsewhere.
    salt: [u8; 16],
}

/// What the file said when it was read last.
struct Loaded {
    modified: Option<SystemTime>,
    hashes: HashMap<String, String>,
    /// Pairs of a name and a password that were right; forgotten with the file's content.
    right: Mutex<std::collections::HashSet<[u8; 32]>>,
}

impl Accounts {
    pub(super) fn open(path: &Path) -> Result<Accounts, StorageError> {
        let loaded = Loaded::read(path).map_err(|e| StorageError::new("read", path.display(), e))?;
        Ok(Accounts {
            path: path.to_path_buf(),
            trusted: None,
            loaded: Mutex::new(Arc::new(loaded)),
            checks: Semaphore::new(CHECKS_AT_ONCE),
            salt: *uuid::Uuid::new_v4().as_bytes(),
        })
    }

    pub(super) fn trust(&mut self, name: &str, password: &str) {
        self.trusted = Some((name.to_string(), password.to_string()));
    }

    /// Who has this name and password; `None` when nobody has.
    pub(super) async fn user(&self, name: &str, password: &str) -> Option<User> {
        let key = self.remembered(name, password);
        if let Some((trusted, own)) = &self.trusted
            && key == self.remembered(trusted, own)
        {
            return Some(User::Trusted);
        }
        let loaded = self.current();
        let user = || Some(User::Named(name.to_string()));
        if loaded.right.lock().unwrap_or_else(PoisonError::into_inner).contains(&key) {
            return user();
        }
        let _turn = self.checks.acquire().await.expect("never closed");
        let hash = loaded.hashes.get(name).cloned().unwrap_or_else(|| NOBODY.to_string());
        let password = password.to_string();
        let is_right = blocking(move || bcrypt::verify(password, &hash).unwrap_or_default()).await;
        if !is_right || !loaded.hashes.contains_key(name) {
            tracing::warn!(user = name, "a wrong user name or password");
            return None;
        }
        let mut right = loaded.right.lock().unwrap_or_else(PoisonError::into_inner);
        if right.len() >= REMEMBERED {
            right.clear();
        }
        right.insert(key);
        user()
    }

    /// The file as it is now, so that who was taken out of it is out at once. One that cannot be read lets nobody in.
    fn current(&self) -> Arc<Loaded> {
        let modified = self.path.metadata().and_then(|metadata| metadata.modified()).ok();
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.modified != modified || modified.is_none() {
            *loaded = Arc::new(Loaded::read(&self.path).unwrap_or_else(|error| {
                tracing::error!(file = %self.path.display(), %error, "cannot read the users, nobody is let in");
                Loaded { modified: None, hashes: HashMap::new(), right: Mutex::default() }
            }));
        }
        loaded.clone()
    }

    fn remembered(&self, name: &str, password: &str) -> [u8; 32] {
        let mut hasher = sha2::Sha256::new();
        hasher.update(self.salt);
        hasher.update((name.len() as u64).to_le_bytes());
        hasher.update(name);
        hasher.update(password);
        hasher.finalize().into()
    }
}

impl Loaded {
    /// Reads lines of `name:hash`. Hashes other than bcrypt's are weak, and refused.
    fn read(path: &Path) -> std::io::Result<Loaded> {
        let modified = path.metadata()?.modified().ok();
        let text = std::fs::read_to_string(path)?;
        let mut hashes = HashMap::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let pair = line.split_once(':').filter(|(_, hash)| is_bcrypt(hash));
            let (name, hash) = pair.ok_or_else(|| {
                let what =
                    format!("line {}: expected `name:` and a bcrypt hash, as `htpasswd -B` writes it", number + 1);
                std::io::Error::new(std::io::ErrorKind::InvalidData, what)
            })?;
            hashes.insert(name.to_string(), hash.to_string());
        }
        Ok(Loaded { modified, hashes, right: Mutex::default() })
    }
}

fn is_bcrypt(hash: &str) -> bool {
    hash.len() == 60 && ["$2y$", "$2b$", "$2a$"].iter().any(|kind| hash.starts_with(kind))
}
