//! Datagrams of a sandbox, carried between it and the network as a router with address translation does.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cfc_sandbox::OutboundDatagrams;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::gate::Gate;

/// How many pairs of a sender and a receiver one sandbox has at the same time, each with a socket of ours.
const FLOWS_MAX: usize = 256;
/// And all sandboxes together: sockets are descriptors of this process.
const ALL_FLOWS_MAX: usize = 2_048;
static ALL_FLOWS: Semaphore = Semaphore::const_new(ALL_FLOWS_MAX);
/// A pair that is silent so long, both ways, is forgotten; what routers do is between 30 s and some minutes.
const IDLE: Duration = Duration::from_secs(60);
/// The longest payload of a datagram.
const DATAGRAM_BYTES_MAX: usize = 65_507;

/// A sender inside, and where it sends.
type Pair = (SocketAddr, SocketAddr);
type Known = Arc<Mutex<HashMap<Pair, Arc<Flow>>>>;

struct Flow {
    outside: UdpSocket,
    /// Milliseconds since `opened`.
    last_sent: AtomicU64,
    opened: Instant,
}

/// Carries the datagrams of a sandbox, one socket for each family, as long as it is polled.
pub async fn carry_datagrams<G: Gate>(sockets: Vec<OutboundDatagrams>, gate: &Arc<G>) {
    let mut carrying = sockets.into_iter().map(|socket| carry(socket, gate));
    match (carrying.next(), carrying.next()) {
        (None, _) => std::future::pending().await,
        (Some(only), None) => only.await,
        (Some(first), Some(second)) => {
            tokio::join!(first, second);
        }
    }
}

async fn carry<G: Gate>(socket: OutboundDatagrams, gate: &Arc<G>) {
    let incoming = match incoming(&socket) {
        Ok(incoming) => incoming,
        Err(error) => {
            tracing::warn!(sandbox = gate.name(), %error, "a sandbox without datagrams");
            return std::future::pending().await;
        }
    };
    let socket = Arc::new(socket);
    let mut flows = Flows { known: Known::default(), tasks: JoinSet::new() };
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        while flows.tasks.try_join_next().is_some() {}
        let received = match incoming.readable().await {
            Ok(()) => incoming.try_io(Interest::READABLE, || socket.receive(&mut buffer)),
            Err(error) => Err(error),
        };
        let datagram = match received {
            Ok(datagram) => datagram,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => {
                tracing::debug!(sandbox = gate.name(), %error, "cannot receive a datagram");
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        let destination = SocketAddr::new(datagram.destination.ip().to_canonical(), datagram.destination.port());
        let refusal = match gate.lets_datagrams_out() {
            true => gate.policy().refusal(destination.ip()),
            false => Some("it has no internet"),
        };
        if let Some(reason) = refusal {
            tracing::debug!(sandbox = gate.name(), %destination, reason, "dropped a datagram");
            continue;
        }
        // Like any network, this one drops what it cannot carry at the moment.
        if let Err(error) =
            flows.send((datagram.source, datagram.destination), destination, &buffer[..datagram.length], &socket)
        {
            tracing::debug!(sandbox = gate.name(), %destination, %error, "dropped a datagram");
        }
    }
}

/// Tells when something has come in `socket`.
fn incoming(socket: &OutboundDatagrams) -> io::Result<UdpSocket> {
    UdpSocket::from_std(std::net::UdpSocket::from(socket.as_fd().try_clone_to_owned()?))
}

/// The flows of a sandbox. They end when dropped.
struct Flows {
    known: Known,
    tasks: JoinSet<()>,
}

impl Flows {
    fn send(
        &mut self,
        pair: Pair,
        destination: SocketAddr,
        payload: &[u8],
        socket: &Arc<OutboundDatagrams>,
    ) -> io::Result<()> {
        let known = lock(&self.known).get(&pair).cloned();
        let flow = match known {
            Some(flow) => flow,
            None => self.open(pair, destination, socket)?,
        };
        flow.last_sent.store(flow.opened.elapsed().as_millis() as u64, Ordering::Relaxed);
        flow.outside.try_send(payload).map(drop)
    }

    fn open(&mut self, pair: Pair, destination: SocketAddr, socket: &Arc<OutboundDatagrams>) -> io::Result<Arc<Flow>> {
        if lock(&self.known).len() >= FLOWS_MAX {
            return Err(io::Error::other("it has too many pairs of a sender and a receiver"));
        }
        let place = ALL_FLOWS.try_acquire().map_err(|_| io::Error::other("all sandboxes together have too many"))?;
        let any: IpAddr =
            if destination.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let outside = std::net::UdpSocket::bind((any, 0))?;
        outside.connect(destination)?;
        outside.set_nonblocking(true)?;
        let outside = UdpSocket::from_std(outside)?;
        let flow = Arc::new(Flow { outside, last_sent: AtomicU64::new(0), opened: Instant::now() });
        lock(&self.known).insert(pair, flow.clone());
        let (known, socket, answering) = (self.known.clone(), socket.clone(), flow.clone());
        self.tasks.spawn(async move {
            answer(&answering, pair, &socket).await;
            lock(&known).remove(&pair);
            drop(place);
        });
        Ok(flow)
    }
}

/// Passes answers on until nothing has come or gone for a while.
async fn answer(flow: &Flow, (source, destination): Pair, socket: &OutboundDatagrams) {
    let mut buffer = Vec::new();
    loop {
        match tokio::time::timeout(IDLE, flow.outside.readable()).await {
            Err(_) => {
                let silent = flow.opened.elapsed().as_millis() as u64 - flow.last_sent.load(Ordering::Relaxed);
                if silent >= IDLE.as_millis() as u64 {
                    return;
                }
            }
            Ok(Err(_)) => return,
            Ok(Ok(())) => {
                // A pair that waits has no buffer.
                buffer.resize(DATAGRAM_BYTES_MAX, 0);
                while let Ok(length) = flow.outside.try_recv(&mut buffer) {
                    if let Err(error) = socket.answer(source, destination, &buffer[..length]) {
                        tracing::debug!(%destination, %error, "an answer did not go in");
                    }
                }
                buffer = Vec::new();
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing panics halfway through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
