//! WebSocket through everything. Frames are written by hand, so that both ends see what is on the wire.

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::Case;
use super::wire::{Client, header};

pub const CASES: &[Case] = &[
    ("a websocket carries text and binary of all sizes", messages),
    ("a websocket answers pings", pings),
    ("a close code arrives at the app", close_by_client),
    ("a close code of the app arrives at the client", close_by_app),
    ("an app that breaks off a websocket is noticed", broken_by_app),
    ("a client that breaks off a websocket is noticed", broken_by_client),
    ("a refused websocket is an ordinary answer", refused),
];

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const MASK: [u8; 4] = [0x12, 0x34, 0x56, 0x78];

fn frame(kind: u8, payload: &[u8], is_client: bool) -> Vec<u8> {
    let mask_bit = if is_client { 0x80 } else { 0 };
    let mut bytes = vec![0x80 | kind];
    match payload.len() {
        short @ ..126 => bytes.push(mask_bit | short as u8),
        middle @ ..=0xffff => {
            bytes.push(mask_bit | 126);
            bytes.extend((middle as u16).to_be_bytes());
        }
        long => {
            bytes.push(mask_bit | 127);
            bytes.extend((long as u64).to_be_bytes());
        }
    }
    if is_client {
        bytes.extend(MASK);
        bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    } else {
        bytes.extend(payload);
    }
    bytes
}

