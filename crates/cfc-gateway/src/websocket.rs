//! A WebSocket that passes through, and how it is told that the gateway goes away.
//!
//! Frames are not looked into: only their lengths are, so that a frame of ours (1001, "going away") comes between two of
//! theirs and never within one.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

use crate::gateway::{Phase, reached};

/// Says "going away" to a client: RFC 6455, 7.4.1.
const FAREWELL: &[u8] = &[0x88, 2, 0x03, 0xe9];

/// The same to the Worker, whose peer must mask what it says. The mask hides nothing: there is nobody in between.
const MASKED_FAREWELL: &[u8] = &[0x88, 0x82, 0x63, 0x66, 0x63, 0x77, 0x03 ^ 0x63, 0xe9 ^ 0x66];

const READ_LENGTH: usize = 16 << 10;

/// The opcode of a frame that closes.
const CLOSE: u8 = 8;

/// Carries a WebSocket between client and Worker until both sides have ended. When the gateway leaves, both are told, and
/// it ends when both have answered.
pub(crate) async fn carry<C, W>(client: C, worker: W, phase: watch::Receiver<Phase>)
where
    C: AsyncRead + AsyncWrite,
    W: AsyncRead + AsyncWrite,
{
    let (from_client, to_client) = tokio::io::split(client);
    let (from_worker, to_worker) = tokio::io::split(worker);
    tokio::join!(
        carry_one_way(from_client, to_worker, phase.clone(), MASKED_FAREWELL),
        carry_one_way(from_worker, to_client, phase, FAREWELL),
    );
}

/// Either side may leave without a farewell; that is how tunnels end.
async fn carry_one_way(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut phase: watch::Receiver<Phase>,
    farewell: &[u8],
) {
    let mut frames = Frames::default();
    let mut buffer = vec![0; READ_LENGTH];
    let mut leaving = std::pin::pin!(reached(&mut phase, |phase| phase >= Phase::Leaving));
    loop {
        let count = tokio::select! {
            biased;
            () = &mut leaving => break,
            read = from.read(&mut buffer) => read.unwrap_or(0),
        };
        frames.pass(&buffer[..count]);
        if count == 0 || write(&mut to, &buffer[..count]).await.is_err() {
            let _ = to.shutdown().await;
            return;
        }
    }
    // What has begun is passed to its end, and nothing after that.
    while !frames.is_between() && !frames.is_closed {
        let count = from.read(&mut buffer).await.unwrap_or(0);
        let whole = frames.pass_one(&buffer[..count]);
        if count == 0 || write(&mut to, &buffer[..whole]).await.is_err() {
            let _ = to.shutdown().await;
            return;
        }
        frames.skip(&buffer[whole..count]);
    }
    if !frames.has_said_farewell && write(&mut to, farewell).await.is_err() {
        return;
    }
    // The answer comes the other way and is for us.
    while !frames.is_closed {
        let count = from.read(&mut buffer).await.unwrap_or(0);
        if count == 0 {
            return;
        }
        frames.skip(&buffer[..count]);
    }
}

