//! Users and their passwords, from an htpasswd file.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::Digest as _;
use tokio::sync::Semaphore;

use super::User;
use crate::StorageError;
use crate::files::{Version, blocking};

/// Passwords checked at the same time. Each check takes a processor for tens of milliseconds, on purpose; more at once
/// would let whoever guesses keep all of them busy.
const CHECKS_AT_ONCE: usize = 1;

/// Passwords that wait to be checked. Whoever asks for more is told to come back; otherwise a crowd of guesses would keep
/// users waiting for as long as it liked.
const WAITING: usize = 32;

/// Checked passwords that are remembered, as hashes.
const REMEMBERED: usize = 1000;

/// What is compared with when there is no such user, behind the cost: the highest in the file, so that the time an answer
/// takes does not tell.
const NOBODY: &str = "abcdefghijklmnopqrstuuKTVuVvhkVOUTlRGqqtSjhCSKQmAKbPm";

/// The users of a file.
pub(super) struct Accounts {
    path: PathBuf,
    loaded: Mutex<Arc<Loaded>>,
    /// For each password that is checked or waits for it.
    places: Arc<Semaphore>,
    checks: Arc<Semaphore>,
    /// Keeps what is remembered from being of use elsewhere.
    salt: [u8; 16],
}

/// Too many passwords wait to be checked.
#[derive(Debug)]
pub(super) struct Busy;

/// What the file said when it was read last.
struct Loaded {
    version: Option<Version>,
    hashes: HashMap<String, String>,
    /// Compared with when there is no such user.
    nobody: String,
    /// Pairs of a name and a password that were right; forgotten with the file's content.
    right: Mutex<std::collections::HashSet<[u8; 32]>>,
}

impl Accounts {
    pub(super) fn open(path: &Path) -> Result<Accounts, StorageError> {
        let error = |e| StorageError::new("read", path.display(), e);
        let (loaded, bad) = Loaded::read(path).map_err(error)?;
        if let Some(line) = bad.first() {
            return Err(error(std::io::Error::new(std::io::ErrorKind::InvalidData, line.clone())));
        }
        Ok(Accounts {
            path: path.to_path_buf(),
            loaded: Mutex::new(Arc::new(loaded)),
            places: Arc::new(Semaphore::new(CHECKS_AT_ONCE + WAITING)),
            checks: Arc::new(Semaphore::new(CHECKS_AT_ONCE)),
            salt: *uuid::Uuid::new_v4().as_bytes(),
        })
    }

    /// The hash of a user's password; `None` when there is no such user.
    pub(super) fn hash(&self, name: &str) -> Option<String> {
        self.current().hashes.get(name).cloned()
    }

    /// Whether there is any user.
    pub(super) fn has_any(&self) -> bool {
        !self.current().hashes.is_empty()
    }

    /// Who has this name and password; `None` when nobody has.
    pub(super) async fn user(&self, name: &str, password: &str) -> Result<Option<User>, Busy> {
        let key = self.remembered(name, password);
        let loaded = self.current();
        let user = || Ok(Some(User::Named(name.to_string())));
        if loaded.right.lock().unwrap_or_else(PoisonError::into_inner).contains(&key) {
            return user();
        }
        let place = self.places.clone().try_acquire_owned().map_err(|_| Busy)?;
        let turn = self.checks.clone().acquire_owned().await.expect("never closed");
        let hash = loaded.hashes.get(name).cloned().unwrap_or_else(|| loaded.nobody.clone());
        let password = password.to_string();
        let check = move || {
            // A check that began goes on although its client has gone, and takes its turn for as long.
            let _until_done = (place, turn);
            bcrypt::verify(password, &hash).unwrap_or_default()
        };
        let is_right = blocking(check).await;
        if !is_right || !loaded.hashes.contains_key(name) {
            tracing::warn!(user = name, "a wrong user name or password");
            return Ok(None);
        }
        let mut right = loaded.right.lock().unwrap_or_else(PoisonError::into_inner);
        if right.len() >= REMEMBERED {
            right.clear();
        }
        right.insert(key);
        user()
    }

