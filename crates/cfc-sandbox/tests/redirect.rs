//! What a sandbox sends out ends up in our sockets, from its first instruction on.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use cfc_sandbox::{ExitStatus, Network, OutboundSockets, SandboxConfig, original_destination};
use support::{Bench, bench, log_text};

fn redirected(bench: &Bench, script: &str, ipv6: bool) -> SandboxConfig {
    let mut config = bench.config(&["sh", "-c", script]);
    config.network = Network::Redirected { ipv6 };
    config
}

fn start(bench: &Bench, config: &SandboxConfig) -> OutboundSockets {
    bench.launcher.start(config).unwrap();
    bench.launcher.outbound(&config.id).unwrap()
}

fn accept(sockets: &OutboundSockets) -> (TcpStream, SocketAddr) {
    let listener = TcpListener::from(sockets.tcp.try_clone().unwrap());
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).unwrap();
                let destination = original_destination(&stream).unwrap();
                return (stream, destination);
            }
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "{error}"),
        }
        assert!(Instant::now() < deadline, "nothing came");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_connection_to_anywhere_is_accepted_here_and_tells_where_it_was_to_go() {
    let Some(bench) = bench() else { return };
    // The very first thing that it does.
    let config = redirected(&bench, "exec nc 192.0.2.7 8080", false);
    let sockets = start(&bench, &config);
    let (mut stream, destination) = accept(&sockets);
    assert_eq!(destination, "192.0.2.7:8080".parse().unwrap());
    stream.write_all(b"hello\n").unwrap();
    drop(stream);
    assert_eq!(bench.launcher.wait(&config.id).unwrap().status, ExitStatus::Code(0));
    assert_eq!(log_text(&config), "hello");
    assert!(bench.launcher.outbound(&config.id).is_err(), "its network is gone");
}

#[test]
fn datagrams_to_port_53_are_answered_from_where_they_were_to_go() {
    let Some(bench) = bench() else { return };
    let config = redirected(&bench, "busybox nslookup -type=a name.test 192.0.2.53", false);
    let sockets = start(&bench, &config);
    let socket = UdpSocket::from(sockets.udp[0].try_clone().unwrap());
    socket.set_nonblocking(false).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut buffer = [0; 64];
    let (length, peer) = socket.recv_from(&mut buffer).unwrap();
    assert!(buffer[..length].windows(4).any(|window| window == b"name"));
    // The question again, as the answer that there is no such name.
    buffer[2..4].copy_from_slice(&[0x81, 0x83]);
    socket.send_to(&buffer[..length], peer).unwrap();
    bench.launcher.wait(&config.id).unwrap();
    let text = log_text(&config);
    assert!(text.contains("192.0.2.53") && text.contains("NXDOMAIN"), "{text}");
}

#[test]
fn other_datagrams_come_with_where_they_were_to_go_and_are_answered_from_there() {
    let Some(bench) = bench() else { return };
    for destination in ["192.0.2.7", "2001:db8::7"] {
        let is_ipv6 = destination.contains(':');
        if is_ipv6 && !std::path::Path::new("/proc/net/if_inet6").exists() {
            return eprintln!("skipped: this kernel has no IPv6");
        }
        // TFTP is what busybox speaks in datagrams, other than DNS.
        let script = format!("busybox tftp -g -r f -l /tmp/f {destination} 6969; cat /tmp/f");
        let config = redirected(&bench, &script, is_ipv6);
        let sockets = start(&bench, &config);
        let Some(datagrams) = sockets.datagrams.get(usize::from(is_ipv6)) else {
            return eprintln!("skipped: this kernel cannot redirect datagrams (nft_tproxy)");
        };
        let mut buffer = [0; 64];
        let deadline = Instant::now() + Duration::from_secs(10);
        let datagram = loop {
            match datagrams.receive(&mut buffer) {
                Ok(datagram) => break datagram,
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "{error}"),
            }
            assert!(Instant::now() < deadline, "nothing came");
            std::thread::sleep(Duration::from_millis(1));
        };
        assert_eq!(datagram.destination, SocketAddr::new(destination.parse().unwrap(), 6969));
        assert_eq!(buffer[..4], *b"\x00\x01f\x00");
        datagrams.answer(datagram.source, datagram.destination, b"\x00\x03\x00\x01hello").unwrap();
        bench.launcher.wait(&config.id).unwrap();
        assert_eq!(log_text(&config), "hello");
    }
}

