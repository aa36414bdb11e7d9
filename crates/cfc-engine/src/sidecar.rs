//! [`Sidecar`]: workerd's way into a container's ports, played in process.
//!
//! The image that workerd asks for (`proxy-everything`) listens on a port of the host and speaks one HTTP request a
//! connection: `CONNECT` opens a tunnel to a port of the container, `PUT /egress` says how the container may reach out,
//! `GET /ca` gives the certificate that the container must trust for that. Here it is a listener on the loopback for
//! each container; the tunnels start inside the container's network namespace.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, Response, StatusCode};
use cfc_runtime::ConnectError;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

use crate::Engine;

/// How long a `CONNECT` is held until the app listens: less than the 5 s after which the `Container` class gives up on
/// one attempt, so that it succeeds in the moment the app is ready.
const HOLD: Duration = Duration::from_secs(4);
const BUFFER_BYTES: usize = 64 << 10;
const DESTINATION: &str = "x-dst-addr";

/// What `GET /ca` gives. workerd starts no container without an answer, and only passes it on when HTTPS is to be
/// intercepted, which cfc does not have yet (its next step, putting the file into the container, says so).
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n";

/// One sidecar. It ends when dropped; the tunnels through it end with their containers.
#[derive(Debug, Default)]
pub(crate) struct Sidecar {
    listening: Option<Listening>,
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

    /// Starts to listen on behalf of the container `instance`. Must be called within a tokio runtime.
    pub fn start(&mut self, engine: &Engine, instance: &str) -> io::Result<u16> {
        let listener = std::net::TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let port = listener.local_addr()?.port();
        let task = tokio::spawn(accept(listener, engine.clone(), instance.to_string())).abort_handle();
        self.listening = Some(Listening { port, task });
        Ok(port)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, engine: Engine, instance: String) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(instance, %error, "cannot accept a connection to a container");
                // Most likely there is no file descriptor left; do not spin until there is one.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        tokio::spawn(serve(stream, engine.clone(), instance.clone()));
    }
}

async fn serve(stream: TcpStream, engine: Engine, instance: String) {
    // A tunnel carries small messages back and forth; none of them should wait for another.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| answer(request, &engine, &instance));
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(instance, %error, "connection to a sidecar");
    }
}

async fn answer(
    request: Request<hyper::body::Incoming>,
    engine: &Engine,
    instance: &str,
) -> Result<Response<Body>, Infallible> {
    Ok(match (request.method(), request.uri().path()) {
        (&Method::CONNECT, _) => connect(request, engine, instance).await,
        (&Method::GET, "/ca") => text(StatusCode::OK, CERTIFICATE),
        // What it says about reaching out has no effect yet: a container's network is its loopback alone.
        (&Method::PUT, "/egress") => text(StatusCode::NO_CONTENT, ""),
        _ => text(StatusCode::NOT_FOUND, "a sidecar knows CONNECT, GET /ca and PUT /egress"),
    })
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
            tokio::spawn(tunnel(request, stream, instance.to_string()));
            text(StatusCode::OK, "")
        }
        Err(error @ ConnectError::Failed { .. }) => {
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

async fn tunnel(request: Request<hyper::body::Incoming>, mut stream: TcpStream, instance: String) {
    let mut client = match hyper::upgrade::on(request).await {
        Ok(upgraded) => TokioIo::new(upgraded),
        Err(error) => return tracing::debug!(instance, %error, "a tunnel that did not come about"),
    };
    let copied = tokio::io::copy_bidirectional_with_sizes(&mut client, &mut stream, BUFFER_BYTES, BUFFER_BYTES).await;
    if let Err(error) = copied {
        tracing::debug!(instance, %error, "a tunnel broke");
    }
}

fn text(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(text.to_string()));
    *response.status_mut() = status;
    response
}
