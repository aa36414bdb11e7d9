//! [`Step`]: gives a failed system call the name of what it was to do.

use crate::error::ErrorKind;

/// Names the step that a result belongs to.
pub(crate) trait Step<T> {
    /// Turns a failure into "`step`: reason".
    fn step(self, step: impl FnOnce() -> String) -> Result<T, ErrorKind>;
}

impl<T> Step<T> for std::io::Result<T> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, ErrorKind> {
        self.map_err(|error| ErrorKind::Step { step: step(), errno: error.raw_os_error().unwrap_or(libc::EIO) })
    }
}

impl<T> Step<T> for rustix::io::Result<T> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, ErrorKind> {
        self.map_err(|errno| ErrorKind::Step { step: step(), errno: errno.raw_os_error() })
    }
}
