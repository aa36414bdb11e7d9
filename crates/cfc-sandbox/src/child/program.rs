//! The application: where it starts, and which file it is.

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::ErrorKind;
use crate::step::Step;
use crate::sys;

/// Where commands are looked for when the environment has no `PATH`.
pub(super) const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Changes to `cwd`, making it when it is not there, as Docker does. `false` when only the application's user may enter.
pub(crate) fn change_or_make_directory(cwd: &Path) -> Result<bool, ErrorKind> {
    if enter(cwd) == Err(Errno::NOENT) {
        make_directories(cwd).step(|| format!("make the working directory `{}`", cwd.display()))?;
    }
    change_directory(cwd)
}

/// Changes to `cwd`. `false` when only the application's user may enter.
pub(crate) fn change_directory(cwd: &Path) -> Result<bool, ErrorKind> {
    let result = enter(cwd);
    if result == Err(Errno::ACCESS) {
        return Ok(false);
    }
    check(cwd, result).map(|()| true)
}

/// The second try, as the application's user.
pub(crate) fn change_directory_as_user(cwd: &Path) -> Result<(), ErrorKind> {
    check(cwd, enter(cwd))
}

fn enter(cwd: &Path) -> rustix::io::Result<()> {
    rustix::process::fchdir(open_directory(cwd)?)
}

/// Opens a directory below the root, never through `/proc/self/fd/…`: while the launcher's descriptors are still open,
/// that would be a directory outside the root (CVE-2024-21626), or a layer that other sandboxes share.
fn open_directory(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open("/", flags, Mode::empty())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    crate::inside::open_inside(&root, path, flags, resolve)
}

fn check(cwd: &Path, result: rustix::io::Result<()>) -> Result<(), ErrorKind> {
    result.step(|| format!("change to the working directory `{}`", cwd.display()))?;
    let actual = rustix::process::getcwd(Vec::new()).step(|| "find the working directory".into())?;
    if actual.as_bytes().starts_with(b"/") {
        return Ok(());
    }
    Err(ErrorKind::Invalid(format!("the working directory `{}` is outside the root", cwd.display())))
}

fn make_directories(path: &Path) -> rustix::io::Result<()> {
    let mut parent = PathBuf::from("/");
    for component in path.components() {
        let child = parent.join(component);
        if open_directory(&child).is_err_and(|errno| errno == Errno::NOENT) {
            rustix::fs::mkdirat(open_directory(&parent)?, Path::new(&component), Mode::from_raw_mode(0o755))?;
        }
        parent = child;
    }
    Ok(())
}

/// Becomes the application. Returns only on failure, with a shell's distinction: not found, or not executable.
pub(crate) fn execute(arguments: &[CString], environment: &[CString]) -> ErrorKind {
    let command = &arguments[0];
    let name = command.to_string_lossy().into_owned();
    if command.as_bytes().contains(&b'/') {
        return failure(
            name,
            Path::new(std::ffi::OsStr::from_bytes(command.as_bytes())),
            sys::execute(command, arguments, environment),
        );
    }
    let mut found = None;
    for directory in search_path(environment).split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        let Ok(candidate) = CString::new(format!("{directory}/{name}")) else { continue };
        let error = sys::execute(&candidate, arguments, environment);
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => {}
            // As a shell: a later directory may hold one that can be executed.
            Some(libc::EACCES) => found = found.or(Some(error)),
            _ => return failure(name, Path::new(std::ffi::OsStr::from_bytes(candidate.as_bytes())), error),
        }
    }
    match found {
        Some(error) => ErrorKind::NotExecutable { command: name, errno: error.raw_os_error().unwrap_or(libc::EACCES) },
        None => ErrorKind::CommandNotFound(name),
    }
}

fn search_path(environment: &[CString]) -> String {
    let path = environment.iter().rev().find_map(|variable| variable.as_bytes().strip_prefix(b"PATH="));
    path.map_or_else(|| PATH_DEFAULT.to_owned(), |path| String::from_utf8_lossy(path).into_owned())
}

fn failure(command: String, path: &Path, error: io::Error) -> ErrorKind {
    match error.raw_os_error() {
        // The kernel says the same of a script whose interpreter is missing.
        Some(libc::ENOENT) if path.exists() => ErrorKind::CommandNotFound(format!("{command}: its interpreter")),
        Some(libc::ENOENT | libc::ENOTDIR) => ErrorKind::CommandNotFound(command),
        errno => ErrorKind::NotExecutable { command, errno: errno.unwrap_or(libc::EACCES) },
    }
}