/// The next message, its fragments put together; `None` at the connection's end.
fn receive(mut take: impl FnMut(usize) -> Option<Vec<u8>>) -> Option<(u8, Vec<u8>)> {
    let (mut kind, mut payload) = (0, Vec::new());
    loop {
        let head = take(2)?;
        let length = match head[1] & 0x7f {
            126 => u16::from_be_bytes(take(2)?.try_into().ok()?) as usize,
            127 => u64::from_be_bytes(take(8)?.try_into().ok()?) as usize,
            short => short as usize,
        };
        let mask = if head[1] & 0x80 == 0 { vec![0; 4] } else { take(4)? };
        payload.extend(take(length)?.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        kind = if head[0] & 0xf == 0 { kind } else { head[0] & 0xf };
        if head[0] & 0x80 != 0 {
            return Some((kind, payload));
        }
    }
}

fn close(code: u16, reason: &str) -> Vec<u8> {
    [&code.to_be_bytes()[..], reason.as_bytes()].concat()
}

/// The app's side: sends messages back; `query` says how it ends.
pub fn serve(mut stream: TcpStream, mut reader: BufReader<TcpStream>, query: &str) -> Option<()> {
    let mut take = |length: usize| {
        let mut bytes = vec![0; length];
        reader.read_exact(&mut bytes).ok().map(|()| bytes)
    };
    loop {
        let Some((kind, payload)) = receive(&mut take) else {
            super::app::say(&format!("{query}-gone"));
            return None;
        };
        let answer = match (kind, &payload[..]) {
            (TEXT, b"close, please") => frame(CLOSE, &close(4321, "as asked"), false),
            (TEXT, b"break, please") => return None,
            (TEXT, b"ping, please") => frame(PING, b"are you there", false),
            (CLOSE, _) => {
                let code = payload.get(..2).map_or(0, |code| u16::from_be_bytes([code[0], code[1]]));
                super::app::say(&format!("{query}-closed-{code}"));
                stream.write_all(&frame(CLOSE, &payload, false)).ok()?;
                return None;
            }
            (PING, _) => frame(PONG, &payload, false),
            (PONG, _) => frame(TEXT, b"ponged", false),
            (kind, payload) => frame(kind, payload, false),
        };
        stream.write_all(&answer).ok()?;
    }
}

fn open(gateway: SocketAddr, query: &str) -> Client {
    let mut client = Client::connect(gateway);
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    client.request("GET", &format!("/ws?{query}"), upgrade, b"");
    let head = client.head();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert_eq!(header(&head, "sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
    client
}

fn next(client: &mut Client) -> (u8, Vec<u8>) {
    receive(|length| Some(client.take(length))).expect("goes on")
}

fn messages(gateway: SocketAddr) {
    let mut client = open(gateway, "messages");
    for length in [0, 1, 125, 126, 65_535, 65_536, 900_000] {
        let text = "ä".repeat(length / 2).into_bytes();
        client.send(frame(TEXT, &text, true));
        let (kind, answered) = next(&mut client);
        assert!(kind == TEXT && answered == text, "{length} bytes of text: {kind}, {}", answered.len());
        let binary: Vec<u8> = (0..length).map(|at| at as u8).collect();
        client.send(frame(BINARY, &binary, true));
        let (kind, answered) = next(&mut client);
        assert!(kind == BINARY && answered == binary, "{length} bytes: {kind}, {}", answered.len());
    }
}

/// Whoever is next answers a ping; with a pong, and in order with what else is said.
fn pings(gateway: SocketAddr) {
    let mut client = open(gateway, "pings");
    client.send(frame(PING, b"x", true));
    assert_eq!(next(&mut client), (PONG, b"x".to_vec()));
    // The app's pings are answered on the way, or by the client.
    client.send(frame(TEXT, b"ping, please", true));
    loop {
        match next(&mut client) {
            (PING, payload) => client.send(frame(PONG, &payload, true)),
            (TEXT, said) => break assert_eq!(said, b"ponged"),
            other => panic!("{other:?}"),
        }
    }
}

fn close_by_client(gateway: SocketAddr) {
    let mut client = open(gateway, "one");
    client.send(frame(CLOSE, &close(3210, "enough"), true));
    assert_eq!(next(&mut client), (CLOSE, close(3210, "enough")));
    assert_eq!(Client::connect(gateway).get("/hears?one-closed-3210").text(), "heard");
}

fn close_by_app(gateway: SocketAddr) {
    let mut client = open(gateway, "two");
    client.send(frame(TEXT, b"close, please", true));
    assert_eq!(next(&mut client), (CLOSE, close(4321, "as asked")));
    client.send(frame(CLOSE, &close(4321, "as asked"), true));
    assert_eq!(client.rest(), b"");
    assert_eq!(Client::connect(gateway).get("/hears?two-closed-4321").text(), "heard");
}

fn broken_by_app(gateway: SocketAddr) {
    let mut client = open(gateway, "three");
    client.send(frame(TEXT, b"break, please", true));
    // The class makes an end of it that has a code.
    let (kind, payload) = next(&mut client);
    assert!(kind == CLOSE && payload.starts_with(&1000_u16.to_be_bytes()), "{kind}: {payload:?}");
}

fn broken_by_client(gateway: SocketAddr) {
    let mut client = open(gateway, "four");
    client.send(frame(TEXT, b"x", true));
    assert_eq!(next(&mut client), (TEXT, b"x".to_vec()));
    drop(client);
    // The class closes the app's side with 1000 when the client's ends without a code.
    assert_eq!(Client::connect(gateway).get("/hears?four-closed-1000").text(), "heard");
}

fn refused(gateway: SocketAddr) {
    let mut client = Client::connect(gateway);
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    client.request("GET", "/fixed", upgrade, b"");
    let answer = client.answer();
    assert_eq!((answer.status, answer.text().as_str()), (200, "hello"));
}

/// `Sec-WebSocket-Accept`, of RFC 6455: SHA-1 in base64.
pub fn accept(key: &str) -> String {
    const MAGIC: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let hash = sha1(format!("{key}{MAGIC}").as_bytes());
    let mut text = String::new();
    for group in hash.chunks(3) {
        let number = group.iter().chain(&[0; 2]).take(3).fold(0_u32, |number, byte| number << 8 | u32::from(*byte));
        let digits = (0..4).map(|place| DIGITS[(number >> (18 - 6 * place) & 63) as usize] as char);
        text.extend(digits.take(group.len() + 1));
        text.extend(std::iter::repeat_n('=', 3 - group.len()));
    }
    text
}

fn sha1(message: &[u8]) -> Vec<u8> {
    let mut state = [0x6745_2301_u32, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
    let mut padded = message.to_vec();
    padded.push(0x80);
    padded.resize((padded.len() + 8).next_multiple_of(64) - 8, 0);
    padded.extend((message.len() as u64 * 8).to_be_bytes());
    for block in padded.chunks(64) {
        let mut words: Vec<u32> =
            block.chunks(4).map(|word| word.iter().fold(0, |word, byte| word << 8 | u32::from(*byte))).collect();
        for at in 16..80 {
            words.push((words[at - 3] ^ words[at - 8] ^ words[at - 14] ^ words[at - 16]).rotate_left(1));
        }
        let [mut a, mut b, mut c, mut d, mut e] = state;
        for (at, word) in words.iter().enumerate() {
            let (mixed, constant) = match at / 20 {
                0 => (b & c | !b & d, 0x5a82_7999),
                1 => (b ^ c ^ d, 0x6ed9_eba1),
                2 => (b & c | b & d | c & d, 0x8f1b_bcdc),
                _ => (b ^ c ^ d, 0xca62_c1d6_u32),
            };
            let next = a.rotate_left(5).wrapping_add(mixed).wrapping_add(e).wrapping_add(constant).wrapping_add(*word);
            (e, d, c, b, a) = (d, c, b.rotate_left(30), a, next);
        }
        for (value, more) in state.iter_mut().zip([a, b, c, d, e]) {
            *value = value.wrapping_add(more);
        }
    }
    state.iter().flat_map(|word| word.to_be_bytes()).collect()
}
