//! More clients than there are descriptors for: they wait, those who are served are served whole, and afterwards all are.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};

use crate::support::{Ended, Home, Platform, can_sandbox, free_port, http, tools, wait_for};

/// Runs `cfc` with so many open files at most, of which it must ask for the upper half.
fn with_few_files(hard: u32) -> Home {
    let limits = format!("ulimit -Sn {} && ulimit -Hn {hard} && exec \"$0\" \"$@\"", hard / 2);
    Home::through(&["sh", "-c", &limits])
}

/// So many clients more than there are places, who say nothing. No more than the kernel lets wait (`somaxconn`, 128 on
/// old ones).
fn crowd(address: &str, places: usize) -> Vec<TcpStream> {
    (0..places + 115).map(|_| TcpStream::connect(address).expect("the kernel accepts")).collect()
}

fn open_files(process: u32) -> usize {
    std::fs::read_dir(format!("/proc/{process}/fd")).expect("it runs").count()
}

fn ask(stream: &mut TcpStream, path: &str) -> String {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").expect("it listens");
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).expect("an answer");
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn a_registry_with_few_descriptors_serves_whom_it_has_and_then_the_others() {
    const FILES: u32 = 120;
    let home = with_few_files(FILES);
    let port = free_port().to_string();
    let log = home.path("log");
    let mut command = home.cfc();
    command.args(["registry", "serve", "--port", &port]).stdout(Stdio::null());
    command.stderr(std::fs::File::create(&log).expect("writable"));
    let server = Ended(command.spawn().expect("cfc runs"));
    let process = Child::id(&server.0);
    let address = format!("127.0.0.1:{port}");
    let get = |path: &str| http(&address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).0;
    wait_for("the registry", || TcpStream::connect(&address).ok());
    let limits = std::fs::read_to_string(format!("/proc/{process}/limits")).expect("it runs");
    let limit = limits.lines().find(|line| line.starts_with("Max open files")).expect("it has one");
    assert_eq!(limit.split_whitespace().nth(3), Some("120"), "{limit}");

    let mut first = TcpStream::connect(&address).expect("it listens");
    // (120 - 64) / 2, of which one is taken.
    const PLACES: usize = 28;
    let idle = crowd(&address, PLACES);
    wait_for("the places to be taken", || (open_files(process) >= PLACES).then_some(()));
    // Who has a place is served, also where that takes a file.
    assert_eq!(ask(&mut first, "/v2/a/manifests/1"), "HTTP/1.1 404");
    // Who has none waits, and is served when others have gone.
    let mut last = TcpStream::connect(&address).expect("the kernel accepts");
    assert!(open_files(process) < FILES as usize, "{}", open_files(process));
    drop(idle);
    assert_eq!(ask(&mut last, "/v2/"), "HTTP/1.1 200");
    assert_eq!(get("/v2/"), 200);
    let said = std::fs::read_to_string(&log).expect("a log");
    assert_eq!(said.matches("the registry takes 28 connections at once, not 4096").count(), 1, "{said}");
    assert!(!said.contains("cannot accept"), "{said}");
}

#[test]
fn a_gateway_with_few_descriptors_serves_whom_it_has_and_then_the_others() {
    if !can_sandbox() || tools().is_none() {
        return;
    }
    const FILES: u32 = 300;
    let home = with_few_files(FILES);
    let platform = Platform::start(&home);
    let (gateway, registry) = (platform.address("gateway"), platform.address("registry"));
    let mut first = TcpStream::connect(&gateway).expect("it listens");
    let usual = ask(&mut first, "/");
    let idle = [crowd(&gateway, 75), crowd(&registry, 18)];
    wait_for("the places to be taken", || (open_files(platform.pid()) >= 75 + 18).then_some(()));
    let mut last = TcpStream::connect(&gateway).expect("the kernel accepts");
    // The rest of the platform has descriptors.
    assert_eq!(
        http(&platform.address("control"), "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").0,
        200
    );
    assert!(open_files(platform.pid()) < FILES as usize, "{}", open_files(platform.pid()));
    drop(idle);
    assert_eq!(ask(&mut last, "/"), usual);
    let log = platform.log();
    for expected in ["the gateway takes 75 connections at once, not 8000", "the registry takes 18 connections at once"]
    {
        assert_eq!(log.matches(expected).count(), 1, "{log}");
    }
    assert!(!log.contains("cannot accept"), "{log}");
    platform.stop();
}
