//! [`Login`]: who the registry is at an upstream.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::lock;
use crate::StorageError;

/// A user name, and a password that may be in a file.
#[derive(Clone)]
pub struct Login {
    username: String,
    file: Option<PathBuf>,
    /// The one that was read last, and whether it could be read since.
    password: Arc<Mutex<(String, bool)>>,
}

/// Without the password.
impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Login({})", self.username)
    }
}

impl Login {
    /// One whose password stays as it is.
    pub fn new(username: &str, password: &str) -> Login {
        let password = Arc::new(Mutex::new((password.to_string(), true)));
        Login { username: username.to_string(), file: None, password }
    }

    /// One whose password is what the file `path` has but for white space at its end. It is read again whenever the upstream
    /// wants to know who we are; when there is none in it, the one before is used.
    pub fn from_file(username: &str, path: &Path) -> Result<Login, StorageError> {
        let password = read(path).map_err(|error| StorageError::new("read", path.display(), error))?;
        Ok(Login { file: Some(path.to_path_buf()), ..Login::new(username, &password) })
    }

    /// The user name and the password, as the file has it. Blocks.
    pub(super) fn current(&self) -> (String, String) {
        let mut password = lock(&self.password);
        if let Some(path) = &self.file {
            match read(path) {
                Ok(read) => *password = (read, true),
                Err(error) if password.1 => {
                    tracing::warn!(file = %path.display(), %error, "going on with an upstream's password as it was");
                    password.1 = false;
                }
                Err(_) => {}
            }
        }
        (self.username.clone(), password.0.clone())
    }
}

fn read(path: &Path) -> std::io::Result<String> {
    let text = std::fs::read_to_string(path)?;
    match text.trim_end() {
        "" => Err(std::io::Error::other("there is no password in it")),
        password => Ok(password.to_string()),
    }
}
