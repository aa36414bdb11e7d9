//! Clients that do nothing, or almost nothing: each is let go after a while, and nobody else waits for them.

use std::time::Duration;

use cfc_oci::Digest;
use cfc_registry::{Limits, Options};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Server, expect, header, noise};

const IDLE: Duration = Duration::from_millis(300);

/// Far longer than any test takes unless a client is never let go.
const NEVER: Duration = Duration::from_secs(60);

async fn start(connections: usize) -> Server {
    Server::start_with(Options { limits: Limits { connections, idle: IDLE }, ..Options::default() }).await
}

async fn connect(server: &Server, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(server.address).await.expect("connects");
    stream.write_all(text.as_bytes()).await.expect("sends");
    stream
}

/// What the registry sends until it closes the connection.
async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let read = stream.read_to_end(&mut bytes);
    // A reset closes it as well.
    let _ = tokio::time::timeout(NEVER, read).await.expect("the client is let go");
    bytes
}

#[tokio::test]
async fn who_sends_no_complete_head_is_let_go() {
    let server = start(100).await;
    for part in ["", "GET", "GET /v2/ HTTP/1.1\r\nhost: x\r\nx-a: "] {
        let mut stream = connect(&server, part).await;
        let answer = String::from_utf8_lossy(&rest(&mut stream).await).into_owned();
        assert!(!answer.contains("200 OK"), "{answer}");
    }
    // One byte at a time does not help.
    let mut stream = connect(&server, "GET /v2/ HTTP/1.1\r\nx: ").await;
    let dripping = async {
        while stream.write_all(b"a").await.is_ok() {
            tokio::time::sleep(IDLE / 6).await;
        }
    };
    tokio::time::timeout(NEVER, dripping).await.expect("the client is let go");
}

#[tokio::test]
async fn a_connection_that_waits_for_its_next_request_is_closed() {
    let server = start(100).await;
    let mut stream = connect(&server, "GET /v2/ HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(String::from_utf8_lossy(&rest(&mut stream).await).starts_with("HTTP/1.1 200 OK"));
}

#[tokio::test]
async fn an_upload_that_stalls_can_go_on() {
    let server = start(100).await;
    let upload = server.begin("a").await;
    let head = format!("PATCH {upload} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n0123456789");
    let mut stream = connect(&server, &head).await;
    let answer = String::from_utf8_lossy(&rest(&mut stream).await).into_owned();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    let status = server.get(&upload).await;
    expect(&status, 204);
    assert_eq!(header(&status, "range"), "0-9");
}

#[tokio::test]
async fn an_upload_that_drips_is_let_go_and_can_go_on() {
    let server = start(100).await;
    let upload = server.begin("a").await;
    let head = format!("PATCH {upload} HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n");
    let mut stream = connect(&server, &head).await;
    let (mut reader, mut writer) = stream.split();
    let dripping = async {
        while writer.write_all(b"a").await.is_ok() {
            tokio::time::sleep(IDLE / 6).await;
        }
    };
    let mut answer = [0; 4096];
    let answered = async {
        tokio::select! {
            () = dripping => panic!("it is told why"),
            read = reader.read(&mut answer) => read.expect("an answer"),
        }
    };
    let read = tokio::time::timeout(NEVER, answered).await.expect("the client is let go");
    let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
    assert!(
        answer.starts_with("HTTP/1.1 400") && answer.contains("only ") && answer.contains(" bytes came"),
        "{answer}"
    );
    assert_eq!(server.get(&upload).await.status(), 204);

    // Who sends as much as a slow line carries is waited for.
    let mut slow =
        connect(&server, &format!("PATCH {upload} HTTP/1.1\r\nhost: x\r\ncontent-length: 163840\r\n\r\n")).await;
    for _ in 0..40 {
        slow.write_all(&[0; 4096]).await.expect("sends");
        tokio::time::sleep(IDLE / 10).await;
    }
    let answer = String::from_utf8_lossy(&rest(&mut slow).await).into_owned();
    assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
}

#[tokio::test]
async fn a_manifest_that_stalls_is_refused() {
    let server = start(100).await;
    let mut stream = connect(&server, "PUT /v2/a/manifests/x HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{").await;
    let answer = String::from_utf8_lossy(&rest(&mut stream).await).into_owned();
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("MANIFEST_INVALID"), "{answer}");
}

#[tokio::test]
async fn who_does_not_take_what_he_asked_for_is_let_go() {
    let server = start(100).await;
    let content = noise(32_000_000, 1);
    let digest = server.push_blob("a", &content).await;
    let mut stream = connect(&server, &format!("GET /v2/a/blobs/{digest} HTTP/1.1\r\nhost: x\r\n\r\n")).await;
    // Longer than the registry waits; the rest of what it has sent is still on its way then.
    tokio::time::sleep(IDLE * 10).await;
    let received = rest(&mut stream).await;
    assert!(received.len() < content.len(), "everything was sent to a client who took nothing");
    let whole = server.get(&format!("/v2/a/blobs/{digest}")).await.bytes().await.expect("body");
    assert_eq!(Digest::of(&whole), digest);
}

#[tokio::test]
async fn a_client_that_closes_its_half_is_not_waited_for() {
    let server = start(100).await;
    let upload = server.begin("a").await;
    let head = format!("PATCH {upload} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n0123456789");
    let mut stream = connect(&server, &head).await;
    stream.shutdown().await.expect("closes");
    rest(&mut stream).await;
    assert_eq!(header(&server.get(&upload).await, "range"), "0-9");
}

#[tokio::test]
async fn who_takes_all_places_does_not_keep_them() {
    let server = start(3).await;
    let mut idle = Vec::new();
    for _ in 0..3 {
        idle.push(connect(&server, "GET").await);
    }
    let answer = tokio::time::timeout(NEVER, server.get("/v2/")).await.expect("there is a place again");
    expect(&answer, 200);
}
