//! [`OutboundDatagrams`]: what a sandbox sends out that is neither a connection nor a question of a name.
//!
//! One socket receives every datagram together with where it was to go; another sends answers that look as if they came
//! from there, headers and all, whatever ports the application uses itself. Answers carry a mark, by which the
//! redirection leaves them alone.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, sockopt};

use crate::sys;

/// The port of the receiving socket, beside that of the other sockets.
pub(crate) const PORT: u16 = 61_854;
/// The mark of answers.
pub(crate) const MARK: u32 = 0xcfc;

const HEADER_BYTES: usize = 8;
const IPV4_HEADER_BYTES: usize = 20;
const TIME_TO_LIVE: u8 = 64;

/// The datagrams of one family that a sandbox sends out. Both sockets are non-blocking; as a descriptor it is the one
/// that receives.
#[derive(Debug)]
pub struct OutboundDatagrams {
    receiving: OwnedFd,
    sending: OwnedFd,
}

/// One that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// How much of the buffer it fills.
    pub length: usize,
    /// Who sent it, inside the sandbox.
    pub source: SocketAddr,
    /// Where it was to go.
    pub destination: SocketAddr,
}

impl OutboundDatagrams {
    pub(crate) fn new(receiving: OwnedFd, sending: OwnedFd) -> OutboundDatagrams {
        OutboundDatagrams { receiving, sending }
    }

    /// The next datagram; [`io::ErrorKind::WouldBlock`] when there is none.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Datagram> {
        let (mut name, mut control) = ([0; 28], [0_u64; 16]);
        let (length, name_length, control_length) =
            sys::receive_message(self.receiving.as_fd(), buffer, &mut name, &mut control)?;
        let control: Vec<u8> = control.iter().flat_map(|word| word.to_ne_bytes()).take(control_length).collect();
        let addresses = address(&name[..name_length]).zip(destination(&control));
        let (source, destination) = addresses.ok_or(io::ErrorKind::InvalidData)?;
        Ok(Datagram { length, source, destination })
    }

    /// Sends `payload` to `source` inside the sandbox, as if it came from `destination`.
    pub fn answer(&self, source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> io::Result<()> {
        let packet = packet(destination, source, payload).ok_or(io::ErrorKind::InvalidInput)?;
        let to = SocketAddr::new(source.ip(), 0);
        let sent = rustix::net::sendto(&self.sending, &packet, SendFlags::NOSIGNAL | SendFlags::DONTWAIT, &to);
        sent.map(drop).map_err(io::Error::from)
    }
}

impl AsFd for OutboundDatagrams {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.receiving.as_fd()
    }
}

/// For each family the two sockets, the receiving one first. They belong to this process's network namespace.
pub(crate) fn sockets(has_ipv6: bool) -> io::Result<Vec<OwnedFd>> {
    let mut sockets = Vec::new();
    for family in [AddressFamily::INET, AddressFamily::INET6].into_iter().take(1 + usize::from(has_ipv6)) {
        sockets.push(receiving_socket(family)?);
        // IPPROTO_RAW: what is sent has its own header, and nothing is received.
        let protocol = Some(rustix::net::ipproto::RAW);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let sending = rustix::net::socket_with(family, SocketType::RAW, flags, protocol)?;
        sys::set_socket_option(sending.as_fd(), libc::SOL_SOCKET, libc::SO_MARK, MARK as i32)?;
        sockets.push(sending);
    }
    Ok(sockets)
}

fn receiving_socket(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
    let address: SocketAddr = if family == AddressFamily::INET {
        sys::set_socket_option(socket.as_fd(), libc::SOL_IP, libc::IP_TRANSPARENT, 1)?;
        sys::set_socket_option(socket.as_fd(), libc::SOL_IP, libc::IP_RECVORIGDSTADDR, 1)?;
        SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT).into()
    } else {
        sockopt::set_ipv6_v6only(&socket, true)?;
        sys::set_socket_option(socket.as_fd(), libc::SOL_IPV6, libc::IPV6_TRANSPARENT, 1)?;
        sys::set_socket_option(socket.as_fd(), libc::SOL_IPV6, libc::IPV6_RECVORIGDSTADDR, 1)?;
        SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, PORT, 0, 0).into()
    };
    rustix::net::bind(&socket, &address)?;
    Ok(socket)
}

/// The original destination among control messages, each of which is its length, level and type, and then its data.
fn destination(mut control: &[u8]) -> Option<SocketAddr> {
    const HEADER: usize = size_of::<usize>() + 8;
    loop {
        let (length, rest) = control.split_first_chunk::<{ size_of::<usize>() }>()?;
        let length = usize::from_ne_bytes(*length);
        let (level, rest) = rest.split_first_chunk::<4>()?;
        let kind = i32::from_ne_bytes(*rest.first_chunk::<4>()?);
        let is_wanted = matches!(
            (i32::from_ne_bytes(*level), kind),
            (libc::SOL_IP, libc::IP_ORIGDSTADDR) | (libc::SOL_IPV6, libc::IPV6_ORIGDSTADDR)
        );
        if is_wanted {
            return address(control.get(HEADER..length)?);
        }
        control = control.get(length.max(HEADER).next_multiple_of(size_of::<usize>())..)?;
    }
}

