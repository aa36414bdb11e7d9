//! As much of a container engine and of its sidecar as makes workerd believe that a container runs.
//!
//! Every request is answered on a connection of its own, as workerd makes them. What arrives is kept, head and body.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

pub struct FakeEngine {
    pub socket: PathBuf,
    requests: Arc<Mutex<Vec<String>>>,
}

impl FakeEngine {
    pub fn start(socket: &Path) -> FakeEngine {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let sidecar = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = sidecar.local_addr().expect("an address").port();
        let engine = UnixListener::bind(socket).expect("a socket");
        let kept = requests.clone();
        std::thread::spawn(move || {
            for stream in engine.incoming().map_while(Result::ok) {
                let kept = kept.clone();
                std::thread::spawn(move || {
                    let writer = stream.try_clone().expect("a clone");
                    serve(stream, writer, &kept, &|request| engine_answer(request, port));
                });
            }
        });
        let kept = requests.clone();
        std::thread::spawn(move || {
            for stream in sidecar.incoming().map_while(Result::ok) {
                let kept = kept.clone();
                std::thread::spawn(move || {
                    let writer = stream.try_clone().expect("a clone");
                    serve(stream, writer, &kept, &sidecar_answer);
                });
            }
        });
        FakeEngine { socket: socket.to_path_buf(), requests }
    }

    /// What arrived so far: request line, an empty line, body.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("no thread panicked").clone()
    }
}

fn serve(
    reader: impl Read,
    mut writer: impl Write,
    kept: &Mutex<Vec<String>>,
    answer: &dyn Fn(&str) -> Option<String>,
) {
    let mut reader = BufReader::new(reader);
    while let Some((line, body)) = read_request(&mut reader) {
        kept.lock().expect("no thread panicked").push(format!("{line}\n\n{body}"));
        // `None` is workerd's wait for the end of the container, which does not come.
        let Some(answer) = answer(&line) else { return std::thread::park() };
        if writer.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

fn read_request(reader: &mut impl BufRead) -> Option<(String, String)> {
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_string()),
        }
    }
    let length = head.iter().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let is_chunked = head.iter().any(|line| line.eq_ignore_ascii_case("transfer-encoding: chunked"));
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    if is_chunked {
        read_chunks(reader, &mut body)?;
    }
    Some((head.first()?.clone(), String::from_utf8_lossy(&body).into_owned()))
}

fn read_chunks(reader: &mut impl BufRead, body: &mut Vec<u8>) -> Option<()> {
    loop {
        let mut size = String::new();
        reader.read_line(&mut size).ok()?;
        let size = usize::from_str_radix(size.trim_end(), 16).ok()?;
        let mut chunk = vec![0; size + 2];
        reader.read_exact(&mut chunk).ok()?;
        body.extend(&chunk[..size]);
        if size == 0 {
            return Some(());
        }
    }
}

fn reply(status: &str, body: &str) -> Option<String> {
    Some(format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
}

fn no_content() -> Option<String> {
    Some("HTTP/1.1 204 No Content\r\n\r\n".to_string())
}

fn engine_answer(request: &str, sidecar_port: u16) -> Option<String> {
    let mut words = request.split(' ');
    let (method, path) = (words.next()?, words.next()?);
    match (method, path.split('?').next()?) {
        ("GET", "/volumes") => reply("200 OK", r#"{"Volumes":[],"Warnings":null}"#),
        ("GET", "/networks/bridge") => {
            reply("200 OK", r#"{"IPAM":{"Config":[{"Subnet":"127.0.0.0/8","Gateway":"127.0.0.1"}]}}"#)
        }
        ("POST", "/containers/create") => reply("201 Created", r#"{"Id":"x","Warnings":[]}"#),
        ("POST", path) if path.ends_with("/start") => no_content(),
        ("POST", path) if path.ends_with("/wait") => None,
        ("GET", path) if path.ends_with("-proxy/json") => {
            let ports = format!(r#"{{"39001/tcp":[{{"HostIp":"127.0.0.1","HostPort":"{sidecar_port}"}}]}}"#);
            let body = format!(r#"{{"State":{{"Status":"running"}},"NetworkSettings":{{"Ports":{ports}}}}}"#);
            reply("200 OK", &body)
        }
        _ => reply("404 Not Found", r#"{"message":"no such thing"}"#),
    }
}

/// The sidecar's answers, and those of the container behind its tunnel.
fn sidecar_answer(request: &str) -> Option<String> {
    match request.split(' ').next()? {
        "PUT" => no_content(),
        "CONNECT" => Some("HTTP/1.1 200 OK\r\n\r\n".to_string()),
        _ if request.contains("/ca") => reply("200 OK", "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"),
        _ => reply("200 OK", "from the container"),
    }
}
