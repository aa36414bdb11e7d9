//! Clients that mean harm, or speak something else.

use std::net::SocketAddr;

use super::Case;
use super::wire::Client;

pub const CASES: &[Case] = &[
    ("a request whose end is ambiguous is refused", smuggling),
    ("what is smuggled behind a body is no request to the Worker", smuggled),
    ("headers above the limit are refused", large_headers),
    ("a client of HTTP/2 is told to speak HTTP/1.1", http2),
    ("what is no HTTP is refused", no_http),
];

const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: app.localhost\r\n\r\n";

fn seen(gateway: SocketAddr) -> String {
    Client::connect(gateway).get("/seen").text()
}

/// Each could end in two places, for two readers.
fn smuggling(gateway: SocketAddr) {
    let chunked = format!("0\r\n\r\n{HIDDEN}");
    for headers in [
        "Content-Length: 5\r\nContent-Length: 6\r\n".to_string(),
        "Content-Length: 5, 6\r\n".to_string(),
        "Content-Length: +5\r\n".to_string(),
        "Content-Length: -5\r\n".to_string(),
        "Content-Length: 0x5\r\n".to_string(),
        "Content-Length: 99999999999999999999\r\n".to_string(),
        "Transfer-Encoding: xchunked\r\n".to_string(),
        "Transfer-Encoding: chunked, identity\r\n".to_string(),
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n".to_string(),
        "Transfer-Encoding : chunked\r\n".to_string(),
        " Transfer-Encoding: chunked\r\n".to_string(),
        "X: y\r\n Transfer-Encoding: chunked\r\n".to_string(),
        "X: y\rTransfer-Encoding: chunked\r\n".to_string(),
        "X: y\0z\r\n".to_string(),
    ] {
        let mut client = Client::connect(gateway);
        client.request("POST", "/smuggled", &headers, chunked.as_bytes());
        let answer = client.answer();
        assert_eq!(answer.status, 400, "{headers:?}: {answer:?}");
        assert_eq!(client.rest(), b"", "{headers:?}: the connection ends");
    }
    let mut client = Client::connect(gateway);
    client
        .send(format!("POST /smuggled HTTP/1.0\r\nHost: app.localhost\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}"));
    assert_eq!(client.answer().status, 400, "HTTP/1.0 knows no chunks");
    let seen_now = seen(gateway);
    assert!(!seen_now.contains("hidden") && !seen_now.contains("smuggled"), "{seen_now}");
    // With both, chunks it is, and nothing after them (RFC 9112, 6.3).
    let length = chunked.len();
    for headers in [
        format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n"),
        format!("Transfer-Encoding: chunked\r\nContent-Length: {length}\r\n"),
    ] {
        let mut client = Client::connect(gateway);
        client.request("POST", "/echo?both", &headers, chunked.as_bytes());
        let answer = client.answer();
        assert!(answer.status == 200 && answer.text().ends_with("\r\n\r\n"), "{headers:?}: {answer:?}");
        assert_eq!(client.rest(), b"", "{headers:?}: the connection ends");
    }
    let seen = seen(gateway);
    assert!(!seen.contains("hidden"), "{seen}");
}

/// A body is a body, whatever it says, and chunks that are malformed end the connection.
fn smuggled(gateway: SocketAddr) {
    let mut client = Client::connect(gateway);
    let answer = client.post("/echo?body", "", HIDDEN.as_bytes());
    assert!(answer.status == 200 && answer.text().ends_with(HIDDEN), "{answer:?}");
    assert_eq!(client.get("/fixed").text(), "hello");
    for chunks in ["5\r\nhelloX0\r\n\r\n", "-1\r\n\r\n", "fffffffffffffffff\r\n", "5;\nhello\r\n0\r\n\r\n", "\r\n"] {
        let mut client = Client::connect(gateway);
        let bytes = format!("{chunks}{HIDDEN}");
        client.request("POST", "/echo?chunks", "Transfer-Encoding: chunked\r\n", bytes.as_bytes());
        let said = String::from_utf8_lossy(&client.rest()).into_owned();
        assert!(said.matches("HTTP/1.1 ").count() <= 1 && !said.contains("HTTP/1.1 200"), "{chunks:?}: {said}");
    }
    let seen = seen(gateway);
    assert!(!seen.contains("hidden"), "{seen}");
}

fn large_headers(gateway: SocketAddr) {
    let mut client = Client::connect(gateway);
    client.request("GET", "/echo", &format!("X-Large: {}\r\n", "x".repeat(30_000)), b"");
    assert_eq!(client.answer().status, 200, "30 kB are within Cloudflare's limit");
    let too_many: String = (0..300).map(|at| format!("X-{at}: 1\r\n")).collect();
    for headers in [format!("X-Large: {}\r\n", "x".repeat(140_000)), too_many] {
        let mut client = Client::connect(gateway);
        client.request("GET", "/large", &headers, b"");
        assert_eq!(client.answer().status, 431);
        assert_eq!(client.rest(), b"");
    }
    let mut client = Client::connect(gateway);
    client.request("GET", &format!("/large?{}", "x".repeat(70_000)), "", b"");
    assert_eq!(client.answer().status, 414);
    let seen = seen(gateway);
    assert!(!seen.contains("large"), "{seen}");
}

fn http2(gateway: SocketAddr) {
    let mut client = Client::connect(gateway);
    // The preface, and empty settings.
    client.send([&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat());
    let answer = client.rest();
    // Settings, and GOAWAY with the code HTTP_1_1_REQUIRED.
    assert_eq!(answer[..9], [0, 0, 0, 4, 0, 0, 0, 0, 0], "{answer:?}");
    assert_eq!(answer[12], 7, "{answer:?}");
    assert_eq!(answer[18..26], [0, 0, 0, 0, 0, 0, 0, 13], "{answer:?}");
    assert!(String::from_utf8_lossy(&answer[26..]).contains("HTTP/1.1"), "{answer:?}");
    // An upgrade that is only offered is left alone.
    let mut client = Client::connect(gateway);
    let offer = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n";
    client.request("GET", "/fixed", offer, b"");
    let answer = client.answer();
    assert_eq!((answer.status, answer.text().as_str()), (200, "hello"), "{answer:?}");
}

fn no_http(gateway: SocketAddr) {
    for bytes in
        [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], b"SSH-2.0-x\r\n", b"GET\r\n\r\n", b"\0\0\0\0\r\n"]
    {
        let mut client = Client::connect(gateway);
        client.send(bytes);
        client.end();
        let said = String::from_utf8_lossy(&client.rest()).into_owned();
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 400 "), "{bytes:?}: {said}");
    }
}
