//! [`Outbound`]: the way out of an instance: what it connects to and asks, wherever that was to go.
//!
//! Nothing is decided here. Whoever takes an instance's [`Outbound`] says what becomes of it; as long as nobody does,
//! connections wait.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener, UdpSocket as StdUdpSocket};

use cfc_sandbox::{Network, OutboundDatagrams};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;

use crate::error::{AtPath, Result, RuntimeErrorKind};
use crate::instance::Phase;
use crate::runtime::{Runtime, blocking};
use crate::trial::is_trial;

/// What a running instance sends out.
#[derive(Debug)]
pub struct Outbound {
    tcp: TcpListener,
    /// Datagrams to port 53 of any address arrive in these; answers to their senders come from that address.
    pub udp: Vec<UdpSocket>,
    /// Every other datagram, by family.
    pub datagrams: Vec<OutboundDatagrams>,
    phase: watch::Receiver<Phase>,
}

impl Outbound {
    /// The next connection, and the address that it was to go to.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, _) = self.tcp.accept().await?;
        let destination = cfc_sandbox::original_destination(&stream)?;
        Ok((stream, SocketAddr::new(destination.ip().to_canonical(), destination.port())))
    }

    /// Returns when the instance's process has ended.
    pub async fn ended(&self) {
        let _ = self.phase.clone().wait_for(|phase| !phase.is_live()).await;
    }
}

impl Runtime {
    /// The way out of a running instance. Several may have it; each connection goes to one of them.
    pub async fn outbound(&self, name: &str) -> Result<Outbound> {
        let failed = |kind: RuntimeErrorKind| kind.of("take the outbound connections of", name);
        let phase = self.phase(name).ok_or_else(|| failed(RuntimeErrorKind::NotRunning))?;
        let (launcher, id) = (self.shared().launcher.clone(), name.to_string());
        let sockets = blocking(move || launcher.outbound(&id)).await.map_err(|error| failed(error.into()))?;
        // What it connects to it reaches over its loopback.
        cfc_relay::unpaced(&sockets.tcp);
        let adopt = || -> io::Result<Outbound> {
            let tcp = TcpListener::from_std(StdListener::from(sockets.tcp))?;
            let udp = sockets.udp.into_iter().map(|socket| UdpSocket::from_std(StdUdpSocket::from(socket)));
            Ok(Outbound { tcp, udp: udp.collect::<io::Result<_>>()?, datagrams: sockets.datagrams, phase })
        };
        adopt().map_err(|error| failed(RuntimeErrorKind::Invalid(format!("unusable sockets: {error}"))))
    }

    /// Keeps with the instance how it may reach out, for whoever adopts it. Nothing where there is no such instance.
    pub async fn keep_egress(&self, name: &str, settings: Vec<u8>) -> Result<()> {
        if self.phase(name).is_none() {
            return Ok(());
        }
        let path = self.shared().directories.of(name).egress();
        let write = move || {
            let temporary = path.with_extension("new");
            fs::write(&temporary, settings).at("write", &temporary)?;
            fs::rename(&temporary, &path).at("replace", &path)
        };
        blocking(write).await.map_err(|kind| kind.of("keep the egress settings of", name))
    }

    /// What was kept with [`Runtime::keep_egress`].
    pub fn kept_egress(&self, name: &str) -> Option<Vec<u8>> {
        self.phase(name)?;
        fs::read(self.shared().directories.of(name).egress()).ok()
    }

    /// Nobody listens to what a trial sends out: it finds nobody.
    pub(crate) fn network_of(&self, name: &str) -> Network {
        if is_trial(name) { Network::Isolated } else { Network::Redirected { ipv6: cfc_sandbox::has_ipv6_route() } }
    }
}
