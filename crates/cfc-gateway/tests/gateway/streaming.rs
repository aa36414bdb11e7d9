//! Bodies pass as they come, both ways; WebSockets pass; a client that leaves is noticed.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use cfc_gateway::GatewayOptions;
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use tokio::sync::{mpsc, oneshot};

use crate::client::Client;
use crate::worker::{Body, Worker, channel, full, gateway_to, gateway_with};

const GET: &str = "GET / HTTP/1.1\r\nHost: app.localhost\r\n\r\n";

/// A Worker whose answer's body a test writes.
fn streaming_worker() -> (Worker, mpsc::Sender<Bytes>) {
    let (sender, body) = channel();
    let body = Arc::new(Mutex::new(Some(body)));
    let worker = Worker::start(move |_| {
        let body = body.lock().expect("not poisoned").take().expect("one request");
        async move { Response::new(body) }
    });
    (worker, sender)
}

#[tokio::test]
async fn an_answer_arrives_piece_by_piece() {
    let (worker, sender) = streaming_worker();
    let (_gateway, address) = gateway_to(&worker).await;
    let mut client = Client::connect(address).await;
    client.send(GET).await;
    client.receive_head().await;
    for piece in ["first", "second"] {
        sender.send(Bytes::from(piece)).await.expect("the gateway reads");
        client.receive_until(piece).await;
    }
    drop(sender);
    client.receive_until("0\r\n\r\n").await;
}

#[tokio::test]
async fn a_request_arrives_piece_by_piece() {
    let worker = Worker::start(|request| async move {
        let (sender, body) = channel();
        tokio::spawn(async move {
            let mut incoming = request.into_body();
            while let Some(Ok(frame)) = incoming.frame().await {
                let _ = sender.send(frame.into_data().expect("data")).await;
            }
        });
        Response::new(body)
    });
    let (_gateway, address) = gateway_to(&worker).await;
    let mut client = Client::connect(address).await;
    client.send("POST / HTTP/1.1\r\nHost: app.localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n").await;
    client.receive_until("one").await;
    client.send("3\r\ntwo\r\n").await;
    client.receive_until("two").await;
    client.send("0\r\n\r\n").await;
    client.receive_until("0\r\n\r\n").await;
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_workers_stream() {
    let (worker, sender) = streaming_worker();
    let (_gateway, address) = gateway_to(&worker).await;
    let mut client = Client::connect(address).await;
    client.send(GET).await;
    client.receive_head().await;
    drop(client);
    let noticed = async {
        while sender.send(Bytes::from_static(b"more")).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), noticed).await.expect("the Worker's stream ends");
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_ends_the_request() {
    struct Announce(Option<oneshot::Sender<()>>);
    impl Drop for Announce {
        fn drop(&mut self) {
            let _ = self.0.take().map(|sender| sender.send(()));
        }
    }
    let (started, is_started) = oneshot::channel();
    let (ended, is_ended) = oneshot::channel();
    let signals = Arc::new(Mutex::new(Some((started, ended))));
    let worker = Worker::start(move |_| {
        let (started, ended) = signals.lock().expect("not poisoned").take().expect("one request");
        async move {
            let _announce = Announce(Some(ended));
            let _ = started.send(());
            std::future::pending::<Response<Body>>().await
        }
    });
    let (_gateway, address) = gateway_to(&worker).await;
    let mut client = Client::connect(address).await;
    client.send(GET).await;
    is_started.await.expect("the Worker got the request");
    drop(client);
    tokio::time::timeout(Duration::from_secs(5), is_ended).await.expect("in time").expect("announced");
}

/// A Worker that agrees to any protocol and then answers with what it gets.
pub fn echoing_worker() -> Worker {
    Worker::start(|mut request| async move {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(TokioIo::new(upgrade.await.expect("upgraded")));
            let _ = tokio::io::copy(&mut read, &mut write).await;
        });
        let mut response = Response::new(full(""));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert("connection", "Upgrade".parse().expect("valid"));
        let protocol = request.headers()["upgrade"].clone();
        response.headers_mut().insert("upgrade", protocol);
        let key = request.headers()["sec-websocket-key"].clone();
        response.headers_mut().insert("sec-websocket-accept", key);
        response
    })
}

pub const UPGRADE: &str = "GET /socket HTTP/1.1\r\nHost: app.localhost\r\nConnection: keep-alive, Upgrade\r\n\
                           Upgrade: websocket\r\nSec-WebSocket-Key: abc\r\n\r\n";

#[tokio::test]
async fn a_websocket_passes_both_ways() {
    let worker = echoing_worker();
    let (_gateway, address) = gateway_to(&worker).await;
    let mut client = Client::connect(address).await;
    // The first frame may come right behind the request.
    client.send(&format!("{UPGRADE}early")).await;
    let head = client.receive_head().await;
    assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
    assert!(head.contains("upgrade: websocket\r\n") && head.contains("sec-websocket-accept: abc\r\n"), "{head}");
    client.receive_until("early").await;
    for frame in ["one", "two", "three"] {
        client.send(frame).await;
        client.receive_until(frame).await;
    }
}

#[tokio::test]
async fn a_refused_upgrade_is_an_ordinary_answer() {
    let worker = Worker::saying("no sockets here");
    let (_gateway, address) = gateway_to(&worker).await;
    let mut client = Client::connect(address).await;
    for _ in 0..2 {
        client.send(UPGRADE).await;
        let answer = client.receive().await;
        assert_eq!((answer.status(), answer.body.as_str()), (200, "no sockets here"));
    }
}

#[tokio::test]
async fn a_body_above_the_limit_is_refused() {
    let worker = Worker::start(|request| async move {
        match request.into_body().collect().await {
            Ok(body) => Response::new(full(format!("{} bytes", body.to_bytes().len()))),
            Err(_) => Response::new(full("broken")),
        }
    });
    let (gateway, address) = gateway_with(GatewayOptions { max_request_body: 10, ..GatewayOptions::default() }).await;
    gateway.set_route("app", worker.socket.clone());
    let check = |request: String, expected: &'static str| async move {
        let mut client = Client::connect(address).await;
        client.send(&request).await;
        assert_eq!(client.receive().await.body, expected, "{request:?}");
    };
    let head = "POST / HTTP/1.1\r\nHost: app.localhost\r\n";
    let refusal = "cfc: the request's body is larger than 10 bytes.\n";
    check(format!("{head}Content-Length: 10\r\n\r\n0123456789"), "10 bytes").await;
    check(format!("{head}Content-Length: 11\r\n\r\n01234567890"), refusal).await;
    check(format!("{head}Transfer-Encoding: chunked\r\n\r\n6\r\n012345\r\n6\r\n678901\r\n0\r\n\r\n"), refusal).await;
}
