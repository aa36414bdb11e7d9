//! Connections through real relay processes.
#![allow(clippy::unwrap_used)]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use cfc_relay::{Counts, Group, Kind, Relays};

const PATIENCE: Duration = Duration::from_secs(30);

fn relays() -> Relays {
    Relays::start(Path::new(env!("CARGO_BIN_EXE_cfc-relay"))).unwrap()
}

fn group(instance: &str) -> Group {
    Group { instance: instance.to_owned(), kind: Kind::Ingress }
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (two, _) = listener.accept().unwrap();
    for stream in [&one, &two] {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
    }
    (one, two)
}

/// A tunnel: what a client and what an app has of it.
fn tunnel(relays: &Relays, instance: &str) -> (TcpStream, TcpStream) {
    let ((client, outer), (app, inner)) = (pair(), pair());
    relays.carry(&group(instance), OwnedFd::from(outer), OwnedFd::from(inner)).unwrap();
    (client, app)
}

fn until(what: &str, mut is_it: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_it() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Writes `length` bytes that follow from `seed`, in pieces of all sizes, then half-closes.
fn write_all(mut stream: &TcpStream, seed: u64, length: usize) {
    let (mut sizes, mut sent) = (seed, 0);
    while sent < length {
        let size = (random(&mut sizes) as usize % (1 << (random(&mut sizes) % 18 + 1)) + 1).min(length - sent);
        let piece: Vec<u8> = (sent..sent + size).map(|at| (at as u64 ^ at as u64 >> 8 ^ seed) as u8).collect();
        stream.write_all(&piece).unwrap();
        sent += size;
    }
    stream.shutdown(Shutdown::Write).unwrap();
}

fn check_all(mut stream: &TcpStream, seed: u64, length: usize) {
    let (mut at, mut buffer) = (0, vec![0; 100_000]);
    loop {
        let count = stream.read(&mut buffer).unwrap();
        if count == 0 {
            break;
        }
        for byte in &buffer[..count] {
            assert_eq!(*byte, (at as u64 ^ at as u64 >> 8 ^ seed) as u8, "byte {at} of seed {seed}");
            at += 1;
        }
    }
    assert_eq!(at, length, "seed {seed}");
}

#[test]
fn everything_arrives_in_order_both_ways_at_once() {
    let relays = relays();
    let seed = std::env::var("CFC_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 | 1);
    eprintln!("CFC_SEED={seed}");
    let mut state = seed;
    std::thread::scope(|scope| {
        for _ in 0..8 {
            let (client, app) = tunnel(&relays, "a");
            let (there, back) = (random(&mut state), random(&mut state));
            let (n_there, n_back) = (random(&mut state) as usize % 3_000_000, random(&mut state) as usize % 3_000_000);
            let (client_copy, app_copy) = (client.try_clone().unwrap(), app.try_clone().unwrap());
            scope.spawn(move || write_all(&client_copy, there, n_there));
            scope.spawn(move || write_all(&app_copy, back, n_back));
            scope.spawn(move || check_all(&client, back, n_back));
            scope.spawn(move || check_all(&app, there, n_there));
        }
    });
    until("all are counted as closed", || relays.counts(&group("a")).open == 0);
}

#[test]
fn an_end_is_passed_on_while_the_other_way_goes_on() {
    let relays = relays();
    let (mut client, mut app) = tunnel(&relays, "a");
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut said = String::new();
    app.read_to_string(&mut said).unwrap();
    assert_eq!(said, "question");
    app.write_all(b"answer").unwrap();
    let mut first = [0; 6];
    client.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"answer");
    app.write_all(b", and more").unwrap();
    drop(app);
    said.clear();
    client.read_to_string(&mut said).unwrap();
    assert_eq!(said, ", and more");
    until("it is counted", || relays.counts(&group("a")) == Counts { open: 0, opened: 1, bytes_in: 8, bytes_out: 16 });
}

#[test]
fn a_reset_is_passed_on_as_one() {
    let relays = relays();
    for client_resets in [true, false] {
        let (mut client, mut app) = tunnel(&relays, "a");
        client.write_all(b"x").unwrap();
        app.read_exact(&mut [0]).unwrap();
        let (breaks, mut sees) = if client_resets { (client, app) } else { (app, client) };
        let linger = Some(Duration::ZERO);
        rustix::net::sockopt::set_socket_linger(&breaks, linger).unwrap();
        drop(breaks);
        assert_eq!(sees.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    until("both are counted", || relays.counts(&group("a")).open == 0);
}

#[test]
fn a_reader_that_takes_nothing_stops_the_writer() {
    let relays = relays();
    let (mut client, app) = tunnel(&relays, "a");
    let pid = relays.pids()[0];
    let before = resident_kib(pid);
    client.set_nonblocking(true).unwrap();
    let piece = vec![7; 256 << 10];
    let (mut sent, mut last) = (0_usize, Instant::now());
    while last.elapsed() < Duration::from_secs(1) {
        match client.write(&piece) {
            Ok(count) => (sent, last) = (sent + count, Instant::now()),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        // Four socket buffers and a pipe are a few megabytes each at most.
        assert!(sent < 64 << 20, "nothing stops the writer");
    }
    assert!(resident_kib(pid) < before + 4_096, "{} KiB before, {} after", before, resident_kib(pid));
    // And nothing of it is lost.
    client.set_nonblocking(false).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let received = std::io::copy(&mut &app, &mut std::io::sink()).unwrap();
    assert_eq!(received, sent as u64);
}

fn resident_kib(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn last_words_are_delivered_when_an_instance_ends() {
    let relays = relays();
    let (mut client, mut app) = tunnel(&relays, "a");
    let (mut other_client, mut other_app) = tunnel(&relays, "b");
    app.write_all(b"last words").unwrap();
    drop(app);
    relays.end("a");
    let mut said = String::new();
    client.read_to_string(&mut said).unwrap();
    assert_eq!(said, "last words");
    // The client has said nothing of an end, and yet the tunnel is gone.
    until("it is closed", || relays.counts(&group("a")).open == 0);
    other_client.write_all(b"x").unwrap();
    other_app.read_exact(&mut [0]).unwrap();
    assert_eq!(relays.counts(&group("b")).open, 1);
}

#[test]
fn a_relay_that_dies_takes_its_tunnels_along_and_is_replaced() {
    let relays = relays();
    let (mut client, _app) = tunnel(&relays, "a");
    let (_other_client, _other_app) = tunnel(&relays, "a");
    let [pid] = relays.pids()[..] else { panic!("one relay: {:?}", relays.pids()) };
    let process = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
    assert!(matches!(client.read(&mut [0]), Ok(0) | Err(_)), "the tunnel is gone");
    until("its end is accounted for", || relays.counts(&group("a")).open == 0 && relays.pids().is_empty());
    let (mut client, mut app) = tunnel(&relays, "a");
    client.write_all(b"x").unwrap();
    app.read_exact(&mut [0]).unwrap();
    assert_eq!(relays.counts(&group("a")).opened, 3);
    assert!(!relays.pids().contains(&pid));
}

#[test]
fn relays_end_with_their_last_handle_and_leave_no_descriptor_behind() {
    let relays = relays();
    let pid = relays.pids()[0];
    // What it inherits besides its own depends on who runs this test; so it is counted once a first tunnel has come and gone.
    drop(tunnel(&relays, "first"));
    until("the first is gone", || relays.counts(&group("first")).open == 0);
    let idle = descriptors(pid);
    for round in 0..200 {
        let (mut client, mut app) = tunnel(&relays, "a");
        client.write_all(&vec![1; 100_000]).unwrap();
        app.read_exact(&mut vec![0; 100_000]).unwrap();
        if round % 2 == 0 {
            drop(client);
            assert_eq!(app.read(&mut [0]).unwrap(), 0);
        }
    }
    // What stays are the pipes that it keeps.
    until("all tunnels are gone", || relays.counts(&group("a")).open == 0 && descriptors(pid) <= idle + 32);
    let copy = relays.clone();
    drop(relays);
    assert_eq!(copy.pids(), [pid]);
    drop(copy);
    until("it has ended", || !Path::new(&format!("/proc/{pid}")).exists());
}
