//! [`Connection`]: one client of the launcher.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::succession::{ClientState, OutgoingState, Passing, take_all};
use crate::protocol::{self, Receiver, Response};

/// A client's socket, with what has been read of its next request and what has not been written of its responses.
pub(crate) struct Connection {
    pub(crate) socket: OwnedFd,
    pub(crate) receiver: Receiver,
    outgoing: VecDeque<Outgoing>,
}

struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    /// Go with the first byte.
    descriptors: Vec<OwnedFd>,
}

impl Connection {
    /// `socket` must be non-blocking.
    pub(crate) fn new(socket: OwnedFd) -> Connection {
        Connection { socket, receiver: Receiver::default(), outgoing: VecDeque::new() }
    }

    /// For the launcher's next program.
    pub(crate) fn save(&self, token: u64, passing: &Passing) -> ClientState {
        let outgoing = self.outgoing.iter().map(|outgoing| OutgoingState {
            bytes: outgoing.bytes.clone(),
            sent: outgoing.sent,
            descriptors: passing.pass_all(&outgoing.descriptors),
        });
        let (socket, received) = (passing.pass(&self.socket), self.receiver.save(passing));
        ClientState { token, socket, received, outgoing: outgoing.collect() }
    }

    pub(crate) fn restore(state: ClientState) -> std::io::Result<Connection> {
        let outgoing = state.outgoing.into_iter().map(|OutgoingState { bytes, sent, descriptors }| {
            Ok(Outgoing { bytes, sent, descriptors: take_all(descriptors)? })
        });
        let outgoing = outgoing.collect::<std::io::Result<_>>()?;
        Ok(Connection { socket: state.socket.take()?, receiver: Receiver::restore(state.received)?, outgoing })
    }

    pub(crate) fn queue(&mut self, response: &Response, descriptors: Vec<OwnedFd>) {
        if let Ok(bytes) = protocol::encode(response) {
            self.outgoing.push_back(Outgoing { bytes, sent: 0, descriptors });
        }
    }

    /// Writes what the socket takes. `Ok(true)` when nothing is left.
    pub(crate) fn flush(&mut self) -> rustix::io::Result<bool> {
        while let Some(next) = self.outgoing.front_mut() {
            let descriptors: Vec<BorrowedFd<'_>> = next.descriptors.iter().map(|fd| fd.as_fd()).collect();
            match protocol::send(&self.socket, &next.bytes[next.sent..], &descriptors) {
                Err(rustix::io::Errno::AGAIN) => return Ok(false),
                result => next.sent += result?,
            }
            next.descriptors.clear();
            if next.sent == next.bytes.len() {
                self.outgoing.pop_front();
            }
        }
        Ok(true)
    }
}
