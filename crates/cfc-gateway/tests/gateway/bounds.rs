//! Clients that take their time, and too many of them.

use std::time::Duration;

use cfc_gateway::GatewayOptions;

use crate::client::{Client, get};
use crate::worker::{Worker, gateway_with};

#[tokio::test]
async fn a_client_that_dribbles_its_headers_is_cut_off() {
    let worker = Worker::saying("never");
    let header_timeout = Duration::from_millis(300);
    let (gateway, address) = gateway_with(GatewayOptions { header_timeout, ..GatewayOptions::default() }).await;
    gateway.set_route("app", worker.socket.clone());
    for beginning in ["", "GET / HTTP/1.1\r\nHost: app.localhost\r\nX: ", "PRI * HTTP/2.0\r\n"] {
        let mut client = Client::connect(address).await;
        client.send(beginning).await;
        if beginning.is_empty() {
            assert!(client.is_closed().await);
            continue;
        }
        // It goes on saying something, each time before the time is up.
        let dribbles = async {
            while client.try_send("x").await {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), dribbles).await.expect("is cut off");
    }
    assert_eq!(worker.connections(), 0);
}

#[tokio::test]
async fn a_client_beyond_the_limit_waits_until_another_goes() {
    let worker = Worker::saying("hello");
    let (gateway, address) = gateway_with(GatewayOptions { max_connections: 2, ..GatewayOptions::default() }).await;
    gateway.set_route("app", worker.socket.clone());
    let (mut first, mut second) = (Client::connect(address).await, Client::connect(address).await);
    for client in [&mut first, &mut second] {
        client.send("GET / HTTP/1.1\r\nHost: app.localhost\r\n\r\n").await;
        assert_eq!(client.receive().await.status(), 200);
    }
    let third = tokio::spawn(async move { get(address, "app.localhost", "/").await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!third.is_finished(), "answered beyond the limit");
    drop(first);
    assert_eq!(third.await.expect("is answered").status(), 200);
}
