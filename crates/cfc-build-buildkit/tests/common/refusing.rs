//! A daemon that begins a build and then does not go on with it, which no real one can be made to do.

use std::convert::Infallible;
use std::sync::mpsc;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::PATIENCE;

type Body = BoxBody<Bytes, Infallible>;

/// gRPC's frame around a message without fields.
const NOTHING_SAID: &[u8] = &[0; 5];

/// Answers nothing to `Control.Solve`, an error to `refused`, and success to whatever else the bridge is asked. Where it
/// listens.
pub fn serve(refused: &'static str) -> String {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
            sender.send(listener.local_addr().expect("bound").to_string()).expect("somebody waits");
            while let Ok((stream, _)) = listener.accept().await {
                let service = service_fn(move |request| answer(request, refused));
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
            }
        });
    });
    receiver.recv_timeout(PATIENCE).expect("it listens")
}

async fn answer(request: Request<Incoming>, refused: &str) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path();
    let response = Response::builder().header("content-type", "application/grpc");
    let (response, body) = match path {
        "/moby.buildkit.v1.Control/Solve" => return std::future::pending().await,
        "/moby.buildkit.v1.Control/Session" => (response, StreamBody::new(tokio_stream::pending()).boxed()),
        _ if path.ends_with(refused) || path.contains(".Control/") => {
            let response = response.header("grpc-status", "2").header("grpc-message", "it has no such build");
            (response, Empty::new().boxed())
        }
        _ => {
            let trailers =
                HeaderMap::from_iter([("grpc-status".parse().expect("a name"), "0".parse().expect("ASCII"))]);
            let body = Full::new(Bytes::from_static(NOTHING_SAID));
            (response, body.with_trailers(std::future::ready(Some(Ok(trailers)))).boxed())
        }
    };
    Ok(response.body(body).expect("a good answer"))
}
