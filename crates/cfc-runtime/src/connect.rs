//! The way into an instance's ports: a connection from inside its network namespace.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cfc_sandbox::NetworkHandle;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;

use crate::instance::{ExitReport, Phase};
use crate::ready::{Readiness, Sought};

/// How long at most until a port is tried again, whatever is known of it: a kernel may not tell what listens.
const LONGEST_WAIT: Duration = Duration::from_millis(250);

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// There is no such instance.
    #[error("there is no instance `{0}`")]
    NoInstance(String),
    /// Its process does not run, or ended meanwhile.
    #[error("the container is not running")]
    NotRunning(Option<ExitReport>),
    /// Nothing listened on the port in the time that was given.
    #[error("the container is not listening on port {port}")]
    NotListening {
        /// Which port.
        port: u16,
    },
    /// As many connections to the port are open as there are local ports for them in the container's network.
    #[error(
        "all local ports of the container (its `net.ipv4.ip_local_port_range`) are taken by connections to port {port}"
    )]
    OutOfPorts {
        /// Which port.
        port: u16,
    },
    /// Something else went wrong.
    #[error("cannot connect to port {port} of the container: {error}")]
    Failed {
        /// Which port.
        port: u16,
        /// What.
        error: io::Error,
    },
}

/// Connects to `port` on the instance's loopback; while nothing listens there, tries again until `hold` is over or the
/// instance ends. IPv4 is tried before IPv6.
pub(crate) async fn connect(
    network: Arc<NetworkHandle>,
    readiness: &Readiness,
    mut phase: watch::Receiver<Phase>,
    port: u16,
    hold: Duration,
) -> Result<TcpStream, ConnectError> {
    let deadline = Instant::now() + hold;
    loop {
        match attempt(&network, port).await {
            Ok(stream) => return Ok(stream),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                still_runs(&phase)?;
                return Err(ConnectError::OutOfPorts { port });
            }
            Err(error) => {
                still_runs(&phase)?;
                return Err(ConnectError::Failed { port, error });
            }
        }
        still_runs(&phase)?;
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ConnectError::NotListening { port });
        }
        tokio::select! {
            () = readiness.listening(network.clone(), Sought::Port(port)) => {}
            () = tokio::time::sleep(LONGEST_WAIT.min(left)) => {}
            _ = phase.wait_for(|phase| !phase.is_live()) => {}
        }
    }
}

fn still_runs(phase: &watch::Receiver<Phase>) -> Result<(), ConnectError> {
    match &*phase.borrow() {
        phase if phase.is_live() => Ok(()),
        phase => Err(ConnectError::NotRunning(phase.exit().cloned())),
    }
}

async fn attempt(network: &Arc<NetworkHandle>, port: u16) -> io::Result<TcpStream> {
    let first = connect_to(network, (Ipv4Addr::LOCALHOST, port).into()).await;
    match first {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            let second = connect_to(network, (Ipv6Addr::LOCALHOST, port).into()).await;
            // A kernel without IPv6 is one on which nothing listens there.
            second.map_err(|_| error)
        }
        other => other,
    }
}

async fn connect_to(network: &Arc<NetworkHandle>, address: SocketAddr) -> io::Result<TcpStream> {
    let network = network.clone();
    let is_ipv6 = address.is_ipv6();
    let socket: OwnedFd = tokio::task::spawn_blocking(move || network.tcp_socket(is_ipv6))
        .await
        .map_err(io::Error::other)?
        .map_err(io::Error::other)?;
    cfc_relay::unpaced(&socket);
    let stream = TcpSocket::from_std_stream(std::net::TcpStream::from(socket)).connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
