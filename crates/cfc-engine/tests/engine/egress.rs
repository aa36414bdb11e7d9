//! What containers send out, through the real workerd, in a network of our own in which there is nobody else.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use cfc_engine::EgressPolicy;

use crate::Test;
use crate::adoption::{kill, start_victim};
use crate::image;
use crate::platform::{Platform, block_on};
use crate::workerd::{CONFIG, fetch, project, start_workerd, toolchain};

pub const TESTS: &[Test] = &[("what_a_container_sends_out_goes_through_workerd", outbound)];

/// The role of a process in a network namespace of its own.
pub const ALONE: &str = "--alone";
/// The role of a platform there that will be killed.
pub const VICTIM: &str = "--egress-victim";

const WORKER: &str = r#"
import { Container, getContainer } from "@cloudflare/containers";
export { ContainerProxy } from "@cloudflare/containers";
export class MyContainer extends Container {
  defaultPort = 4000;
  sleepAfter = "10m";
  constructor(ctx, env) { super(ctx, env); this.enableInternet = ctx.id.name !== "off"; }
}
MyContainer.outboundByHost = {
  "api.test": (request) => new Response(`handled ${request.url}\n`),
};
export default {
  async fetch(request, env) {
    const [, id, ...rest] = new URL(request.url).pathname.split("/");
    return getContainer(env.MY_CONTAINER, id).fetch(new Request("http://container/" + rest.join("/")));
  },
};
"#;

/// Says line by line what comes of going out; from the first moment on, and again whenever it is asked to.
const SCRIPT: &str = r#"
# A static busybox cannot look names up by itself, nslookup aside; so no wget.
probe() {
  said=$( (busybox printf "GET $5 HTTP/1.1\r\nHost: $2\r\nConnection: close\r\n\r\n"; sleep 1) |
    busybox timeout 8 busybox nc "$3" "$4" | busybox tail -n 1)
  echo "$1: ${said:-fails}"
}
probe_name() {
  address=$(busybox nslookup -type=a "$2" 2>&1 | busybox sed -n 's/^Address: //p')
  [ "$address" ] && probe "$1" "$2" "$address" "$3" "$4" || echo "$1: no address"
}
# TFTP is what busybox speaks in datagrams, other than DNS.
probe_datagram() {
  busybox rm -f /tmp/got
  busybox timeout 3 busybox tftp -g -r file -l /tmp/got "$2" 6969 >/dev/null 2>&1
  said=$(busybox cat /tmp/got 2>/dev/null)
  echo "$1: ${said:-fails}"
}
all() {
  probe_name handler api.test 80 "/path?q=1" &
  probe server x 10.77.0.1 8080 / &
  probe_name name known.test 8080 / &
  probe_name unknown unknown.test 8080 / &
  probe private x 10.77.0.2 8080 / &
  # Names of somebody's own, which lead to where the address itself would be refused.
  for name in private loopback metadata own; do
    probe_name "rebound $name" $name.rebound.test 8080 / &
    probe_name "rebound $name, http" $name.rebound.test 80 / &
  done
  # The first answer is good, the second is not: what counts is where it connects.
  (probe_name "first" turns.rebound.test 8080 /; probe_name "second" turns.rebound.test 8080 /) &
  # A request on port 80 says who it is for; what it connects to decides all the same.
  probe "host of another" 169.254.169.254 10.77.0.1 80 / &
  probe own x 203.0.113.5 8080 / &
  probe metadata x 169.254.169.254 80 / &
  probe loopback x 127.0.0.1 8080 / &
  probe server6 x fd00:77::1 8080 / &
  probe private6 x fd00:77::2 8080 / &
  probe loopback6 x ::1 8080 / &
  # Where every container listens in the end, this one not yet: whatever address another one has, this one does not
  # reach it.
  for address in $(busybox ip -o addr | busybox sed -n 's/.* inet6* \([^\/ ]*\).*/\1/p') \
    $(busybox sed -n 's/^\([0-9a-f:.]*\)[ \t].*/\1/p' /etc/hosts); do
    probe other x $address 4000 /index.html &
  done
  echo "large: $(busybox dd if=/dev/zero bs=65536 count=256 2>/dev/null | busybox timeout 20 busybox nc 10.77.0.1 7777 | busybox wc -c)"
  probe_datagram "datagram" 10.77.0.1
  probe_datagram "private datagram" 10.77.0.2
  probe_datagram "loopback datagram" 127.0.0.1
  wait
  echo "done $1"
}
again() {
  probe_name handler api.test 80 "/again"
  probe server x 10.77.0.1 8080 /
  probe private x 10.77.0.2 8080 /
  echo "done again"
}
busybox mkdir /www/cgi-bin
echo '#!/bin/sh
touch /tmp/again
echo "Content-Type: text/plain"
echo
echo again' > /www/cgi-bin/again
busybox chmod +x /www/cgi-bin/again
all first
(while sleep 0.2; do [ -e /tmp/again ] && busybox rm /tmp/again && again; done) &
exec httpd -f -p 4000 -h /www
"#;

