//! An upload whose connection breaks goes on where it was, at a registry that keeps what it got.
#![allow(clippy::print_stdout, reason = "a test says why it is skipped")]

mod peers;

use std::sync::{Arc, Mutex};

use cfc_oci::Digest;
use cfc_transfer::{NoProgress, push};
use peers::{image, options, reference, temporary_store};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// Bytes of the first request for the layer that the registry keeps before it hangs up.
const KEPT_BYTES: usize = 3_000_000;

/// What the registry has seen of the one large upload.
#[derive(Default)]
struct Seen {
    content: Vec<u8>,
    ranges: Vec<String>,
}

/// Answers one connection's requests; hangs up in the middle of the first large body.
async fn serve(stream: TcpStream, seen: Arc<Mutex<Seen>>) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.ok()?);
        }
        let head = String::from_utf8_lossy(&head).to_lowercase();
        let header =
            |name: &str| head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")).map(str::to_string));
        let length: usize = header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        let is_large = length > 100_000;
        let breaks = is_large && seen.lock().expect("not poisoned").ranges.is_empty();
        if is_large {
            seen.lock().expect("not poisoned").ranges.push(header("content-range").unwrap_or_default());
        }
        let mut body = vec![0; if breaks { KEPT_BYTES } else { length }];
        stream.read_exact(&mut body).await.ok()?;
        if is_large {
            seen.lock().expect("not poisoned").content.extend_from_slice(&body);
        }
        if breaks {
            return None;
        }
        let kept = seen.lock().expect("not poisoned").content.len();
        let answer = match head.split(' ').next().unwrap_or_default() {
            "head" => "404 Not Found\r\n".to_string(),
            "post" => "202 Accepted\r\nlocation: /v2/app/blobs/uploads/one\r\n".to_string(),
            "patch" => "202 Accepted\r\nlocation: /v2/app/blobs/uploads/one\r\n".to_string(),
            "get" => format!("204 No Content\r\nlocation: /v2/app/blobs/uploads/one\r\nrange: 0-{}\r\n", kept - 1),
            _ => "201 Created\r\n".to_string(),
        };
        let length = if answer.starts_with("204") { "" } else { "content-length: 0\r\n" };
        stream.write_all(format!("HTTP/1.1 {answer}{length}\r\n").as_bytes()).await.ok()?;
    }
}

#[tokio::test]
async fn an_interrupted_upload_goes_on_where_it_was() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let seen = Arc::new(Mutex::new(Seen::default()));
    let shared = seen.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, shared.clone()));
        }
    });
    let (_directory, store) = temporary_store();
    let pushed = image(&store, &[9_000_000]);
    let name = reference(&format!("{address}/app:v1"));
    push(&store, &pushed, &name, &options(), &NoProgress).await.expect("pushed");
    let layer = store.images().load(&pushed).expect("loaded").manifest.layers[0].clone();
    let seen = seen.lock().expect("not poisoned");
    assert_eq!(seen.ranges, [String::new(), format!("{KEPT_BYTES}-{}", layer.size - 1)]);
    assert_eq!(Digest::of(&seen.content), layer.digest);
}
