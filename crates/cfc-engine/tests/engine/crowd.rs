//! Ten thousand open tunnels, more than one process could hold.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{ChildStdin, Stdio};
use std::time::{Duration, Instant};

use crate::Test;
use crate::inside::{self, ECHO, role};
use crate::platform::{Platform, container, on_platform};

pub const TESTS: &[Test] = &[("ten_thousand_idle_tunnels_are_open_and_then_gone", || on_platform(crowd))];

/// The role of a client with thousands of tunnels: a port of a sidecar, and how many.
pub const CLIENT: &str = "--tunnels";

const TUNNELS: usize = 10_000;
/// Our own memory for an idle tunnel; the kernel's comes on top.
const BYTES_A_TUNNEL_MAX: usize = 1_024;

async fn crowd(platform: Platform) {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    if limit.is_some_and(|limit| limit < 12_000) {
        return eprintln!("skipped: needs a hard limit of 12,000 open files, here are {limit:?}");
    }
    platform.run_script("exec sleep 1000");
    let name = container("a1");
    let port = platform.sidecar(&name).await;
    platform.run(&name).await;
    let listener = inside::listen(&platform, &name, "127.0.0.1:4000");
    let mut echo = role(&[ECHO], std::os::fd::OwnedFd::from(listener));
    let (own, memory) = (descriptors("self"), resident_bytes(&platform));

    let started = Instant::now();
    let mut client = role(&[CLIENT, &port.to_string(), &TUNNELS.to_string()], Stdio::piped());
    let mut said = BufReader::new(client.stdout.take().expect("piped"));
    let mut order = client.stdin.take().expect("piped");
    assert_eq!(line(&mut said), "open");
    eprintln!("  opened in {:.1?}", started.elapsed());
    let ingress = || platform.runtime.traffic(&name).ingress;
    // The client is told before the relay is.
    until("all are counted as open", || ingress().open == TUNNELS as u64).await;
    assert_eq!(ingress().opened, TUNNELS as u64);
    assert!(descriptors("self") < own + 100, "{own} descriptors before, {} with the tunnels", descriptors("self"));
    let pids = platform.relays.pids();
    assert!(pids.len() >= 2, "one process cannot hold them all: {pids:?}");
    let grown = resident_bytes(&platform).saturating_sub(memory);
    eprintln!("  {} bytes a tunnel in {} relays", grown / TUNNELS, pids.len());
    assert!(grown < TUNNELS * BYTES_A_TUNNEL_MAX + (8 << 20), "{grown} bytes");

    say(&mut order, "speak");
    assert_eq!(line(&mut said), "all answered");
    say(&mut order, "close");
    assert!(client.wait().expect("ends").success());
    until("all are counted as closed", || ingress().open == 0).await;
    let left = || pids.iter().map(|pid| descriptors(&pid.to_string())).sum::<usize>();
    // Standard streams, the socket to us, epoll, and the pipes that are kept.
    until("relays have let go of them", || left() <= pids.len() * (5 + 32)).await;
    assert_eq!((ingress().bytes_in, ingress().bytes_out), (TUNNELS as u64, TUNNELS as u64));
    // Connections to the launcher are kept for the next who asks: as many as asked at once.
    assert!(descriptors("self") < own + 100, "{own} descriptors before, {} afterwards", descriptors("self"));
    echo.kill().expect("runs");
    echo.wait().expect("ends");
    platform.close().await;
}

/// Opens tunnels, says so, and does as it is told on standard input.
pub fn be_client(port: &str, count: &str) -> ! {
    const THREADS: usize = 8;
    inside::raise_descriptor_limit();
    let (port, count): (u16, usize) = (port.parse().expect("a port"), count.parse().expect("a number"));
    let opening = (0..THREADS).map(|_| std::thread::spawn(move || (0..count / THREADS).map(|_| open(port)).collect()));
    let opening: Vec<std::thread::JoinHandle<Vec<TcpStream>>> = opening.collect();
    let mut tunnels: Vec<TcpStream> = opening.into_iter().flat_map(|thread| thread.join().expect("opens")).collect();
    assert_eq!(tunnels.len(), count);
    tell("open");
    let mut orders = std::io::stdin().lines();
    assert_eq!(orders.next().expect("an order").expect("a line"), "speak");
    for (index, tunnel) in tunnels.iter_mut().enumerate() {
        tunnel.write_all(&[index as u8]).expect("writes");
    }
    for (index, tunnel) in tunnels.iter_mut().enumerate() {
        let mut byte = [0];
        tunnel.read_exact(&mut byte).expect("is answered");
        assert_eq!(byte[0], index as u8);
    }
    tell("all answered");
    assert_eq!(orders.next().expect("an order").expect("a line"), "close");
    std::process::exit(0)
}

fn open(port: u16) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connects");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("sets");
    stream.write_all(b"CONNECT 127.0.0.1:4000 HTTP/1.1\r\nX-Dst-Addr: 127.0.0.1:4000\r\n\r\n").expect("writes");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("is answered");
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head));
    stream
}

#[allow(clippy::print_stdout)]
fn tell(text: &str) {
    println!("{text}");
}

fn say(order: &mut ChildStdin, text: &str) {
    writeln!(order, "{text}").expect("is read");
}

fn line(said: &mut impl BufRead) -> String {
    let mut line = String::new();
    said.read_line(&mut line).expect("is written");
    line.trim_end().to_string()
}

fn descriptors(pid: &str) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

fn resident_bytes(platform: &Platform) -> usize {
    let resident = |pid: u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap_or(0) << 10
    };
    platform.relays.pids().into_iter().map(resident).sum()
}

async fn until(what: &str, is_it: impl Fn() -> bool) {
    for _ in 0..600 {
        if is_it() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("never: {what}");
}
