//! A raw HTTP client: it sends what workerd sends, byte for byte.

use std::path::Path;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

/// Sends one request to the engine on a connection of its own. A request without a body has an empty chunked one, as
/// workerd's have.
pub async fn request(socket: &Path, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
    let mut stream = UnixStream::connect(socket).await.expect("the engine listens");
    let rest = match body {
        Some(body) => {
            let body = body.to_string();
            format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        }
        None if method == "GET" => "\r\n".to_string(),
        None => "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_string(),
    };
    let text = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{rest}");
    stream.write_all(text.as_bytes()).await.expect("the engine reads");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("the engine answers");
    let (status, body) = split(&answer);
    (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
}

/// Sends one request to a sidecar; the answer as status and text.
pub async fn sidecar(port: u16, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("the sidecar listens");
    let length = body.len();
    let text =
        format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(text.as_bytes()).await.expect("the sidecar reads");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("the sidecar answers");
    split(&answer)
}

/// Asks a sidecar for a tunnel to `target` of its container. On 200 the stream is the tunnel.
pub async fn tunnel(port: u16, target: u16) -> Result<TcpStream, (u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("the sidecar listens");
    let text = format!(
        "CONNECT 127.0.0.1:{target} HTTP/1.1\r\nHost: 127.0.0.1:{target}\r\nX-Dst-Addr: 127.0.0.1:{target}\r\n\r\n"
    );
    stream.write_all(text.as_bytes()).await.expect("the sidecar reads");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("the sidecar answers"));
    }
    let (status, _) = split(&head);
    if status == 200 {
        return Ok(stream);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).await.expect("the sidecar says why");
    Err((status, String::from_utf8_lossy(&body).into_owned()))
}

/// One `GET` through a tunnel, with the sending half closed at once, as a client that has nothing more to say does.
pub async fn get(mut tunnel: TcpStream, path: &str) -> String {
    tunnel.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.expect("the app reads");
    tunnel.shutdown().await.expect("half closes");
    let mut answer = Vec::new();
    tunnel.read_to_end(&mut answer).await.expect("the app answers");
    split(&answer).1
}

fn split(answer: &[u8]) -> (u16, String) {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let is_chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if is_chunked { without_chunks(body) } else { body.to_string() };
    (status.unwrap_or_else(|| panic!("no status in {head:?}")), body)
}

/// The text in a chunked body.
fn without_chunks(mut body: &str) -> String {
    let mut text = String::new();
    while let Some((length, rest)) = body.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).expect("a chunk has a length");
        text.push_str(&rest[..length]);
        body = rest[length..].trim_start_matches("\r\n");
    }
    text
}
