//! Clients that begin with HTTP/2 without asking: they are told, in HTTP/2, to speak HTTP/1.1.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

/// How every connection of HTTP/2 begins (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const REASON: &str = "cfc: this gateway speaks HTTP/1.1";
const HTTP_1_1_REQUIRED: u8 = 0xd;
/// A preface comes in one piece; how often the rest of one is looked for that does not.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a client that was told has to go.
const FAREWELL: Duration = Duration::from_secs(1);

/// Whether the client, who has said something, begins with HTTP/2. Nothing is read of it.
pub(crate) async fn is_http2(stream: &TcpStream) -> bool {
    let deadline = Instant::now() + PATIENCE;
    let mut beginning = [0; PREFACE.len()];
    loop {
        let count = tokio::select! {
            biased;
            peeked = stream.peek(&mut beginning) => peeked.unwrap_or(0),
            // Nothing is there after all.
            () = std::future::ready(()) => 0,
        };
        if count == 0 || beginning[..count] != PREFACE[..count] {
            return false;
        }
        if count == PREFACE.len() || Instant::now() >= deadline {
            return count == PREFACE.len();
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// Answers with settings, which come first, and the end: nothing was done, and HTTP/1.1 is required.
pub(crate) async fn decline(mut stream: TcpStream) {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let goaway = [0, 0, 8 + REASON.len() as u8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, HTTP_1_1_REQUIRED];
    let answer = [&SETTINGS[..], &goaway, REASON.as_bytes()].concat();
    if stream.write_all(&answer).await.is_ok() && stream.shutdown().await.is_ok() {
        // What the client has sent is read, so that the answer is not lost by a reset.
        let _ = tokio::time::timeout(FAREWELL, tokio::io::copy(&mut stream, &mut tokio::io::sink())).await;
    }
}
