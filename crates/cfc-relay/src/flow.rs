//! [`Flow`]: one way of a tunnel: what is read from one socket and written to the other.
//!
//! While the reader takes nothing, nothing more is read from the writer than what one step holds, so the kernel makes
//! the writer wait. The end of one side's data is passed on when everything before it has been.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::{Errno, Result};
use rustix::net::{SendFlags, Shutdown};
use rustix::pipe::{SpliceFlags, splice};

use crate::pipes::{PIPE_BYTES, Pipe, Pipes};

/// Messages up to this length are copied, and a longer one is taken for a stream. Also what waits for a slow reader.
pub(crate) const COPY_BYTES: usize = 32 << 10;
/// Steps before other tunnels have their turn.
const STEPS_MAX: usize = 16;

/// What all flows of a relay share.
pub(crate) struct Tools {
    pub buffer: Box<[u8]>,
    pub pipes: Pipes,
}

impl Tools {
    pub fn new(pipes_max: usize) -> Tools {
        Tools { buffer: vec![0; COPY_BYTES].into_boxed_slice(), pipes: Pipes::new(pipes_max) }
    }
}

/// What a flow needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// That one of its sockets becomes ready.
    Waits,
    /// Another turn.
    Again,
    /// Nothing: its end has been passed on.
    Over,
}

/// What was read and not written yet.
#[derive(Debug, Default)]
enum Held {
    #[default]
    Nothing,
    Bytes {
        bytes: Box<[u8]>,
        written: usize,
    },
    Piped {
        pipe: Pipe,
        length: usize,
    },
}

#[derive(Debug, Default)]
pub(crate) struct Flow {
    held: Held,
    /// More came at once, last, than a message: what comes is moved through a pipe.
    is_stream: bool,
    /// The kernel said that the reading side may have ended, so a short read is not the last.
    may_end: bool,
    at_end: bool,
    is_over: bool,
    /// Bytes passed on since the last report.
    carried: u64,
}

/// What one attempt has shown.
enum Step {
    Went,
    Blocked,
    Ended,
}

impl Flow {
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Whether something waits for the writing side.
    pub fn holds(&self) -> bool {
        !matches!(self.held, Held::Nothing)
    }

    pub fn note_end(&mut self) {
        self.may_end = true;
    }

    /// The bytes passed on since this was last asked.
    pub fn take_carried(&mut self) -> u64 {
        std::mem::take(&mut self.carried)
    }

    /// Moves what can be moved now.
    pub fn pump(&mut self, from: &OwnedFd, to: &OwnedFd, tools: &mut Tools) -> Result<Progress> {
        if self.is_over {
            return Ok(Progress::Over);
        }
        for _ in 0..STEPS_MAX {
            if let Step::Blocked = self.write(to, tools)? {
                return Ok(Progress::Waits);
            }
            if self.at_end {
                return self.pass_end(to, tools);
            }
            match self.read(from, to, tools)? {
                Step::Went => {}
                Step::Blocked => return Ok(Progress::Waits),
                Step::Ended => self.at_end = true,
            }
        }
        Ok(Progress::Again)
    }

    /// Gives up what is held; its pipe, if any, goes with it.
    pub fn abandon(&mut self, tools: &mut Tools) {
        if let Held::Piped { .. } = std::mem::take(&mut self.held) {
            tools.pipes.lose();
        }
    }

    fn pass_end(&mut self, to: &OwnedFd, tools: &mut Tools) -> Result<Progress> {
        self.give_pipe_back(tools);
        match rustix::net::shutdown(to, Shutdown::Write) {
            // It has gone already, which its own flow notices.
            Ok(()) | Err(Errno::NOTCONN) => {}
            Err(errno) => return Err(errno),
        }
        self.is_over = true;
        Ok(Progress::Over)
    }

