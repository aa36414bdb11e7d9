//! Registries for tests: one we did not write, a line to it that breaks, and one that plays tricks.
#![allow(dead_code, reason = "not every test file needs everything")]

use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cfc_oci::{Descriptor, ImageConfig, Manifest, Platform, Reference, RootFs, media_type};
use cfc_store::{Compression, LayerWriter, Metadata, Store, TempDir};
use cfc_transfer::Options;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Debian's `docker-registry`, ended when dropped.
pub struct Peer {
    pub address: String,
    child: Child,
    _directory: TempDir,
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Peer {
    /// Starts one; `None`, having said so, when it is not installed.
    pub fn start() -> Option<Peer> {
        Peer::start_with("")
    }

    /// One that asks for the user `user` and the password `pass`.
    pub fn start_with_password() -> Option<Peer> {
        // bcrypt of "pass", cost 4.
        let hash = "$2b$04$LMTIyIlaYfo2HaSOerZ3DegtrPTqDQVv5FwMPhdDb8oXf3oXqlp7q";
        Peer::start_with(hash)
    }

    fn start_with(hash: &str) -> Option<Peer> {
        if Command::new("docker-registry").arg("--version").output().is_err() {
            println!("skipped: docker-registry is not installed");
            return None;
        }
        let directory = TempDir::new().expect("a temporary directory");
        let address = free_address().to_string();
        let passwords = directory.path().join("htpasswd");
        let mut config = format!(
            "version: 0.1\nlog: {{accesslog: {{disabled: true}}, level: error}}\nstorage:\n  filesystem: {{rootdirectory: \
             {}}}\n  delete: {{enabled: true}}\nhttp: {{addr: \"{address}\", secret: x}}\n",
            directory.path().join("data").display()
        );
        if !hash.is_empty() {
            std::fs::write(&passwords, format!("user:{hash}\n")).expect("written");
            config += &format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", passwords.display());
        }
        let path = directory.path().join("config.yml");
        std::fs::write(&path, config).expect("written");
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        let peer = Peer { address, child, _directory: directory };
        peer.wait();
        Some(peer)
    }

    fn wait(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(&self.address).is_err() {
            assert!(Instant::now() < deadline, "docker-registry does not listen on {}", self.address);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn free_address() -> SocketAddr {
    let listener = StdListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address")
}

/// A line to `target` that breaks once, after as many bytes as wanted went one way.
pub struct BreakingLine {
    pub address: String,
    breaks: Arc<AtomicUsize>,
}

impl BreakingLine {
    /// Breaks when `up` bytes went to the registry or `down` bytes came from it.
    pub async fn start(target: &str, up: i64, down: i64) -> BreakingLine {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let breaks = Arc::new(AtomicUsize::new(0));
        let line = BreakingLine { address, breaks: breaks.clone() };
        let (target, up, down) = (target.to_string(), Arc::new(AtomicI64::new(up)), Arc::new(AtomicI64::new(down)));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&target).await.expect("the registry listens");
                let (client_read, client_write) = client.into_split();
                let (server_read, server_write) = server.into_split();
                let (up, down, breaks) = (up.clone(), down.clone(), breaks.clone());
                tokio::spawn(async move {
                    let broken = tokio::select! {
                        broken = copy(client_read, server_write, &up) => broken,
                        broken = copy(server_read, client_write, &down) => broken,
                    };
                    breaks.fetch_add(usize::from(broken), Ordering::SeqCst);
                });
            }
        });
        line
    }

    /// How often it broke.
    pub fn breaks(&self) -> usize {
        self.breaks.load(Ordering::SeqCst)
    }
}

/// Copies until the end, or until `budget` is used up for the first time; returns whether it was that.
async fn copy(mut from: impl AsyncReadExt + Unpin, mut to: impl AsyncWriteExt + Unpin, budget: &AtomicI64) -> bool {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let Ok(count @ 1..) = from.read(&mut buffer).await else { return false };
        let before = budget.fetch_sub(count as i64, Ordering::SeqCst);
        if before > 0 && before <= count as i64 {
            return true;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return false;
        }
    }
}

/// A request that the scripted registry got: its first line, and its headers in one text.
pub struct Request {
    pub line: String,
    pub headers: String,
}

/// The first byte of a record of TLS with part of a handshake (RFC 8446, section 5.1).
const HANDSHAKE: u8 = 22;

/// A registry without TLS that answers every request with what `answer` says: status, headers, body. The beginning of TLS,
/// with which a client finds out what it speaks, is no request.
pub async fn scripted(answer: impl Fn(&str, &Request) -> (u16, String, Vec<u8>) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let own = address.clone();
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (answer, own) = (answer.clone(), own.clone());
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else { return };
                    head.push(byte);
                    if head == [HANDSHAKE] {
                        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n").await;
                        return;
                    }
                }
                let text = String::from_utf8_lossy(&head).into_owned();
                let (line, headers) = text.split_once("\r\n").expect("a request has lines");
                let request = Request { line: line.to_string(), headers: headers.to_lowercase() };
                let (status, headers, body) = answer(&own, &request);
                let length = if request.line.starts_with("HEAD") {
                    String::new()
                } else {
                    format!("content-length: {}\r\n", body.len())
                };
                let head = format!("HTTP/1.1 {status} x\r\nconnection: close\r\n{length}{headers}\r\n");
                let _ = stream.write_all(head.as_bytes()).await;
                let _ = stream.write_all(&body).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    address
}

/// A store in a temporary directory.
pub fn temporary_store() -> (TempDir, Store) {
    let directory = TempDir::new().expect("a temporary directory");
    let store = Store::open(&directory.path().join("store")).expect("a store");
    (directory, store)
}

/// An image with one layer per entry of `sizes`, of bytes that do not compress.
pub fn image(store: &Store, sizes: &[usize]) -> Descriptor {
    let mut diff_ids = Vec::new();
    let mut layers = Vec::new();
    for (number, size) in sizes.iter().enumerate() {
        let mut writer = LayerWriter::new(store.layer_writer(Compression::Gzip).expect("a writer"));
        let content = noise(*size, number as u64 + 1);
        let path = format!("file-{number}");
        let metadata = Metadata::root(0o644, 0);
        writer.file(Path::new(&path), &metadata, *size as u64, &mut content.as_slice()).expect("written");
        let blob = writer.finish().expect("ended").finish().expect("stored");
        diff_ids.push(blob.diff_id);
        layers.push(blob.descriptor);
    }
    let platform = Platform::host();
    let config = ImageConfig {
        architecture: platform.architecture,
        os: platform.os,
        rootfs: RootFs { diff_ids, ..RootFs::default() },
        ..ImageConfig::default()
    };
    let config = put(store, media_type::CONFIG, &config.to_bytes());
    put(store, media_type::MANIFEST, &Manifest::new(config, layers).to_bytes())
}

/// Stores `bytes` and describes them.
pub fn put(store: &Store, media_type: &str, bytes: &[u8]) -> Descriptor {
    Descriptor::new(media_type, store.blobs().put(bytes).expect("stored"), bytes.len() as u64)
}

fn noise(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// Options that do not read this machine's configuration and do not wait long.
pub fn options() -> Options {
    Options {
        credentials: cfc_transfer::Credentials::Anonymous,
        backoff: Duration::from_millis(5),
        ..Options::default()
    }
}

pub fn reference(text: &str) -> Reference {
    Reference::parse(text).expect(text)
}
