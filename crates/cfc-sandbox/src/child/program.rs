//! The application: where it starts, and which file it is.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::Mode;

use crate::error::ErrorKind;
use crate::launcher::blueprint::Blueprint;
use crate::step::Step;
use crate::sys;

/// Where commands are looked for when the environment has no `PATH`.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Changes to `cwd`, making it when it is not there, as Docker does. `false` when only the application's user may enter.
pub(crate) fn change_directory(cwd: &Path) -> Result<bool, ErrorKind> {
    let step = || format!("change to the working directory `{}`", cwd.display());
    let mut result = rustix::process::chdir(cwd);
    if result == Err(rustix::io::Errno::NOENT) {
        make_directories(cwd).step(|| format!("make the working directory `{}`", cwd.display()))?;
        result = rustix::process::chdir(cwd);
    }
    if result == Err(rustix::io::Errno::ACCESS) {
        return Ok(false);
    }
    result.step(step)?;
    check_inside(cwd).map(|()| true)
}

/// The second try, as the application's user.
pub(crate) fn change_directory_as_user(cwd: &Path) -> Result<(), ErrorKind> {
    rustix::process::chdir(cwd).step(|| format!("change to the working directory `{}`", cwd.display()))?;
    check_inside(cwd)
}

/// Refuses a directory outside the root, which `/proc/self/fd/…` of an open host directory would be (CVE-2024-21626).
fn check_inside(cwd: &Path) -> Result<(), ErrorKind> {
    let actual = rustix::process::getcwd(Vec::new()).step(|| "find the working directory".into())?;
    if actual.as_bytes().starts_with(b"/") {
        return Ok(());
    }
    Err(ErrorKind::Invalid(format!("the working directory `{}` is outside the root", cwd.display())))
}

fn make_directories(path: &Path) -> rustix::io::Result<()> {
    let mut made = std::path::PathBuf::new();
    for component in path.components() {
        made.push(component);
        match rustix::fs::mkdir(&made, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Becomes the application. Returns only on failure, with a shell's distinction: not found, or not executable.
pub(crate) fn execute(blueprint: &Blueprint) -> ErrorKind {
    let command = &blueprint.arguments[0];
    let name = command.to_string_lossy().into_owned();
    if command.as_bytes().contains(&b'/') {
        return failure(name, Path::new(std::ffi::OsStr::from_bytes(command.as_bytes())), run(blueprint, command));
    }
    let mut found = None;
    for directory in search_path(blueprint).split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        let Ok(candidate) = CString::new(format!("{directory}/{name}")) else { continue };
        let error = run(blueprint, &candidate);
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

fn run(blueprint: &Blueprint, path: &CString) -> io::Error {
    sys::execute(path, &blueprint.arguments, &blueprint.environment)
}

fn search_path(blueprint: &Blueprint) -> String {
    let path = blueprint.environment.iter().rev().find_map(|variable| variable.as_bytes().strip_prefix(b"PATH="));
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