fn outbound() {
    if toolchain().is_none() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let program = std::env::current_exe().expect("this test has a path");
    let role = Command::new("unshare").arg("-n").arg(program).arg(ALONE).arg(directory.path()).status();
    assert!(role.expect("unshare is there").success());
}

fn policy() -> EgressPolicy {
    let resolver: SocketAddr = "127.0.0.1:5353".parse().expect("an address");
    let allowed = ["10.77.0.1", "fd00:77::1"].map(|range| range.parse().expect("a range"));
    EgressPolicy { allowed: allowed.to_vec(), resolvers: Some(vec![resolver]) }
}

pub fn be_alone(directory: &Path) -> ! {
    for command in ["link set lo up", "addr add 10.77.0.1/32 dev lo", "addr add 10.77.0.2/32 dev lo"]
        .into_iter()
        .chain(["addr add 203.0.113.5/32 dev lo", "addr add 169.254.169.254/32 dev lo"])
    {
        let status = Command::new(image::BUSYBOX).arg("ip").args(command.split(' ')).status();
        assert!(status.expect("busybox runs").success(), "ip {command}");
    }
    serve("0.0.0.0:8080", greet);
    if add_ipv6() {
        serve("[fd00:77::1]:8080", greet);
        serve("[fd00:77::2]:8080", greet);
        serve("[::1]:8080", greet);
    } else {
        eprintln!("skipped: IPv6 (no veth devices here)");
    }
    for address in ["10.77.0.2:80", "127.0.0.1:80", "203.0.113.5:80", "169.254.169.254:80"] {
        serve(address, |mut stream| {
            let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nsecret");
        });
    }
    serve("10.77.0.1:80", greet);
    // Counts until the sender has nothing more to say, and only then sends as much back.
    serve("10.77.0.1:7777", |mut stream| {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        let _ = stream.write_all(&bytes);
    });
    std::thread::spawn(resolve);
    for address in ["10.77.0.1:6969", "10.77.0.2:6969", "127.0.0.1:6969"] {
        std::thread::spawn(move || serve_datagrams(address));
    }
    let project = project(directory, &CONFIG.replace("2025-10-03", "2025-11-20"), WORKER);
    block_on(async {
        check(directory, &project).await;
        check_adoption(directory, &project).await;
    });
    std::process::exit(0)
}

/// Two addresses, and a way to all others, which is what makes IPv6 of use to a container.
fn add_ipv6() -> bool {
    let commands = ["link add d0 type veth", "link set d0 up", "link set veth0 up", "-6 route add default dev d0"];
    let addresses = ["addr add fd00:77::1/128 dev lo", "addr add fd00:77::2/128 dev lo"];
    commands.iter().chain(&addresses).all(|command| {
        let status = Command::new(image::BUSYBOX).arg("ip").args(command.split(' ')).status();
        status.is_ok_and(|status| status.success())
    }) && cfc_sandbox::has_ipv6_route()
}

fn greet(mut stream: std::net::TcpStream) {
    let _ = stream.read(&mut [0; 4096]);
    let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nfrom the server");
}

/// Runs the container `kept` until it has said everything, says so, and waits for the end.
pub fn be_victim(directory: &Path) -> ! {
    block_on(async {
        let toolchain = toolchain().expect("was there before");
        let platform = Platform::open_with(directory, policy()).await;
        platform.run_script(SCRIPT);
        let worker = start_workerd(&platform, &toolchain, &directory.join("project")).await;
        said(&platform, &worker.socket, "kept").await;
        eprintln!("ready");
        std::future::pending().await
    })
}

/// A container that outlived its platform reaches its Worker's handlers and the internet again, once the Worker is back.
async fn check_adoption(directory: &Path, project: &Path) {
    let toolchain = toolchain().expect("was there before");
    kill(start_victim(VICTIM, directory));
    let platform = Platform::open_with(directory, policy()).await;
    platform.run_script(SCRIPT);
    let [kept] = platform.runtime.list().try_into().expect("one was adopted");
    let worker = start_workerd(&platform, &toolchain, project).await;
    assert_eq!(fetch(&worker.socket, "/kept/cgi-bin/again").await, (200, "again\n".to_string()));
    platform.until_said(&kept.spec.name, "done again").await;
    let output = platform.output(&kept.spec.name).await;
    let (_, again) = output.split_once("done first\n").expect("was said before");
    for line in ["handler: handled http://api.test/again", "server: from the server", "private: fails"] {
        assert!(again.lines().any(|said| said == line), "{line}\nin\n{again}");
    }
    worker.workerd.stop(Duration::from_secs(5)).await;
    platform.close().await;
}

