//! [`renewed`]: copied files that look as if they had been written just now, for programs with a cache of their own.
//!
//! In layers all files have one time. Compilers and `make` compare times, and would take what an earlier build left in a
//! `--mount=type=cache` for newer than a source that has changed since. Under BuildKit the source has its time in the build
//! context; here it gets the present one, which costs a compilation too many and never one too few.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use cfc_store::Store;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};

use crate::failure::{OnPath, Result};
use crate::layer::Layer;

/// The present time, in seconds since 1970, in 32 bits as compiled modules have it: no source below that was not renewed
/// is from now.
pub(crate) fn renewal_time() -> Option<u32> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u32::try_from(now.as_secs()).ok()
}

/// As [`unpacked`](crate::view::unpacked); but layers of copied files are unpacked anew, below `workspace`.
pub(crate) fn renewed(store: &Store, layers: &[Layer], workspace: &Path) -> Result<Vec<PathBuf>> {
    let mut known = Vec::new();
    let mut directories = Vec::new();
    for layer in layers.iter().rev() {
        if known.contains(&&layer.diff_id) {
            continue;
        }
        known.push(&layer.diff_id);
        directories.push(match layer.is_copied(store)? {
            true => unpack_anew(store, layer, workspace.join(format!("renewed-{}", known.len())))?,
            false => store.layers().unpack(&layer.diff_id, &layer.blob)?,
        });
    }
    Ok(directories)
}

fn unpack_anew(store: &Store, layer: &Layer, directory: PathBuf) -> Result<PathBuf> {
    fs::create_dir(&directory).on("make the directory", &directory)?;
    store.layers().unpack_into(&directory, &layer.diff_id, &layer.blob)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = Timespec { tv_sec: now.as_secs() as i64, tv_nsec: now.subsec_nanos().into() };
    let times = Timestamps { last_access: time, last_modification: time };
    let mut pending = vec![directory.clone()];
    while let Some(path) = pending.pop() {
        if path.symlink_metadata().on("look at", &path)?.is_dir() {
            for entry in fs::read_dir(&path).on("list", &path)? {
                pending.push(entry.on("list", &path)?.path());
            }
        }
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW).on("set the times of", &path)?;
    }
    Ok(directory)
}
