//! [`Direct`]: the way out of a sandbox that belongs to no Worker, straight to the network.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener, UdpSocket as StdUdpSocket};
use std::sync::Arc;
use std::time::Duration;

use cfc_sandbox::OutboundSockets;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, oneshot};

use crate::gate::{Gate, Stance};
use crate::policy::EgressPolicy;
use crate::{DNS_PORT, answer_questions, answer_stream, carry_datagrams};

/// How many connections may be open at the same time; more wait.
const CONNECTIONS_MAX: usize = 1_024;
const CONNECT_PATIENCE: Duration = Duration::from_secs(60);
const BUFFER_BYTES: usize = 64 << 10;

/// Carries what a sandbox sends out, on a thread of its own, until it is dropped.
#[derive(Debug)]
pub struct Direct {
    end: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

struct Open {
    name: String,
    policy: EgressPolicy,
}

impl Gate for Open {
    async fn stance(&self, _: &str) -> Stance {
        Stance::Ask
    }

    fn lets_datagrams_out(&self) -> bool {
        true
    }

    fn policy(&self) -> &EgressPolicy {
        &self.policy
    }

    fn name(&self) -> &str {
        &self.name
    }
}

impl Direct {
    /// Begins to carry what comes in `sockets` to where `policy` lets it go. `name` is the sandbox's, for messages.
    pub fn start(name: &str, sockets: OutboundSockets, policy: EgressPolicy) -> io::Result<Direct> {
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let gate = Arc::new(Open { name: name.to_owned(), policy });
        let (end, ended) = oneshot::channel();
        let run = move || {
            tokio.block_on(async {
                tokio::select! {
                    result = carry(sockets, &gate) => if let Err(error) = result {
                        tracing::warn!(sandbox = gate.name, %error, "a sandbox without a way out");
                    },
                    _ = ended => {}
                }
            });
        };
        let thread = std::thread::Builder::new().name("cfc-egress".into()).spawn(run)?;
        Ok(Direct { end: Some(end), thread: Some(thread) })
    }
}

impl Drop for Direct {
    /// Returns when nothing is carried any more.
    fn drop(&mut self) {
        self.end = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn carry(sockets: OutboundSockets, gate: &Arc<Open>) -> io::Result<()> {
    let tcp = TcpListener::from_std(StdListener::from(sockets.tcp))?;
    let udp = sockets.udp.into_iter().map(|socket| UdpSocket::from_std(StdUdpSocket::from(socket)));
    let udp: Vec<UdpSocket> = udp.collect::<io::Result<_>>()?;
    tokio::join!(accept(tcp, gate), answer_questions(&udp, gate), carry_datagrams(sockets.datagrams, gate));
    Ok(())
}

async fn accept(listener: TcpListener, gate: &Arc<Open>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let gate = gate.clone();
                tokio::spawn(async move {
                    if let Err(error) = connect(stream, &gate).await {
                        tracing::debug!(sandbox = gate.name, %error, "a connection of a sandbox broke");
                    }
                    drop(place);
                });
            }
            // Most likely there is no file descriptor left; do not spin until there is one.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

async fn connect(mut stream: TcpStream, gate: &Open) -> io::Result<()> {
    let destination = cfc_sandbox::original_destination(&stream)?;
    let destination = SocketAddr::new(destination.ip().to_canonical(), destination.port());
    if destination.port() == DNS_PORT {
        answer_stream(stream, gate).await;
        return Ok(());
    }
    if let Some(reason) = gate.policy.refusal(destination.ip()) {
        tracing::info!(sandbox = gate.name, %destination, reason, "refused a connection of a sandbox");
        return stream.set_zero_linger();
    }
    let carried = async {
        let connected = tokio::time::timeout(CONNECT_PATIENCE, TcpStream::connect(destination)).await;
        let mut outside = connected.map_err(io::Error::from)??;
        for side in [&stream, &outside] {
            side.set_nodelay(true)?;
        }
        tokio::io::copy_bidirectional_with_sizes(&mut stream, &mut outside, BUFFER_BYTES, BUFFER_BYTES).await.map(drop)
    };
    let carried = carried.await;
    if carried.is_err() {
        let _ = stream.set_zero_linger();
    }
    carried
}