    /// The file as it is now, so that who was taken out of it is out at once. A line that cannot be understood lets nobody
    /// in, and shuts nobody else out; a file that cannot be read lets nobody in.
    fn current(&self) -> Arc<Loaded> {
        let version = Version::of(&self.path).ok();
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.version != version || version.is_none() {
            let (read, bad) = Loaded::read(&self.path).unwrap_or_else(|error| {
                tracing::error!(file = %self.path.display(), %error, "cannot read the users, nobody is let in");
                (Loaded::new(None, HashMap::new()), Vec::new())
            });
            for line in bad {
                tracing::error!(file = %self.path.display(), "{line}; whose line it is is not let in");
            }
            *loaded = Arc::new(read);
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
    fn new(version: Option<Version>, hashes: HashMap<String, String>) -> Loaded {
        let cost = hashes.values().map(|hash| &hash[4..6]).max().unwrap_or("10");
        let nobody = format!("$2y${cost}${NOBODY}");
        Loaded { version, hashes, nobody, right: Mutex::default() }
    }

    /// Reads lines of `name:hash`, and says which it cannot use. Hashes other than bcrypt's are weak, and among those.
    fn read(path: &Path) -> std::io::Result<(Loaded, Vec<String>)> {
        let version = Version::of(path)?;
        let text = std::fs::read_to_string(path)?;
        let mut hashes = HashMap::new();
        let mut bad = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match line.split_once(':').filter(|(_, hash)| is_bcrypt(hash)) {
                Some((name, hash)) => drop(hashes.insert(name.to_string(), hash.to_string())),
                None => bad.push(format!(
                    "line {}: expected `name:` and a bcrypt hash, as `htpasswd -B` writes it",
                    number + 1
                )),
            }
        }
        Ok((Loaded::new(Some(version), hashes), bad))
    }
}

fn is_bcrypt(hash: &str) -> bool {
    hash.len() == 60 && hash.is_ascii() && ["$2y$", "$2b$", "$2a$"].iter().any(|kind| hash.starts_with(kind))
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn accounts() -> (tempfile::TempDir, Accounts) {
        accounts_of(&format!("ann:{}\n", bcrypt::hash("secret", 4).expect("hashes")))
    }

    #[test]
    fn nobody_costs_as_much_as_the_most_expensive_user() {
        let (_directory, accounts) = accounts_of(&format!("a:$2y$05${NOBODY}\nb:$2b$11${NOBODY}\nc:$2y$09${NOBODY}\n"));
        assert!(is_bcrypt(&accounts.current().nobody) && accounts.current().nobody.starts_with("$2y$11$"));
    }

    fn accounts_of(lines: &str) -> (tempfile::TempDir, Accounts) {
        let directory = tempfile::TempDir::new().expect("directory");
        let file = directory.path().join("htpasswd");
        std::fs::write(&file, lines).expect("writes");
        let accounts = Accounts::open(&file).expect("opens");
        (directory, accounts)
    }

    #[tokio::test]
    async fn a_crowd_of_guesses_does_not_wait_without_end() {
        let (_directory, accounts) = accounts();
        assert_eq!(accounts.user("ann", "secret").await.expect("not busy"), Some(User::Named("ann".to_string())));
        let names: Vec<String> = (0..WAITING + 100).map(|number| format!("guess{number}")).collect();
        let guesses: Vec<_> = names.iter().map(|name| Box::pin(accounts.user(name, "secret"))).collect();
        let mut waiting = Vec::new();
        let mut refused = 0;
        for mut guess in guesses {
            match guess.as_mut().now_or_never() {
                Some(Err(Busy)) => refused += 1,
                Some(Ok(user)) => assert_eq!(user, None),
                None => waiting.push(guess),
            }
        }
        assert!(refused > 0 && waiting.len() >= WAITING, "{refused} refused, {} waiting", waiting.len());
        // Whose password was right before does not have to wait.
        assert_eq!(accounts.user("ann", "secret").await.expect("not busy"), Some(User::Named("ann".to_string())));
        // Those who go make room; the check under way keeps its turn.
        drop(waiting);
        assert_eq!(accounts.user("ann", "guess").await.expect("not busy"), None);
    }

    #[tokio::test]
    async fn who_goes_away_does_not_get_more_passwords_checked_at_once() {
        // A check that takes as long as this test needs.
        let slow = format!("slow:$2y$13${NOBODY}\n");
        let (_directory, accounts) = accounts_of(&slow);
        let mut guess = Box::pin(accounts.user("eve", "guess"));
        assert!(guess.as_mut().now_or_never().is_none());
        drop(guess);
        assert_eq!(accounts.checks.available_permits(), 0, "nobody waits for the check, but it takes its time");
        let all = accounts.checks.acquire_many(CHECKS_AT_ONCE as u32).await;
        assert!(all.is_ok(), "the turn is given back");
    }
}
