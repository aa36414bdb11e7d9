//! [`Terminal`]: the outer end of a sandbox's pseudo-terminal.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::termios::{LocalModes, SpecialCodeIndex, Winsize};
use serde::{Deserialize, Serialize};

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters a line.
    pub columns: u16,
}

/// The outer end of a sandbox's pseudo-terminal: what is written to it is typed, what is read from it is shown.
///
/// Reading fails with EIO when no process of the sandbox has the terminal open any more. It is non-blocking.
#[derive(Debug)]
pub struct Terminal {
    descriptor: OwnedFd,
}

impl Terminal {
    pub(crate) fn new(descriptor: OwnedFd) -> Terminal {
        Terminal { descriptor }
    }

    /// Changes its size; the foreground processes get SIGWINCH.
    pub fn resize(&self, size: WindowSize) -> std::io::Result<()> {
        Ok(set_size(&self.descriptor, size)?)
    }

    /// What has to be typed for a program that reads lines to see the end of its input; `None` when it reads keys.
    pub fn end_of_input(&self) -> std::io::Result<Option<u8>> {
        let modes = rustix::termios::tcgetattr(&self.descriptor)?;
        let reads_lines = modes.local_modes.contains(LocalModes::ICANON);
        Ok(reads_lines.then(|| modes.special_codes[SpecialCodeIndex::VEOF]))
    }

    /// Reads what was shown; `Ok(0)` at its end.
    pub fn read(&self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.descriptor, &mut *buffer)) {
            Err(Errno::IO) => Ok(0),
            result => Ok(result?),
        }
    }

    /// Types `bytes`, as many as there is room for.
    pub fn write(&self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(rustix::io::retry_on_intr(|| rustix::io::write(&self.descriptor, bytes))?)
    }
}

pub(crate) fn set_size(terminal: impl AsFd, size: WindowSize) -> rustix::io::Result<()> {
    let WindowSize { rows, columns } = size;
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(terminal, size)
}

impl AsFd for Terminal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl AsRawFd for Terminal {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }
}
