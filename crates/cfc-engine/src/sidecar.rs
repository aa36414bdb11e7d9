//! [`Sidecar`]: workerd's way into a container's ports and the container's way out, played in process.
//!
//! The image that workerd asks for (`proxy-everything`) listens on a port of the host and speaks one HTTP request a
//! connection: `CONNECT` opens a tunnel to a port of the container, `PUT /egress` says how the container may reach out,
//! `GET /ca` gives the certificate that the container must trust for that. Here it is a listener on the loopback for
//! each container; the tunnels start inside the container's network namespace.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, Response, StatusCode};
use cfc_runtime::{ConnectError, Kind, Runtime};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::Engine;
use crate::egress::{self, Settings};

/// How long a `CONNECT` is held until the app listens: less than the 5 s after which the `Container` class gives up on
/// one attempt, so that it succeeds in the moment the app is ready.
const HOLD: Duration = Duration::from_secs(4);
const DESTINATION: &str = "x-dst-addr";

/// What `GET /ca` gives. workerd starts no container without an answer, and only passes it on when HTTPS is to be
/// intercepted, which cfc does not have yet (its next step, putting the file into the container, says so).
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n";

/// The longest body of a `PUT /egress`.
const SETTINGS_BYTES_MAX: usize = 1 << 20;

/// One sidecar. It ends when dropped; the tunnels through it end with their containers.
#[derive(Debug, Default)]
pub(crate) struct Sidecar {
    listening: Option<Listening>,
    /// How the container may reach out.
    settings: watch::Sender<Settings>,
    /// What carries what the container sends out.
    carrier: Option<Carrier>,
}

#[derive(Debug)]
struct Carrier(AbortHandle);

impl Drop for Carrier {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Debug)]
struct Listening {
    port: u16,
    task: AbortHandle,
}

impl Sidecar {
    /// The port it listens on, once it was started.
    pub fn port(&self) -> Option<u16> {
        self.listening.as_ref().map(|listening| listening.port)
    }

    /// Whether the container reaches the internet, by its Worker's word.
    pub fn has_internet(&self) -> bool {
        self.settings.borrow().has_internet()
    }

    /// Starts to listen on behalf of the container `instance`. Must be called within a tokio runtime.
    pub fn start(&mut self, engine: &Engine, instance: &str) -> io::Result<u16> {
        let listener = std::net::TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        listener.set_nonblocking(true)?;
        cfc_runtime::unpaced(&listener);
        let listener = TcpListener::from_std(listener)?;
        let port = listener.local_addr()?.port();
        let served = Served { engine: engine.clone(), instance: instance.into(), settings: self.settings.clone() };
        let task = tokio::spawn(accept(listener, served)).abort_handle();
        self.listening = Some(Listening { port, task });
        Ok(port)
    }

    /// The workerd that this sidecar speaks to has ended: what the container sends out waits for the next one.
    pub fn lose_workerd(&self) {
        self.settings.send_modify(Settings::forget_port);
    }

    /// Begins to carry what the container, which has just been started, sends out.
    pub fn carry(&mut self, engine: &Engine, instance: &str) {
        let (runtime, policy) = (engine.runtime().clone(), engine.egress().clone());
        let carrier = egress::run(runtime, instance.to_string(), policy, self.settings.subscribe());
        self.carrier = Some(Carrier(tokio::spawn(carrier).abort_handle()));
    }

    /// As [`Sidecar::carry`], for a container that an earlier engine started: it may do what it might before.
    pub fn carry_adopted(&mut self, engine: &Engine, instance: &str) {
        let kept = engine.runtime().kept_egress(instance).and_then(|bytes| Settings::from_kept(&bytes));
        self.settings.send_replace(kept.unwrap_or_default());
        self.carry(engine, instance);
    }
}