async fn check(directory: &Path, project: &Path) {
    let Some(toolchain) = toolchain() else { return };
    let platform = Platform::open_with(directory, policy()).await;
    platform.run_script(SCRIPT);
    let worker = start_workerd(&platform, &toolchain, project).await;
    let allowed = [
        "handler: handled http://api.test/path?q=1",
        "server: from the server",
        "name: from the server",
        "unknown: no address",
        "large: 16777216",
        "datagram: from the server",
    ];
    let kept_in = ["private datagram: fails", "loopback datagram: fails"];
    let rebound = ["private", "loopback", "metadata", "own"]
        .map(|name| [format!("rebound {name}: fails"), format!("rebound {name}, http: fails")]);
    let rebound: Vec<&str> = rebound.iter().flatten().map(String::as_str).collect();
    let refused =
        ["private: fails", "own: fails", "metadata: fails", "loopback: fails", "private6: fails", "loopback6: fails"];
    let off = said(&platform, &worker.socket, "off").await;
    // By now the other one listens.
    let on = said(&platform, &worker.socket, "on").await;
    if cfc_sandbox::has_ipv6_route() {
        assert!(on.lines().any(|line| line == "server6: from the server"), "{on}");
    }
    for said in [&off, &on] {
        let others: Vec<&str> = said.lines().filter(|line| line.starts_with("other: ")).collect();
        assert!(!others.is_empty() && others.iter().all(|line| *line == "other: fails"), "{others:?}");
    }
    let turns = ["first: from the server", "second: fails", "host of another: from the server"];
    for line in allowed.iter().chain(&refused).chain(&kept_in).chain(&rebound).chain(&turns) {
        assert!(on.lines().any(|said| said == *line), "{line}\nin\n{on}");
    }
    let without =
        ["handler: handled http://api.test/path?q=1", "server: fails", "name: no address", "unknown: no address"];
    for line in without.iter().chain(&refused).chain(&kept_in).chain(&["datagram: fails"]) {
        assert!(off.lines().any(|said| said == *line), "{line}\nin\n{off}");
    }
    worker.workerd.stop(Duration::from_secs(5)).await;
    platform.close().await;
}

/// Starts the container `id`, and what it has said when it is done.
async fn said(platform: &Platform, socket: &Path, id: &str) -> String {
    let before: Vec<String> = platform.runtime.list().into_iter().map(|view| view.spec.name).collect();
    let (status, text) = fetch(socket, &format!("/{id}/index.html")).await;
    let new = platform.runtime.list().into_iter().map(|view| view.spec.name).find(|name| !before.contains(name));
    let name = new.unwrap_or_else(|| panic!("no new container: {status} {text}"));
    for _ in 0..1_200 {
        let output = platform.output(&name).await;
        if output.contains("done first") {
            return output;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{id} is not done: {}", platform.output(&name).await)
}

fn serve(address: &str, answer: fn(std::net::TcpStream)) {
    // The kernel takes a moment to let a new IPv6 address be used.
    let bound = (0..1_000).find_map(|_| match TcpListener::bind(address) {
        Err(error) if error.kind() == std::io::ErrorKind::AddrNotAvailable => {
            std::thread::sleep(Duration::from_millis(10));
            None
        }
        bound => Some(bound),
    });
    let listener =
        bound.unwrap_or_else(|| panic!("{address} is not there")).unwrap_or_else(|error| panic!("{address}: {error}"));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(stream));
        }
    });
}

/// A TFTP server with one file.
fn serve_datagrams(address: &str) {
    let socket = UdpSocket::bind(address).expect("binds");
    let mut buffer = [0; 512];
    while let Ok((_, asker)) = socket.recv_from(&mut buffer) {
        // Opcode 1 is a request to read, 3 is data. An acknowledgement needs no answer.
        if buffer[1] == 1 {
            let _ = socket.send_to(b"\x00\x03\x00\x01from the server\n", asker);
        }
    }
}

/// Knows `known.test`, and names below `rebound.test` that lead elsewhere: `turns` only from its second answer on.
fn resolve() {
    let socket = UdpSocket::bind("127.0.0.1:5353").expect("binds");
    let mut buffer = [0; 512];
    let mut turns = 0_usize;
    while let Ok((length, asker)) = socket.recv_from(&mut buffer) {
        let question = &buffer[..length];
        let is_for = |name: &str| question.windows(name.len()).any(|window| window == name.as_bytes());
        let is_a = question.ends_with(&[0, 1, 0, 1]);
        let address = match () {
            () if is_for("\x05known\x04test") => Some([10, 77, 0, 1]),
            () if is_for("private\x07rebound") => Some([10, 77, 0, 2]),
            () if is_for("loopback\x07rebound") => Some([127, 0, 0, 1]),
            () if is_for("metadata\x07rebound") => Some([169, 254, 169, 254]),
            () if is_for("own\x07rebound") => Some([203, 0, 113, 5]),
            () if is_for("turns\x07rebound") => {
                turns += usize::from(is_a);
                Some(if turns == 1 { [10, 77, 0, 1] } else { [10, 77, 0, 2] })
            }
            () => None,
        };
        let mut answer = question.to_vec();
        answer[2..4].copy_from_slice(&[0x81, if address.is_some() { 0x80 } else { 0x83 }]);
        if let Some(address) = address.filter(|_| is_a) {
            answer[7] = 1;
            answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
            answer.extend_from_slice(&address);
        }
        let _ = socket.send_to(&answer, asker);
    }
}
