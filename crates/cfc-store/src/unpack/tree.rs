//! [`Tree`]: a directory that is filled on behalf of somebody who may want to reach out of it.
//!
//! Everything happens relative to one open handle. Ancestors are resolved by the kernel with that directory as `/`, so
//! symbolic links lead nowhere else; the last component is never followed.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid, XattrFlags, chownat, makedev, mkdirat,
    mknodat, openat, openat2, readlinkat, statat, unlinkat,
};
use rustix::io::Errno;

/// Deeper trees could not be removed with the usual number of open files, and no image has them.
pub(crate) const MAX_DEPTH: usize = 256;
/// How overlayfs, mounted with `userxattr`, marks a directory that hides those below it.
pub(crate) const OPAQUE_XATTR: &str = "user.overlay.opaque";

/// The directory, and the ancestor that was used last: archives list siblings one after the other.
pub(crate) struct Tree {
    root: Rc<OwnedFd>,
    root_depth: usize,
    last: Option<(PathBuf, Rc<OwnedFd>)>,
}

impl Tree {
    /// The tree below `root`.
    pub fn open(root: &Path) -> io::Result<Tree> {
        let root = openat(CWD, root, directory_flags(), Mode::empty())?;
        let root_depth = real_path(&root)?.components().count();
        Ok(Tree { root: Rc::new(root), root_depth, last: None })
    }

    /// The root's handle.
    pub fn root(&self) -> Rc<OwnedFd> {
        self.root.clone()
    }

    /// The directory `path`, symbolic links in it resolved inside the tree.
    pub fn directory(&mut self, path: &Path) -> io::Result<Rc<OwnedFd>> {
        if path.as_os_str().is_empty() {
            return Ok(self.root());
        }
        if let Some((last, handle)) = &self.last
            && last == path
        {
            return Ok(handle.clone());
        }
        let handle = Rc::new(self.resolve(path)?);
        self.last = Some((path.to_path_buf(), handle.clone()));
        Ok(handle)
    }

    /// As [`Tree::directory`], making what is missing; `made` is called with each path that was made. A whiteout in the
    /// way becomes an opaque directory: the layer removed something and put a directory in its place.
    pub fn directory_or_make(
        &mut self,
        path: &Path,
        made: &mut dyn FnMut(&Path) -> io::Result<()>,
    ) -> io::Result<Rc<OwnedFd>> {
        let error = match self.directory(path) {
            Ok(handle) => return Ok(handle),
            Err(error) => error,
        };
        if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) {
            return Err(error);
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(error) };
        let parent_handle = self.directory_or_make(parent, made)?;
        let stat = status(&parent_handle, name)?;
        let is_hidden = stat.as_ref().is_some_and(is_whiteout);
        if stat.is_some() && !is_hidden {
            let text = "it goes through something in the same layer that is not a directory";
            return Err(io::Error::new(io::ErrorKind::NotADirectory, text));
        }
        if is_hidden {
            unlinkat(&parent_handle, name, AtFlags::empty())?;
        }
        mkdirat(&parent_handle, name, Mode::from_raw_mode(0o755))?;
        give_to_root(&parent_handle, name)?;
        made(path)?;
        let handle = self.directory(path)?;
        if is_hidden {
            set_opaque(&handle)?;
        }
        Ok(handle)
    }

    /// Removes `name` in `parent` with everything below it.
    pub fn remove(&mut self, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
        self.last = None;
        remove_below(parent, name)
    }

    fn resolve(&self, path: &Path) -> io::Result<OwnedFd> {
        let strictly = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        match retry(|| openat2(&self.root, path, directory_flags(), Mode::empty(), strictly)) {
            Ok(handle) => return Ok(handle),
            Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let handle = retry(|| openat2(&self.root, path, directory_flags(), Mode::empty(), inside))?;
        // A chain of links could build a tree that is deeper than any path of the archive.
        let depth = real_path(&handle)?.components().count().saturating_sub(self.root_depth);
        match depth < MAX_DEPTH {
            true => Ok(handle),
            false => Err(too_deep()),
        }
    }
}

/// The error of a path with too many components.
pub(crate) fn too_deep() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("it is deeper than {MAX_DEPTH} directories"))
}

/// Makes `name` in `parent`, which we made and no entry describes, the image's root's. Without the rights of root in some
/// user namespace, it stays ours.
pub(crate) fn give_to_root(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match chownat(parent, name, Some(Uid::ROOT), Some(Gid::ROOT), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(()) | Err(Errno::PERM | Errno::INVAL) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What `name` in `parent` is, not following it; `None` when it is not there.
pub(crate) fn status(parent: &OwnedFd, name: &OsStr) -> io::Result<Option<Stat>> {
    match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether it is how overlayfs notes that a lower layer's file is gone.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Whether it is a directory.
pub(crate) fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// Makes `name` in `parent` hide a lower layer's file.
pub(crate) fn make_whiteout(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    Ok(mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), makedev(0, 0))?)
}

/// Makes the directory hide what lower layers have in it.
pub(crate) fn set_opaque(directory: &OwnedFd) -> io::Result<()> {
    // The handle is O_PATH, on which fsetxattr does not work; its entry in /proc is the directory itself.
    let path = handle_path(directory);
    rustix::fs::setxattr(&path, OPAQUE_XATTR, b"y", XattrFlags::empty()).map_err(|error| match error {
        Errno::OPNOTSUPP => io::Error::new(
            io::ErrorKind::Unsupported,
            "the file system of the store has no user.* extended attributes, which opaque directories need",
        ),
        other => other.into(),
    })
}

/// Sets an extended attribute of `name` in `parent` itself, not of what it may point to.
pub(crate) fn set_xattr(parent: &OwnedFd, name: &OsStr, key: &OsStr, value: &[u8]) -> rustix::io::Result<()> {
    rustix::fs::lsetxattr(handle_path(parent).join(name), key, value, XattrFlags::empty())
}

/// A path that names an open file.
pub(crate) fn handle_path(handle: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd()))
}

fn real_path(handle: &OwnedFd) -> io::Result<PathBuf> {
    let target = readlinkat(CWD, handle_path(handle), Vec::new())?;
    Ok(OsString::from_vec(target.into_bytes()).into())
}

fn directory_flags() -> OFlags {
    OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC
}

/// The kernel answers EAGAIN when somebody else's rename made it unsure about a `..` in a link.
fn retry<T>(mut operation: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    for _ in 0..1000 {
        match operation() {
            Err(Errno::AGAIN | Errno::INTR) => std::thread::yield_now(),
            other => return Ok(other?),
        }
    }
    Err(io::Error::from(io::ErrorKind::WouldBlock))
}

fn remove_below(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // Linux says EISDIR, POSIX EPERM.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = openat(parent, name, flags, Mode::empty())?;
    for name in names(&directory)? {
        remove_below(&directory, &name)?;
    }
    Ok(unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

/// The names in a directory, without `.` and `..`, in no order.
pub(crate) fn names(directory: impl AsFd) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_os_string());
        }
    }
    Ok(names)
}
