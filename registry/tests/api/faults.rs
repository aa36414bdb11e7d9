//! A proxy in front of an S3 server that gets in the way: what a network and a busy store do to their clients.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// What may happen to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The store asks to be left alone: nothing was done.
    SlowDown,
    /// The store fails: nothing was done.
    Internal,
    /// The connection ends before anything was done.
    Reset,
    /// It was done, and the answer is lost.
    LostAnswer,
    /// It was done, and half of the answer's body is lost.
    Truncated,
    /// It takes its time.
    Slow,
}

pub const FAULTS: [Fault; 6] =
    [Fault::SlowDown, Fault::Internal, Fault::Reset, Fault::LostAnswer, Fault::Truncated, Fault::Slow];

/// What lists are late with: until the proxy behaves otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Late {
    #[default]
    Nothing,
    /// They lack what was put.
    Puts,
    /// They still have what was deleted.
    Deletions,
}

/// How the proxy treats the store's clients.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manners {
    /// What lists are late with.
    pub late: Late,
    /// One request in so many meets a fault; 0 for none.
    pub one_in: u64,
    /// Conditions on a put never reach the store.
    pub forgets_conditions: bool,
    /// Parts of uploads may not be done away with: a permission of its own.
    pub forbids_aborts: bool,
    /// Parts are never made one object, for not being of one size.
    pub finds_parts_unequal: bool,
}

/// A proxy. Ends with the test.
pub struct Proxy {
    pub address: String,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    upstream: String,
    manners: std::sync::Mutex<Manners>,
    random: AtomicU64,
    faults: [AtomicU64; FAULTS.len()],
    requests: AtomicU64,
    held: std::sync::Mutex<Vec<Waiting>>,
    /// Keys of which lists are late to tell.
    changed: std::sync::Mutex<BTreeSet<String>>,
    parts: std::sync::Mutex<Vec<usize>>,
    copied: std::sync::Mutex<Vec<(String, Request)>>,
}

/// The next request of a kind is to be held back.
struct Waiting {
    kind: String,
    /// It is done, and only its answer held back.
    is_done: bool,
    /// The answer is an error then.
    is_refused: bool,
    arrived: oneshot::Sender<()>,
    released: oneshot::Receiver<()>,
}

/// A request, once it has come.
type Request = Arc<std::sync::Mutex<Option<Vec<u8>>>>;

/// A request that comes to the store twice, the second time late.
pub struct Copied {
    upstream: String,
    request: Request,
}

impl Copied {
    pub async fn comes_late(&self) {
        let request = self.request.lock().expect("request").clone().expect("it came a first time");
        let mut upstream = TcpStream::connect(&self.upstream).await.expect("connects");
        upstream.write_all(&rewrite(&request, false)).await.expect("sends");
        let mut answer = Vec::new();
        upstream.read_to_end(&mut answer).await.expect("an answer");
        assert!(
            answer.starts_with(b"HTTP/1.1 2") || answer.starts_with(b"HTTP/1.0 2"),
            "{}",
            String::from_utf8_lossy(&answer)
        );
    }
}

/// A request that is held back from the store, once it has come. Goes on when this is dropped.
pub struct Held {
    arrived: oneshot::Receiver<()>,
    _released: oneshot::Sender<()>,
}

impl Held {
    /// Waits until the request has come.
    pub async fn arrives(&mut self) {
        (&mut self.arrived).await.expect("the proxy lives");
    }
}