#[test]
fn the_sandboxs_own_loopback_is_its_own() {
    let Some(bench) = bench() else { return };
    let script =
        "echo mine > /tmp/index.html; httpd -p 127.0.0.1:8080 -h /tmp; wget -qO- http://127.0.0.1:8080/; sleep 1";
    let config = redirected(&bench, script, true);
    let sockets = start(&bench, &config);
    assert_eq!(bench.launcher.wait(&config.id).unwrap().status, ExitStatus::Code(0), "{}", log_text(&config));
    assert_eq!(log_text(&config), "mine");
    assert!(TcpListener::from(sockets.tcp).accept().is_err());
}

#[test]
fn ipv6_is_redirected_or_fails_at_once() {
    let Some(bench) = bench() else { return };
    if !std::path::Path::new("/proc/net/if_inet6").exists() {
        return eprintln!("skipped: this kernel has no IPv6");
    }
    let with = redirected(&bench, "exec nc 2001:db8::7 8080", true);
    let sockets = start(&bench, &with);
    let (mut stream, destination) = accept(&sockets);
    assert_eq!(destination, "[2001:db8::7]:8080".parse().unwrap());
    stream.write_all(b"six\n").unwrap();
    drop(stream);
    bench.launcher.wait(&with.id).unwrap();
    assert_eq!(log_text(&with), "six");

    let without = redirected(&bench, "nc 2001:db8::7 8080 || echo refused; sleep 1", false);
    start(&bench, &without);
    let started = Instant::now();
    bench.launcher.wait(&without.id).unwrap();
    assert!(log_text(&without).contains("refused") && started.elapsed() < Duration::from_secs(20));
}

#[test]
fn an_application_cannot_pretend_to_have_been_redirected() {
    let Some(bench) = bench() else { return };
    let config = redirected(&bench, "nc 127.0.0.1 61853; nc 0.0.0.0 61853; sleep 5", false);
    let sockets = start(&bench, &config);
    for _ in 0..2 {
        let (mut stream, destination) = match accept_raw(&sockets) {
            (stream, Ok(destination)) => (stream, destination),
            (_, Err(_)) => continue,
        };
        assert!(destination.ip().is_loopback() || destination.ip().is_unspecified(), "{destination}");
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read(&mut [0]);
    }
    bench.launcher.kill_all(&config.id).unwrap();
    bench.launcher.wait(&config.id).unwrap();
}

fn accept_raw(sockets: &OutboundSockets) -> (TcpStream, std::io::Result<SocketAddr>) {
    let listener = TcpListener::from(sockets.tcp.try_clone().unwrap());
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Ok((stream, _)) = listener.accept() {
            let destination = original_destination(&stream);
            return (stream, destination);
        }
        assert!(Instant::now() < deadline, "nothing came");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Not a test of a limit, which would be one of the machine: it prints what the redirection costs.
#[test]
fn a_redirected_start_takes_about_as_long_as_an_isolated_one() {
    let Some(bench) = bench() else { return };
    let time = |network: Network| {
        let mut times: Vec<Duration> = (0..40)
            .map(|_| {
                let mut config = bench.config(&["true"]);
                config.network = network;
                let started = Instant::now();
                bench.launcher.start(&config).unwrap();
                let took = started.elapsed();
                bench.launcher.wait(&config.id).unwrap();
                bench.launcher.remove(&config.id).unwrap();
                took
            })
            .collect();
        times.sort();
        times[times.len() / 2]
    };
    let (isolated, redirected) = (time(Network::Isolated), time(Network::Redirected { ipv6: true }));
    eprintln!("isolated {isolated:?}, redirected {redirected:?}");
    assert!(redirected < isolated * 4 + Duration::from_millis(20));
}
