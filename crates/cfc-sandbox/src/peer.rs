//! [`is_from_own_user`]: who has connected over the loopback.

use std::io;
use std::net::{IpAddr, SocketAddr};

use rustix::net::netlink::SOCK_DIAG;

use crate::netlink;

/// Whether the process that connected from `peer` to our `own` address belongs to the user whom this process belongs to.
/// Both addresses are of this machine and this network namespace. An error when there is no such connection, or not any more.
///
/// The kernel is asked for that one socket, so it takes microseconds however many there are.
pub fn is_from_own_user(own: SocketAddr, peer: SocketAddr) -> io::Result<bool> {
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const AF_INET: u8 = 2;
    const AF_INET6: u8 = 10;
    /// Where `struct inet_diag_msg` has the user's id.
    const USER_AT: usize = 64;
    let family = if own.is_ipv4() { AF_INET } else { AF_INET6 };
    // struct inet_diag_req_v2: family, protocol, extensions, padding, states; then the other side's socket.
    let mut request = vec![family, libc::IPPROTO_TCP as u8, 0, 0];
    request.extend_from_slice(&u32::MAX.to_ne_bytes());
    request.extend_from_slice(&peer.port().to_be_bytes());
    request.extend_from_slice(&own.port().to_be_bytes());
    request.extend_from_slice(&address(peer.ip()));
    request.extend_from_slice(&address(own.ip()));
    // Any device, no cookie.
    request.extend_from_slice(&0_u32.to_ne_bytes());
    request.extend_from_slice(&[0xff; 8]);
    let answer = netlink::ask(SOCK_DIAG, SOCK_DIAG_BY_FAMILY, &request)?;
    let user = answer.get(USER_AT..).and_then(|rest| rest.first_chunk::<4>()).map(|bytes| u32::from_ne_bytes(*bytes));
    let user = user.ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(user == rustix::process::geteuid().as_raw())
}

fn address(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&address.octets());
            bytes
        }
        IpAddr::V6(address) => address.octets(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_connection_of_our_own_is_known_and_none_that_is_not_there() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let own = listener.local_addr().expect("is bound");
            let client = TcpStream::connect(own).expect("connects");
            let peer = client.local_addr().expect("is bound");
            assert!(is_from_own_user(own, peer).expect("is there"));
            let nobody = SocketAddr::new(peer.ip(), 1);
            assert!(is_from_own_user(own, nobody).is_err());
        }
    }
}