impl Proxy {
    /// In front of `upstream`, a `host:port`.
    pub async fn start(upstream: &str, manners: Manners, seed: u64) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback port");
        let address = listener.local_addr().expect("bound").to_string();
        let shared = Arc::new(Shared {
            upstream: upstream.to_string(),
            manners: manners.into(),
            random: AtomicU64::new(seed | 1),
            faults: Default::default(),
            requests: AtomicU64::new(0),
            held: std::sync::Mutex::default(),
            changed: std::sync::Mutex::default(),
            parts: std::sync::Mutex::default(),
            copied: std::sync::Mutex::default(),
        });
        let accepting = shared.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let shared = accepting.clone();
                tokio::spawn(async move {
                    let _ = shared.answer(client).await;
                });
            }
        });
        Proxy { address, shared, task }
    }

    pub fn behave(&self, manners: Manners) {
        self.shared.changed.lock().expect("changed").clear();
        *self.shared.manners.lock().expect("manners") = manners;
    }

    /// Holds back the next request whose first line begins with a method and has a text in it: `PUT registry/data/`.
    pub fn hold(&self, kind: &str) -> Held {
        self.wait_for(kind, false, false)
    }

    /// As [`hold`](Self::hold), when the request has been done.
    pub fn hold_answer(&self, kind: &str) -> Held {
        self.wait_for(kind, true, false)
    }

    /// As [`hold_answer`](Self::hold_answer), and the answer says that the store has failed.
    pub fn lose_answer(&self, kind: &str) -> Held {
        self.wait_for(kind, true, true)
    }

    fn wait_for(&self, kind: &str, is_done: bool, is_refused: bool) -> Held {
        let (arriving, arrived) = oneshot::channel();
        let (_released, released) = oneshot::channel();
        let waiting = Waiting { kind: kind.to_string(), is_done, is_refused, arrived: arriving, released };
        self.shared.held.lock().expect("held").push(waiting);
        Held { arrived, _released }
    }

    /// Keeps a copy of the next request of a kind.
    pub fn copy(&self, kind: &str) -> Copied {
        let request = Arc::default();
        self.shared.copied.lock().expect("copied").push((kind.to_string(), Arc::clone(&request)));
        Copied { upstream: self.shared.upstream.clone(), request }
    }

    /// Requests that came.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// The sizes of the parts that were uploaded, in their order.
    pub fn parts(&self) -> Vec<usize> {
        self.shared.parts.lock().expect("parts").clone()
    }

    /// How often each fault happened.
    pub fn faults(&self) -> Vec<(Fault, u64)> {
        FAULTS.iter().zip(&self.shared.faults).map(|(fault, count)| (*fault, count.load(Ordering::Relaxed))).collect()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn choose(&self) -> Option<Fault> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let one_in = self.manners.lock().expect("manners").one_in;
        let next =
            |state: u64| Some(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407));
        let number = self.random.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).expect("always some") >> 33;
        if one_in == 0 || !number.is_multiple_of(one_in) {
            return None;
        }
        let which = (number / one_in) as usize % FAULTS.len();
        self.faults[which].fetch_add(1, Ordering::Relaxed);
        Some(FAULTS[which])
    }

    fn waits_for(&self, request: &[u8]) -> Option<Waiting> {
        let mut held = self.held.lock().expect("held");
        let at = held.iter().position(|waiting| is_of(request, &waiting.kind))?;
        Some(held.remove(at))
    }

    fn copy(&self, request: &[u8]) {
        let mut copied = self.copied.lock().expect("copied");
        if let Some(at) = copied.iter().position(|(kind, _)| is_of(request, kind)) {
            *copied.remove(at).1.lock().expect("request") = Some(request.to_vec());
        }
    }

    /// The answer of a store whose lists are late.
    fn late(&self, line: &str, answer: Vec<u8>) -> Vec<u8> {
        let late = self.manners.lock().expect("manners").late;
        let mut changed = self.changed.lock().expect("changed");
        let (method, path) = line.split_once(' ').unwrap_or_default();
        let path = path.split(' ').next().unwrap_or_default();
        let key = path.splitn(3, '/').nth(2).unwrap_or_default();
        match (late, method) {
            (Late::Puts, "PUT") | (Late::Deletions, "DELETE") => drop(changed.insert(key.to_string())),
            (Late::Puts, "GET") if path.contains("list-type=2") => {
                return with_body(&answer, |body| {
                    let (start, objects) = body.split_once("<Contents>").unwrap_or((body, ""));
                    let (objects, end) = objects.rsplit_once("</Contents>").unwrap_or(("", ""));
                    let is_told =
                        |object: &&str| !changed.iter().any(|key| object.contains(&format!("<Key>{key}</Key>")));
                    let told =
                        objects.split("</Contents>").map(|object| object.trim().trim_start_matches("<Contents>"));
                    let told = told.filter(|object| !object.is_empty()).filter(is_told);
                    let told: String = told.map(|object| format!("<Contents>{object}</Contents>")).collect();
                    format!("{start}{told}{end}")
                });
            }
            (Late::Deletions, "GET") if path.contains("list-type=2") => {
                let prefix = path.split(['?', '&']).find_map(|part| part.strip_prefix("prefix=")).unwrap_or_default();
                let prefix = prefix.replace("%2F", "/");
                let object = |key: &String| {
                    format!(
                        "<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>\
                         <ETag>x</ETag><Size>1</Size></Contents>"
                    )
                };
                let told: String = changed.iter().filter(|key| key.starts_with(&prefix)).map(object).collect();
                let end = "</ListBucketResult>";
                return with_body(&answer, |body| body.replace(end, &format!("{told}{end}")));
            }
            _ => {}
        }
        answer
    }

    /// One request a connection.
    async fn answer(&self, mut client: TcpStream) -> std::io::Result<()> {
        let Some(request) = read_request(&mut client).await? else { return Ok(()) };
        self.copy(&request);
        let (waiting, done) = match self.waits_for(&request) {
            Some(waiting) if waiting.is_done => (None, Some(waiting)),
            waiting => (waiting, None),
        };
        if let Some(waiting) = waiting {
            let _ = waiting.arrived.send(());
            let _ = waiting.released.await;
        }
        let line = request_line(&request);
        if line.starts_with("PUT") && line.contains("partNumber=") {
            let size = request.len() - head_length(&request).expect("a whole request");
            self.parts.lock().expect("parts").push(size);
        }
        let is_completion = line.starts_with("POST") && line.contains("uploadId=");
        if is_completion && self.manners.lock().expect("manners").finds_parts_unequal {
            let why = "All non-trailing parts must have the same length.";
            return refuse_with(&mut client, "400 Bad Request", "InvalidPart", why).await;
        }
        let is_abort = request.starts_with(b"DELETE") && request_line(&request).contains("uploadId=");
        if is_abort && self.manners.lock().expect("manners").forbids_aborts {
            return refuse(&mut client, "403 Forbidden", "AccessDenied").await;
        }
        let fault = self.choose();
        match fault {
            Some(Fault::SlowDown) => return refuse(&mut client, "503 Slow Down", "SlowDown").await,
            Some(Fault::Internal) => return refuse(&mut client, "500 Internal Server Error", "InternalError").await,
            Some(Fault::Reset) => return Ok(()),
            Some(Fault::Slow) => tokio::time::sleep(Duration::from_millis(300)).await,
            _ => {}
        }
        let mut upstream = TcpStream::connect(&self.upstream).await?;
        let forgets = self.manners.lock().expect("manners").forgets_conditions;
        upstream.write_all(&rewrite(&request, forgets)).await?;
        let mut answer = Vec::new();
        upstream.read_to_end(&mut answer).await?;
        answer = self.late(&request_line(&request), answer);
        if let Some(waiting) = done {
            let _ = waiting.arrived.send(());
            let _ = waiting.released.await;
            if waiting.is_refused {
                return refuse(&mut client, "400 Bad Request", "InternalError").await;
            }
        }
        match fault {
            Some(Fault::LostAnswer) => Ok(()),
            Some(Fault::Truncated) => {
                let head = head_length(&answer).unwrap_or(answer.len());
                client.write_all(&answer[..head + (answer.len() - head) / 2]).await
            }
            _ => client.write_all(&answer).await,
        }
    }
}

