//! The terminal that a command was started in, while it is lent to a program in a container, and [`Pseudoterminal`], the one
//! that the program sees.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::thread::JoinHandle;

use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, Termios, Winsize};

use crate::failure::Failure;

const BUFFER_BYTES: usize = 16 << 10;

/// Rows and columns of the terminal that this runs in.
pub fn window_size() -> Option<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(rustix::stdio::stdin())
        .or_else(|_| rustix::termios::tcgetwinsize(rustix::stdio::stdout()))
        .ok()?;
    Some((size.ws_row, size.ws_col)).filter(|(rows, columns)| *rows > 0 && *columns > 0)
}

/// This terminal without any processing of its own: every key goes to the program. Dropping it puts everything back.
pub struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    pub fn enter() -> Result<RawTerminal, Failure> {
        let failed = |error: rustix::io::Errno| Failure::because("cannot set up the terminal", &error);
        let before = rustix::termios::tcgetattr(rustix::stdio::stdin()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw).map_err(failed)?;
        Ok(RawTerminal { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &self.before);
    }
}

/// The outer end of a terminal that a program in a container has for its own.
pub struct Pseudoterminal {
    outer: OwnedFd,
}

impl Pseudoterminal {
    /// A new one, as large as the terminal that this runs in, and its inner end. Starts no threads.
    pub fn open() -> Result<(Pseudoterminal, OwnedFd), Failure> {
        let made = || -> rustix::io::Result<(OwnedFd, OwnedFd)> {
            let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
            let outer = rustix::pty::openpt(flags)?;
            rustix::pty::grantpt(&outer)?;
            rustix::pty::unlockpt(&outer)?;
            let inner = rustix::pty::ioctl_tiocgptpeer(&outer, flags)?;
            Ok((outer, inner))
        };
        let (outer, inner) =
            made().map_err(|error| Failure::because("cannot make a terminal for the container", &error))?;
        let terminal = Pseudoterminal { outer };
        terminal.fit();
        Ok((terminal, inner))
    }

    /// Another handle on it.
    pub fn try_clone(&self) -> Result<Pseudoterminal, Failure> {
        let outer = self.outer.try_clone();
        let outer = outer.map_err(|error| Failure::because("cannot share the container's terminal", &error))?;
        Ok(Pseudoterminal { outer })
    }

    /// Makes it as large as the terminal that this runs in; its programs are told.
    pub fn fit(&self) {
        if let Some((rows, columns)) = window_size() {
            let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
            let _ = rustix::termios::tcsetwinsize(&self.outer, size);
        }
    }

    /// Types what is typed here, for as long as this program runs: a read of a terminal cannot be given up.
    pub fn type_input(self) {
        let mut outer = File::from(self.outer);
        std::thread::spawn(move || drop(copy(&mut std::io::stdin().lock(), &mut outer)));
    }

    /// Shows what it shows, until nobody has it open any more.
    pub fn show_output(self) -> JoinHandle<()> {
        let mut outer = File::from(self.outer);
        std::thread::spawn(move || drop(copy(&mut outer, &mut std::io::stdout().lock())))
    }
}

/// Until the end, which of a terminal is an error, too.
fn copy(from: &mut impl Read, to: &mut impl Write) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            count => to.write_all(&buffer[..count]).and_then(|()| to.flush())?,
        }
    }
}
