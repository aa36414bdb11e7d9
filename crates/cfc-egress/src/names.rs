//! Answers to a sandbox's questions of names.
//!
//! With the internet, this machine's resolvers are asked, from outside the sandbox's network, and their answer is passed
//! on as it is. A name that only the Worker's handlers know, and every such name without the internet, gets an address that
//! stands in for it: connections to it are offered to workerd under the name that they ask for.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use crate::gate::{Gate, Stance};
use crate::policy::{STAND_IN, STAND_IN_IPV6};

/// The port for questions of names.
pub const DNS_PORT: u16 = 53;
/// How many questions of one sandbox may be open at the same time; more wait.
const QUESTIONS_MAX: usize = 64;
const PATIENCE: Duration = Duration::from_secs(3);
/// A container that keeps a connection for questions open and asks nothing.
const IDLE: Duration = Duration::from_secs(10);
const MESSAGE_BYTES_MAX: usize = u16::MAX as usize;
const HEADER_LENGTH: usize = 12;
const STAND_IN_TTL_SECONDS: u32 = 60;

const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const CLASS_INTERNET: u16 = 1;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Code {
    NoError = 0,
    ServerFailure = 2,
    NoSuchName = 3,
    Refused = 5,
}

/// How a question came, which is how it is passed on.
#[derive(Clone, Copy)]
enum Transport {
    Datagram,
    Stream,
}

/// Answers the questions that come in the sockets, one for each family, as long as it is polled.
pub async fn answer_questions<G: Gate>(sockets: &[UdpSocket], gate: &Arc<G>) {
    match sockets {
        [] => std::future::pending().await,
        [only] => answer_datagrams(only, gate).await,
        [first, second, ..] => {
            tokio::join!(answer_datagrams(first, gate), answer_datagrams(second, gate));
        }
    }
}

async fn answer_datagrams<G: Gate>(socket: &UdpSocket, gate: &Arc<G>) {
    let places = Arc::new(Semaphore::new(QUESTIONS_MAX));
    let (answers, mut answered) = tokio::sync::mpsc::channel::<(Vec<u8>, SocketAddr)>(QUESTIONS_MAX);
    let mut buffer = vec![0; 4096];
    loop {
        tokio::select! {
            Some((answer, asker)) = answered.recv() => {
                if let Err(error) = socket.send_to(&answer, asker).await {
                    tracing::debug!(sandbox = gate.name(), %error, "an answer to a question did not go out");
                }
            }
            received = socket.recv_from(&mut buffer) => {
                let Ok((length, asker)) = received else {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                };
                // Who asks more than that at once asks again.
                let Ok(place) = places.clone().try_acquire_owned() else { continue };
                let (question, gate, answers) = (buffer[..length].to_vec(), gate.clone(), answers.clone());
                tokio::spawn(async move {
                    if let Some(answer) = answer(&question, Transport::Datagram, &*gate).await {
                        let _ = answers.send((answer, asker)).await;
                    }
                    drop(place);
                });
            }
        }
    }
}

/// Answers the questions of a connection, each with its length in front.
pub async fn answer_stream(mut stream: TcpStream, gate: &impl Gate) {
    while let Ok(Ok(question)) = tokio::time::timeout(IDLE, read_message(&mut stream)).await {
        let Some(answer) = answer(&question, Transport::Stream, gate).await else { return };
        if write_message(&mut stream, &answer).await.is_err() {
            return;
        }
    }
}

async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut message = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], message].concat()).await
}

/// The answer to `message`; `None` to what is no question.
async fn answer(message: &[u8], transport: Transport, gate: &impl Gate) -> Option<Vec<u8>> {
    let question = Question::parse(message)?;
    let stance = gate.stance(&question.name).await;
    let stands_in = match stance {
        Stance::Ask => false,
        Stance::AskOrStandIn => true,
        Stance::StandIn => return Some(question.stand_in()),
        Stance::NoSuchName => return Some(question.answer(Code::NoSuchName, None)),
        Stance::Unknown => return Some(question.answer(Code::ServerFailure, None)),
    };
    let resolvers = gate.policy().resolvers.clone().unwrap_or_else(resolvers_of_this_machine);
    let forwarded = forward(message, transport, &resolvers).await;
    Some(match forwarded {
        Some(answer) if !stands_in || code_of(&answer) == Code::NoError as u8 => answer,
        _ if stands_in => question.stand_in(),
        Some(answer) => answer,
        None => question.answer(Code::ServerFailure, None),
    })
}

/// Asks the resolvers, one after the other.
async fn forward(message: &[u8], transport: Transport, resolvers: &[SocketAddr]) -> Option<Vec<u8>> {
    for resolver in resolvers {
        let asked = async {
            match transport {
                Transport::Datagram => ask(message, *resolver).await,
                Transport::Stream => {
                    let mut stream = TcpStream::connect(resolver).await?;
                    write_message(&mut stream, message).await?;
                    read_message(&mut stream).await
                }
            }
        };
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(answer)) if answer.len() >= HEADER_LENGTH => return Some(answer),
            Ok(Err(error)) => tracing::debug!(%resolver, %error, "a resolver does not answer"),
            _ => tracing::debug!(%resolver, "a resolver does not answer"),
        }
    }
    None
}

