//! [`Upstream`]: a Worker's process behind its unix socket, and the connections to it that wait for their next request.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Limited;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

/// What a Worker is sent: the client's body, up to the limit.
pub(crate) type RequestBody = Limited<Incoming>;

/// workerd closes a connection that was idle for 5 s; one that is nearly as old is not worth the race.
const MAX_IDLE: Duration = Duration::from_secs(3);

/// More than so many idle connections are closed instead of kept.
const MAX_IDLE_CONNECTIONS: usize = 256;

/// A process that serves a Worker. The next process gets an `Upstream` of its own, so no connection outlives its
/// process's turn.
pub(crate) struct Upstream {
    socket: PathBuf,
    idle: Mutex<Vec<Idle>>,
}

struct Idle {
    sender: SendRequest<RequestBody>,
    since: Instant,
}

/// A connection that is one request's own. Dropped, it is closed; [`Lease::give_back`] keeps it.
pub(crate) struct Lease {
    pub sender: SendRequest<RequestBody>,
    upstream: Arc<Upstream>,
}

impl Upstream {
    pub fn new(socket: PathBuf) -> Upstream {
        Upstream { socket, idle: Mutex::default() }
    }

    /// An idle connection, or a new one.
    pub async fn lease(self: &Arc<Self>) -> io::Result<Lease> {
        let sender = match self.take_idle() {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        Ok(Lease { sender, upstream: self.clone() })
    }

    /// The youngest connection that is ready. One that has just been given back may not be, and is left for later.
    fn take_idle(&self) -> Option<SendRequest<RequestBody>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|idle| !idle.sender.is_closed() && idle.since.elapsed() < MAX_IDLE);
        let ready = idle.iter().rposition(|idle| idle.sender.is_ready())?;
        Some(idle.swap_remove(ready).sender)
    }

    async fn connect(&self) -> io::Result<SendRequest<RequestBody>> {
        let stream = UnixStream::connect(&self.socket).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        tokio::spawn(async move {
            // The request that was under way learns of the failure itself.
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection to a Worker ended");
            }
        });
        Ok(sender)
    }
}

impl Lease {
    /// Keeps the connection for another request.
    fn give_back(self) {
        let mut idle = self.upstream.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.sender.is_closed() && idle.len() < MAX_IDLE_CONNECTIONS {
            idle.push(Idle { sender: self.sender, since: Instant::now() });
        }
    }
}

/// A Worker's body on its way to the client. Read to its end, it gives the connection back; dropped before, it closes
/// it, which is how the Worker learns that the client has left.
pub(crate) struct ResponseBody {
    incoming: Incoming,
    lease: Option<Lease>,
}

impl ResponseBody {
    pub fn new(incoming: Incoming, lease: Lease) -> ResponseBody {
        ResponseBody { incoming, lease: Some(lease) }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.incoming).poll_frame(cx);
        if let Poll::Ready(None) = polled
            && let Some(lease) = self.lease.take()
        {
            lease.give_back();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        // A body that was empty from the start is never polled.
        if self.incoming.is_end_stream()
            && let Some(lease) = self.lease.take()
        {
            lease.give_back();
        }
    }
}