fn is_of(request: &[u8], kind: &str) -> bool {
    let line = request_line(request);
    kind.split_once(' ').is_some_and(|(method, text)| line.starts_with(method) && line.contains(text))
}

fn request_line(request: &[u8]) -> String {
    let text = String::from_utf8_lossy(&request[..request.len().min(1000)]);
    text.lines().next().unwrap_or_default().to_string()
}

/// An answer with another body.
fn with_body(answer: &[u8], change: impl FnOnce(&str) -> String) -> Vec<u8> {
    let head = head_length(answer).expect("a whole answer");
    let body = change(&String::from_utf8_lossy(&answer[head..]));
    let text = String::from_utf8_lossy(&answer[..head - 2]).into_owned();
    let is_kept = |line: &&str| !line.to_ascii_lowercase().starts_with("content-length:");
    let lines: Vec<&str> = text.split_terminator("\r\n").filter(is_kept).collect();
    format!("{}\r\ncontent-length: {}\r\n\r\n{body}", lines.join("\r\n"), body.len()).into_bytes()
}

fn head_length(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

async fn read_request(client: &mut TcpStream) -> std::io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    loop {
        if let Some(head) = head_length(&bytes) {
            let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
            let length = text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
            if bytes.len() >= head + length.unwrap_or(0usize) {
                return Ok(Some(bytes));
            }
        }
        let mut buffer = vec![0; 64 * 1024];
        match client.read(&mut buffer).await? {
            0 => return Ok(None),
            read => bytes.extend_from_slice(&buffer[..read]),
        }
    }
}

/// The request with a word that this connection is for it alone, and perhaps without its condition.
fn rewrite(request: &[u8], forgets_conditions: bool) -> Vec<u8> {
    let head = head_length(request).expect("read as far");
    let text = String::from_utf8_lossy(&request[..head - 2]).into_owned();
    let is_kept = |line: &&str| {
        let line = line.to_ascii_lowercase();
        let is_condition = line.starts_with("if-none-match:");
        !line.starts_with("connection:") && (!is_condition || !forgets_conditions)
    };
    let lines: Vec<&str> = text.split_terminator("\r\n").filter(is_kept).collect();
    let mut bytes = format!("{}\r\nConnection: close\r\n\r\n", lines.join("\r\n")).into_bytes();
    bytes.extend_from_slice(&request[head..]);
    bytes
}

async fn refuse(client: &mut TcpStream, status: &str, code: &str) -> std::io::Result<()> {
    refuse_with(client, status, code, "later").await
}

async fn refuse_with(client: &mut TcpStream, status: &str, code: &str, message: &str) -> std::io::Result<()> {
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>");
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    client.write_all(format!("{head}{body}").as_bytes()).await
}
