//! Messages of HTTP/1.1: what arrives of a request, what arrives of an answer.

use std::net::SocketAddr;

use super::wire::Client;
use super::{Case, LISTENERS};

pub const CASES: &[Case] = &[
    ("an app is reached whatever address it listens on", listeners),
    ("a connection carries one request after another", keep_alive),
    ("requests sent at once are answered in order", pipelining),
    ("method, path and headers arrive as they were sent", request_line),
    ("a body arrives with its length or in chunks", request_bodies),
    ("an answer in chunks arrives whole", chunked),
    ("trailers do not disturb an answer", trailers),
    ("an answer that ends with its connection arrives whole", until_close),
    ("an answer that breaks off is seen to", cut),
    ("a client that waits to continue is told to", expect_continue),
    ("early hints, which workerd has no use for, are said to be wrong", hints),
    ("an answer to HEAD has no body", head),
    ("answers without a body have none", empty),
    ("the app sees the client's host and address", forwarded),
];

fn listeners(gateway: SocketAddr) {
    for (host, port) in LISTENERS {
        let mut client = Client::connect(gateway);
        client.request("GET", "/echo", &format!("X-Port: {port}\r\n"), b"");
        let answer = client.answer();
        assert_eq!(answer.status, 200, "{host}:{port}: {answer:?}");
    }
    // Where nobody listens, the class says so.
    let mut client = Client::connect(gateway);
    client.request("GET", "/echo", "X-Port: 4009\r\n", b"");
    let answer = client.answer();
    assert!(answer.status >= 500 && !answer.text().is_empty(), "{answer:?}");
}

fn keep_alive(gateway: SocketAddr) {
    let mut client = Client::connect(gateway);
    for round in 0..50 {
        let answer = client.post("/echo", "", format!("round {round}").as_bytes());
        assert!(answer.status == 200 && answer.text().ends_with(&format!("round {round}")), "{answer:?}");
    }
    client.request("GET", "/fixed", "Connection: close\r\n", b"");
    let answer = client.answer();
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")), "{answer:?}");
    assert_eq!(client.rest(), b"", "the connection ends when it was to");
    // HTTP/1.0 asks for nothing that it does not know.
    let mut client = Client::connect(gateway);
    client.send("GET /chunked HTTP/1.0\r\nHost: app.localhost\r\n\r\n");
    let answer = String::from_utf8(client.rest()).expect("is text");
    assert!(answer.starts_with("HTTP/1.0 200") && answer.ends_with("\r\n\r\nonetwothree"), "{answer:?}");
}

fn pipelining(gateway: SocketAddr) {
    let mut client = Client::connect(gateway);
    let ask = |at: usize| format!("POST /echo?{at} HTTP/1.1\r\nHost: app.localhost\r\nContent-Length: 2\r\n\r\nhi");
    client.send((0..20).map(ask).collect::<String>());
    for at in 0..20 {
        let answer = client.answer();
        assert!(answer.text().starts_with(&format!("POST /echo?{at} HTTP/1.1\r\n")), "{at}: {answer:?}");
    }
}

fn request_line(gateway: SocketAddr) {
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        let mut client = Client::connect(gateway);
        let path = "/echo?a=1&b=%20%2F&c=";
        client.request(method, path, "X-Mine: one\r\nX-Mine: two\r\nCookie: a=b; c=d\r\n", b"");
        let text = client.answer_to(method).text();
        assert!(text.starts_with(&format!("{method} {path} HTTP/1.1\r\n")), "{text}");
        let lower = text.to_ascii_lowercase();
        assert!(lower.contains("x-mine: one, two\r\n") || lower.contains("x-mine: one\r\nx-mine: two\r\n"), "{text}");
        assert!(lower.contains("cookie: a=b; c=d\r\n"), "{text}");
    }
}

fn request_bodies(gateway: SocketAddr) {
    let mut client = Client::connect(gateway);
    let answer = client.post("/echo", "Content-Type: text/plain\r\n", b"with a length").text();
    assert!(answer.ends_with("\r\n\r\nwith a length"), "{answer}");
    let chunks = b"4\r\nin c\r\n1;ext=1\r\nh\r\n4\r\nunks\r\n0\r\nX-Late: 1\r\n\r\n";
    client.request("POST", "/echo", "Transfer-Encoding: chunked\r\n", chunks);
    let answer = client.answer().text();
    assert!(answer.ends_with("\r\n\r\nin chunks"), "{answer}");
    // And the connection is where it should be.
    assert_eq!(client.get("/fixed").text(), "hello");
}

