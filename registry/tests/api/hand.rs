//! An upstream whose answers a test writes by hand, so that it decides when each byte comes.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// Far longer than anything takes that comes at all.
pub const NEVER: Duration = Duration::from_secs(120);

/// An upstream on loopback. Ends with the test.
pub struct Hand {
    pub port: u16,
    requests: mpsc::UnboundedReceiver<Request>,
}

/// A request that waits for its answer. Its connection ends when this is dropped.
pub struct Request {
    /// Its first line and headers, in small letters.
    pub head: String,
    stream: TcpStream,
}

impl Hand {
    pub async fn start() -> Hand {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback port");
        let port = listener.local_addr().expect("bound").port();
        let (sender, requests) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let sender = sender.clone();
                tokio::spawn(async move {
                    if let Some(request) = read(stream).await {
                        let _ = sender.send(request);
                    }
                });
            }
        });
        Hand { port, requests }
    }

    /// The next request, which begins with `method`.
    pub async fn asked(&mut self, method: &str) -> Request {
        let request = tokio::time::timeout(NEVER, self.requests.recv()).await;
        let request = request.expect("it is asked").expect("it listens");
        assert!(request.head.starts_with(&method.to_lowercase()), "expected {method}, found {}", request.head);
        request
    }

    /// Whether nothing was asked that no test has answered.
    pub fn is_left_alone(&mut self) -> bool {
        self.requests.try_recv().is_err()
    }
}

/// Connects a client with a server, until that has said so many bytes.
pub async fn pass_on(mut client: TcpStream, server: String, limit: u64) {
    let mut server = TcpStream::connect(server).await.expect("connects");
    let ((mut asks, mut hears), (says, mut listens)) = (client.split(), server.split());
    let mut says = says.take(limit);
    tokio::select! {
        _ = copy(&mut asks, &mut listens) => {}
        _ = copy(&mut says, &mut hears) => {}
    }
}

async fn read(mut stream: TcpStream) -> Option<Request> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(Request { head: String::from_utf8_lossy(&head).to_lowercase(), stream })
}

impl Request {
    /// Sends the head of the answer, `200 OK` for example.
    pub async fn begin(&mut self, status: &str, headers: &[(&str, String)]) {
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        self.send(format!("HTTP/1.1 {status}\r\nconnection: close\r\n{headers}\r\n").as_bytes()).await;
    }

    /// Sends the head of a blob of so many bytes.
    pub async fn begin_blob(&mut self, length: usize) {
        self.begin("200 OK", &[("content-length", length.to_string())]).await;
    }

    /// Sends the head of the rest of a blob from `start` on, which was asked for.
    pub async fn begin_rest(&mut self, start: usize, length: usize) {
        assert!(self.head.contains(&format!("\r\nrange: bytes={start}-\r\n")), "{}", self.head);
        let range = format!("bytes {start}-{}/{length}", length - 1);
        let headers = [("content-length", (length - start).to_string()), ("content-range", range)];
        self.begin("206 Partial Content", &headers).await;
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        tokio::time::timeout(NEVER, self.stream.write_all(bytes)).await.expect("it is taken").expect("sends");
    }

    /// Sends what is taken of it.
    pub async fn try_send(&mut self, bytes: &[u8]) {
        let _ = tokio::time::timeout(NEVER, self.stream.write_all(bytes)).await.expect("it is taken, or refused");
    }
}
