//! Making the data directory, which is its owner's alone: below it are variables and modules of Workers, what Durable Objects
//! keep, images and logs, and only few of these files are closed by themselves.

use std::fs::{DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

use crate::failure::Failure;
use crate::settings::Settings;

/// What the mode of a file allows those who are neither its owner nor of its group.
const OTHERS: u32 = 0o007;
/// What cfc makes in a data directory, first of all.
const OURS: [&str; 7] = ["lock", "token", "bucket", "store", "tools", "workers", "instances"];
/// At the root of a filesystem of its own.
const FILESYSTEMS: [&str; 1] = ["lost+found"];

impl Settings {
    /// Makes the data directory, readable by its owner alone. One that others may read or search is closed to them.
    ///
    /// # Errors
    /// When it cannot be made or closed, and when others may look into a directory that is not cfc's alone, which is not
    /// cfc's to close.
    pub fn create_data_directory(&self) -> Result<(), Failure> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.data);
        made.map_err(|error| {
            Failure::because(format!("cannot make the data directory `{}`", self.data.display()), &error)
                .hint("name another one with --data DIR or CFC_DATA")
        })?;
        close(&self.data)
    }
}

fn close(directory: &Path) -> Result<(), Failure> {
    let shown = directory.display();
    let cannot = |what: &str, error: &std::io::Error| Failure::because(format!("cannot {what} `{shown}`"), error);
    let metadata = directory.metadata().map_err(|error| cannot("look at the data directory", &error))?;
    let is_ours = metadata.uid() == rustix::process::getuid().as_raw();
    if !is_ours || metadata.mode() & OTHERS == 0 {
        return Ok(());
    }
    let is_used_alone = is_used_alone(directory).map_err(|error| cannot("read the data directory", &error))?;
    if !is_used_alone {
        let what = format!("the data directory `{shown}` is open to other users, and holds other things than cfc's");
        return Err(Failure::new(what).hint("give cfc a directory of its own with --data DIR, or close it: chmod 700"));
    }
    std::fs::set_permissions(directory, Permissions::from_mode(0o700)).map_err(|error| {
        cannot("close to other users the data directory", &error)
            .hint("variables of Workers and what they keep are below it: run chmod 700 on it")
    })?;
    tracing::warn!(directory = %shown, "the data directory was open to other users; its mode is 0700 from now on");
    Ok(())
}

/// Whether it is empty, or has something of cfc's in it.
fn is_used_alone(directory: &Path) -> std::io::Result<bool> {
    let mut is_empty = true;
    for entry in directory.read_dir()? {
        let name = entry?.file_name();
        if OURS.iter().any(|ours| name == *ours) {
            return Ok(true);
        }
        is_empty &= FILESYSTEMS.iter().any(|theirs| name == *theirs);
    }
    Ok(is_empty)
}
