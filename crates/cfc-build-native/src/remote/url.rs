//! Files of the network.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use cfc_oci::Hasher;
use cfc_plan::{Downloads, UrlSource};
use cfc_store::Store;

use crate::failure::{Failure, OnPath, Result};

/// Puts what is at the address of `source` at `path`, mode 0600, with the time that the server says.
///
/// A file with a checksum is kept in the store, and not asked for again.
pub(crate) fn fetch(store: &Store, downloads: Option<&dyn Downloads>, source: &UrlSource, path: &Path) -> Result<()> {
    let kept = source.checksum.as_ref().filter(|checksum| store.blobs().contains(checksum));
    let modified = match kept {
        Some(checksum) => {
            let mut to = create(path)?;
            std::io::copy(&mut store.blobs().open(checksum)?, &mut to).on("write", path)?;
            None
        }
        None => {
            let downloads = downloads.ok_or_else(|| Failure::new("this build has no way to the network"))?;
            let mut to = create(path)?;
            let modified = downloads.download(&source.url, &mut to).map_err(|error| {
                let failure = Failure { source: error.source, ..Failure::new(error.message) };
                Failure { hint: error.hint, ..failure }
            })?;
            check(store, source, path)?;
            modified
        }
    };
    // Without a time of the server's it is the oldest there is, whenever it was fetched.
    let time = UNIX_EPOCH + Duration::from_secs(modified.and_then(|time| u64::try_from(time).ok()).unwrap_or(0));
    File::options().write(true).open(path).and_then(|file| file.set_modified(time)).on("set the time of", path)?;
    Ok(())
}

fn create(path: &Path) -> Result<File> {
    let file = File::options().write(true).create_new(true).open(path).on("write", path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).on("set the mode of", path)?;
    Ok(file)
}

/// Fails unless the file is what `--checksum` says; keeps it then.
fn check(store: &Store, source: &UrlSource, path: &Path) -> Result<()> {
    let Some(expected) = &source.checksum else { return Ok(()) };
    let mut file = File::open(path).on("read", path)?;
    let mut hasher = HashWriter(Hasher::new(expected.algorithm()));
    std::io::copy(&mut file, &mut hasher).on("read", path)?;
    let actual = hasher.0.finish();
    if actual != *expected {
        let message = format!("`{}` is not what was expected: expected {expected}, found {actual}", source.url);
        return Err(Failure::new(message).hint("if the file was meant to change, change `--checksum`"));
    }
    let mut blob = store.blobs().writer()?;
    let mut file = File::open(path).on("read", path)?;
    std::io::copy(&mut file, &mut blob).on("keep", path)?;
    blob.commit(None)?;
    Ok(())
}

struct HashWriter(Hasher);

impl std::io::Write for HashWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
