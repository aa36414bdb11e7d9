//! [`Tunnel`]: two sockets and what flows between them.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::net::sockopt;

use crate::flow::{Flow, Progress, Tools};

/// Which of a tunnel's sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Outer,
    Inner,
}

#[derive(Debug)]
pub(crate) struct Tunnel {
    /// The index of its group.
    pub group: usize,
    /// The other side's socket.
    pub outer: OwnedFd,
    /// The instance's.
    pub inner: OwnedFd,
    /// Into the instance.
    inward: Flow,
    outward: Flow,
    /// The instance has ended; by then its last words must have been taken.
    deadline: Option<Instant>,
}

impl Tunnel {
    pub fn new(group: usize, outer: OwnedFd, inner: OwnedFd) -> Tunnel {
        Tunnel { group, outer, inner, inward: Flow::default(), outward: Flow::default(), deadline: None }
    }

    /// Moves what `events` on the socket of `side` make possible. On [`Progress::Over`] the tunnel is to be dropped.
    pub fn react(&mut self, side: Side, events: EventFlags, tools: &mut Tools) -> Progress {
        let (reading, writing) = match side {
            Side::Outer => (&mut self.inward, &self.outward),
            Side::Inner => (&mut self.outward, &self.inward),
        };
        let may_end = events.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        if may_end {
            reading.note_end();
        }
        let reads = may_end || events.contains(EventFlags::IN);
        let writes = writing.holds() && (may_end || events.contains(EventFlags::OUT));
        let (inward, outward) = match side {
            Side::Outer => (reads, writes),
            Side::Inner => (writes, reads),
        };
        self.pump(inward, outward, tools)
    }

    /// Another turn for both ways.
    pub fn go_on(&mut self, tools: &mut Tools) -> Progress {
        self.pump(true, true, tools)
    }

    fn pump(&mut self, inward: bool, outward: bool, tools: &mut Tools) -> Progress {
        let went_out = if outward { self.outward.pump(&self.inner, &self.outer, tools) } else { Ok(Progress::Waits) };
        let went_in = if inward { self.inward.pump(&self.outer, &self.inner, tools) } else { Ok(Progress::Waits) };
        match (went_out, went_in) {
            (Err(_), _) => {
                let _ = self.inward.pump(&self.outer, &self.inner, tools);
                self.reset();
                Progress::Over
            }
            (_, Err(_)) => {
                // Whoever broke off may have said something before.
                let _ = self.outward.pump(&self.inner, &self.outer, tools);
                self.reset();
                Progress::Over
            }
            _ if self.is_over() => Progress::Over,
            (Ok(Progress::Again), _) | (_, Ok(Progress::Again)) => Progress::Again,
            _ => Progress::Waits,
        }
    }

    fn is_over(&self) -> bool {
        self.outward.is_over() && (self.inward.is_over() || self.deadline.is_some())
    }

    /// The instance has ended: its last words have until `deadline`.
    pub fn end_by(&mut self, deadline: Instant) {
        self.deadline.get_or_insert(deadline);
        self.outward.note_end();
    }

    pub fn is_late(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }

    pub fn is_ending(&self) -> bool {
        self.deadline.is_some()
    }

    /// Lets both sides see a reset when the tunnel is dropped.
    pub fn reset(&self) {
        for socket in [&self.outer, &self.inner] {
            let _ = sockopt::set_socket_linger(socket, Some(Duration::ZERO));
        }
    }

    /// The bytes carried in and out since this was last asked.
    pub fn take_carried(&mut self) -> (u64, u64) {
        (self.inward.take_carried(), self.outward.take_carried())
    }

    pub fn abandon(&mut self, tools: &mut Tools) {
        self.inward.abandon(tools);
        self.outward.abandon(tools);
    }
}
