//! How `cfc serve` ends, and what does not end it.

use std::io::Read;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::starter::ready;
use crate::support::{Home, Platform, can_sandbox, http, wait_for};
use crate::upgrade::{deploy_sockets, open_websocket};

#[test]
fn a_hangup_has_the_server_open_its_audit_log_again_and_go_on() {
    if !can_sandbox() {
        return;
    }
    let home = Home::new();
    let log = home.path("audit.json");
    home.write("config.toml", &format!("[registry]\naudit_log = \"{}\"\n", log.display()));
    let platform = Platform::start(&home);
    std::fs::rename(&log, home.path("audit.json.old")).expect("renamed, as logrotate does");
    platform.signal(Signal::HUP);
    wait_for("a new audit log", || log.exists().then_some(()));
    let request = "GET /v2/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    assert_eq!(http(&platform.address("registry"), request).0, 200);
    platform.stop();
}

#[test]
fn a_service_manager_hears_when_the_server_serves_and_when_it_ends() {
    if !can_sandbox() {
        return;
    }
    let home = Home::new();
    let path = home.path("manager");
    let in_file = UnixDatagram::bind(&path).expect("binds");
    let name = format!("cfc-test-{}", std::process::id());
    let abstract_name = SocketAddr::from_abstract_name(&name).expect("a name");
    let without_file = UnixDatagram::bind_addr(&abstract_name).expect("binds");
    for (socket, address) in [(in_file, path.display().to_string()), (without_file, format!("@{name}"))] {
        socket.set_read_timeout(Some(Duration::from_secs(60))).expect("set");
        let hear = || {
            let mut text = [0; 64];
            let length = socket.recv(&mut text).expect("is told");
            String::from_utf8_lossy(&text[..length]).into_owned()
        };
        let platform = Platform::start_with(&home, &[("NOTIFY_SOCKET", &address)]);
        assert_eq!(hear(), "READY=1");
        let request = "GET /v2/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        assert_eq!(http(&platform.address("registry"), request).0, 200);
        platform.stop();
        assert_eq!(hear(), "STOPPING=1");
    }
}

#[test]
fn a_second_signal_ends_the_server_at_once() {
    if !ready() {
        return;
    }
    let home = Home::new();
    let platform = Platform::start(&home);
    deploy_sockets(&home);
    // It goes on, so it is waited for.
    let mut socket = open_websocket(&platform);
    platform.signal(Signal::TERM);
    let asked = Instant::now();
    wait_for("it to begin", || (!home.data().join("serve.json").exists()).then_some(()));
    platform.signal(Signal::TERM);
    platform.wait();
    let mut rest = Vec::new();
    let _ = socket.read_to_end(&mut rest);
    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
}
