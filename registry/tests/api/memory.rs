//! What uploads to a bucket take of the registry's memory, and that nobody keeps it from others.

use std::time::Duration;

use cfc_oci::Digest;
use cfc_registry::{BucketLocation, Limits, Options};
use futures::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::bucket::{patch, store, through};
use crate::faults::{Manners, Proxy};
use crate::hand::NEVER;
use crate::harness::{Server, expect, header, noise, send};
use crate::process::Process;
use crate::store::place;

const MIB: usize = 1024 * 1024;

/// Nobody is let go while a test lasts.
fn options(upload_memory: usize) -> Options {
    let limits = Limits { idle: Duration::from_secs(3600), ..Limits::default() };
    Options { upload_memory: upload_memory as u64, limits, ..Options::default() }
}

/// So many MiB that are no other seed's.
fn content(mib: usize, seed: u64) -> Vec<u8> {
    let mut content = noise(MIB, 1).repeat(mib);
    content[..8].copy_from_slice(&seed.to_le_bytes());
    content
}

async fn expect_blob(server: &Server, content: &[u8]) {
    let pulled = server.get(&format!("/v2/a/blobs/{}", Digest::of(content))).await;
    expect(&pulled, 200);
    assert!(pulled.bytes().await.expect("body") == content);
}

/// Has sent the head of a request, and the first bytes of `length`.
async fn begin(server: &Server, upload: &str, length: u64, part: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(server.address).await.expect("connects");
    let head = format!("PATCH {upload} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("sends");
    stream.write_all(part).await.expect("sends");
    stream
}

async fn eventually(what: &str, is_so: impl AsyncFn() -> bool) {
    let wait = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(NEVER, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn many_large_uploads_at_once_take_no_more_memory_than_there_is_for_them() {
    const UPLOADS: u64 = 12;
    const EACH_MIB: usize = 24;
    let Some((endpoint, _store)) = store().await else { return };
    let directory = tempfile::TempDir::new().expect("temporary directory");
    let upload_memory = 32 * MIB;
    let process = Process::start_with_upload_memory(&place(&endpoint), upload_memory, directory.path()).await;
    let before = process.peak_memory();
    let push = async |number: u64| {
        let content = content(EACH_MIB, number);
        let digest = Digest::of(&content);
        if number.is_multiple_of(2) {
            let path = format!("/v2/a/blobs/uploads/?digest={digest}");
            expect(&process.send("POST", &path, &[], &content).await, 201);
        } else {
            // A stream, as Docker's, whose length nobody knows.
            let upload = header(&process.send("POST", "/v2/a/blobs/uploads/", &[], b"").await, "location");
            let frames = (0..EACH_MIB).map(|mib| Ok::<_, std::io::Error>(content[mib * MIB..][..MIB].to_vec()));
            let body = reqwest::Body::wrap_stream(futures::stream::iter(frames.collect::<Vec<_>>()));
            expect(&send(process.request("PATCH", &upload).body(body)).await, 202);
            expect(&process.send("PUT", &format!("{upload}?digest={digest}"), &[], b"").await, 201);
        }
        digest
    };
    for digest in join_all((0..UPLOADS).map(push)).await {
        let looked = process.send("HEAD", &format!("/v2/a/blobs/{digest}"), &[], b"").await;
        expect(&looked, 200);
        assert_eq!(header(&looked, "content-length"), (EACH_MIB * MIB).to_string());
    }
    // Besides the parts, each request has some frames.
    let (taken, most) = (process.peak_memory() - before, upload_memory + UPLOADS as usize * 8 * MIB);
    eprintln!("{} MiB", taken / MIB);
    assert!(taken < most, "{} MiB of {} MiB", taken / MIB, most / MIB);
    assert!(most < UPLOADS as usize * EACH_MIB * MIB / 2, "it says nothing");
}

#[tokio::test]
async fn clients_that_are_slow_keep_memory_from_nobody() {
    let Some((endpoint, _store)) = store().await else { return };
    let server = Server::start_on(&place(&endpoint), options(32 * MIB)).await;
    let slow: Vec<Vec<u8>> = (0..6).map(|number| content(14, number)).collect();
    let mut uploads = Vec::new();
    for content in &slow {
        let upload = server.begin("a").await;
        let stream = begin(&server, &upload, content.len() as u64, &content[..7 * MIB]).await;
        uploads.push((upload, stream));
    }
    let mut promises = Vec::new();
    for _ in 0..6 {
        let upload = server.begin("a").await;
        promises.push(begin(&server, &upload, 600 << 30, b"x").await);
    }
    let fast = content(24, 100);
    let pushed = tokio::time::timeout(NEVER, server.push_blob("a", &fast)).await;
    pushed.expect("it has its turn");
    expect_blob(&server, &fast).await;
    // None of them was let go, and nothing of what they sent is lost.
    for ((upload, mut stream), content) in uploads.into_iter().zip(&slow) {
        stream.write_all(&content[7 * MIB..]).await.expect("sends");
        let mut answer = String::new();
        let read = tokio::time::timeout(NEVER, stream.read_to_string(&mut answer)).await;
        read.expect("in time").expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
        let digest = Digest::of(content);
        expect(&send(server.request("PUT", &format!("{upload}?digest={digest}"))).await, 201);
        expect_blob(&server, content).await;
    }
}

/// Parts of which less than two have room: whoever waits for more lets others have what he has.
#[tokio::test]
async fn uploads_whose_parts_take_all_memory_go_on_one_after_the_other() {
    let Some((endpoint, _store)) = store().await else { return };
    let place = place(&endpoint);
    let server = Server::start_on(&place, options(24 * MIB)).await;
    let large: Vec<Vec<u8>> = (0..3).map(|number| content(30, number)).collect();
    let push = async |content: &Vec<u8>| {
        let upload = server.begin("a").await;
        // Parts of 21 MiB, of which the second breaks off.
        let stream = begin(&server, &upload, 100 << 30, &content[..26 * MIB]).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop(stream);
        let kept = async || header(&server.get(&upload).await, "range") == format!("0-{}", 26 * MIB - 1);
        eventually("what was sent is kept", kept).await;
        expect(&patch(&server, &upload, 26 * MIB, &content[26 * MIB..]).await, 202);
        let path = format!("{upload}?digest={}", Digest::of(content));
        expect(&send(server.request("PUT", &path)).await, 201);
    };
    join_all(large.iter().map(push)).await;
    for content in &large {
        expect_blob(&server, content).await;
    }
}

/// The registry waits for the first part, whose place in the upload is before all others.
#[tokio::test]
async fn a_client_that_leaves_while_a_part_is_on_its_way_can_go_on() {
    let Some((endpoint, _store)) = store().await else { return };
    let place: BucketLocation = place(&endpoint);
    let proxy = Proxy::start(endpoint.trim_start_matches("http://"), Manners::default(), 1).await;
    let server = Server::start_on(&through(&proxy, &place), Options::default()).await;
    let content = content(40, 1);
    let upload = server.begin("a").await;
    let mut first = proxy.hold("PUT partNumber=1&");
    // All of a request, the end of which waits for the first part.
    let stream = begin(&server, &upload, 34 * MIB as u64, &content[..34 * MIB]).await;
    first.arrives().await;
    eventually("two others are there", async || proxy.parts().len() == 2).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    drop(stream);
    tokio::time::sleep(Duration::from_millis(300)).await;
    drop(first);
    let mut kept = 0;
    eventually("something is kept", async || header(&server.get(&upload).await, "range") != "0-0").await;
    while kept < content.len() {
        let range = header(&server.get(&upload).await, "range");
        kept = range.trim_start_matches("0-").parse::<usize>().expect("a number") + 1;
        if kept < content.len() {
            let end = content.len().min(kept + 10 * MIB);
            let sent = patch(&server, &upload, kept, &content[kept..end]).await.status();
            assert!([202, 416, 429].contains(&sent.as_u16()), "{sent}");
        }
    }
    expect(&send(server.request("PUT", &format!("{upload}?digest={}", Digest::of(&content)))).await, 201);
    expect_blob(&server, &content).await;
}
