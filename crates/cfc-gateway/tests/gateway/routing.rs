//! Which Worker answers, what it is told, and what is said when none can.

use std::time::Duration;

use http::Response;

use crate::client::{Client, get};
use crate::worker::{Worker, full, gateway, gateway_to};

#[tokio::test]
async fn a_worker_is_found_by_its_host_name() {
    let (one, two) = (Worker::saying("one"), Worker::saying("two"));
    let (gateway, address) = gateway().await;
    gateway.set_route("one", one.socket.clone());
    gateway.set_route("two", two.socket.clone());
    assert_eq!(get(address, "one.localhost", "/").await.body, "one");
    assert_eq!(get(address, &format!("TWO.localhost:{}", address.port()), "/").await.body, "two");
    assert_eq!(gateway.workers(), ["one", "two"]);
}

#[tokio::test]
async fn the_only_worker_answers_at_the_address_itself() {
    let worker = Worker::saying("only");
    let (gateway, address) = gateway_to(&worker).await;
    assert_eq!(get(address, &address.to_string(), "/").await.body, "only");
    assert_eq!(get(address, "localhost", "/").await.body, "only");
    let mut old = Client::connect(address).await;
    old.send("GET / HTTP/1.0\r\n\r\n").await;
    assert_eq!(old.receive().await.body, "only");

    gateway.set_route("other", worker.socket.clone());
    assert_eq!(get(address, "localhost", "/").await.status(), 404);
}

#[tokio::test]
async fn an_unknown_host_is_told_who_is_there() {
    let (gateway, address) = gateway().await;
    let answer = get(address, "nobody.localhost:8787", "/").await;
    assert_eq!(answer.status(), 404);
    assert_eq!(
        answer.body,
        "cfc: no Worker answers at nobody.localhost:8787.\n\n\
         No Worker is deployed yet. In a project's directory, `cfc deploy` deploys it.\n"
    );
    gateway.fail_route("a", "x");
    gateway.fail_route("b", "x");
    let answer = get(address, "nobody.localhost:8787", "/").await;
    assert_eq!(
        answer.body,
        "cfc: no Worker answers at nobody.localhost:8787.\n\n\
         These do:\n  http://a.localhost:8787\n  http://b.localhost:8787\n"
    );
    assert_eq!(get(address, "evil.example", "/").await.status(), 404);
}

#[tokio::test]
async fn the_worker_learns_who_asks_and_for_what() {
    let worker = Worker::start(|request| async move {
        let mut lines = vec![format!("{} {}", request.method(), request.uri())];
        let mut headers: Vec<_> = request.headers().iter().collect();
        headers.sort_by_key(|(name, _)| name.as_str().to_string());
        lines.extend(headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().expect("text"))));
        Response::builder()
            .header("connection", "x-secret")
            .header("x-secret", "1")
            .body(full(lines.join("\n")))
            .expect("valid")
    });
    let (_gateway, address) = gateway_to(&worker).await;
    let mut client = Client::connect(address).await;
    client
        .send(
            "GET http://app.localhost/a%2Fb?c=d HTTP/1.1\r\nHost: other.localhost\r\nConnection: keep-alive, X-Hop\r\n\
             X-Hop: 1\r\nCF-Connecting-IP: 203.0.113.1\r\nX-Forwarded-Proto: https\r\nX-Mine: yes\r\n\r\n",
        )
        .await;
    let answer = client.receive().await;
    assert_eq!(
        answer.body,
        "GET /a%2Fb?c=d\ncf-connecting-ip: 127.0.0.1\nhost: app.localhost\nx-forwarded-for: 127.0.0.1\n\
         x-forwarded-host: app.localhost\nx-forwarded-proto: http\nx-mine: yes"
    );
    assert!(!answer.head.contains("x-secret"), "{}", answer.head);
}

#[tokio::test]
async fn connections_are_kept_on_both_sides() {
    let worker = Worker::saying("hello");
    let (_gateway, address) = gateway_to(&worker).await;
    let mut client = Client::connect(address).await;
    for _ in 0..20 {
        client.send("GET / HTTP/1.1\r\nHost: app.localhost\r\n\r\n").await;
        assert_eq!(client.receive().await.body, "hello");
    }
    assert!(worker.connections() <= 2, "{} connections for 20 requests in a row", worker.connections());
}

#[tokio::test]
async fn a_request_waits_for_a_worker_that_restarts() {
    let worker = Worker::saying("back");
    let (gateway, address) = gateway().await;
    gateway.hold_route("app");
    let answer = tokio::spawn(get(address, "app.localhost", "/"));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!answer.is_finished());
    gateway.set_route("app", worker.socket.clone());
    assert_eq!(answer.await.expect("an answer").body, "back");
}

#[tokio::test]
async fn a_worker_whose_process_died_is_waited_for() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let socket = directory.path().join("worker.sock");
    let (gateway, address) = gateway().await;
    gateway.set_route("app", socket.clone());
    let answer = tokio::spawn(get(address, "app.localhost", "/"));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let _worker = Worker::start_at(socket, |_| async { Response::new(full("up")) });
    assert_eq!(answer.await.expect("an answer").body, "up");
}

#[tokio::test]
async fn a_worker_that_cannot_serve_is_said_to() {
    let (gateway, address) = gateway().await;
    gateway.fail_route("app", "it crashed 5 times in a row");
    let answer = get(address, "app.localhost", "/").await;
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.body, "cfc: Worker `app` cannot serve now: it crashed 5 times in a row.\n");

    gateway.hold_route("app");
    let answer = get(address, "app.localhost", "/").await;
    assert_eq!(answer.status(), 503);
    assert!(answer.body.contains("it is being restarted and was not back within 500ms"), "{}", answer.body);
    gateway.set_route("app", "/nowhere/worker.sock".into());
    let answer = get(address, "app.localhost", "/").await;
    assert!(answer.body.contains("its process did not accept a connection within 500ms"), "{}", answer.body);
}

#[tokio::test]
async fn a_worker_that_hangs_up_gives_no_answer() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let socket = directory.path().join("worker.sock");
    let listener = tokio::net::UnixListener::bind(&socket).expect("a free path");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = [0; 1024];
            let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut buffer).await;
        }
    });
    let (gateway, address) = gateway().await;
    gateway.set_route("app", socket);
    let answer = get(address, "app.localhost", "/").await;
    assert_eq!(answer.status(), 502);
    assert_eq!(answer.body, "cfc: Worker `app` gave no answer: it closed the connection; its log may say why.\n");
}

#[tokio::test]
async fn malformed_requests_are_refused() {
    let worker = Worker::saying("never");
    let (_gateway, address) = gateway_to(&worker).await;
    for request in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: app.localhost\r\nHost: b.localhost\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: user@app.localhost\r\n\r\n",
        "CONNECT example.com:443 HTTP/1.1\r\nHost: app.localhost\r\n\r\n",
    ] {
        let mut client = Client::connect(address).await;
        client.send(request).await;
        assert_eq!(client.receive().await.status(), 400, "{request:?}");
    }
    assert_eq!(worker.connections(), 0);
}
