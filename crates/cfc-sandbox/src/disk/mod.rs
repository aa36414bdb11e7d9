//! Disks: filesystems of a fixed size, one a sandbox, so that a full one is full for that sandbox alone.
//!
//! A disk is an ext4 filesystem in a sparse file without a name, behind a loop device, mounted nowhere: everything hangs
//! on descriptors, and a crash at any moment leaves nothing. Making one takes about ten milliseconds and taking it down
//! fifteen, most of it spent waiting for the kernel, so a process of its own does both ([`serve`]) and the launcher keeps
//! a few ready.

mod image;
mod loop_device;
mod maker;
mod mounted;

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub(crate) use image::lacks_mkfs;
pub(crate) use maker::{FromMaker, Maker, ToMaker, serve};
pub(crate) use mounted::{Disk, usage};

/// Which disk: how large, and where its space comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DiskKind {
    /// The size of the filesystem in bytes, rounded up to whole blocks. What it needs for itself goes off it.
    pub bytes: u64,
    /// A directory of the filesystem that pays for what is written. Nothing appears in it.
    pub directory: PathBuf,
}

/// How full a sandbox's disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUsage {
    /// What it can hold, in bytes.
    pub total_bytes: u64,
    /// What it holds, in bytes.
    pub used_bytes: u64,
}

impl fmt::Display for DiskKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a disk of {} MB in {}", self.bytes.div_ceil(1_000_000), self.directory.display())
    }
}