    /// Writes what is held.
    fn write(&mut self, to: &OwnedFd, tools: &mut Tools) -> Result<Step> {
        match &mut self.held {
            Held::Nothing => Ok(Step::Went),
            Held::Bytes { bytes, written } => {
                let Some(count) = would_block(send(to, &bytes[*written..]))? else { return Ok(Step::Blocked) };
                self.carried += count as u64;
                *written += count;
                if *written < bytes.len() {
                    return Ok(Step::Blocked);
                }
                self.held = Held::Nothing;
                Ok(Step::Went)
            }
            Held::Piped { pipe, length } => {
                while *length > 0 {
                    let moved = move_bytes(&pipe.read, to, *length);
                    let Some(count) = would_block(moved)? else { return Ok(Step::Blocked) };
                    self.carried += count as u64;
                    *length -= count;
                }
                if !self.is_stream {
                    self.give_pipe_back(tools);
                }
                Ok(Step::Went)
            }
        }
    }

    fn read(&mut self, from: &OwnedFd, to: &OwnedFd, tools: &mut Tools) -> Result<Step> {
        if self.is_stream && self.has_pipe(tools) {
            return self.read_stream(from, tools);
        }
        let Some(count) = would_block(receive(from, &mut tools.buffer))? else { return Ok(Step::Blocked) };
        if count == 0 {
            return Ok(Step::Ended);
        }
        let is_full = count == tools.buffer.len();
        self.is_stream = is_full;
        let sent = would_block(send(to, &tools.buffer[..count]))?.unwrap_or(0);
        self.carried += sent as u64;
        if sent < count {
            self.held = Held::Bytes { bytes: tools.buffer[sent..count].into(), written: 0 };
            return Ok(Step::Blocked);
        }
        // A short read emptied the socket. What comes next is announced; the end was, when it has come already.
        Ok(if is_full || self.may_end { Step::Went } else { Step::Blocked })
    }

    /// Whether there is a pipe for the stream. Without one, streams are copied.
    fn has_pipe(&mut self, tools: &mut Tools) -> bool {
        if let Held::Nothing = self.held
            && let Some(pipe) = tools.pipes.lend()
        {
            self.held = Held::Piped { pipe, length: 0 };
        }
        matches!(self.held, Held::Piped { .. })
    }

    fn read_stream(&mut self, from: &OwnedFd, tools: &mut Tools) -> Result<Step> {
        let Held::Piped { pipe, length } = &mut self.held else { return Ok(Step::Went) };
        match would_block(move_bytes(from, &pipe.write, PIPE_BYTES))? {
            None => {
                self.give_pipe_back(tools);
                Ok(Step::Blocked)
            }
            Some(0) => Ok(Step::Ended),
            Some(count) => {
                *length = count;
                // Of a message's length: the next ones are taken for messages again.
                self.is_stream = count > COPY_BYTES;
                Ok(Step::Went)
            }
        }
    }

    /// Gives the pipe, which is empty, back: nothing is held while nothing comes.
    fn give_pipe_back(&mut self, tools: &mut Tools) {
        if let Held::Piped { pipe, .. } = std::mem::take(&mut self.held) {
            tools.pipes.give_back(pipe);
        }
    }
}

fn would_block(result: Result<usize>) -> Result<Option<usize>> {
    match result {
        Ok(count) => Ok(Some(count)),
        Err(Errno::AGAIN) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn send(to: &OwnedFd, bytes: &[u8]) -> Result<usize> {
    rustix::io::retry_on_intr(|| rustix::net::send(to, bytes, SendFlags::NOSIGNAL))
}

fn receive(from: &OwnedFd, buffer: &mut [u8]) -> Result<usize> {
    rustix::io::retry_on_intr(|| rustix::io::read(from, &mut *buffer))
}

fn move_bytes(from: impl AsFd, to: impl AsFd, length: usize) -> Result<usize> {
    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
    rustix::io::retry_on_intr(|| splice(&from, None, &to, None, length, flags))
}
