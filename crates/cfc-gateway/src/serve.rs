//! A listener's connections, from accept to their end.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::forward::forward;
use crate::gateway::{Inner, Phase, reached};
use crate::preface;

/// Cloudflare's limit for a request's headers together.
const MAX_HEADER_BYTES: usize = 128 << 10;
const MAX_HEADERS: usize = 256;

/// How long a connection that is just there may take to say something while the gateway drains.
const FIRST_WORD: Duration = Duration::from_secs(2);

/// A short rest after a failed accept: out of file descriptors, it would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

pub(crate) async fn serve(inner: Arc<Inner>, listener: TcpListener) {
    let mut phase = inner.phase.subscribe();
    let mut connections = JoinSet::new();
    loop {
        let has_room = connections.len() < inner.options.max_connections;
        tokio::select! {
            () = reached(&mut phase, |phase| phase != Phase::Serving) => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if has_room => match accepted {
                Ok((stream, client)) => drop(connections.spawn(connection(inner.clone(), stream, client))),
                Err(error) => {
                    tracing::warn!(%error, "the gateway cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(inner: Arc<Inner>, stream: TcpStream, client: SocketAddr) {
    // Small writes of a streaming Worker must not wait for the client's acknowledgement.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, %client, "a connection is gone");
        return;
    }
    let mut phase = inner.phase.subscribe();
    let header_timeout = inner.options.header_timeout;
    if !speaks(&stream, &mut phase, header_timeout).await {
        return;
    }
    if preface::is_http2(&stream).await {
        return preface::decline(stream).await;
    }
    // The gateway may have begun to drain between accept and here.
    phase.mark_changed();
    let service = service_fn(move |request| {
        let inner = inner.clone();
        async move { Ok::<_, Infallible>(forward(inner, client.ip(), request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_header_size(MAX_HEADER_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let ended = loop {
        tokio::select! {
            // What has been sent already is read before it is told to end.
            biased;
            ended = connection.as_mut() => break ended,
            changed = phase.changed() => match (changed, *phase.borrow()) {
                (Ok(()), Phase::Serving) => {}
                (Ok(()), Phase::Draining) => connection.as_mut().graceful_shutdown(),
                (Ok(()), Phase::Leaving | Phase::Ended) | (Err(_), _) => return,
            },
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, %client, "a client's connection ended");
    }
}

/// Waits until the client has sent something. When the gateway drains meanwhile, a client that has just connected gets a
/// moment to do so: it was accepted, so it is answered. False when there is nobody to be answered.
async fn speaks(stream: &TcpStream, phase: &mut watch::Receiver<Phase>, patience: Duration) -> bool {
    let draining = async {
        reached(phase, |phase| phase != Phase::Serving).await;
        tokio::time::sleep(FIRST_WORD).await;
    };
    tokio::select! {
        biased;
        readable = stream.readable() => readable.is_ok(),
        () = draining => false,
        () = tokio::time::sleep(patience) => false,
    }
}
