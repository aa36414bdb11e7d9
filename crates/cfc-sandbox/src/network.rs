//! [`NetworkHandle`]: sockets made inside a sandbox's network namespace.

use std::os::fd::OwnedFd;

use crate::error::Result;

/// A sandbox's network, held open. Reaches what listens on the sandbox's loopback; needs no port mapping.
#[derive(Debug)]
pub struct NetworkHandle {}

#[allow(clippy::todo, unused_variables)]
impl NetworkHandle {
    /// A non-blocking, unconnected TCP socket inside the sandbox's network namespace.
    pub fn tcp_socket(&self, ipv6: bool) -> Result<OwnedFd> {
        todo!()
    }

    /// The TCP ports that something in the sandbox listens on, in ascending order.
    pub fn listening_ports(&self) -> Result<Vec<u16>> {
        todo!()
    }
}
