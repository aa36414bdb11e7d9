//! One connection of a container, carried through workerd.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use cfc_egress::{DNS_PORT, answer_stream, is_stand_in};
use cfc_runtime::Kind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::Egress;

const HTTP_PORT: u16 = 80;
/// How long a client that says nothing is waited for, which is one whose server speaks first.
const SPEECH_PATIENCE: Duration = Duration::from_secs(2);
/// workerd answers when it is connected to where the connection goes.
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);
const HEAD_BYTES_MAX: usize = 16 << 10;
const HOST_NAME_BYTES_MAX: usize = 255;

const STATUS_HTTP: u16 = 200;
const STATUS_PASS: u16 = 202;

/// Connects the connection to where it goes, and gives it to a relay.
pub(super) async fn carry(mut stream: TcpStream, destination: SocketAddr, egress: &Egress) {
    if destination.port() == DNS_PORT {
        return answer_stream(stream, egress).await;
    }
    let instance = &egress.instance;
    let ip = destination.ip();
    let refusal = if is_stand_in(ip) { None } else { egress.policy.refusal(ip) };
    if let Some(reason) = refusal {
        tracing::info!(instance, %destination, reason, "refused a connection of a container");
        return reset(&stream);
    }
    let carried = match offer(&mut stream, destination, egress).await {
        Ok(workerd) => egress.runtime.carry(instance, Kind::Egress, workerd, stream),
        Err(error) => {
            reset(&stream);
            Err(error)
        }
    };
    if let Err(error) = carried {
        tracing::debug!(instance, %destination, %error, "a connection of a container did not come about");
    }
}

/// Offers the connection to workerd, which connects it. What both have said until then has been passed on.
async fn offer(stream: &mut TcpStream, destination: SocketAddr, egress: &Egress) -> io::Result<TcpStream> {
    let no_workerd = || io::Error::other("no workerd has said where it takes connections");
    let _ = stream.set_nodelay(true);
    let mut said = Vec::new();
    let host = if destination.port() == HTTP_PORT { host_name(stream, &mut said).await? } else { None };
    let settings = egress.settings().await.ok_or_else(no_workerd)?;
    let port = settings.port.ok_or_else(no_workerd)?;
    let socket = TcpSocket::new_v4()?;
    cfc_runtime::unpaced(&socket);
    let mut workerd = socket.connect((Ipv4Addr::LOCALHOST, port).into()).await?;
    let _ = workerd.set_nodelay(true);
    workerd.write_all(request(destination, stream.peer_addr()?, host.as_deref()).as_bytes()).await?;
    let (status, answered) =
        tokio::time::timeout(ANSWER_PATIENCE, read_head(&mut workerd)).await.map_err(io::Error::from)??;
    let goes_on = status == STATUS_HTTP || (status == STATUS_PASS && !is_stand_in(destination.ip()));
    if !goes_on {
        return Err(io::Error::other(format!("workerd answers {status}")));
    }
    if status == STATUS_PASS && settings.connects_here() {
        let connecting = tokio::time::timeout(ANSWER_PATIENCE, TcpStream::connect(destination));
        workerd = connecting.await.map_err(io::Error::from)??;
        let _ = workerd.set_nodelay(true);
        workerd.write_all(&said).await?;
        return Ok(workerd);
    }
    workerd.write_all(&said).await?;
    stream.write_all(&answered).await?;
    Ok(workerd)
}

fn request(destination: SocketAddr, source: SocketAddr, host: Option<&str>) -> String {
    let source = source.ip().to_canonical();
    let host = host.map(|host| format!("X-Hostname: {host}\r\n")).unwrap_or_default();
    format!(
        "CONNECT {destination} HTTP/1.1\r\nHost: {destination}\r\nUser-Agent: proxy-everything/0.0.1/{source}\r\n\
         Connection: close\r\nX-Forwarded-For: {source}\r\nX-Proto: tcp\r\n{host}\r\n"
    )
}

/// The status of workerd's answer, and what came behind it.
async fn read_head(workerd: &mut TcpStream) -> io::Result<(u16, Vec<u8>)> {
    let mut bytes = Vec::with_capacity(1024);
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            let head = String::from_utf8_lossy(&bytes);
            let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
            return status.map(|status| (status, rest)).ok_or_else(|| io::Error::other("workerd speaks no HTTP"));
        }
        if bytes.len() > HEAD_BYTES_MAX || workerd.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// The host that an HTTP client asks for. What was read for that is in `said`.
async fn host_name(stream: &mut TcpStream, said: &mut Vec<u8>) -> io::Result<Option<String>> {
    let deadline = tokio::time::Instant::now() + SPEECH_PATIENCE;
    loop {
        if let Some(host) = host_in(said) {
            return Ok(host);
        }
        let Ok(read) = tokio::time::timeout_at(deadline, stream.read_buf(said)).await else { return Ok(None) };
        if read? == 0 {
            return Ok(None);
        }
    }
}

/// The host in the beginning of a request: none yet, none at all, or one.
fn host_in(said: &[u8]) -> Option<Option<String>> {
    let is_http = said.first().is_none_or(u8::is_ascii_uppercase);
    if !is_http || said.len() > HEAD_BYTES_MAX {
        return Some(None);
    }
    let complete = said.iter().rposition(|byte| *byte == b'\n').map_or(&[][..], |end| &said[..end]);
    let mut lines = complete.split(|byte| *byte == b'\n').skip(1).map(|line| line.trim_ascii_end());
    lines.find_map(|line| {
        if line.is_empty() {
            return Some(None);
        }
        let (name, value) = line.split_at_checked(b"host:".len())?;
        name.eq_ignore_ascii_case(b"host:").then(|| plain_host(value.trim_ascii()))
    })
}

/// The name without a port; nothing that could mean something else in our own request.
fn plain_host(value: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(value).ok()?;
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let host = text.rsplit_once(':').filter(|(_, port)| is_port(port)).map_or(text, |(host, _)| host);
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let is_name = !host.is_empty() && host.len() <= HOST_NAME_BYTES_MAX && host.bytes().all(is_plain);
    is_name.then(|| host.to_ascii_lowercase())
}

/// Lets the other side see a reset when the connection is dropped.
pub(super) fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}

#[cfg(test)]
mod tests {
    use super::host_in;

    #[test]
    fn the_host_is_found_as_soon_as_its_line_is_whole() {
        let found = |text: &str| Some(Some(text.to_string()));
        assert_eq!(host_in(b""), None);
        assert_eq!(host_in(b"GET / HTTP/1.1\r\nHost: exam"), None);
        assert_eq!(host_in(b"GET / HTTP/1.1\r\nHost: Example.com\r\n"), found("example.com"));
        assert_eq!(host_in(b"GET / HTTP/1.1\r\nA: b\r\nhOST:x.test:80\r\n\r\n"), found("x.test"));
        for none in ["\u{16}\u{3}\u{1}", "GET / HTTP/1.0\r\n\r\n", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n"] {
            assert_eq!(host_in(none.as_bytes()), Some(None), "{none:?}");
        }
        assert_eq!(host_in(b"GET / HTTP/1.1\r\nHost: a\rX-Proto: b\r\n"), Some(None));
    }
}
