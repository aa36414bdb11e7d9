//! Blobs that clients are given while they are fetched from an upstream.

use std::path::Path;
use std::time::Duration;

use cfc_oci::Digest;
use cfc_registry::{Options, QuotaRule, Quotas, Upstream};
use futures::future::join_all;
use reqwest::Response;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::hand::{Hand, NEVER, Request, pass_on};
use crate::harness::{Server, expect, expect_error, header, noise, seed, send};
use crate::process::Process;

/// What is held back of an answer.
const HELD: usize = 64 * 1024;

async fn start(hand: &Hand) -> Server {
    start_with(hand, Quotas::default()).await
}

async fn start_with(hand: &Hand, quotas: Quotas) -> Server {
    let upstreams = vec![Upstream::new("hub", &format!("http://127.0.0.1:{}", hand.port))];
    Server::start_with(Options { upstreams, quotas, ..Options::default() }).await
}

fn path(content: &[u8]) -> String {
    format!("/v2/hub/a/blobs/{}", Digest::of(content))
}

/// Bytes of an answer, `length` at least.
async fn take(response: &mut Response, length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < length {
        let chunk = tokio::time::timeout(NEVER, response.chunk()).await.expect("it comes");
        bytes.extend_from_slice(&chunk.expect("goes on").expect("there is more"));
    }
    bytes
}

/// What is left of an answer, and whether it has come to its end.
async fn rest(response: &mut Response) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    loop {
        match tokio::time::timeout(NEVER, response.chunk()).await.expect("it ends") {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
            end => return (bytes, end.is_ok()),
        }
    }
}

/// A pull for which `hand` has the head of an answer sent, which the client has got.
async fn begin(server: &Server, hand: &mut Hand, content: &[u8]) -> (Response, Request) {
    let upstream = async {
        let mut asked = hand.asked("GET /v2/a/blobs/").await;
        asked.begin_blob(content.len()).await;
        asked
    };
    let path = path(content);
    let (response, asked) = tokio::join!(server.get(&path), upstream);
    expect(&response, 200);
    (response, asked)
}

