//! [`Client`]: writes bytes to a gateway and reads what comes back, as it is on the wire.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// Long enough for a busy machine; nothing here is measured.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Client {
    reader: BufReader<TcpStream>,
}

/// An answer.
pub struct Answer {
    pub status: u16,
    /// Status line and headers, names in lower case.
    pub head: String,
    pub body: Vec<u8>,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = self.body.len().min(1_000);
        write!(formatter, "{}\n\n{}", self.head, String::from_utf8_lossy(&self.body[..shown]))
    }
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }
}

/// A header of a head whose names are in lower case.
pub fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

impl Client {
    pub fn connect(gateway: SocketAddr) -> Client {
        let stream = TcpStream::connect(gateway).expect("the gateway listens");
        stream.set_nodelay(true).expect("sets");
        stream.set_read_timeout(Some(PATIENCE)).expect("sets");
        stream.set_write_timeout(Some(PATIENCE)).expect("sets");
        Client { reader: BufReader::with_capacity(64 << 10, stream) }
    }

    pub fn stream(&self) -> &TcpStream {
        self.reader.get_ref()
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.reader.get_mut().write_all(bytes.as_ref()).expect("the gateway reads");
    }

    pub fn end(&self) {
        self.stream().shutdown(Shutdown::Write).expect("half-closes");
    }

    /// Sends a request; `headers` are whole lines.
    pub fn request(&mut self, method: &str, path: &str, headers: &str, body: &[u8]) {
        let head = format!("{method} {path} HTTP/1.1\r\nHost: app.localhost\r\n{headers}\r\n");
        self.send([head.as_bytes(), body].concat());
    }

    pub fn get(&mut self, path: &str) -> Answer {
        self.request("GET", path, "", b"");
        self.answer()
    }

    pub fn post(&mut self, path: &str, headers: &str, body: &[u8]) -> Answer {
        self.request("POST", path, &format!("{headers}Content-Length: {}\r\n", body.len()), body);
        self.answer()
    }

    /// A line without its end; empty at the connection's end.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).expect("is answered");
        line.trim_end().to_string()
    }

    /// Status line and headers of what comes next.
    pub fn head(&mut self) -> String {
        let mut head = self.line();
        assert!(!head.is_empty(), "the connection ended");
        loop {
            let line = self.line();
            if line.is_empty() {
                return head;
            }
            let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("a header in {head:?}: {line:?}"));
            head.push_str(&format!("\n{}:{value}", name.to_ascii_lowercase()));
        }
    }

    pub fn answer(&mut self) -> Answer {
        self.answer_to("GET")
    }

    /// The answer to a request of `method`, with the whole body.
    pub fn answer_to(&mut self, method: &str) -> Answer {
        let head = self.head();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status line");
        let has_body = method != "HEAD" && status >= 200 && status != 204 && status != 304;
        let length = header(&head, "content-length").map(|length| length.parse().expect("a length"));
        let body = match length {
            _ if !has_body => Vec::new(),
            Some(length) => self.take(length),
            None if header(&head, "transfer-encoding") == Some("chunked") => self.chunks(),
            None => self.rest(),
        };
        Answer { status, head, body }
    }

    pub fn take(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.reader.read_exact(&mut bytes).expect("goes on");
        bytes
    }

    /// One chunk of a body; empty at the body's end, trailers included.
    pub fn chunk(&mut self) -> Vec<u8> {
        let line = self.line();
        let length = usize::from_str_radix(&line, 16).unwrap_or_else(|_| panic!("a chunk's length: {line:?}"));
        let chunk = self.take(length);
        if length > 0 {
            assert_eq!(self.line(), "");
        } else {
            while !self.line().is_empty() {}
        }
        chunk
    }

    fn chunks(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let chunk = self.chunk();
            if chunk.is_empty() {
                return body;
            }
            body.extend(chunk);
        }
    }

    /// What comes until the connection ends, or breaks.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let _ = self.reader.read_to_end(&mut bytes);
        bytes
    }
}
