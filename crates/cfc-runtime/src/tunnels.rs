//! The tunnels of instances: open connections, given to the relays, which carry them without us.

use std::io;
use std::os::fd::OwnedFd;

use cfc_relay::{Counts, Group, Kind};
use tokio::net::TcpStream;

use crate::runtime::Runtime;

/// What the tunnels of one instance have carried since it was created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Connections to the instance.
    pub ingress: Counts,
    /// Connections by the instance.
    pub egress: Counts,
}

impl Traffic {
    /// Bytes that came into the instance.
    pub fn received_bytes(&self) -> u64 {
        self.ingress.bytes_in + self.egress.bytes_in
    }

    /// Bytes that went out of the instance.
    pub fn sent_bytes(&self) -> u64 {
        self.ingress.bytes_out + self.egress.bytes_out
    }

    /// Tunnels that are open now.
    pub fn open(&self) -> u64 {
        self.ingress.open + self.egress.open
    }
}

impl Runtime {
    /// Carries what comes on `outer`, and on `inner`, which is the socket on the instance's side, to the other, until
    /// both have ended, one breaks, or the instance ends. Nothing may have been read of either that was not passed on.
    pub fn carry(&self, name: &str, kind: Kind, outer: TcpStream, inner: TcpStream) -> io::Result<()> {
        let relays = &self.shared().relays;
        let (outer, inner) = (OwnedFd::from(outer.into_std()?), OwnedFd::from(inner.into_std()?));
        relays.carry(&group(name, kind), outer, inner)?;
        if !self.phase(name).is_some_and(|phase| phase.borrow().is_live()) {
            // It ended meanwhile, and the relays were told before they had this one.
            relays.end(name);
        }
        Ok(())
    }

    /// What the instance's tunnels have carried; zeroes where there is none.
    pub fn traffic(&self, name: &str) -> Traffic {
        let counts = |kind| self.shared().relays.counts(&group(name, kind));
        Traffic { ingress: counts(Kind::Ingress), egress: counts(Kind::Egress) }
    }
}

fn group(name: &str, kind: Kind) -> Group {
    Group { instance: name.to_string(), kind }
}