async fn eventually(what: &str, is_so: impl AsyncFn() -> bool) {
    let wait = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(NEVER, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

async fn kept(server: &Server) -> u64 {
    server.registry.usage().await.expect("adds up").values().map(|usage| usage.bytes).sum()
}

/// What uploads have left in a directory.
fn uploads(root: &Path) -> usize {
    std::fs::read_dir(root.join("registry/uploads")).map_or(0, |entries| entries.count())
}

/// Waits until nothing of a fetch that failed is there.
async fn nothing_is_kept(server: &Server) {
    eventually("nothing is left", async || {
        kept(server).await == 0 && (crate::store::endpoint().is_some() || uploads(server.root()) == 0)
    })
    .await;
}

async fn counts(server: &Server, outcome: &str, count: u64) {
    let line = format!("cfc_registry_upstream_blobs_total{{outcome=\"{outcome}\"}} {count}\n");
    eventually(&line, async || server.get("/metrics").await.text().await.expect("text").contains(&line)).await;
}

#[tokio::test]
async fn bytes_arrive_while_the_upstream_holds_back_the_rest() {
    let content = noise(1_000_000, 1);
    let mut hand = Hand::start().await;
    let server = start(&hand).await;
    // The head, of which no byte of the blob has come yet.
    let (mut response, mut asked) = begin(&server, &mut hand, &content).await;
    assert_eq!(header(&response, "content-length"), "1000000");
    assert_eq!(header(&response, "docker-content-digest"), Digest::of(&content).to_string());
    assert_eq!(header(&response, "etag"), format!("\"{}\"", Digest::of(&content)));
    assert_eq!(header(&response, "accept-ranges"), "bytes");
    assert_eq!(header(&response, "content-type"), "application/octet-stream");
    let mut got = Vec::new();
    for end in [1, 300_000, content.len() - HELD] {
        asked.send(&content[got.len()..end]).await;
        let missing = end - got.len();
        got.extend(take(&mut response, missing).await);
        assert_eq!(got.len(), end);
    }
    assert_eq!(kept(&server).await, 0);
    asked.send(&content[got.len()..]).await;
    got.extend(take(&mut response, HELD).await);
    assert!(got == content && rest(&mut response).await == (Vec::new(), true));
    assert_eq!(kept(&server).await, 1_000_000);
    // From here on it is here.
    assert!(server.get(&path(&content)).await.bytes().await.expect("body") == content);
    assert!(hand.is_left_alone());
    counts(&server, "kept", 1).await;
}

#[tokio::test]
async fn another_blob_is_never_taken_for_the_right_one() {
    let (content, wrong) = (noise(1_000_000, 1), noise(1_000_000, 2));
    let mut hand = Hand::start().await;
    let server = start(&hand).await;
    let (mut whole, mut asked) = begin(&server, &mut hand, &content).await;
    // Parts end with bytes that nobody has verified, too.
    let part = server.request("GET", &path(&content)).header("range", "bytes=100-199999");
    let mut part = send(part).await;
    expect(&part, 206);
    asked.send(&wrong).await;
    let (got, is_whole) = rest(&mut whole).await;
    assert!(!is_whole && got.len() <= wrong.len() - HELD, "{} bytes", got.len());
    let (got, is_whole) = rest(&mut part).await;
    assert!(!is_whole && got.len() <= 199_900 - HELD, "{} bytes", got.len());
    nothing_is_kept(&server).await;
    counts(&server, "wrong", 1).await;
    // What is short enough to be held back as a whole is an error that says so.
    let small = noise(5000, 3);
    let upstream = async {
        let mut asked = hand.asked("GET").await;
        asked.begin_blob(5000).await;
        asked.send(&wrong[..5000]).await;
    };
    let small_path = path(&small);
    let (refused, ()) = tokio::join!(server.get(&small_path), upstream);
    expect_error(refused, 502, "UNKNOWN").await;
    // The next try begins anew.
    let (mut response, mut asked) = begin(&server, &mut hand, &content).await;
    asked.send(&content).await;
    assert!(rest(&mut response).await == (content, true));
}

#[tokio::test]
async fn an_upstream_that_breaks_off_is_asked_for_what_is_missing() {
    let content = noise(1_000_000, 1);
    let mut hand = Hand::start().await;
    let server = start(&hand).await;
    let (mut response, mut asked) = begin(&server, &mut hand, &content).await;
    asked.send(&content[..300_000]).await;
    let mut got = take(&mut response, 300_000).await;
    drop(asked);
    // It wants to know anew who asks.
    let mut asked = hand.asked("GET /v2/a/blobs/").await;
    let challenge = format!("Bearer realm=\"http://127.0.0.1:{}/token\"", hand.port);
    asked.begin("401 Unauthorized", &[("www-authenticate", challenge), ("content-length", "0".to_string())]).await;
    let mut service = hand.asked("GET /token").await;
    service.begin("200 OK", &[]).await;
    service.send(br#"{"token":"good"}"#).await;
    drop(service);
    let mut asked = hand.asked("GET /v2/a/blobs/").await;
    assert!(asked.head.contains("authorization: bearer good"), "{}", asked.head);
    asked.begin_rest(300_000, content.len()).await;
    asked.send(&content[300_000..500_000]).await;
    got.extend(take(&mut response, 200_000).await);
    drop(asked);
    // It has a problem, and then knows nothing of parts.
    hand.asked("GET").await.begin("503 Service Unavailable", &[("content-length", "0".to_string())]).await;
    let mut asked = hand.asked("GET").await;
    asked.begin_blob(content.len()).await;
    asked.send(&content).await;
    let (end, is_whole) = rest(&mut response).await;
    got.extend(end);
    assert!(is_whole && got == content);
    assert_eq!(kept(&server).await, 1_000_000);
    assert!(hand.is_left_alone());
}

#[tokio::test]
async fn what_does_not_go_on_as_it_began_is_broken_off() {
    let content = noise(1_000_000, 1);
    let mut hand = Hand::start().await;
    let server = start(&hand).await;
    let mut inner = Hand::start().await;
    let length = |length: usize| ("content-length", length.to_string());
    let other_part = ("content-range", "bytes 299999-999999/1000000".to_string());
    let elsewhere = ("location", format!("http://127.0.0.1:{}/blob", inner.port));
    for (status, headers) in [
        ("206 Partial Content", vec![length(700_001), other_part]),
        ("206 Partial Content", vec![length(700_000)]),
        ("200 OK", vec![length(999_999)]),
        ("307 Temporary Redirect", vec![length(0), elsewhere]),
    ] {
        let (mut response, mut asked) = begin(&server, &mut hand, &content).await;
        asked.send(&content[..300_000]).await;
        assert!(take(&mut response, 300_000).await == content[..300_000]);
        drop(asked);
        hand.asked("GET").await.begin(status, &headers).await;
        assert!(rest(&mut response).await == (Vec::new(), false), "{status}");
        nothing_is_kept(&server).await;
    }
    assert!(hand.is_left_alone() && inner.is_left_alone());
}

#[tokio::test]
async fn an_upstream_that_breaks_off_again_and_again_is_given_up() {
    let content = noise(1_000_000, 1);
    let mut hand = Hand::start().await;
    let server = start(&hand).await;
    let (mut response, mut asked) = begin(&server, &mut hand, &content).await;
    asked.send(&content[..100_000]).await;
    drop(asked);
    for number in 0..5 {
        let start = 100_000 + number * 1000;
        let mut asked = hand.asked("GET").await;
        asked.begin_rest(start, content.len()).await;
        asked.send(&content[start..start + 1000]).await;
    }
    let (got, is_whole) = rest(&mut response).await;
    assert!(!is_whole && content[..105_000].starts_with(&got));
    nothing_is_kept(&server).await;
    counts(&server, "away", 1).await;
    assert!(hand.is_left_alone());
}

/// A client that has asked, and reads when it is told to.
async fn ask(server: &Server, path: &str) -> TcpStream {
    ask_at(&server.address.to_string(), path).await
}

async fn ask_at(address: &str, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("connects");
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sends");
    stream
}

/// The body of the answer, which ends the connection.
async fn body(mut stream: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    tokio::time::timeout(NEVER, stream.read_to_end(&mut bytes)).await.expect("it ends").expect("is read");
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("a head") + 4;
    bytes.split_off(head)
}

#[tokio::test]
async fn many_get_it_from_one_fetch_at_their_own_pace() {
    // More than sockets take, and than is kept in memory of what goes to a bucket.
    let content = noise(40_000_000, 1);
    let mut hand = Hand::start().await;
    let server = start(&hand).await;
    let (mut first, mut asked) = begin(&server, &mut hand, &content).await;
    let path = path(&content);
    let stopped = ask(&server, &path).await;
    stopped.peek(&mut [0]).await.expect("it is answered");
    let mut others = join_all((0..6).map(|_| server.get(&path))).await;
    let leaves = server.get(&path).await;
    asked.send(&content[..1_000_000]).await;
    assert!(take(&mut first, 1_000_000).await == content[..1_000_000]);
    for other in &mut others {
        assert!(take(other, 1_000_000).await == content[..1_000_000]);
    }
    drop((first, leaves));
    // Neither who has gone nor who has stopped is waited for.
    asked.send(&content[1_000_000..]).await;
    drop(asked);
    for got in join_all(others.iter_mut().map(rest)).await {
        assert!(got == (content[1_000_000..].to_vec(), true));
    }
    assert_eq!(kept(&server).await, 40_000_000);
    assert!(body(stopped).await == content);
    assert!(hand.is_left_alone(), "it was fetched once");
}

#[tokio::test]
async fn who_comes_late_gets_all_of_it() {
    let content = noise(20_000_000, 1);
    let mut hand = Hand::start().await;
    let server = start(&hand).await;
    let (mut first, mut asked) = begin(&server, &mut hand, &content).await;
    let mut got = Vec::new();
    for piece in content[..15_000_000].chunks(1_000_000) {
        asked.send(piece).await;
        got.extend(take(&mut first, 1_000_000).await);
    }
    let late = ask(&server, &path(&content)).await;
    // In a directory there are bytes for it at once, in a bucket when all of it is there.
    if crate::store::endpoint().is_none() {
        let mut late = server.get(&path(&content)).await;
        assert!(take(&mut late, 15_000_000).await == content[..15_000_000]);
    }
    asked.send(&content[15_000_000..]).await;
    let (end, is_whole) = rest(&mut first).await;
    got.extend(end);
    assert!(is_whole && got == content);
    assert!(body(late).await == content);
    assert!(hand.is_left_alone(), "it was fetched once");
}

#[tokio::test]
async fn a_fetch_goes_on_when_everybody_has_left() {
    let content = noise(1_000_000, 1);
    let mut hand = Hand::start().await;
    let server = start(&hand).await;
    let (mut response, mut asked) = begin(&server, &mut hand, &content).await;
    asked.send(&content[..300_000]).await;
    take(&mut response, 1).await;
    drop(response);
    asked.send(&content[300_000..]).await;
    eventually("it is kept", async || kept(&server).await == 1_000_000).await;
    assert!(server.get(&path(&content)).await.bytes().await.expect("body") == content);
    assert!(hand.is_left_alone());
}

#[tokio::test]
async fn parts_are_had_while_the_whole_is_coming() {
    let content = noise(1_000_000, 1);
    let mut hand = Hand::start().await;
    let server = start(&hand).await;
    let (mut whole, mut asked) = begin(&server, &mut hand, &content).await;
    let ask = |range: &str| server.request("GET", &path(&content)).header("range", range);
    let mut parts = Vec::new();
    for (range, start, end) in [
        ("bytes=100-399999", 100, 400_000),
        ("bytes=500000-", 500_000, 1_000_000),
        ("bytes=-900000", 100_000, 1_000_000),
    ] {
        let part = send(ask(range)).await;
        expect(&part, 206);
        assert_eq!(header(&part, "content-length"), (end - start).to_string());
        assert_eq!(header(&part, "content-range"), format!("bytes {start}-{}/1000000", end - 1));
        parts.push((part, start, end));
    }
    // Other parts that the client has are of another blob.
    let other = send(ask("bytes=100-").header("if-range", "\"sha256:other\"")).await;
    expect(&other, 200);
    parts.push((other, 0, 1_000_000));
    asked.send(&content[..700_000]).await;
    for (part, start, end) in &mut parts {
        let there = (*end - HELD).min(700_000) - *start;
        assert!(take(part, there).await == content[*start..][..there]);
        *start += there;
    }
    // These are answered when it is there: short ones, none at all, and what the client has.
    let tag = format!("\"{}\"", Digest::of(&content));
    let later = async {
        let unchanged = server.request("GET", &path(&content)).header("if-none-match", tag);
        tokio::join!(send(ask("bytes=0-99")), send(ask("bytes=1000000-")), send(unchanged))
    };
    let upstream = async {
        tokio::task::yield_now().await;
        asked.send(&content[700_000..]).await;
    };
    let ((short, none, unchanged), ()) = tokio::join!(later, upstream);
    expect(&short, 206);
    assert!(short.bytes().await.expect("body") == content[..100]);
    expect_error(none, 416, "SIZE_INVALID").await;
    expect(&unchanged, 304);
    for (part, start, end) in &mut parts {
        assert!(rest(part).await == (content[*start..*end].to_vec(), true));
    }
    assert!(rest(&mut whole).await == (content, true));
    assert!(hand.is_left_alone());
}

#[tokio::test]
async fn who_looks_while_it_is_coming_learns_its_size() {
    let content = noise(1_000_000, 1);
    let mut hand = Hand::start().await;
    let server = start(&hand).await;
    let (_response, _asked) = begin(&server, &mut hand, &content).await;
    let path = path(&content);
    let length = |status: &str| {
        let length = if status.starts_with("200") { content.len() } else { 0 };
        [("content-length", length.to_string())]
    };
    // From the upstream, or where that does not say from what is coming.
    for status in ["200 OK", "405 Method Not Allowed"] {
        let upstream = async { hand.asked("HEAD").await.begin(status, &length(status)).await };
        let (looked, ()) = tokio::join!(server.head(&path), upstream);
        expect(&looked, 200);
        assert_eq!(header(&looked, "content-length"), "1000000");
    }
    assert!(hand.is_left_alone());
}

fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

#[tokio::test]
async fn what_has_no_length_comes_all_the_same() {
    let content = noise(1_000_000, 1);
    let mut hand = Hand::start().await;
    let server = start(&hand).await;
    let path = path(&content);
    for is_right in [false, true] {
        let upstream = async {
            let mut asked = hand.asked("GET").await;
            asked.begin("200 OK", &[("transfer-encoding", "chunked".to_string())]).await;
            asked.send(&chunk(&content[..300_000])).await;
            asked
        };
        let (mut response, mut asked) = tokio::join!(server.get(&path), upstream);
        expect(&response, 200);
        assert!(response.headers().get("content-length").is_none());
        let mut got = take(&mut response, 300_000 - HELD).await;
        assert_eq!(got.len(), 300_000 - HELD);
        let end = if is_right { content[300_000..].to_vec() } else { noise(700_000, 2) };
        let end = async { asked.send(&[chunk(&end), chunk(b"")].concat()).await };
        // A part of what has no length is given when all of it is there.
        let part = async {
            if is_right {
                let part = send(server.request("GET", &path).header("range", "bytes=5-9")).await;
                assert!(part.bytes().await.expect("body") == content[5..10]);
            }
        };
        tokio::join!(part, end);
        let (end, is_whole) = rest(&mut response).await;
        got.extend(end);
        assert_eq!((is_whole, got == content), (is_right, is_right));
    }
    assert!(hand.is_left_alone());
}

#[tokio::test]
async fn what_is_larger_than_its_quota_is_known_before_it_begins() {
    let (large, one, other) = (noise(400_000, 1), noise(150_000, 2), noise(150_000, 3));
    let mut hand = Hand::start().await;
    let rules = vec![QuotaRule { repositories: vec!["**".to_string()], bytes: 350_000 }];
    let server = start_with(&hand, Quotas { rules, ..Quotas::default() }).await;
    // What is fetched counts once, so both have room.
    for content in [&one, &other] {
        let (mut response, mut asked) = begin(&server, &mut hand, content).await;
        asked.send(content).await;
        assert!(rest(&mut response).await == (content.clone(), true));
    }
    assert_eq!(kept(&server).await, 300_000);
    // Its length is too much: it is passed on, and no client was given the beginning of something that has no room.
    let upstream = async {
        hand.asked("GET").await.begin_blob(large.len()).await;
        let mut asked = hand.asked("GET").await;
        asked.begin_blob(large.len()).await;
        asked.send(&large).await;
    };
    let large_path = path(&large);
    let (mut response, ()) = tokio::join!(server.get(&large_path), upstream);
    expect(&response, 200);
    assert!(rest(&mut response).await == (large, true));
    assert_eq!(kept(&server).await, 300_000);
    counts(&server, "no_room", 1).await;
}

#[tokio::test]
async fn what_a_killed_process_was_fetching_is_gone() {
    if crate::store::skips("what a killed process was fetching is gone") {
        return;
    }
    let content = noise(1_000_000, 1);
    let mut hand = Hand::start().await;
    let directory = tempfile::TempDir::new().expect("temporary directory");
    let url = format!("http://127.0.0.1:{}", hand.port);
    let upstreams = [&*url];
    let start = || Process::start_with_upstreams(&upstreams, directory.path());
    let process = start().await;
    let path = format!("/v2/up0/a/blobs/{}", Digest::of(&content));
    // What a client pushes can go on afterwards.
    let begun = process.send("POST", "/v2/own/blobs/uploads/", &[], b"").await;
    let upload = header(&begun, "location");
    expect(&process.send("PATCH", &upload, &[], b"abc").await, 202);
    let own = uploads(&directory.path().join("data"));
    let upstream = async {
        let mut asked = hand.asked("GET").await;
        asked.begin_blob(content.len()).await;
        asked.send(&content[..500_000]).await;
        asked
    };
    let (mut response, asked) = tokio::join!(process.send("GET", &path, &[], b""), upstream);
    take(&mut response, 500_000).await;
    assert!(uploads(&directory.path().join("data")) > own);
    process.kill();
    drop(asked);
    assert!(!rest(&mut response).await.1);
    let process = start().await;
    assert_eq!(uploads(&directory.path().join("data")), own);
    expect(&process.send("GET", &upload, &[], b"").await, 204);
    let upstream = async {
        let mut asked = hand.asked("GET").await;
        assert!(!asked.head.contains("range:"), "{}", asked.head);
        asked.begin_blob(content.len()).await;
        asked.send(&content).await;
    };
    let (mut response, ()) = tokio::join!(process.send("GET", &path, &[], b""), upstream);
    assert!(rest(&mut response).await == (content, true));
}

#[tokio::test]
async fn what_fills_the_disk_is_passed_on_at_the_next_try() {
    if crate::store::skips("what fills the disk is passed on at the next try") {
        return;
    }
    let content = noise(30_000_000, 1);
    let mut hand = Hand::start().await;
    let directory = tempfile::TempDir::new().expect("temporary directory");
    let url = format!("http://127.0.0.1:{}", hand.port);
    let Some(process) = Process::start_with_little_disk(directory.path(), &[&url]).await else { return };
    let path = format!("/v2/up0/a/blobs/{}", Digest::of(&content));
    for is_passed_on in [false, true] {
        let upstream = async {
            let mut asked = hand.asked("GET").await;
            asked.begin_blob(content.len()).await;
            asked.try_send(&content).await;
        };
        let pull = async {
            let mut response = process.send("GET", &path, &[], b"").await;
            expect(&response, 200);
            rest(&mut response).await
        };
        let ((got, is_whole), ()) = tokio::join!(pull, upstream);
        assert_eq!((is_whole, got == content), (is_passed_on, is_passed_on));
    }
}

/// Who takes nothing of it holds its file open.
#[tokio::test]
async fn a_fetch_that_failed_takes_no_room_on_the_disk_whoever_follows_it() {
    if crate::store::skips("a fetch that failed takes no room on the disk whoever follows it") {
        return;
    }
    let [content, wrong, other] = [1, 2, 3].map(|seed| noise(9_000_000, seed));
    for outcome in ["wrong", "away"] {
        let mut hand = Hand::start().await;
        let directory = tempfile::TempDir::new().expect("temporary directory");
        let url = format!("http://127.0.0.1:{}", hand.port);
        let Some(process) = Process::start_with_little_disk(directory.path(), &[&url]).await else { return };
        let slow = ask_at(&process.address, &format!("/v2/up0/a/blobs/{}", Digest::of(&content))).await;
        let mut asked = hand.asked("GET").await;
        asked.begin_blob(content.len()).await;
        asked.send(&wrong[..8_000_000]).await;
        slow.peek(&mut [0]).await.expect("it is answered");
        match outcome {
            "wrong" => asked.send(&wrong[8_000_000..]).await,
            _ => {
                drop(asked);
                hand.asked("GET").await.begin("200 OK", &[("content-length", "5".to_string())]).await;
            }
        }
        let line = format!("cfc_registry_upstream_blobs_total{{outcome=\"{outcome}\"}} 1\n");
        let page = async || process.send("GET", "/metrics", &[], b"").await.text().await.expect("text");
        eventually(&line, async || page().await.contains(&line)).await;
        // As much again has room.
        let upload = format!("/v2/own/blobs/uploads/?digest={}", Digest::of(&other));
        expect(&process.send("POST", &upload, &[], &other).await, 201);
        let got = body(slow).await;
        assert!(wrong.starts_with(&got) && got.len() < 8_000_000, "{} bytes", got.len());
    }
}

/// In front of a server: each connection breaks off after some of what the server says.
async fn bad_line(server: String, seed: u64) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        for number in 0.. {
            let Ok((client, _)) = listener.accept().await else { return };
            let limit = noise(2, seed + number).iter().fold(100_000, |sum, byte| sum * 2 + u64::from(*byte) * 2000);
            tokio::spawn(pass_on(client, server.clone(), limit));
        }
    });
    port
}

