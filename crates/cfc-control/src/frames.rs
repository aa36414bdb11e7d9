//! The frames of a command's connection: one byte that says what it is, the length as four big-endian bytes, the content.

use std::io;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{ExecInput, ExecOutput};

/// What `Upgrade:` asks for.
pub(crate) const PROTOCOL: &str = "cfc-exec";

/// The longest content of a frame; longer input is sent in several.
pub(crate) const CONTENT_MAX: usize = 64 << 10;

const DATA: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const EXIT: u8 = 3;
const END: u8 = 4;
const RESIZE: u8 = 5;
const SIGNAL: u8 = 6;

/// Something that travels as a frame.
pub(crate) trait Frame: Sized {
    fn encode(&self) -> (u8, Bytes);
    /// `None` for a frame that this is not.
    fn decode(kind: u8, content: Bytes) -> Option<Self>;
}

impl Frame for ExecInput {
    fn encode(&self) -> (u8, Bytes) {
        match self {
            ExecInput::Data(bytes) => (DATA, bytes.clone()),
            ExecInput::End => (END, Bytes::new()),
            ExecInput::Resize(rows, columns) => (RESIZE, [rows.to_be_bytes(), columns.to_be_bytes()].concat().into()),
            ExecInput::Signal(signal) => (SIGNAL, Bytes::copy_from_slice(&signal.to_be_bytes())),
        }
    }

    fn decode(kind: u8, content: Bytes) -> Option<ExecInput> {
        match (kind, &content[..]) {
            (DATA, _) => Some(ExecInput::Data(content)),
            (END, []) => Some(ExecInput::End),
            (RESIZE, [a, b, c, d]) => {
                Some(ExecInput::Resize(u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])))
            }
            (SIGNAL, [a, b, c, d]) => Some(ExecInput::Signal(i32::from_be_bytes([*a, *b, *c, *d]))),
            _ => None,
        }
    }
}

impl Frame for ExecOutput {
    fn encode(&self) -> (u8, Bytes) {
        match self {
            ExecOutput::Stdout(bytes) => (STDOUT, bytes.clone()),
            ExecOutput::Stderr(bytes) => (STDERR, bytes.clone()),
            ExecOutput::Exit(code) => (EXIT, Bytes::copy_from_slice(&code.to_be_bytes())),
        }
    }

    fn decode(kind: u8, content: Bytes) -> Option<ExecOutput> {
        match (kind, &content[..]) {
            (STDOUT, _) => Some(ExecOutput::Stdout(content)),
            (STDERR, _) => Some(ExecOutput::Stderr(content)),
            (EXIT, [a, b, c, d]) => Some(ExecOutput::Exit(i32::from_be_bytes([*a, *b, *c, *d]))),
            _ => None,
        }
    }
}

pub(crate) async fn write(stream: &mut (impl AsyncWrite + Unpin), frame: &impl Frame) -> io::Result<()> {
    let (kind, content) = frame.encode();
    // One write: a frame is one packet where it fits.
    let mut bytes = Vec::with_capacity(5 + content.len());
    bytes.push(kind);
    bytes.extend_from_slice(&(content.len() as u32).to_be_bytes());
    bytes.extend_from_slice(&content);
    stream.write_all(&bytes).await?;
    stream.flush().await
}

/// The next frame; `None` when the connection ended between two.
pub(crate) async fn read<F: Frame>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<F>> {
    let mut header = [0; 5];
    match stream.read_exact(&mut header[..1]).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    };
    stream.read_exact(&mut header[1..]).await?;
    let [kind, length @ ..] = header;
    let length = u32::from_be_bytes(length) as usize;
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    if length > CONTENT_MAX {
        return Err(invalid(format!("a frame of {length} bytes exceeds {CONTENT_MAX}")));
    }
    let mut content = vec![0; length];
    stream.read_exact(&mut content).await?;
    F::decode(kind, content.into()).map(Some).ok_or_else(|| invalid(format!("unknown frame {kind} of {length} bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_survive_the_way_and_bad_ones_are_refused() {
        let (mut left, mut right) = tokio::io::duplex(1 << 20);
        let inputs = [
            ExecInput::Data(Bytes::from_static(b"x")),
            ExecInput::End,
            ExecInput::Resize(50, 132),
            ExecInput::Signal(15),
        ];
        for frame in &inputs {
            write(&mut left, frame).await.expect("writes");
            assert_eq!(read::<ExecInput>(&mut right).await.expect("reads").as_ref(), Some(frame));
        }
        for frame in
            [ExecOutput::Stdout(Bytes::new()), ExecOutput::Stderr(Bytes::from_static(b"e")), ExecOutput::Exit(-1)]
        {
            write(&mut left, &frame).await.expect("writes");
            assert_eq!(read::<ExecOutput>(&mut right).await.expect("reads"), Some(frame));
        }
        for bad in [&[9, 0, 0, 0, 0][..], &[RESIZE, 0, 0, 0, 1, 0], &[DATA, 255, 255, 255, 255]] {
            left.write_all(bad).await.expect("writes");
            assert!(read::<ExecInput>(&mut right).await.is_err(), "{bad:?}");
        }
        drop(left);
        assert_eq!(read::<ExecInput>(&mut right).await.expect("ends"), None);
    }
}
