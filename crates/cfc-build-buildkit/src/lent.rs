//! [`Lent`]: an image that a build leaves in Docker's engine until it has it. Who is killed in between cannot take it back, so
//! it is written down before it is there, and a later build on the same engine does.
//!
//! ```text
//! <store>/lent/<build>   the engine's address; flocked while the build lives
//! ```

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use cfc_store::{Store, is_at};
use rustix::fs::{FlockOperation, flock};

use crate::connect::Connector;
use crate::engine::Engine;
use crate::failure::{Failure, Result};
use crate::solve::image_name;

/// An image that is lent, or will be.
pub(crate) struct Lent {
    path: PathBuf,
    name: String,
    /// Others see by its lock that we live.
    _file: File,
}

impl Lent {
    /// Writes down that the engine behind `connector` is about to be lent the image of the build `id`.
    pub(crate) fn begin(store: &Store, connector: &Connector, id: &str) -> Result<Lent> {
        let directory = store.root().join("lent");
        let path = directory.join(id);
        let failed = |error| Failure::because(format!("cannot write `{}`", path.display()), error);
        fs::create_dir_all(&directory).map_err(failed)?;
        loop {
            let mut file = File::create(&path).map_err(failed)?;
            flock(&file, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
            // Whoever sweeps may have taken it for a dead build's before it was locked.
            if is_at(&file, &path) {
                file.write_all(connector.address().to_string().as_bytes()).map_err(failed)?;
                return Ok(Lent { path, name: image_name(id), _file: file });
            }
        }
    }

    /// Takes it back. What cannot be taken back now, a later build takes.
    pub(crate) async fn end(&self, connector: &Connector) {
        if Engine(connector).forget(&self.name).await {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Takes back from the engine behind `connector` what builds of this store lent it that are dead.
pub(crate) async fn sweep(store: &Store, connector: &Connector) {
    let address = connector.address().to_string();
    for entry in fs::read_dir(store.root().join("lent")).into_iter().flatten().flatten() {
        let path = entry.path();
        let Some((file, lender)) = dead(&path) else { continue };
        let is_here = lender == address;
        let name = entry.file_name().to_string_lossy().into_owned();
        // One without an address was not lent yet.
        if lender.is_empty() || (is_here && Engine(connector).forget(&image_name(&name)).await) {
            let _ = fs::remove_file(&path);
        }
        drop(file);
    }
}

/// The note at `path`, locked, and what it says; none where its build lives.
fn dead(path: &Path) -> Option<(File, String)> {
    let mut file = File::options().read(true).write(true).open(path).ok()?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
    if !is_at(&file, path) {
        return None;
    }
    let mut address = String::new();
    file.rewind().ok()?;
    file.read_to_string(&mut address).ok()?;
    Some((file, address))
}
