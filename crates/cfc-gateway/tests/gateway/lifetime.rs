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
    gateway.shutdown(Duration::from_secs(5)).await;
    assert!(before.elapsed() < Duration::from_secs(2), "took {:?}", before.elapsed());
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
