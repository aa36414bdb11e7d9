//! A client that writes bytes and reads bytes, so that tests see what is on the wire.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const PATIENCE: Duration = Duration::from_secs(5);

pub struct Client {
    stream: TcpStream,
    received: Vec<u8>,
}

/// An answer: status line and headers as text, and the body.
#[derive(Debug)]
pub struct Answer {
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn status(&self) -> u16 {
        self.head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status line")
    }
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Client {
        Client { stream: TcpStream::connect(address).await.expect("the gateway listens"), received: Vec::new() }
    }

    pub async fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.expect("the gateway reads");
    }

    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("the gateway reads");
    }

    /// The next `count` bytes.
    pub async fn receive_bytes(&mut self, count: usize) -> Vec<u8> {
        while self.received.len() < count {
            let mut buffer = [0; 4096];
            let read = tokio::time::timeout(PATIENCE, self.stream.read(&mut buffer)).await.expect("in time");
            let count = read.expect("readable");
            assert!(count > 0, "ended after {:?}", self.received);
            self.received.extend_from_slice(&buffer[..count]);
        }
        let rest = self.received.split_off(count);
        std::mem::replace(&mut self.received, rest)
    }

    /// Whether the gateway still takes what is sent.
    pub async fn try_send(&mut self, text: &str) -> bool {
        self.stream.write_all(text.as_bytes()).await.is_ok()
    }

    /// Reads until what was received contains `end`, and takes it up to there.
    pub async fn receive_until(&mut self, end: &str) -> String {
        let receive = async {
            loop {
                let found = self.received.windows(end.len()).position(|window| window == end.as_bytes());
                if let Some(position) = found {
                    let rest = self.received.split_off(position + end.len());
                    return std::mem::replace(&mut self.received, rest);
                }
                let mut buffer = [0; 4096];
                let count = self.stream.read(&mut buffer).await.expect("readable");
                assert!(count > 0, "ended after {:?}, before {end:?}", String::from_utf8_lossy(&self.received));
                self.received.extend_from_slice(&buffer[..count]);
            }
        };
        let bytes = tokio::time::timeout(PATIENCE, receive).await.unwrap_or_else(|_| panic!("no {end:?} in time"));
        String::from_utf8(bytes).expect("text")
    }

    pub async fn receive_head(&mut self) -> String {
        self.receive_until("\r\n\r\n").await
    }

    /// One answer with a `content-length`.
    pub async fn receive(&mut self) -> Answer {
        let head = self.receive_head().await;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).map(|length| length.parse());
        let length: usize = length.expect("a content-length").expect("a number");
        while self.received.len() < length {
            let mut buffer = [0; 4096];
            let read = tokio::time::timeout(PATIENCE, self.stream.read(&mut buffer)).await.expect("in time");
            let count = read.expect("readable");
            assert!(count > 0, "the body ended early");
            self.received.extend_from_slice(&buffer[..count]);
        }
        let rest = self.received.split_off(length);
        let body = String::from_utf8(std::mem::replace(&mut self.received, rest)).expect("text");
        Answer { head, body }
    }

    /// Whether the gateway closes the connection.
    pub async fn is_closed(&mut self) -> bool {
        let mut buffer = [0; 1];
        let read = tokio::time::timeout(PATIENCE, self.stream.read(&mut buffer)).await;
        matches!(read, Ok(Ok(0) | Err(_)))
    }
}

/// `GET path` of `host`, on a connection of its own.
pub async fn get(address: SocketAddr, host: &str, path: &str) -> Answer {
    let mut client = Client::connect(address).await;
    client.send(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
    client.receive().await
}
