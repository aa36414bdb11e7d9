//! How a gateway ends, and how a Worker's process is replaced under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::Response;

use crate::client::{Client, get};
use crate::streaming::{UPGRADE, echoing_worker};
use crate::worker::{Worker, full, gateway_to};

#[tokio::test]
async fn a_shutdown_lets_the_request_under_way_finish() {
    let worker = Worker::start(|_| async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        Response::new(full("finished"))
    });
    let (gateway, address) = gateway_to(&worker).await;
    let mut idle = Client::connect(address).await;
    let answer = tokio::spawn(get(address, "app.localhost", "/"));
    tokio::time::sleep(Duration::from_millis(50)).await;
    let before = Instant::now();
    let grace = Duration::from_secs(120);
    gateway.shutdown(grace).await;
    assert!(before.elapsed() < grace, "it waited for more than the request");
    assert_eq!(answer.await.expect("an answer").body, "finished");
    assert!(idle.is_closed().await);
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_shutdown_ends_a_socket_after_the_grace() {
    let worker = echoing_worker();
    let (gateway, address) = gateway_to(&worker).await;
    let mut client = Client::connect(address).await;
    client.send(UPGRADE).await;
    client.receive_head().await;
    let before = Instant::now();
    gateway.shutdown(Duration::from_millis(200)).await;
    assert!(before.elapsed() >= Duration::from_millis(200));
    assert_eq!(client.receive_bytes(4).await, GOING_AWAY);
    assert!(client.is_closed().await);
}

/// A frame that closes, with the code 1001.
const GOING_AWAY: [u8; 4] = [0x88, 2, 0x03, 0xe9];

#[tokio::test]
async fn a_websocket_is_told_between_two_frames_that_the_gateway_goes_and_may_answer() {
    let worker = echoing_worker();
    let (gateway, address) = gateway_to(&worker).await;
    let mut client = Client::connect(address).await;
    client.send(UPGRADE).await;
    client.receive_head().await;
    // A frame of 5 bytes of which 3 have come when the gateway goes.
    client.send("\u{2}\u{5}abc").await;
    client.receive_until("abc").await;
    let leaving = tokio::spawn(async move { gateway.shutdown(Duration::from_millis(50)).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    client.send("de\u{2}\u{1}x").await;
    assert_eq!(client.receive_bytes(2).await, *b"de", "what has begun is whole");
    assert_eq!(client.receive_bytes(4).await, GOING_AWAY, "and nothing comes after it");
    // The Worker, which sends back what it gets, was told too: that is its answer. Ours ends it all.
    client.send_bytes(&[0x88, 0x80, 1, 2, 3, 4]).await;
    tokio::time::timeout(Duration::from_secs(5), leaving).await.expect("it does not wait for more").expect("ends");
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn no_request_is_lost_while_processes_are_replaced() {
    let mut worker = Worker::saying("x");
    let (gateway, address) = gateway_to(&worker).await;
    let is_over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let is_over = is_over.clone();
            tokio::spawn(async move {
                let mut answered = 0;
                let mut client = Client::connect(address).await;
                while !is_over.load(Ordering::SeqCst) {
                    client.send("GET / HTTP/1.1\r\nHost: app.localhost\r\n\r\n").await;
                    let answer = client.receive().await;
                    assert_eq!(answer.status(), 200, "{}", answer.body);
                    answered += 1;
                }
                answered
            })
        })
        .collect();
    for _ in 0..20 {
        let next = Worker::saying("x");
        gateway.set_route("app", next.socket.clone());
        tokio::time::sleep(Duration::from_millis(10)).await;
        // Requests that were under way have ended by now.
        worker = next;
    }
    is_over.store(true, Ordering::SeqCst);
    for client in clients {
        assert!(client.await.expect("every answer was 200") > 20);
    }
    drop(worker);
}