/// A `sockaddr_in` or `sockaddr_in6`.
fn address(bytes: &[u8]) -> Option<SocketAddr> {
    let (family, rest) = bytes.split_first_chunk::<2>()?;
    let (port, rest) = rest.split_first_chunk::<2>()?;
    let port = u16::from_be_bytes(*port);
    match i32::from(u16::from_ne_bytes(*family)) {
        libc::AF_INET => Some((Ipv4Addr::from(*rest.first_chunk::<4>()?), port).into()),
        // Behind the port comes the flow's label.
        libc::AF_INET6 => Some((Ipv6Addr::from(*rest.get(4..)?.first_chunk::<16>()?), port).into()),
        _ => None,
    }
}

/// A UDP datagram with its headers; `None` for mixed families, and for more than fits.
fn packet(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(HEADER_BYTES + payload.len()).ok()?;
    let mut datagram = [from.port().to_be_bytes(), to.port().to_be_bytes(), length.to_be_bytes(), [0, 0]].concat();
    datagram.extend_from_slice(payload);
    let mut packet = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let total = length.checked_add(IPV4_HEADER_BYTES as u16)?;
            // Version and header length, no service; length; identification and fragments, which the kernel fills in.
            let mut header = vec![0x45, 0];
            header.extend_from_slice(&total.to_be_bytes());
            header.extend_from_slice(&[0, 0, 0, 0, TIME_TO_LIVE, libc::IPPROTO_UDP as u8, 0, 0]);
            header.extend_from_slice(&from.octets());
            header.extend_from_slice(&to.octets());
            header
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let sum =
                checksum(&[&from.octets(), &to.octets(), &u32::from(length).to_be_bytes(), &[0, 0, 0, 17], &datagram]);
            datagram[6..8].copy_from_slice(&sum.to_be_bytes());
            let mut header = vec![0x60, 0, 0, 0];
            header.extend_from_slice(&length.to_be_bytes());
            header.extend_from_slice(&[libc::IPPROTO_UDP as u8, TIME_TO_LIVE]);
            header.extend_from_slice(&from.octets());
            header.extend_from_slice(&to.octets());
            header
        }
        _ => return None,
    };
    packet.extend_from_slice(&datagram);
    Some(packet)
}

/// The internet checksum of parts that each, the last aside, have an even length. Never zero, which would mean none.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let sum: u32 = words.map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    match !((folded & 0xffff) + (folded >> 16)) as u16 {
        0 => 0xffff,
        sum => sum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn headers_are_as_the_standard_has_them() {
        let packet4 = packet(parse("192.0.2.7:5000"), parse("192.0.2.7:40000"), b"hi").expect("fits");
        assert_eq!(packet4[..4], [0x45, 0, 0, 30]);
        assert_eq!(packet4[12..], [192, 0, 2, 7, 192, 0, 2, 7, 0x13, 0x88, 0x9c, 0x40, 0, 10, 0, 0, b'h', b'i']);
        let packet6 = packet(parse("[2001:db8::7]:5000"), parse("[2001:db8::1]:40000"), b"odd").expect("fits");
        assert_eq!(packet6[..8], [0x60, 0, 0, 0, 0, 11, 17, 64]);
        // Over everything, the checksum included, the sum is all ones.
        let sum = checksum(&[&packet6[8..40], &[0, 0, 0, 11], &[0, 0, 0, 17], &packet6[40..]]);
        assert_eq!(sum, 0xffff);
        assert!(packet(parse("192.0.2.7:1"), parse("[::1]:1"), b"").is_none());
        assert!(packet(parse("192.0.2.7:1"), parse("192.0.2.7:1"), &[0; 65_510]).is_none());
    }

    #[test]
    fn what_the_kernel_writes_is_read_with_bounds() {
        let mut control = 32_usize.to_ne_bytes().to_vec();
        control.extend_from_slice(&libc::SOL_IP.to_ne_bytes());
        control.extend_from_slice(&libc::IP_ORIGDSTADDR.to_ne_bytes());
        control.extend_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
        control.extend_from_slice(&[0x13, 0x88, 192, 0, 2, 7, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(destination(&control), Some(parse("192.0.2.7:5000")));
        let other = [24_usize.to_ne_bytes().to_vec(), vec![0; 16]].concat();
        assert_eq!(destination(&[other, control.clone()].concat()), Some(parse("192.0.2.7:5000")));
        for length in 0..control.len() {
            assert_eq!(destination(&control[..length]), None, "{length}");
        }
    }
}
