//! Measures the way to a container hop by hop: straight into its network, through a tunnel, through workerd, through the
//! gateway. `scripts/bench` runs it: `proxy [ROUNDS]`, built for release, as root.
//!
//! Every hop asks the same small server, which listens inside the container's network, over connections that are kept.
//! The hops alternate within each round; what is printed are medians of the rounds.
#![allow(dead_code, clippy::print_stdout, missing_docs)]

#[path = "../tests/engine/client.rs"]
mod client;
#[path = "../tests/engine/image.rs"]
mod image;
#[path = "../tests/engine/inside.rs"]
mod inside;
#[path = "../tests/engine/platform.rs"]
mod platform;
#[path = "../tests/engine/workerd.rs"]
mod workerd;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use platform::{Platform, block_on};

/// What `workerd.rs` says its tests are.
pub type Test = (&'static str, fn());

const SERVER: &str = "--server";
const SMALL_REQUESTS: usize = 2_000;
const BULK_BYTES: usize = 256 << 20;
/// workerd is slower by far.
const BULK_BYTES_WORKERD: usize = 64 << 20;
const WORKER: &str = r#"
import { Container, getContainer } from "@cloudflare/containers";
export class MyContainer extends Container { defaultPort = 4000; sleepAfter = "10m"; }
export default { fetch: (request, env) => getContainer(env.MY_CONTAINER, "bench").fetch(request) };
"#;

fn main() {
    match std::env::args_os().next() {
        Some(name) if name == cfc_sandbox::LAUNCHER_ARGV0 => cfc_sandbox::launcher_main(std::env::args_os()),
        Some(name) if name == cfc_relay::RELAY_ARGV0 => cfc_relay::relay_main(),
        _ => {}
    }
    let argument = std::env::args().nth(1);
    if argument.as_deref() == Some(SERVER) {
        be_server();
    }
    if let Some(reason) = platform::lacking() {
        return println!("skipped: {reason}");
    }
    let rounds = argument.and_then(|text| text.parse().ok()).unwrap_or(11);
    let directory = tempfile::tempdir().expect("a directory");
    block_on(bench(directory.path(), rounds));
}

/// A way to the server, and what it has taken.
struct Hop {
    name: &'static str,
    connect: Box<dyn Fn() -> Box<dyn Stream> + Send>,
    bulk_bytes: usize,
    p50_us: Vec<f64>,
    p99_us: Vec<f64>,
    down: Vec<Speed>,
    up: Vec<Speed>,
}

/// MiB a second, and CPU seconds of all of our processes for each GiB.
#[derive(Clone, Copy)]
struct Speed {
    mib_a_second: f64,
    cpu_a_gib: f64,
}

trait Stream: Read + Write + Send {}
impl Stream for TcpStream {}
impl Stream for UnixStream {}

async fn bench(directory: &std::path::Path, rounds: usize) {
    let platform = Platform::open(directory).await;
    platform.run_script("exec sleep 100000");
    let mut hops = Vec::new();
    let worker = match workerd::toolchain() {
        Some(toolchain) => {
            let project = directory.join("project");
            std::fs::create_dir(&project).expect("makes");
            for (name, text) in
                [("wrangler.jsonc", workerd::CONFIG), ("index.js", WORKER), ("Dockerfile", "FROM scratch\n")]
            {
                std::fs::write(project.join(name), text).expect("writes");
            }
            Some(workerd::start_workerd(&platform, &toolchain, &project).await)
        }
        None => None,
    };
    let name = match &worker {
        // The Worker starts its container, whose server is not there yet.
        Some(worker) => {
            let socket = worker.socket.clone();
            let asking = tokio::spawn(async move { workerd::fetch(&socket, "/small").await });
            let name = loop {
                tokio::time::sleep(Duration::from_millis(20)).await;
                if let [view] = &platform.runtime.list()[..]
                    && matches!(view.phase, cfc_runtime::Phase::Running { .. })
                {
                    break view.spec.name.clone();
                }
            };
            (name, Some(asking))
        }
        None => {
            let name = platform::container("bench");
            platform.sidecar(&name).await;
            platform.run(&name).await;
            (name, None)
        }
    };
    let (name, asking) = name;
    let server = inside::role(&[SERVER], OwnedFd::from(inside::listen(&platform, &name, "127.0.0.1:4000")));
    if let Some(asking) = asking {
        let (status, text) = asking.await.expect("is asked");
        assert_eq!(status, 200, "{text}");
    }
    // What a server shows that runs on the machine itself, with the machine's own congestion control.
    let plain = TcpListener::bind("127.0.0.1:0").expect("binds");
    let plain_address = plain.local_addr().expect("is bound");
    let plain_server = inside::role(&[SERVER], OwnedFd::from(plain));
    let sidecar = platform.sidecar_port(&name).await;
    let network = platform.launcher.network(&name).expect("it runs");
    hops.push(hop("direct, inside the namespace", BULK_BYTES, move || {
        let socket = network.tcp_socket(false).expect("a socket");
        rustix::io::ioctl_fionbio(&socket, false).expect("blocks");
        rustix::net::connect(&socket, &std::net::SocketAddr::from(([127, 0, 0, 1], 4000))).expect("connects");
        Box::new(without_delay(TcpStream::from(socket)))
    }));
    hops.push(hop("direct, on the host", BULK_BYTES, move || {
        Box::new(without_delay(TcpStream::connect(plain_address).expect("connects")))
    }));
    hops.push(hop("tunnel", BULK_BYTES, move || {
        let mut stream = without_delay(TcpStream::connect(("127.0.0.1", sidecar)).expect("connects"));
        stream.write_all(b"CONNECT 127.0.0.1:4000 HTTP/1.1\r\nX-Dst-Addr: 127.0.0.1:4000\r\n\r\n").expect("writes");
        assert!(head(&mut stream).starts_with("HTTP/1.1 200"));
        Box::new(stream)
    }));
    if let Some(worker) = &worker {
        let socket = worker.socket.clone();
        hops.push(hop("workerd + tunnel", BULK_BYTES_WORKERD, move || {
            Box::new(UnixStream::connect(&socket).expect("connects"))
        }));
        let gateway = cfc_gateway::Gateway::new(cfc_gateway::GatewayOptions::default());
        gateway.set_route("app", worker.socket.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("is bound");
        tokio::spawn(async move { gateway.serve(listener).await });
        hops.push(hop("gateway + workerd + tunnel", BULK_BYTES_WORKERD, move || {
            Box::new(without_delay(TcpStream::connect(address).expect("connects")))
        }));
    }
    let hops = tokio::task::spawn_blocking({
        let relays = platform.relays.clone();
        let mut pids = vec![std::process::id(), server.id(), plain_server.id()];
        pids.extend(children("workerd"));
        move || {
            for _ in 0..rounds {
                for hop in &mut hops {
                    measure(hop, || pids.iter().copied().chain(relays.pids()).map(cpu_seconds).sum());
                }
            }
            hops
        }
    });
    print(&hops.await.expect("measures"));
    for mut server in [server, plain_server] {
        server.kill().expect("runs");
        server.wait().expect("ends");
    }
    if let Some(worker) = worker {
        worker.workerd.stop(Duration::from_secs(5)).await;
    }
    platform.close().await;
}

fn hop(name: &'static str, bulk_bytes: usize, connect: impl Fn() -> Box<dyn Stream> + Send + 'static) -> Hop {
    let (p50_us, p99_us) = (Vec::new(), Vec::new());
    Hop { name, connect: Box::new(connect), bulk_bytes, p50_us, p99_us, down: Vec::new(), up: Vec::new() }
}

fn without_delay(stream: TcpStream) -> TcpStream {
    stream.set_nodelay(true).expect("sets");
    stream
}

/// One round of one hop.
fn measure(hop: &mut Hop, cpu: impl Fn() -> f64) {
    let mut stream = (hop.connect)();
    let mut times: Vec<f64> = (0..SMALL_REQUESTS)
        .map(|_| {
            let started = Instant::now();
            stream.write_all(b"GET /small HTTP/1.1\r\nHost: app.localhost\r\n\r\n").expect("writes");
            body(stream.as_mut());
            started.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    hop.p50_us.push(times[times.len() / 2]);
    hop.p99_us.push(times[times.len() * 99 / 100]);
    let bytes = hop.bulk_bytes;
    let speed = |transfer: &mut dyn FnMut()| {
        let (started, used) = (Instant::now(), cpu());
        transfer();
        let mib = bytes as f64 / f64::from(1 << 20);
        Speed { mib_a_second: mib / started.elapsed().as_secs_f64(), cpu_a_gib: (cpu() - used) / mib * 1024.0 }
    };
    hop.down.push(speed(&mut || {
        write!(stream, "GET /bulk/{bytes} HTTP/1.1\r\nHost: app.localhost\r\n\r\n").expect("writes");
        assert_eq!(body(stream.as_mut()), bytes);
    }));
    let piece = vec![7; 256 << 10];
    hop.up.push(speed(&mut || {
        write!(stream, "POST /sink HTTP/1.1\r\nHost: app.localhost\r\nContent-Length: {bytes}\r\n\r\n")
            .expect("writes");
        (0..bytes / piece.len()).for_each(|_| stream.write_all(&piece).expect("writes"));
        body(stream.as_mut());
    }));
}

/// The head of an HTTP message, up to the empty line.
fn head(stream: &mut dyn Stream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        // Small messages come in one piece; byte by byte only where a body follows.
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("is answered");
        head.push(byte[0]);
    }
    String::from_utf8(head).expect("is text")
}

/// Reads an answer to its end; the length of its body.
fn body(stream: &mut dyn Stream) -> usize {
    let mut buffer = vec![0; 256 << 10];
    let (mut head, mut filled) = (String::new(), 0);
    let start = loop {
        let count = stream.read(&mut buffer[filled..]).expect("is answered");
        assert!(count > 0, "the connection ended");
        filled += count;
        if let Some(end) = buffer[..filled].windows(4).position(|window| window == b"\r\n\r\n") {
            head.push_str(&String::from_utf8_lossy(&buffer[..end]).to_ascii_lowercase());
            break end + 4;
        }
    };
    assert!(head.starts_with("http/1.1 200"), "{head}");
    match head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.trim().parse::<usize>().ok()) {
        Some(length) => {
            let mut left = length - (filled - start);
            while left > 0 {
                let count = stream.read(&mut buffer).expect("goes on");
                assert!(count > 0, "the connection ended");
                left -= count;
            }
            length
        }
        None => chunked(&buffer[start..filled], stream),
    }
}

/// The length of a chunked body, of which `first` has been read.
fn chunked(first: &[u8], stream: &mut dyn Stream) -> usize {
    let mut reader = BufReader::with_capacity(256 << 10, first.chain(stream));
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a chunk has a length");
        let size = u64::from_str_radix(line.trim(), 16).expect("a length is a number");
        std::io::copy(&mut (&mut reader).take(size + 2), &mut std::io::sink()).expect("a chunk");
        if size == 0 {
            return length;
        }
        length += size as usize;
    }
}

fn print(hops: &[Hop]) {
    let median = |values: &[f64]| {
        let mut values = values.to_vec();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let speeds = |speeds: &[Speed], get: fn(&Speed) -> f64| median(&speeds.iter().map(get).collect::<Vec<_>>());
    let [first, ..] = hops else { return };
    println!(
        "{:<30} {:>18}  {:>9}  {:>26}  {:>26}",
        "", "small p50 (added)", "p99", "down, of direct, CPU/GiB", "up, of direct, CPU/GiB"
    );
    for hop in hops {
        let (p50, p99) = (median(&hop.p50_us), median(&hop.p99_us));
        let way = |way: fn(&Hop) -> &[Speed]| {
            let mib = speeds(way(hop), |speed| speed.mib_a_second);
            let direct = speeds(way(first), |speed| speed.mib_a_second);
            format!("{mib:.0} MiB/s {:.2}x {:.2} s", mib / direct, speeds(way(hop), |speed| speed.cpu_a_gib))
        };
        let added = p50 - median(&first.p50_us);
        println!(
            "{:<30} {p50:>7.0} us ({added:>+5.0})  {p99:>6.0} us  {:>26}  {:>26}",
            hop.name,
            way(|hop| &hop.down),
            way(|hop| &hop.up)
        );
    }
}

/// The CPU time that a process has used, children aside.
fn cpu_seconds(pid: u32) -> f64 {
    const TICKS_A_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok());
    ticks.sum::<f64>() / TICKS_A_SECOND
}

/// The processes called `name` that this one has started.
fn children(name: &str) -> Vec<u32> {
    let own = std::process::id().to_string();
    let is_ours = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.contains(&format!("({name})"))
            && stat.rsplit_once(')').is_some_and(|(_, rest)| rest.split_whitespace().nth(1) == Some(&own))
    };
    let entries = std::fs::read_dir("/proc").expect("is there").flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_ours).collect()
}

/// The server in the container's network: its listener is the standard input. A thread a connection.
fn be_server() -> ! {
    let listener = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).expect("a listener");
    for stream in TcpListener::from(listener).incoming() {
        let stream = stream.expect("accepts");
        std::thread::spawn(move || serve(stream));
    }
    std::process::exit(0)
}

fn serve(mut stream: TcpStream) -> Option<()> {
    let _ = stream.set_nodelay(true);
    let mut reader = BufReader::with_capacity(256 << 10, stream.try_clone().ok()?);
    let bulk = vec![7; 256 << 10];
    loop {
        let (mut path, mut length, mut line) = (String::new(), 0_u64, String::new());
        while line != "\r\n" {
            line.clear();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if path.is_empty() {
                path = line.split(' ').nth(1)?.to_string();
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
        }
        std::io::copy(&mut (&mut reader).take(length), &mut std::io::sink()).ok()?;
        match path.strip_prefix("/bulk/").and_then(|bytes| bytes.parse::<usize>().ok()) {
            Some(bytes) => {
                write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n").ok()?;
                (0..bytes / bulk.len()).try_for_each(|_| stream.write_all(&bulk)).ok()?;
            }
            None => stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").ok()?,
        }
    }
}
