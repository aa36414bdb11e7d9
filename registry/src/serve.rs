//! [`serve`]: the API on a socket. Its own loop rather than axum's, since blobs are sent as files and clients that do
//! nothing are let go.

use std::convert::Infallible;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::server::TlsStream;

use crate::Registry;
use crate::auth::Operator;
use crate::sendfile::{Connection, FileQueue};
use crate::tls::Tls;
use crate::visit::Peer;

/// How long accepting waits when the process has no descriptors left.
const BREATH: Duration = Duration::from_secs(1);

/// What is received at once of a request, and how long its headers may be. Two such pieces fit the processor's cache: what
/// was received is still there when it is hashed and written, and a push takes a tenth less time than with hyper's 400 KiB.
const RECEIVE_BYTES: usize = 256 * 1024;

/// Answers the API on `listener` until the process ends.
pub async fn serve(listener: TcpListener, registry: Registry) -> std::io::Result<()> {
    serve_until(listener, registry, std::future::pending()).await
}

/// Answers the API on `listener` until `shutdown` is ready, then lets running requests finish. Collects garbage
/// meanwhile, as the registry's options say.
pub async fn serve_until(
    listener: TcpListener,
    registry: Registry,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    keep_freed_memory();
    registry.list_earlier_referrers().await.map_err(std::io::Error::other)?;
    let places = Arc::new(Semaphore::new(registry.inner.options.limits.connections));
    let (ending, ended) = watch::channel(());
    let mut shutdown = pin!(shutdown);
    let mut collecting = pin!(registry.collect_regularly());
    loop {
        let accepted = async {
            let place = places.clone().acquire_owned().await.expect("never closed");
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            () = &mut shutdown => break,
            () = &mut collecting => continue,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (registry, ended) = (registry.clone(), ended.clone());
                tokio::spawn(async move {
                    answer(stream, peer, registry, ended).await;
                    drop(place);
                });
            }
            Err(error) => recover(error).await,
        }
    }
    drop((listener, ended));
    let _ = ending.send(());
    ending.closed().await;
    Ok(())
}

/// Has the allocator use the memory of what a client sent for what it sends next. glibc gives blocks of some 100 KiB back to
/// the kernel at once, whose fresh pages cost a tenth of a push, until a larger block was freed (`mallopt(3)`,
/// `M_MMAP_THRESHOLD`); other allocators know nothing of this.
fn keep_freed_memory() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(4 << 20)));
}

/// Gets ready to accept again after accepting has failed.
async fn recover(error: std::io::Error) {
    // The client's matter.
    if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) {
        return;
    }
    tracing::error!(%error, "cannot accept a connection");
    tokio::time::sleep(BREATH).await;
}

/// Answers the API on a socket that only this user can reach, whatever the registry's options say about access, until the
/// process ends: for who runs the registry. In the place of a socket that is there already.
pub async fn serve_operator(socket: &Path, registry: Registry) -> std::io::Result<()> {
    let new = socket.with_extension("new");
    let _ = std::fs::remove_file(&new);
    let listener = UnixListener::bind(&new)?;
    std::fs::set_permissions(&new, PermissionsExt::from_mode(0o600))?;
    std::fs::rename(&new, socket)?;
    let (_ending, ended) = watch::channel(());
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let extensions = Extensions { is_operator: true, peer: None, queue: None };
                tokio::spawn(converse(stream, registry.clone(), extensions, ended.clone()));
            }
            Err(error) => recover(error).await,
        }
    }
}

/// What a connection tells of itself with each request.
#[derive(Clone)]
struct Extensions {
    is_operator: bool,
    peer: Option<Peer>,
    queue: Option<FileQueue>,
}

/// Answers what comes on one connection.
async fn answer(stream: TcpStream, peer: SocketAddr, registry: Registry, ended: watch::Receiver<()>) {
    // A small answer must not wait for the acknowledgement of the one before, and who has vanished is noticed.
    let keepalive = || Ok(rustix::net::sockopt::set_socket_keepalive(&stream, true)?);
    if let Err(error) = stream.set_nodelay(true).and_then(|()| keepalive()) {
        tracing::debug!(%error, "cannot set options of a connection");
    }
    let idle = registry.inner.options.limits.idle;
    let queue = FileQueue::default();
    let extensions = |queue| Extensions { is_operator: false, peer: Some(Peer(peer)), queue };
    match registry.inner.options.tls.clone() {
        None => {
            let connection = Connection::new(stream, queue.clone(), idle);
            converse(connection, registry, extensions(Some(queue)), ended).await;
        }
        // What is encrypted cannot be sent as a file.
        Some(tls) => match tokio::time::timeout(idle, encrypt(stream, &tls, queue, idle)).await {
            Ok(Ok(Some(encrypted))) => converse(encrypted, registry, extensions(None), ended).await,
            Ok(Ok(None)) => tracing::debug!("a client speaks HTTP where TLS is expected"),
            Ok(Err(error)) => tracing::debug!(%error, "no encrypted connection"),
            Err(_) => tracing::debug!("no encrypted connection in time"),
        },
    }
}

/// Agrees with a client on how to encrypt; `None` when it spoke HTTP, and was told.
async fn encrypt(
    mut stream: TcpStream,
    tls: &Tls,
    queue: FileQueue,
    idle: Duration,
) -> std::io::Result<Option<TlsStream<Connection>>> {
    // The first byte of TLS is no letter (RFC 8446, section 5.1).
    let mut first = [0];
    if stream.peek(&mut first).await? == 1 && first[0].is_ascii_alphabetic() {
        explain_https(&mut stream).await?;
        return Ok(None);
    }
    tls.acceptor.accept(Connection::new(stream, queue, idle)).await.map(Some)
}

/// Tells a client that speaks HTTP what it should speak, in the words of Go's server, which clients know.
async fn explain_https(stream: &mut TcpStream) -> std::io::Result<()> {
    const ANSWER: &[u8] = b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n\
        Client sent an HTTP request to an HTTPS server.\n";
    // What was not read would make the kernel reset the connection, and the client lose the answer.
    let mut request = [0; 16 * 1024];
    let _ = stream.try_read(&mut request);
    stream.write_all(ANSWER).await?;
    stream.shutdown().await
}

async fn converse<C: AsyncRead + AsyncWrite + Unpin>(
    connection: C,
    registry: Registry,
    extensions: Extensions,
    mut ended: watch::Receiver<()>,
) {
    let service = service_fn(|request: Request<Incoming>| {
        let (mut request, registry) = (request.map(Body::new), registry.clone());
        if let Some(queue) = &extensions.queue {
            request.extensions_mut().insert(queue.clone());
        }
        if let Some(peer) = extensions.peer {
            request.extensions_mut().insert(peer);
        }
        if extensions.is_operator {
            request.extensions_mut().insert(Operator);
        }
        async move { Ok::<_, Infallible>(crate::api::respond(&registry, request).await) }
    });
    let mut builder = http1::Builder::new();
    builder.max_buf_size(RECEIVE_BYTES);
    builder.timer(TokioTimer::new()).header_read_timeout(registry.inner.options.limits.idle);
    let mut serving = pin!(builder.serve_connection(TokioIo::new(connection), service));
    let served = tokio::select! {
        served = &mut serving => served,
        _ = ended.changed() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection broke off");
    }
}
