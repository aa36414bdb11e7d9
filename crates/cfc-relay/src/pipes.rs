//! [`Pipes`]: the pipes that streams are moved through, lent to tunnels while data flows.

use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, pipe_with};

/// What one move takes along at most. More does not go faster, and this much may wait for a slow reader.
pub(crate) const PIPE_BYTES: usize = 256 << 10;

/// Idle pipes that are kept; more are closed.
const IDLE_MAX: usize = 16;

#[derive(Debug)]
pub(crate) struct Pipe {
    pub read: OwnedFd,
    pub write: OwnedFd,
}

/// At most `max` pipes, since descriptors are for tunnels in the first place.
#[derive(Debug)]
pub(crate) struct Pipes {
    idle: Vec<Pipe>,
    lent: usize,
    max: usize,
}

impl Pipes {
    pub fn new(max: usize) -> Pipes {
        Pipes { idle: Vec::new(), lent: 0, max }
    }

    /// An empty pipe; `None` when there are too many.
    pub fn lend(&mut self) -> Option<Pipe> {
        if self.lent >= self.max {
            return None;
        }
        let pipe = self.idle.pop().or_else(make)?;
        self.lent += 1;
        Some(pipe)
    }

    /// Takes back an empty pipe.
    pub fn give_back(&mut self, pipe: Pipe) {
        self.lent -= 1;
        if self.idle.len() < IDLE_MAX {
            self.idle.push(pipe);
        }
    }

    /// A lent pipe was closed, with what was in it.
    pub fn lose(&mut self) {
        self.lent -= 1;
    }
}

fn make() -> Option<Pipe> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
    // The default of 64 KiB works as well, only slower.
    let _ = rustix::pipe::fcntl_setpipe_size(&write, PIPE_BYTES);
    Some(Pipe { read, write })
}