/// Pulls until all of what was asked for is there, which is never anything else.
async fn pull_at_last(server: &Server, content: &[u8], start: usize) {
    let request = || server.request("GET", &path(content)).header("range", format!("bytes={start}-"));
    let pulled = async || {
        let mut response = request().send().await.ok()?;
        if response.status() != 206 {
            assert_eq!(response.status(), 503, "it is away");
            return None;
        }
        let (got, is_whole) = rest(&mut response).await;
        assert!(content[start..].starts_with(&got) && (got.len() == content.len() - start) == is_whole);
        is_whole.then_some(())
    };
    eventually("all of it came", async || pulled().await.is_some()).await;
}

#[tokio::test]
async fn through_a_bad_line_everybody_gets_the_right_bytes_at_last() {
    let seed = seed();
    let blobs: Vec<Vec<u8>> = (0..6).map(|number| noise(2_500_000, seed + number)).collect();
    let upstream = Server::start().await;
    for blob in &blobs {
        upstream.push_blob("a", blob).await;
    }
    let port = bad_line(upstream.address.to_string(), seed).await;
    let upstreams = vec![Upstream::new("hub", &format!("http://127.0.0.1:{port}"))];
    let server = Server::start_with(Options { upstreams, ..Options::default() }).await;
    let pulls = blobs.iter().flat_map(|blob| [0, 1, 1_000_000, 2_499_999].map(|start| (blob, start)));
    join_all(pulls.map(|(blob, start)| pull_at_last(&server, blob, start))).await;
    assert_eq!(kept(&server).await, 6 * 2_500_000);
    assert_eq!(server.registry.verify(false).await.expect("reads").findings, []);
    eventually("nothing is left", async || crate::store::endpoint().is_some() || uploads(server.root()) == 0).await;
}
