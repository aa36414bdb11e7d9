//! A command's input and output on a connection that has become its own; and the frames that output comes in.
//!
//! Without a terminal the output comes in frames: which stream (1 is stdout, 2 stderr), three zero bytes, the length as four
//! big-endian bytes, and so many bytes. The input is raw in both cases; when the client closes its half, it ends. A client
//! that reads slowly slows the command down: no more than one buffer a stream is ever held.

use axum::body::Bytes;
use cfc_runtime::{Exec, ExecControl, ExecInput, ExecOutput};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::Mutex;

/// A connection after its upgrade.
pub(crate) type Stream = TokioIo<Upgraded>;

const BUFFER_BYTES: usize = 32 << 10;
const HEADER_BYTES: usize = 8;
pub(crate) const STDOUT: u8 = 1;
pub(crate) const STDERR: u8 = 2;

/// How output is told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// With a terminal: it is not.
    Raw,
    Multiplexed,
}

impl Framing {
    pub fn content_type(self) -> &'static str {
        match self {
            Framing::Raw => "application/vnd.docker.raw-stream",
            Framing::Multiplexed => "application/vnd.docker.multiplexed-stream",
        }
    }
}

/// Carries a command's input and output until it has ended and all it put out was sent. As with Docker, it goes on without
/// a client, and what it puts out then is lost.
pub(crate) async fn carry(running: Exec, stream: Stream, framing: Framing) {
    let Exec { input, mut stdout, stderr, control, .. } = running;
    let (from_client, to_client) = tokio::io::split(stream);
    let reading = tokio::spawn(feed(from_client, input));
    let to_client = Mutex::new(Some(to_client));
    let errors = async {
        if let Some(mut stderr) = stderr {
            send(&mut stderr, &to_client, framing, STDERR).await;
        }
    };
    tokio::join!(send(&mut stdout, &to_client, framing, STDOUT), errors);
    close(control, to_client).await;
    reading.abort();
}

/// The process may have closed its output long before it ends; the connection lasts as long as the process.
async fn close(control: ExecControl, to_client: Mutex<Option<WriteHalf<Stream>>>) {
    control.ended().await;
    if let Some(mut to_client) = to_client.into_inner() {
        let _ = to_client.shutdown().await;
    }
}

/// Types what the client sends. What the command does not want any more is read and dropped, so that a client which has
/// more to say is not kept waiting.
async fn feed(mut from_client: ReadHalf<Stream>, mut input: Option<ExecInput>) {
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
        if let Some(sink) = &mut input
            && sink.write_all(&buffer[..count]).await.is_err()
        {
            input = None;
        }
    }
    if let Some(input) = input {
        let _ = input.finish().await;
    }
}

async fn send(output: &mut ExecOutput, to_client: &Mutex<Option<WriteHalf<Stream>>>, framing: Framing, stream: u8) {
    let mut buffer = vec![0; HEADER_BYTES + BUFFER_BYTES];
    while let Ok(count @ 1..) = output.read(&mut buffer[HEADER_BYTES..]).await {
        buffer[..HEADER_BYTES].copy_from_slice(&header(stream, count));
        let start = if framing == Framing::Multiplexed { 0 } else { HEADER_BYTES };
        let mut to_client = to_client.lock().await;
        if let Some(client) = to_client.as_mut()
            && client.write_all(&buffer[start..HEADER_BYTES + count]).await.is_err()
        {
            *to_client = None;
        }
    }
}

/// One frame.
pub(crate) fn frame(stream: u8, content: &[u8]) -> Bytes {
    [&header(stream, content.len())[..], content].concat().into()
}

fn header(stream: u8, length: usize) -> [u8; HEADER_BYTES] {
    let mut header = [stream, 0, 0, 0, 0, 0, 0, 0];
    header[4..].copy_from_slice(&(length as u32).to_be_bytes());
    header
}

/// Plays a command that only says `complaint`.
pub(crate) async fn complain(mut stream: Stream, framing: Framing, complaint: String) {
    let framed = match framing {
        Framing::Raw => complaint.replace('\n', "\r\n").into_bytes(),
        Framing::Multiplexed => [&header(STDERR, complaint.len())[..], complaint.as_bytes()].concat(),
    };
    if !complaint.is_empty() && stream.write_all(&framed).await.is_ok() {
        let _ = stream.flush().await;
    }
    let _ = stream.shutdown().await;
}

/// Reads what a detached command puts out, for nobody.
pub(crate) async fn discard(running: Exec) {
    let Exec { mut stdout, stderr, control, .. } = running;
    let mut buffer = vec![0; BUFFER_BYTES];
    let errors = async {
        let mut buffer = vec![0; BUFFER_BYTES];
        if let Some(mut stderr) = stderr {
            while let Ok(1..) = stderr.read(&mut buffer).await {}
        }
    };
    let outputs = async { while let Ok(1..) = stdout.read(&mut buffer).await {} };
    tokio::join!(outputs, errors);
    control.ended().await;
}
