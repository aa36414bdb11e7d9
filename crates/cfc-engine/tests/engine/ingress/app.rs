//! The app in the container's network: HTTP by hand, so that a test says what is on the wire.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use super::websocket;

/// The role of the process.
pub const APP: &str = "--app";

/// What one connection tells another: words, each said once.
static SAID: (Mutex<Vec<String>>, Condvar) = (Mutex::new(Vec::new()), Condvar::new());

pub fn be_app() -> ! {
    let listener = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).expect("a listener");
    for stream in TcpListener::from(listener).incoming() {
        let stream = stream.expect("accepts");
        std::thread::spawn(move || serve(stream));
    }
    std::process::exit(0)
}

pub fn say(word: &str) {
    SAID.0.lock().expect("whole").push(word.to_string());
    SAID.1.notify_all();
}

/// Whether `word` is said in time.
fn hears(word: &str) -> bool {
    let said = SAID.0.lock().expect("whole");
    let waited = SAID.1.wait_timeout_while(said, Duration::from_secs(20), |said| !said.iter().any(|w| w == word));
    waited.is_ok_and(|(_, timeout)| !timeout.timed_out())
}

struct Request {
    /// Method, path, protocol.
    line: String,
    /// Whole lines.
    headers: String,
}

impl Request {
    fn read(reader: &mut impl BufRead) -> Option<Request> {
        let (mut line, mut headers) = (String::new(), String::new());
        (reader.read_line(&mut line).ok()? > 0).then_some(())?;
        if !line.ends_with("HTTP/1.1\r\n") {
            // No HTTP: the word `raw` on a connection of its own.
            return Some(Request { line, headers });
        }
        loop {
            let before = headers.len();
            (reader.read_line(&mut headers).ok()? > 0).then_some(())?;
            if headers.len() == before + 2 {
                headers.truncate(before);
                return Some(Request { line, headers });
            }
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }
}

/// Reads a request's body; what each piece becomes is up to `each`.
fn read_body(request: &Request, reader: &mut BufReader<TcpStream>, mut each: impl FnMut(&[u8])) -> Option<()> {
    let mut pass = |reader: &mut BufReader<TcpStream>, mut left: usize| {
        while left > 0 {
            let piece = reader.fill_buf().ok()?;
            let count = piece.len().min(left);
            (count > 0).then_some(())?;
            each(&piece[..count]);
            reader.consume(count);
            left -= count;
        }
        Some(())
    };
    if request.header("transfer-encoding").is_none() {
        let length = request.header("content-length").map_or(Some(0), |text| text.parse().ok())?;
        return pass(reader, length);
    }
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let length = usize::from_str_radix(line.trim(), 16).ok()?;
        pass(reader, length)?;
        reader.read_line(&mut line).ok()?;
        if length == 0 {
            return Some(());
        }
    }
}