/// What the requests to a sidecar are about.
#[derive(Clone)]
struct Served {
    engine: Engine,
    instance: Arc<str>,
    settings: watch::Sender<Settings>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, served: Served) {
    let instance = &served.instance;
    loop {
        let stream = match listener.accept().await {
            Ok((stream, peer)) => match is_ours(&stream, peer) {
                true => stream,
                false => {
                    tracing::warn!(%instance, %peer, "refused another user's connection to a sidecar");
                    continue;
                }
            },
            Err(error) => {
                tracing::warn!(%instance, %error, "cannot accept a connection to a container");
                // Most likely there is no file descriptor left; do not spin until there is one.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        tokio::spawn(serve(stream, served.clone()));
    }
}

/// Every process of this machine reaches the loopback. Only workerd is meant, and it runs as the same user as we do; whoever
/// else does could as well read our memory.
fn is_ours(stream: &TcpStream, peer: SocketAddr) -> bool {
    stream.local_addr().and_then(|own| cfc_runtime::is_from_own_user(own, peer)).unwrap_or(false)
}

async fn serve(stream: TcpStream, served: Served) {
    // A tunnel carries small messages back and forth; none of them should wait for another.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| answer(request, &served));
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(instance = &*served.instance, %error, "connection to a sidecar");
    }
}

async fn answer(request: Request<hyper::body::Incoming>, served: &Served) -> Result<Response<Body>, Infallible> {
    Ok(match (request.method(), request.uri().path()) {
        (&Method::CONNECT, _) => connect(request, &served.engine, &served.instance).await,
        (&Method::GET, "/ca") => text(StatusCode::OK, CERTIFICATE),
        (&Method::PUT, "/egress") => set_egress(request, served).await,
        _ => text(StatusCode::NOT_FOUND, "a sidecar knows CONNECT, GET /ca and PUT /egress"),
    })
}

/// How the container may reach out, from now on.
async fn set_egress(request: Request<hyper::body::Incoming>, served: &Served) -> Response<Body> {
    let newer = match axum::body::to_bytes(Body::new(request.into_body()), SETTINGS_BYTES_MAX).await {
        Ok(body) => Settings::parse(&body),
        Err(error) => Err(format!("no whole body: {error}")),
    };
    let newer = match newer {
        Ok(newer) => newer,
        Err(problem) => return text(StatusCode::BAD_REQUEST, &problem),
    };
    served.settings.send_modify(|settings| settings.update(newer));
    let kept = served.settings.borrow().to_keep();
    if let Err(error) = served.engine.runtime().keep_egress(&served.instance, kept).await {
        tracing::warn!(instance = &*served.instance, reason = %error.kind, "cannot keep how a container may reach out");
    }
    text(StatusCode::NO_CONTENT, "")
}

async fn connect(request: Request<hyper::body::Incoming>, engine: &Engine, instance: &str) -> Response<Body> {
    let Some(port) = port_of(&request) else {
        return text(StatusCode::BAD_REQUEST, "the header X-Dst-Addr must be an address with a port");
    };
    if let Some(stillborn) = engine.stillborn(instance) {
        stillborn.connect().await;
        return text(StatusCode::SERVICE_UNAVAILABLE, stillborn.reason());
    }
    match engine.runtime().connect(instance, port, HOLD).await {
        Ok(stream) => {
            tokio::spawn(tunnel(request, stream, engine.runtime().clone(), instance.to_string()));
            text(StatusCode::OK, "")
        }
        Err(error @ (ConnectError::Failed { .. } | ConnectError::OutOfPorts { .. })) => {
            tracing::warn!(instance, %error, "cannot reach a container");
            text(StatusCode::BAD_GATEWAY, &error.to_string())
        }
        Err(error) => text(StatusCode::BAD_REQUEST, &error.to_string()),
    }
}

/// The port that is asked for. The address beside it is one of the container itself, whichever it is.
fn port_of(request: &Request<hyper::body::Incoming>) -> Option<u16> {
    let address = request.headers().get(DESTINATION)?.to_str().ok()?;
    address.parse::<SocketAddr>().ok().map(|address| address.port())
}

/// Hands both ends of the tunnel over to a relay.
async fn tunnel(request: Request<hyper::body::Incoming>, mut app: TcpStream, runtime: Runtime, instance: String) {
    let carried = async {
        let upgraded = hyper::upgrade::on(request).await.map_err(io::Error::other)?;
        let parts = upgraded.downcast::<TokioIo<TcpStream>>().map_err(|_| io::ErrorKind::Unsupported)?;
        // What came right behind the request.
        app.write_all(&parts.read_buf).await?;
        runtime.carry(&instance, Kind::Ingress, parts.io.into_inner(), app)
    };
    if let Err(error) = carried.await {
        tracing::warn!(instance, %error, "a tunnel to a container did not come about");
    }
}

fn text(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(text.to_string()));
    *response.status_mut() = status;
    response
}