async fn ask(message: &[u8], resolver: SocketAddr) -> io::Result<Vec<u8>> {
    let any: IpAddr = if resolver.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(resolver).await?;
    socket.send(message).await?;
    let mut answer = vec![0; MESSAGE_BYTES_MAX];
    loop {
        let length = socket.recv(&mut answer).await?;
        // Anything else is not for this question.
        if length >= HEADER_LENGTH && answer[..2] == message[..2] {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

fn code_of(message: &[u8]) -> u8 {
    message.get(3).map_or(0, |flags| flags & 0xf)
}

fn resolvers_of_this_machine() -> Vec<SocketAddr> {
    resolvers(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
}

fn resolvers(resolv_conf: &str) -> Vec<SocketAddr> {
    let address = |line: &str| {
        let mut words = line.split_whitespace();
        let is_server = words.next() == Some("nameserver");
        let address: IpAddr = words.next()?.parse().ok()?;
        is_server.then_some(SocketAddr::new(address, DNS_PORT))
    };
    resolv_conf.lines().filter_map(address).collect()
}

/// The one question of a message.
struct Question<'a> {
    header: &'a [u8],
    /// Name, type and class, as they came.
    bytes: &'a [u8],
    /// In lower case, without the last dot.
    name: String,
    kind: u16,
    class: u16,
}

impl Question<'_> {
    fn parse(message: &[u8]) -> Option<Question<'_>> {
        let (header, body) = message.split_at_checked(HEADER_LENGTH)?;
        let is_question = header[2] & 0x80 == 0 && header[4..6] == [0, 1];
        let mut labels: Vec<String> = Vec::new();
        let mut rest = body;
        loop {
            let (length, after) = rest.split_first()?;
            rest = after;
            match *length {
                0 => break,
                // Compression, which the first name of a message cannot use.
                64.. => return None,
                length => {
                    let (label, after) = rest.split_at_checked(length.into())?;
                    labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
                    rest = after;
                }
            }
        }
        let (fields, rest) = rest.split_first_chunk::<4>()?;
        let bytes = &body[..body.len() - rest.len()];
        let [a, b, c, d] = *fields;
        let (kind, class) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        is_question.then(|| Question { header, bytes, name: labels.join("."), kind, class })
    }

    /// The address that stands in for the name, or none of the type that was asked for.
    fn stand_in(&self) -> Vec<u8> {
        match (self.class, self.kind) {
            (CLASS_INTERNET, TYPE_A) => self.answer(Code::NoError, Some(&STAND_IN.octets())),
            (CLASS_INTERNET, TYPE_AAAA) => self.answer(Code::NoError, Some(&STAND_IN_IPV6.octets())),
            (CLASS_INTERNET, _) => self.answer(Code::NoError, None),
            _ => self.answer(Code::Refused, None),
        }
    }

    fn answer(&self, code: Code, address: Option<&[u8]>) -> Vec<u8> {
        // Opcode and "recursion desired" as they came; an answer; recursion is available.
        let flags = [self.header[2] & 0x79 | 0x80, 0x80 | code as u8];
        let count = u8::from(address.is_some());
        let mut message = [&self.header[..2], &flags, &[0, 1, 0, count, 0, 0, 0, 0], self.bytes].concat();
        if let Some(address) = address {
            // The name is that of the question, 12 bytes from the start.
            message.extend_from_slice(&[0xc0, HEADER_LENGTH as u8]);
            message.extend_from_slice(&self.kind.to_be_bytes());
            message.extend_from_slice(&self.class.to_be_bytes());
            message.extend_from_slice(&STAND_IN_TTL_SECONDS.to_be_bytes());
            message.extend_from_slice(&(address.len() as u16).to_be_bytes());
            message.extend_from_slice(address);
        }
        message
    }
}

/// Whether `name` fits `pattern`, in which `*` stands for anything.
pub fn matches_name(pattern: &str, name: &str) -> bool {
    let pattern = pattern.trim_end_matches('.').to_ascii_lowercase();
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        match name.find(part) {
            Some(at) => name = &name[at + part.len()..],
            None => return false,
        }
    }
    name.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(name: &str, kind: u16) -> Vec<u8> {
        let mut message = vec![7, 8, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            message.push(label.len() as u8);
            message.extend_from_slice(label.as_bytes());
        }
        message.push(0);
        message.extend_from_slice(&kind.to_be_bytes());
        message.extend_from_slice(&CLASS_INTERNET.to_be_bytes());
        message
    }

    #[test]
    fn a_stand_in_answers_what_was_asked() {
        let message = question("Api.test", TYPE_A);
        let parsed = Question::parse(&message).expect("is a question");
        assert_eq!((parsed.name.as_str(), parsed.kind), ("api.test", TYPE_A));
        let answer = parsed.stand_in();
        assert_eq!(answer[..12], [7, 8, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        assert_eq!(answer[12..message.len()], message[12..]);
        assert!(answer.ends_with(&[0, 4, 11, 0, 0, 1]));
        assert!(Question::parse(&question("a.b", TYPE_AAAA)).expect("is one").stand_in().ends_with(&[0, 1]));
        assert_eq!(code_of(&parsed.answer(Code::NoSuchName, None)), 3);
    }

    #[test]
    fn what_is_cut_short_is_no_question() {
        let message = question("api.test", TYPE_A);
        for length in 0..message.len() {
            assert!(Question::parse(&message[..length]).is_none(), "{length}");
        }
    }

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, name) in [("*", "a.b"), ("*.b", "a.b"), ("*.B.", "x.a.b"), ("a.b", "a.b"), ("a*c*e", "abcde")] {
            assert!(matches_name(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("*.b", "b"), ("a.b", "xa.b"), ("a*c", "ab"), ("ab*ab", "ab")] {
            assert!(!matches_name(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn resolvers_are_read_as_everybody_reads_them() {
        let text = "# x\nnameserver 127.0.0.53\nsearch a\nnameserver ::1\nnameserver junk\noptions edns0\n";
        let expected: Vec<SocketAddr> = ["127.0.0.53:53", "[::1]:53"].map(|text| text.parse().expect("valid")).to_vec();
        assert_eq!(resolvers(text), expected);
    }
}
