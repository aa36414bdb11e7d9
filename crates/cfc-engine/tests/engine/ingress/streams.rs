//! What takes its time: large bodies, slow readers, ends on either side, bytes that are no HTTP.

use std::io::Write;
use std::net::SocketAddr;

use super::Case;
use super::app::byte_at;
use super::wire::Client;

pub const CASES: &[Case] = &[
    ("a large answer arrives whole", large_answer),
    ("a large body arrives whole", large_body),
    ("a reader that takes nothing stops the app", slow_reader),
    ("an app that reads nothing stops the client", slow_app),
    ("an answer may come before the body is sent", early_answer),
    ("events arrive one by one", events),
    ("a client that leaves is noticed by the app", abort),
    ("bytes that are no HTTP pass with a half-close", raw),
];

const LARGE: usize = 24 << 20;

fn large_answer(gateway: SocketAddr) {
    let answer = Client::connect(gateway).get(&format!("/bulk?{LARGE}"));
    assert_eq!((answer.status, answer.body.len()), (200, LARGE));
    assert!(answer.body.iter().enumerate().all(|(at, byte)| *byte == byte_at(at)));
}

fn large_body(gateway: SocketAddr) {
    let body: Vec<u8> = (0..LARGE).map(byte_at).collect();
    let mut client = Client::connect(gateway);
    assert_eq!(client.post("/sink", "", &body).text(), format!("{LARGE} bytes, 0 wrong"));
    client.request("POST", "/sink", "Transfer-Encoding: chunked\r\n", b"");
    for piece in body.chunks(100_000) {
        client.send(format!("{:x}\r\n", piece.len()));
        client.send([piece, b"\r\n"].concat());
    }
    client.send("0\r\n\r\n");
    assert_eq!(client.answer().text(), format!("{LARGE} bytes, 0 wrong"));
}

/// Much more than all buffers on the way hold.
const ENDLESS: usize = 4 << 30;

fn slow_reader(gateway: SocketAddr) {
    let before = resident_kib();
    let mut client = Client::connect(gateway);
    client.request("GET", &format!("/bulk?{ENDLESS}"), "", b"");
    client.head();
    // What is on the way has stopped when memory has: half a second without a reader is a lot of bytes otherwise.
    std::thread::sleep(std::time::Duration::from_millis(500));
    let grown = resident_kib().saturating_sub(before);
    assert!(grown < 64 << 10, "{grown} KiB are held for a client that reads nothing");
    drop(client);
    assert_eq!(Client::connect(gateway).get("/hears?bulk-broke").text(), "heard", "the app writes on and on");
}

fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("is there");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("is there");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

fn slow_app(gateway: SocketAddr) {
    let mut client = Client::connect(gateway);
    client.request("POST", "/slow-sink", &format!("Content-Length: {}\r\n", 120 << 20), b"");
    client.stream().set_write_timeout(Some(std::time::Duration::from_secs(2))).expect("sets");
    let piece = vec![7; 1 << 20];
    let mut sent = 0;
    let stopped = loop {
        match client.stream().write(&piece) {
            Ok(count) => sent += count,
            Err(error) => break error,
        }
        assert!(sent < 100 << 20, "nothing stops the client");
    };
    assert_eq!(stopped.kind(), std::io::ErrorKind::WouldBlock);
    assert_eq!(Client::connect(gateway).get("/say?go-on").text(), "said");
    client.stream().set_write_timeout(Some(super::wire::PATIENCE)).expect("sets");
    while sent < 120 << 20 {
        let left = (120 << 20) - sent;
        sent += client.stream().write(&piece[..left.min(piece.len())]).expect("goes on");
    }
    assert_eq!(client.answer().text(), (120 << 20).to_string());
}

fn early_answer(gateway: SocketAddr) {
    let mut client = Client::connect(gateway);
    client.request("POST", "/early", "Content-Length: 1000000\r\n", &[7; 1000]);
    let head = client.head();
    assert!(head.starts_with("HTTP/1.1 413 "), "{head}");
    assert_eq!(client.chunk(), b"too much");
    // workerd ends the answer when the body has ended.
    client.send([7; 999_000]);
    assert_eq!(client.chunk(), b"");
}

fn events(gateway: SocketAddr) {
    let mut client = Client::connect(gateway);
    client.request("GET", "/events?second", "Accept: text/event-stream\r\n", b"");
    let head = client.head();
    assert!(head.contains("content-type: text/event-stream"), "{head}");
    assert_eq!(client.chunk(), b"data: 1\n\n", "before the app says anything more");
    assert_eq!(Client::connect(gateway).get("/say?second").text(), "said");
    assert_eq!(client.chunk(), b"data: 2\n\n");
    assert_eq!(client.chunk(), b"");
}

fn abort(gateway: SocketAddr) {
    let mut client = Client::connect(gateway);
    client.request("GET", "/held?left", "", b"");
    client.head();
    assert_eq!(client.chunk(), b"begin");
    drop(client);
    assert_eq!(Client::connect(gateway).get("/hears?left").text(), "heard");
}

fn raw(gateway: SocketAddr) {
    for port in [4000, 4001] {
        let mut client = Client::connect(gateway);
        client.request("POST", "/raw", &format!("X-Port: {port}\r\nTransfer-Encoding: chunked\r\n"), b"");
        let bytes = [b"raw\n".to_vec(), vec![0xff; 300_000]].concat();
        client.send(format!("{:x}\r\n", bytes.len()));
        client.send(bytes);
        client.send("\r\n0\r\n\r\n");
        let answer = client.answer();
        assert_eq!(answer.text(), "got 300004 bytes and the end\n", "{port}: {}", answer.head);
    }
}
