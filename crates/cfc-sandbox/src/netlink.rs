//! Netlink, as far as it is needed here: messages with attributes out, errors back.
//!
//! A message is a header of 16 bytes (length, type, flags, sequence number, port), a header of its family, and attributes.
//! An attribute is its length and its type as two `u16`, then its value, padded to four bytes; an attribute's value may be
//! attributes again. Headers are in the machine's byte order.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

pub(crate) const REQUEST: u16 = 0x1;
pub(crate) const ACK: u16 = 0x4;
pub(crate) const CREATE: u16 = 0x400;
pub(crate) const APPEND: u16 = 0x800;

const NLMSG_ERROR: u16 = 2;
const HEADER_LENGTH: usize = 16;
const NESTED: u16 = 0x8000;

/// Messages that are sent together.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    bytes: Vec<u8>,
    count: u32,
}

impl Messages {
    /// Adds one message: its type and flags, its family's header, and what `fill` adds to it.
    pub(crate) fn add(&mut self, kind: u16, flags: u16, header: &[u8], fill: impl FnOnce(&mut Attributes<'_>)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&self.count.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(header);
        fill(&mut Attributes { bytes: &mut self.bytes });
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        self.count += 1;
    }

    /// Sends them to the kernel and gives the first error that it answers with.
    ///
    /// The kernel has carried out everything when the system call returns, so nothing here waits.
    pub(crate) fn send(&self, protocol: Option<Protocol>) -> io::Result<()> {
        let socket = socket(protocol)?;
        rustix::net::send(&socket, &self.bytes, SendFlags::empty())?;
        let mut buffer = [0; 4096];
        loop {
            let count = match rustix::net::recv(&socket, &mut buffer, RecvFlags::DONTWAIT) {
                Ok((count, _)) => count,
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            };
            check(&buffer[..count])?;
        }
    }
}

/// Asks the kernel one thing: `body` as a message of `kind`. The body of its answer.
pub(crate) fn ask(protocol: Protocol, kind: u16, body: &[u8]) -> io::Result<Vec<u8>> {
    let mut messages = Messages::default();
    messages.add(kind, 0, body, |_| {});
    let socket = socket(Some(protocol))?;
    rustix::net::send(&socket, &messages.bytes, SendFlags::empty())?;
    let mut buffer = [0; 1024];
    // As in `send`: the answer is there already.
    let (count, _) = rustix::net::recv(&socket, &mut buffer, RecvFlags::DONTWAIT)?;
    check(&buffer[..count])?;
    buffer[..count].get(HEADER_LENGTH..).map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// The attributes of a message, or of an attribute.
pub(crate) struct Attributes<'a> {
    bytes: &'a mut Vec<u8>,
}

impl Attributes<'_> {
    pub(crate) fn add(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.put(kind, |bytes| bytes.extend_from_slice(value))
    }

    /// A text, which ends with a zero byte.
    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        self.put(kind, |bytes| {
            bytes.extend_from_slice(value.as_bytes());
            bytes.push(0);
        })
    }

    pub(crate) fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes<'_>)) -> &mut Self {
        self.put(kind | NESTED, |bytes| fill(&mut Attributes { bytes }))
    }

    fn put(&mut self, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) -> &mut Self {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        fill(self.bytes);
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }
}

fn socket(protocol: Option<Protocol>) -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?)
}

/// The first error among the kernel's answers.
fn check(mut answers: &[u8]) -> io::Result<()> {
    while answers.len() >= HEADER_LENGTH + 4 {
        let length = u32::from_ne_bytes([answers[0], answers[1], answers[2], answers[3]]) as usize;
        let kind = u16::from_ne_bytes([answers[4], answers[5]]);
        let code = i32::from_ne_bytes([answers[16], answers[17], answers[18], answers[19]]);
        // Zero is an acknowledgement.
        if kind == NLMSG_ERROR && code != 0 {
            return Err(io::Error::from_raw_os_error(-code));
        }
        let next = length.max(HEADER_LENGTH).next_multiple_of(4);
        answers = answers.get(next..).unwrap_or_default();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_count_everything_but_the_last_padding() {
        let mut messages = Messages::default();
        messages.add(7, ACK, &[9, 9, 9, 9], |attributes| {
            attributes.nested(4, |inner| {
                inner.text(1, "lo");
            });
        });
        let length = |at: usize, bytes: &[u8]| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let bytes = &messages.bytes;
        assert_eq!((bytes.len(), length(0, bytes)), (32, 32));
        assert_eq!((length(20, bytes), length(22, bytes)), (12, 4 | NESTED));
        assert_eq!((length(24, bytes), &bytes[28..]), (7, &b"lo\0\0"[..]));
    }

    #[test]
    fn the_first_error_counts() {
        let answer = |code: i32| {
            let mut bytes = vec![20, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            bytes.extend_from_slice(&code.to_ne_bytes());
            bytes
        };
        assert!(check(&answer(0)).is_ok());
        let error = check(&[answer(0), answer(-libc::ENOENT), answer(-libc::EPERM)].concat());
        assert_eq!(error.expect_err("one failed").raw_os_error(), Some(libc::ENOENT));
    }
}