fn chunked(gateway: SocketAddr) {
    let mut client = Client::connect(gateway);
    for _ in 0..2 {
        let answer = client.get("/chunked");
        assert_eq!((answer.status, answer.text().as_str()), (200, "onetwothree"));
    }
}

/// workerd passes no trailers on. Where the app keeps a connection on which it sent some, it even takes them for the
/// beginning of the next answer, so this one does not.
fn trailers(gateway: SocketAddr) {
    let mut client = Client::connect(gateway);
    for _ in 0..2 {
        let answer = client.get("/trailers");
        assert_eq!((answer.status, answer.text().as_str()), (200, "whole"));
    }
}

fn until_close(gateway: SocketAddr) {
    let mut client = Client::connect(gateway);
    for _ in 0..2 {
        assert_eq!(client.get("/until-close").text(), "until the end");
    }
}

/// A client must be able to tell half an answer from a whole one: it breaks off, or is a 502.
fn cut(gateway: SocketAddr) {
    let mut client = Client::connect(gateway);
    client.request("GET", "/cut", "Connection: close\r\n", b"");
    let head = client.head();
    let rest = client.rest();
    let is_whole = rest.len() == 100 || rest.ends_with(b"0\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 502 ") || !is_whole, "{head} {rest:?}");
}

fn expect_continue(gateway: SocketAddr) {
    let mut client = Client::connect(gateway);
    client.request("POST", "/continue", "Expect: 100-continue\r\nContent-Length: 10\r\n", b"");
    assert_eq!(client.head(), "HTTP/1.1 100 Continue");
    client.send("0123456789");
    let answer = client.answer();
    assert_eq!((answer.status, answer.text().as_str()), (200, "10"));
}

/// workerd takes the first head for the answer, and the class says what is wrong with it.
fn hints(gateway: SocketAddr) {
    let mut client = Client::connect(gateway);
    client.request("GET", "/hints", "X-Port: 4003\r\n", b"");
    let answer = client.answer();
    assert!(answer.status == 500 && answer.text().contains("status codes in the range 200 to 599"), "{answer:?}");
    assert_eq!(client.get("/fixed").text(), "hello");
}

fn head(gateway: SocketAddr) {
    let mut client = Client::connect(gateway);
    for _ in 0..2 {
        client.request("HEAD", "/fixed", "", b"");
        let answer = client.answer_to("HEAD");
        assert_eq!((answer.status, answer.header("content-length")), (200, Some("5")), "{answer:?}");
    }
    assert_eq!(client.get("/fixed").text(), "hello");
}

fn empty(gateway: SocketAddr) {
    let mut client = Client::connect(gateway);
    for status in [204, 304, 204] {
        let answer = client.get(&format!("/status?{status}"));
        assert_eq!((answer.status, answer.header("etag")), (status, Some("\"x\"")), "{answer:?}");
        assert_eq!(answer.header("transfer-encoding"), None, "{answer:?}");
    }
    assert_eq!(client.get("/fixed").text(), "hello");
}

fn forwarded(gateway: SocketAddr) {
    let mut client = Client::connect(gateway);
    let lies = "CF-Connecting-IP: 203.0.113.1\r\nX-Forwarded-For: 203.0.113.2\r\nX-Forwarded-Proto: https\r\n\
                X-Forwarded-Host: elsewhere.test\r\nX-Real-IP: 203.0.113.3\r\nConnection: x-secret\r\nX-Secret: 1\r\n";
    client.request("GET", "/echo", lies, b"");
    let text = client.answer().text().to_ascii_lowercase();
    for line in [
        "host: app.localhost",
        "cf-connecting-ip: 127.0.0.1",
        "x-forwarded-for: 203.0.113.2, 127.0.0.1",
        "x-forwarded-proto: http",
        "x-forwarded-host: app.localhost",
    ] {
        assert!(text.contains(&format!("{line}\r\n")), "{line} is missing: {text}");
    }
    assert!(!text.contains("x-secret"), "{text}");
}
