//! A Worker's process as the gateway sees it: an HTTP server on a unix socket, with a handler for every test.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cfc_gateway::{Gateway, GatewayOptions};
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;

pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A body that is whole.
pub fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).boxed_unsync()
}

/// A body that is written while it is read.
pub fn channel() -> (mpsc::Sender<Bytes>, Body) {
    let (sender, receiver) = mpsc::channel::<Bytes>(1);
    let frames = futures::stream::unfold(receiver, |mut receiver| async move {
        let bytes = receiver.recv().await?;
        Some((Ok(Frame::data(bytes)), receiver))
    });
    (sender, StreamBody::new(frames).boxed_unsync())
}

pub struct Worker {
    pub socket: PathBuf,
    pub connections: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
    _directory: Option<tempfile::TempDir>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Worker {
    /// A Worker that answers with `handler`.
    pub fn start<F, R>(handler: F) -> Worker
    where
        F: Fn(Request<Incoming>) -> R + Send + Sync + Clone + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut worker = Worker::start_at(directory.path().join("worker.sock"), handler);
        worker._directory = Some(directory);
        worker
    }

    pub fn start_at<F, R>(socket: PathBuf, handler: F) -> Worker
    where
        F: Fn(Request<Incoming>) -> R + Send + Sync + Clone + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        let listener = UnixListener::bind(&socket).expect("a free path");
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = connections.clone();
        let task = tokio::spawn(async move {
            let mut tasks = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::SeqCst);
                let handler = handler.clone();
                tasks.spawn(async move {
                    let service = service_fn(move |request| {
                        let answer = handler(request);
                        async move { Ok::<_, Infallible>(answer.await) }
                    });
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = http.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
                });
            }
        });
        Worker { socket, connections, task, _directory: None }
    }

    /// A Worker that answers every request with `text`.
    pub fn saying(text: &'static str) -> Worker {
        Worker::start(move |_| async move { Response::new(full(text)) })
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// A gateway that listens, with short waits.
pub async fn gateway() -> (Gateway, SocketAddr) {
    gateway_with(GatewayOptions { hold: Duration::from_millis(500), ..GatewayOptions::default() }).await
}

pub async fn gateway_with(options: GatewayOptions) -> (Gateway, SocketAddr) {
    let gateway = Gateway::new(options);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let serving = gateway.clone();
    tokio::spawn(async move { serving.serve(listener).await });
    (gateway, address)
}

/// A gateway whose Worker `app` is `worker`.
pub async fn gateway_to(worker: &Worker) -> (Gateway, SocketAddr) {
    let (gateway, address) = gateway().await;
    gateway.set_route("app", worker.socket.clone());
    (gateway, address)
}
