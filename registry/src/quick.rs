//! Looking at files without ever waiting for a disk: what the kernel has in memory is answered on the spot, and for
//! everything else the caller goes to a blocking thread, which costs more than the look itself.

use std::fs::File;
use std::io::IoSliceMut;
use std::path::Path;
use std::time::SystemTime;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, ReadWriteFlags};

/// What the kernel's memory says.
pub(crate) enum Quick<T> {
    Known(T),
    Missing,
    /// Only the disk knows, or the kernel cannot be asked like this (before Linux 5.12).
    Unknown,
}

/// When the file was touched last, and how long it is.
pub(crate) fn stat(path: &Path) -> Quick<(SystemTime, u64)> {
    let file = match open_with(path, OFlags::PATH) {
        Quick::Known(file) => file,
        Quick::Missing => return Quick::Missing,
        Quick::Unknown => return Quick::Unknown,
    };
    match file.metadata() {
        Ok(metadata) => metadata.modified().map_or(Quick::Unknown, |touched| Quick::Known((touched, metadata.len()))),
        Err(_) => Quick::Unknown,
    }
}

/// The whole file, if it has at most `limit` bytes, and when it was touched last.
pub(crate) fn read(path: &Path, limit: u64) -> Quick<(Vec<u8>, SystemTime)> {
    let file = match open_with(path, OFlags::RDONLY) {
        Quick::Known(file) => file,
        Quick::Missing => return Quick::Missing,
        Quick::Unknown => return Quick::Unknown,
    };
    let Ok(metadata) = file.metadata() else { return Quick::Unknown };
    let (Ok(touched), length) = (metadata.modified(), metadata.len()) else { return Quick::Unknown };
    if length > limit {
        return Quick::Unknown;
    }
    match read_at(&file, 0, length as usize) {
        Some(bytes) => Quick::Known((bytes, touched)),
        None => Quick::Unknown,
    }
}

/// `length` bytes from `offset`; `None` when not all of them are in memory.
pub(crate) fn read_at(file: &File, offset: u64, length: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; length];
    if length > 0 {
        let read = rustix::io::preadv2(file, &mut [IoSliceMut::new(&mut bytes)], offset, ReadWriteFlags::NOWAIT);
        if read != Ok(length) {
            return None;
        }
    }
    Some(bytes)
}

/// Opens a file for reading.
pub(crate) fn open(path: &Path) -> Quick<File> {
    open_with(path, OFlags::RDONLY)
}

fn open_with(path: &Path, flags: OFlags) -> Quick<File> {
    match rustix::fs::openat2(CWD, path, flags | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::CACHED) {
        Ok(file) => Quick::Known(file.into()),
        Err(Errno::NOENT) => Quick::Missing,
        Err(_) => Quick::Unknown,
    }
}