async fn write(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> std::io::Result<()> {
    to.write_all(bytes).await?;
    to.flush().await
}

/// Where in its frames one direction of a WebSocket is.
#[derive(Debug, Default)]
struct Frames {
    /// The header that has begun.
    header: Vec<u8>,
    /// What is missing of the payload.
    missing: u64,
    /// Whether the last frame has begun, or come, that closes.
    is_closing: bool,
    is_closed: bool,
    /// Whether a frame that closes was passed on.
    has_said_farewell: bool,
}

impl Frames {
    fn is_between(&self) -> bool {
        self.header.is_empty() && self.missing == 0
    }

    /// Takes note of bytes that are passed on.
    fn pass(&mut self, bytes: &[u8]) {
        self.skip(bytes);
        self.has_said_farewell |= self.is_closing;
    }

    /// Takes note of the bytes up to the end of the frame that has begun; how many these are.
    fn pass_one(&mut self, bytes: &[u8]) -> usize {
        let taken = self.take(bytes);
        self.has_said_farewell |= self.is_closing;
        taken
    }

    /// Takes note of bytes that are not passed on.
    fn skip(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let taken = self.take(bytes);
            bytes = &bytes[taken..];
        }
    }

    /// Takes of `bytes` what belongs to the frame that has begun, or begins: at least one.
    fn take(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while self.missing == 0 && taken < bytes.len() {
            self.header.push(bytes[taken]);
            taken += 1;
            let Some((opcode, length)) = parse(&self.header) else { continue };
            self.header.clear();
            self.missing = length;
            self.is_closing |= opcode == CLOSE;
            if length == 0 {
                self.is_closed |= self.is_closing;
                return taken;
            }
        }
        let rest = (bytes.len() - taken) as u64;
        let of_payload = rest.min(self.missing);
        self.missing -= of_payload;
        self.is_closed |= self.is_closing && self.is_between();
        taken + of_payload as usize
    }
}

/// The opcode and the length of the payload, once the header is whole.
fn parse(header: &[u8]) -> Option<(u8, u64)> {
    let [first, second, rest @ ..] = header else { return None };
    let mask = if second & 0x80 != 0 { 4 } else { 0 };
    let extended = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let number = rest.get(..extended)?;
    rest.get(extended..extended + mask)?;
    let length = match extended {
        0 => u64::from(second & 0x7f),
        _ => number.iter().fold(0, |length, byte| length << 8 | u64::from(*byte)),
    };
    Some((first & 0x0f, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame with `payload` bytes, masked or not.
    fn frame(opcode: u8, payload: usize, is_masked: bool) -> Vec<u8> {
        let mut frame = vec![0x80 | opcode];
        let mask = if is_masked { 0x80 } else { 0 };
        match payload {
            0..126 => frame.push(mask | payload as u8),
            126..65_536 => {
                frame.push(mask | 126);
                frame.extend((payload as u16).to_be_bytes());
            }
            _ => {
                frame.push(mask | 127);
                frame.extend((payload as u64).to_be_bytes());
            }
        }
        frame.extend(vec![0x88; if is_masked { 4 } else { 0 } + payload]);
        frame
    }

    #[test]
    fn the_ends_of_frames_are_found_however_they_are_cut() {
        for is_masked in [false, true] {
            for payload in [0, 1, 125, 126, 300, 65_535, 65_536, 70_000] {
                let one = frame(2, payload, is_masked);
                let two = [one.clone(), one.clone()].concat();
                let mut whole = Frames::default();
                assert_eq!(whole.pass_one(&two), one.len());
                assert!(whole.is_between() && !whole.is_closed);
                for piece in [1, 2, 3, 7, 4096] {
                    let mut frames = Frames::default();
                    for (number, bytes) in one.chunks(piece).enumerate() {
                        assert!(number == 0 || !frames.is_between(), "{payload} {piece}");
                        frames.pass(bytes);
                    }
                    assert!(frames.is_between() && !frames.is_closed, "{payload} {piece}");
                }
            }
        }
    }

    #[test]
    fn a_farewell_is_seen_also_behind_others_and_in_pieces() {
        let bytes = [frame(1, 200, true), frame(9, 0, true), frame(8, 2, true)].concat();
        for piece in [1, 5, 1000] {
            let mut frames = Frames::default();
            bytes.chunks(piece).for_each(|bytes| frames.skip(bytes));
            assert!(frames.is_closed && !frames.has_said_farewell, "{piece}");
        }
        for farewell in [FAREWELL, MASKED_FAREWELL] {
            let mut frames = Frames::default();
            frames.pass(farewell);
            assert!(frames.is_closed && frames.has_said_farewell);
        }
        let unmasked: Vec<u8> = MASKED_FAREWELL[6..].iter().zip(&MASKED_FAREWELL[2..]).map(|(a, b)| a ^ b).collect();
        assert_eq!(u16::from_be_bytes([unmasked[0], unmasked[1]]), 1001);
    }
}
