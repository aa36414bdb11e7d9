//! [`Cache`]: small records by key, which may disappear at any time.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use cfc_oci::Digest;
use tempfile::NamedTempFile;

use crate::error::Context;
use crate::{Result, Store};

/// Small records by key. A record is read whole or not at all, but it is only a cache: nothing is synced to the disk,
/// and a reader must take one that does not parse for one that is not there.
#[derive(Clone, Debug)]
pub struct Cache {
    store: Store,
}

impl Cache {
    pub(crate) fn new(store: Store) -> Cache {
        Cache { store }
    }

    /// The record's bytes.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let path = self.path(key);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).on("read", &path),
        }
    }

    /// Makes or replaces the record.
    pub fn put(&self, key: &str, value: &[u8]) -> Result<()> {
        let path = self.path(key);
        let mut file = NamedTempFile::new_in(self.store.session_directory()).on("write", &path)?;
        file.write_all(value).on("write", &path)?;
        file.persist(&path).map_err(|error| error.error).on("write", &path)?;
        Ok(())
    }

    /// Forgets the record; it is no error when there is none.
    pub fn remove(&self, key: &str) -> Result<()> {
        let path = self.path(key);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).on("remove", &path),
            _ => Ok(()),
        }
    }

    /// A key that is a plain file name keeps its name, any other is hashed.
    fn path(&self, key: &str) -> PathBuf {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let name = match !key.is_empty() && key.len() <= 200 && key.bytes().all(is_plain) {
            true => format!("{key}.json"),
            false => format!("sha256.{}.json", Digest::of(key.as_bytes()).hex()),
        };
        self.store.root().join("cache").join(name)
    }
}
