//! `cfc upgrade`: a new program in the place of the old one, under load.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use crate::starter::{APPLICATION, WORKER, assert_nothing_left, container_of, ready, visits_of};
use crate::support::{Home, Platform, http, wait_for};

fn inode(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).ino()
}

/// The launcher of the platform in `home`, which runs the program that is installed there. A fork of it that is becoming
/// a container's first process looks the same for a moment.
fn launcher_of(home: &Home) -> u32 {
    let is_it = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let exe = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        line.starts_with(b"cfc-launcher\0/") && comm == "cfc-launcher\n" && exe == home.path("bin/cfc")
    };
    wait_for("one launcher", || {
        let entries = std::fs::read_dir("/proc").expect("there is a /proc").flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let found: Vec<u32> = pids.filter(is_it).collect();
        <[u32; 1]>::try_from(found).ok().map(|[launcher]| launcher)
    })
}

fn ask(address: &str, session: &str) -> (u16, String) {
    let body = format!("{{\"session-id\": \"{session}\"}}");
    let request = format!(
        "POST / HTTP/1.1\r\nHost: {WORKER}.localhost\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    http(address, &request)
}

#[test]
fn an_upgrade_under_load_loses_no_request_and_no_instance() {
    if !ready() {
        return;
    }
    let home = Home::installed();
    let program = home.path("bin/cfc");
    let platform = Platform::start(&home);
    home.must(&["deploy", "--config", &home.project(WORKER).join("wrangler.jsonc").display().to_string()]);
    let address = platform.address("gateway");
    let before: Vec<String> = ["alice", "bob"].map(|session| ask(&address, session).1).to_vec();

    let launcher = launcher_of(&home);
    let (is_over, answered) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        let clients: Vec<_> = ["alice", "bob"]
            .into_iter()
            .map(|session| {
                let (is_over, answered, address) = (&is_over, &answered, &address);
                scope.spawn(move || {
                    let mut last = 0;
                    while !is_over.load(Ordering::Relaxed) {
                        let (status, body) = ask(address, session);
                        assert_eq!(status, 200, "{session}: {body}");
                        assert!(visits_of(&body) > last, "{session}: {body} after {last}");
                        last = visits_of(&body);
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let upgraded = std::panic::catch_unwind(|| {
            for generation in 1..=3 {
                home.install();
                let answered_before = answered.load(Ordering::Relaxed);
                home.must(&["upgrade"]);
                assert_eq!(platform.generation(), generation);
                let executed = inode(&PathBuf::from(format!("/proc/{}/exe", platform.pid())));
                assert_eq!(executed, inode(&program), "the new program runs in the old one's process");
                let executed = inode(&PathBuf::from(format!("/proc/{launcher}/exe")));
                assert_eq!(executed, inode(&program), "and in the launcher's");
                wait_for("the clients to be answered", || {
                    (answered.load(Ordering::Relaxed) > answered_before + 10).then_some(())
                });
            }
        });
        is_over.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().expect("every request was answered by the same container");
        }
        upgraded.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    assert_eq!(platform.address("gateway"), address);
    for (session, before) in ["alice", "bob"].into_iter().zip(&before) {
        assert_eq!(container_of(before), container_of(&ask(&address, session).1), "{session}");
    }
    let listed = home.must(&["containers", "list"]);
    assert!(listed.contains(APPLICATION), "{listed}");
    platform.stop();
    assert_nothing_left(&home);
}

const SOCKETS: &str = r#"
export default {
  async fetch() {
    const [client, server] = Object.values(new WebSocketPair());
    server.accept();
    server.addEventListener("message", (event) => server.send(`got ${event.data}`));
    server.addEventListener("close", (event) => console.log(`closed with ${event.code}`));
    return new Response(null, { status: 101, webSocket: client });
  },
};
"#;

/// A frame of text as clients send them, with a mask of zeros.
fn text_frame(text: &str) -> Vec<u8> {
    [&[0x81, 0x80 | text.len() as u8, 0, 0, 0, 0], text.as_bytes()].concat()
}

/// A Worker `sockets` that answers on WebSockets.
pub fn deploy_sockets(home: &Home) {
    home.write(
        "project/wrangler.jsonc",
        r#"{ "name": "sockets", "main": "index.js", "compatibility_date": "2025-10-03" }"#,
    );
    home.write("project/index.js", SOCKETS);
    home.must(&["deploy", &home.path("project").display().to_string()]);
}

/// A WebSocket to that Worker, on which one message has gone each way.
pub fn open_websocket(platform: &Platform) -> TcpStream {
    let mut socket = TcpStream::connect(platform.address("gateway")).expect("the gateway listens");
    socket.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
    let upgrade = "GET / HTTP/1.1\r\nHost: sockets.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    socket.write_all(upgrade.as_bytes()).expect("is read");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        socket.read_exact(&mut byte).unwrap_or_else(|error| panic!("{error} after {head:?}"));
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    socket.write_all(&text_frame("one")).expect("is read");
    let mut answer = [0; 9];
    socket.read_exact(&mut answer).expect("is answered");
    assert_eq!(&answer, b"\x81\x07got one");
    socket
}

#[test]
fn an_open_websocket_is_told_that_the_server_goes_away() {
    if !ready() {
        return;
    }
    let home = Home::installed();
    let platform = Platform::start(&home);
    deploy_sockets(&home);
    let mut socket = open_websocket(&platform);

    home.install();
    std::thread::scope(|scope| {
        let upgraded = scope.spawn(|| home.must(&["upgrade"]));
        let mut farewell = [0; 4];
        socket.read_exact(&mut farewell).expect("it is told");
        assert_eq!(farewell, [0x88, 2, 0x03, 0xe9], "a frame that closes with 1001");
        socket.write_all(&[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe9]).expect("is read");
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).expect("it ends");
        assert_eq!(rest, b"", "and nothing comes after it");
        upgraded.join().expect("upgraded");
    });
    let log = home.data().join("workers/sockets/log");
    let said = wait_for("the Worker to say it", || {
        std::fs::read_to_string(&log).ok().filter(|text| text.contains("closed with"))
    });
    assert!(said.contains("closed with 1001"), "{said}");
    platform.stop();
}

#[test]
fn a_program_that_does_not_run_is_not_upgraded_to() {
    if !ready() {
        return;
    }
    let home = Home::installed();
    let program = home.path("bin/cfc");
    let platform = Platform::start(&home);
    let broken = home.write("bin/broken", "not a program");
    std::fs::rename(broken, &program).expect("renamed");
    let output = Command::new(env!("CARGO_BIN_EXE_cfc"))
        .arg("upgrade")
        .envs([("CFC_DATA", home.data()), ("CFC_CONFIG", home.path("config.toml"))])
        .output()
        .expect("cfc runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("goes on as it is") && said.contains("cannot be executed"), "{said}");
    home.install();
    home.must(&["containers", "list"]);
    home.must(&["upgrade"]);
    assert_eq!(platform.generation(), 1);
    platform.stop();
}
