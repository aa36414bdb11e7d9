//! Opens and makes mount points inside the new root, never following a link out of it.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::stubs::Stubs;
use crate::error::ErrorKind;
use crate::inside::open_inside;
use crate::step::Step;

/// How many links that lead nowhere are followed for one mount point.
const LINKS_MAX: u32 = 8;

/// The new root, before it is the root.
pub(crate) struct Targets {
    pub(crate) root: OwnedFd,
    root_device: u64,
    /// Where the root is as long as it is not the root.
    prefix: PathBuf,
    /// The overlay's upper directory, when what is made in it is to be removed again.
    upper: Option<OwnedFd>,
    pub(crate) stubs: Stubs,
}

impl Targets {
    pub(crate) fn new(root: OwnedFd, prefix: PathBuf, upper: Option<OwnedFd>) -> Result<Targets, ErrorKind> {
        let root_device = rustix::fs::fstat(&root).step(|| "look at the new root".into())?.st_dev;
        Ok(Targets { root, root_device, prefix, upper, stubs: Stubs::default() })
    }

    /// Opens `path` inside the root as a place, not for reading.
    pub(crate) fn find(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        self.open(path, OFlags::PATH)
    }

    /// Opens `path` inside the root.
    pub(crate) fn open(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        open_inside(&self.root, path, flags, resolve)
    }

    /// Finds `path`, or makes it as an empty directory or file, with the directories above it. A link to something that is
    /// not there is followed, inside the root: images have `/etc/resolv.conf` lead to a file that systemd makes.
    pub(crate) fn find_or_make(&mut self, path: &Path, is_directory: bool) -> Result<OwnedFd, ErrorKind> {
        let target = self.find_or_make_through(path, is_directory, LINKS_MAX)?;
        // The kernel would only say that an argument is invalid.
        let found = rustix::fs::fstat(&target).step(|| format!("look at the mount point {}", path.display()))?;
        match (FileType::from_raw_mode(found.st_mode).is_dir(), is_directory) {
            (true, false) => Err(unfit(path, "a directory", "a file")),
            (false, true) => Err(unfit(path, "a file", "a directory")),
            _ => Ok(target),
        }
    }

    fn find_or_make_through(&mut self, path: &Path, is_directory: bool, links: u32) -> Result<OwnedFd, ErrorKind> {
        let step = || format!("make the mount point {}", path.display());
        match self.find(path) {
            Err(Errno::NOENT) => {}
            result => return result.step(step),
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(ErrorKind::Invalid(format!("`{}` cannot be a mount point", path.display())));
        };
        let directory = self.find_or_make_through(parent, true, links)?;
        if let Ok(link) = rustix::fs::readlinkat(&directory, Path::new(name), Vec::new()) {
            let links = links.checked_sub(1).ok_or(Errno::LOOP).step(step)?;
            let target = parent.join(OsStr::from_bytes(link.as_bytes()));
            return self.find_or_make_through(&target, is_directory, links);
        }
        self.make(&directory, Path::new(name), is_directory).step(step)?;
        self.find(path).step(step)
    }

    fn make(&mut self, directory: &OwnedFd, name: &Path, is_directory: bool) -> rustix::io::Result<()> {
        self.record(directory, name, is_directory)?;
        if is_directory {
            return rustix::fs::mkdirat(directory, name, Mode::from_raw_mode(0o755));
        }
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(0o644)).map(drop)
    }

    fn record(&mut self, directory: &OwnedFd, name: &Path, is_directory: bool) -> rustix::io::Result<()> {
        let Some(upper) = &self.upper else { return Ok(()) };
        if rustix::fs::fstat(directory)?.st_dev != self.root_device {
            return Ok(());
        }
        // There may be no /proc yet to ask.
        rustix::process::fchdir(directory)?;
        let actual = rustix::process::getcwd(Vec::new());
        rustix::process::chdir("/")?;
        let actual = PathBuf::from(OsStr::from_bytes(actual?.as_bytes()));
        let Ok(parent) = actual.strip_prefix(&self.prefix) else { return Ok(()) };
        self.stubs.record(upper, &self.root, parent, name, is_directory)
    }
}

fn unfit(path: &Path, is: &str, needed: &str) -> ErrorKind {
    let path = path.display();
    ErrorKind::Invalid(format!(
        "`{path}` in the image is {is}, and {needed} is mounted there: remove it from the image"
    ))
}
