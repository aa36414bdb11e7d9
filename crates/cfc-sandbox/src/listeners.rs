//! [`Listeners`]: whether something in a sandbox listens, asked of the kernel.
//!
//! The question is one of `sock_diag`(7), over a socket that was made inside the sandbox's network namespace. Asking for one
//! port is a look-up in a table, of which the application sees nothing. (`/proc/net/tcp` also lists every
//! connection of the machine, which takes milliseconds; a connection that is tried takes ten times as long and a socket
//! each.)

use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::SOCK_DIAG;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::error::{Error, Result};

/// The listening sockets of one sandbox. It stays usable, and finds nothing, when the sandbox has ended.
#[derive(Debug)]
pub struct Listeners {
    socket: OwnedFd,
}

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const REQUEST: u16 = 0x1;
const DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER_LENGTH: usize = 16;
/// Of `struct inet_diag_msg`: family, state, timer, retransmissions; then the source port.
const STATE_OFFSET: usize = HEADER_LENGTH + 1;
const PORT_OFFSET: usize = HEADER_LENGTH + 4;
const TCP_LISTEN: u8 = 10;

impl Listeners {
    /// To be called inside the sandbox's network namespace.
    pub(crate) fn here() -> std::io::Result<Listeners> {
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(SOCK_DIAG))?;
        Ok(Listeners { socket })
    }

    /// Whether a connection to `port` of the sandbox's localhost would find somebody, over IPv4 or IPv6.
    pub fn on(&self, port: u16) -> Result<bool> {
        let mut ipv4 = [0; 16];
        ipv4[..4].copy_from_slice(&Ipv4Addr::LOCALHOST.octets());
        let ipv6 = Ipv6Addr::LOCALHOST.octets();
        let found = self.has(AddressFamily::INET, ipv4, port).and_then(|found| match found {
            true => Ok(true),
            false => self.has(AddressFamily::INET6, ipv6, port),
        });
        found.map_err(failure)
    }

    /// All ports that something listens on, in ascending order.
    pub fn ports(&self) -> Result<Vec<u16>> {
        let mut ports = Vec::new();
        for family in [AddressFamily::INET, AddressFamily::INET6] {
            self.ask(REQUEST | DUMP, family, [0; 16], 0).map_err(failure)?;
            self.read(|message| {
                let port = message.get(PORT_OFFSET..PORT_OFFSET + 2);
                ports.extend(port.map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]])));
            })
            .map_err(failure)?;
        }
        ports.sort_unstable();
        ports.dedup();
        Ok(ports)
    }

    fn has(&self, family: AddressFamily, address: [u8; 16], port: u16) -> rustix::io::Result<bool> {
        self.ask(REQUEST, family, address, port)?;
        let mut is_listening = false;
        match self.read(|message| is_listening |= message.get(STATE_OFFSET) == Some(&TCP_LISTEN)) {
            Err(Errno::NOENT) => Ok(false),
            result => result.map(|()| is_listening),
        }
    }

    /// Sends a `struct inet_diag_req_v2`.
    fn ask(&self, flags: u16, family: AddressFamily, address: [u8; 16], port: u16) -> rustix::io::Result<()> {
        const LENGTH: u32 = HEADER_LENGTH as u32 + 56;
        const NO_COOKIE: [u8; 8] = [0xff; 8];
        let mut message = Vec::with_capacity(LENGTH as usize);
        message.extend_from_slice(&LENGTH.to_ne_bytes());
        message.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        message.extend_from_slice(&flags.to_ne_bytes());
        message.extend_from_slice(&[0; 8]);
        message.extend_from_slice(&[family.as_raw() as u8, libc::IPPROTO_TCP as u8, 0, 0]);
        message.extend_from_slice(&(1_u32 << TCP_LISTEN).to_ne_bytes());
        // The local port and the remote one, both addresses, the device.
        message.extend_from_slice(&port.to_be_bytes());
        message.extend_from_slice(&[0; 2]);
        message.extend_from_slice(&address);
        message.extend_from_slice(&address);
        message.extend_from_slice(&[0; 4]);
        message.extend_from_slice(&NO_COOKIE);
        rustix::net::send(&self.socket, &message, SendFlags::empty()).map(drop)
    }

    /// Gives `take` every message of the answer. The kernel has written it, or its next part, when it is asked for.
    fn read(&self, mut take: impl FnMut(&[u8])) -> rustix::io::Result<()> {
        let mut buffer = [0; 8192];
        loop {
            let (length, _) = match rustix::net::recv(&self.socket, &mut buffer, RecvFlags::DONTWAIT) {
                Err(Errno::AGAIN) => return Ok(()),
                result => result?,
            };
            let mut rest = &buffer[..length];
            while rest.len() >= HEADER_LENGTH + 4 {
                let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
                match u16::from_ne_bytes([rest[4], rest[5]]) {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        let code = i32::from_ne_bytes([rest[16], rest[17], rest[18], rest[19]]);
                        return Err(Errno::from_raw_os_error(-code));
                    }
                    _ => take(&rest[..length.min(rest.len())]),
                }
                rest = rest.get(length.max(HEADER_LENGTH).next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

fn failure(errno: Errno) -> Error {
    Error::step("look for what listens in a sandbox", "ask the kernel", errno.raw_os_error())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn listeners_of_both_families_are_found_and_connections_are_not() {
        let listeners = Listeners::here().expect("a socket");
        for address in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"] {
            let Ok(listener) = TcpListener::bind(address) else {
                eprintln!("skipped: cannot listen on {address}");
                continue;
            };
            let local = listener.local_addr().expect("an address");
            let client = std::net::TcpStream::connect(local).expect("connects");
            let client_port = client.local_addr().expect("an address").port();
            assert!(listeners.on(local.port()).expect("answers"), "{address}");
            assert!(!listeners.on(client_port).expect("answers"), "{address}");
            let ports = listeners.ports().expect("answers");
            assert!(ports.contains(&local.port()) && !ports.contains(&client_port), "{ports:?}");
            drop((listener, client));
            assert!(!listeners.on(local.port()).expect("answers"), "{address}");
        }
    }
}