fn serve(mut stream: TcpStream) -> Option<()> {
    let _ = stream.set_nodelay(true);
    let mut reader = BufReader::with_capacity(64 << 10, stream.try_clone().ok()?);
    loop {
        let request = Request::read(&mut reader)?;
        let target = request.line.split(' ').nth(1).unwrap_or_default().to_string();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let mut say_all = |text: &str| stream.write_all(text.as_bytes()).ok();
        match path {
            "/echo" => {
                let mut body = Vec::new();
                read_body(&request, &mut reader, |piece| body.extend_from_slice(piece))?;
                let text = format!("{}{}\r\n{}", request.line, request.headers, String::from_utf8_lossy(&body));
                say_all(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nX-App: yes\r\n\r\n", text.len()))?;
                if !request.line.starts_with("HEAD") {
                    say_all(&text)?;
                }
            }
            "/chunked" => say_all(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                 3\r\none\r\n3\r\ntwo\r\n5\r\nthree\r\n0\r\n\r\n",
            )?,
            "/trailers" => {
                say_all(
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Late\r\nConnection: close\r\n\r\n\
                     5\r\nwhole\r\n0\r\nX-Late: yes\r\n\r\n",
                )?;
                return stream.shutdown(Shutdown::Both).ok();
            }
            "/hints" => say_all(
                "HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n\
                 HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfinal",
            )?,
            "/continue" => {
                if request.header("expect").is_some() {
                    say_all("HTTP/1.1 100 Continue\r\n\r\n")?;
                }
                let mut length = 0;
                read_body(&request, &mut reader, |piece| length += piece.len())?;
                let text = length.to_string();
                say_all(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()))?;
            }
            "/status" => say_all(&format!("HTTP/1.1 {query} Whatever\r\nETag: \"x\"\r\n\r\n"))?,
            "/fixed" => {
                let body = if request.line.starts_with("HEAD") { "" } else { "hello" };
                say_all(&format!("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{body}"))?;
            }
            // Without a length: its end is the connection's.
            "/until-close" => {
                say_all("HTTP/1.1 200 OK\r\n\r\nuntil the end")?;
                return stream.shutdown(Shutdown::Both).ok();
            }
            // Less than it promises.
            "/cut" => {
                say_all("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this")?;
                return stream.shutdown(Shutdown::Both).ok();
            }
            "/bulk" => {
                let length: usize = query.parse().ok()?;
                say_all(&format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"))?;
                for from in (0..length).step_by(64 << 10) {
                    let piece: Vec<u8> = (from..length.min(from + (64 << 10))).map(byte_at).collect();
                    if stream.write_all(&piece).is_err() {
                        say("bulk-broke");
                        return None;
                    }
                }
            }
            "/sink" => {
                let (mut at, mut wrong) = (0, 0);
                read_body(&request, &mut reader, |piece| {
                    wrong += piece.iter().zip(at..).filter(|(byte, at)| **byte != byte_at(*at)).count();
                    at += piece.len();
                })?;
                let text = format!("{at} bytes, {wrong} wrong");
                say_all(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()))?;
            }
            // Reads the first bytes of a body, says so, and then nothing until it is told to.
            "/slow-sink" => {
                let mut is_first = true;
                let mut length = 0;
                read_body(&request, &mut reader, |piece| {
                    length += piece.len();
                    if std::mem::take(&mut is_first) {
                        hears("go-on");
                    }
                })?;
                let text = length.to_string();
                say_all(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()))?;
            }
            // Answers at once, whatever else is to come.
            "/early" => {
                say_all("HTTP/1.1 413 Too Much\r\nContent-Length: 8\r\nConnection: close\r\n\r\ntoo much")?;
                stream.shutdown(Shutdown::Write).ok()?;
                let _ = std::io::copy(&mut reader, &mut std::io::sink());
                return None;
            }
            "/events" => {
                say_all(
                    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n\
                     9\r\ndata: 1\n\n\r\n",
                )?;
                hears(query);
                say_all("9\r\ndata: 2\n\n\r\n0\r\n\r\n")?;
            }
            // Begins an answer and says when its reader has gone.
            "/held" => {
                say_all("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegin\r\n")?;
                // As an app does that streams: it learns at one of its next words.
                for _ in 0..400 {
                    if stream.write_all(b"4\r\nmore\r\n").is_err() {
                        say(query);
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(50));
                }
                return None;
            }
            "/say" | "/hears" => {
                let text = match path {
                    "/say" => {
                        say(query);
                        "said"
                    }
                    _ if hears(query) => "heard",
                    _ => "nothing",
                };
                say_all(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()))?;
            }
            "/ws" => {
                let key = request.header("sec-websocket-key")?;
                let accept = websocket::accept(key);
                let protocol = request.header("sec-websocket-protocol").and_then(|offered| offered.split(',').next());
                let protocol = protocol.map(|name| format!("Sec-WebSocket-Protocol: {name}\r\n")).unwrap_or_default();
                say_all(&format!(
                    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                     Sec-WebSocket-Accept: {accept}\r\n{protocol}\r\n"
                ))?;
                return websocket::serve(stream, reader, query);
            }
            // Not HTTP: counts until the other side has ended, and only then answers.
            _ if request.line.starts_with("raw") => {
                let mut length = request.line.len();
                let mut bytes = Vec::new();
                length += reader.read_to_end(&mut bytes).ok()?;
                return say_all(&format!("got {length} bytes and the end\n"));
            }
            // With a body: workerd uses the connection of an answer without one again after it has begun to close it, so
            // that a class whose app answers its first question so fails the request behind it.
            _ => say_all("HTTP/1.1 404 Not Found\r\nContent-Length: 7\r\n\r\nnothing")?,
        }
    }
}

/// What stands at a place of a large body.
pub fn byte_at(at: usize) -> u8 {
    (at ^ at >> 8 ^ at >> 16) as u8
}
