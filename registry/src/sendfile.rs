//! Sending files without reading them: the kernel copies from its memory of the file to the socket (`sendfile(2)`).
//!
//! hyper writes bytes and knows nothing of files. So the body of such a response consists of placeholders: slices of a
//! region of memory that nothing ever reads or writes, while the files they stand for wait in a queue of the connection.
//! Where the connection is asked to write a slice of that region, it sends as many bytes of the first file instead.
//! This holds as long as hyper hands on a body's slices as they are, which it does over HTTP/1 to whatever can write
//! several slices at once (`is_write_vectored`). A connection without a queue gets the bytes.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fs::File;
use std::io::{Error, ErrorKind, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, SizeHint};
use rustix::fs::Advice;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

/// Bytes that one slice stands for: what is sent before other connections get their turn.
const FRAME_BYTES: usize = 512 * 1024;

/// How far ahead of what is sent the kernel is asked to read.
const READ_AHEAD_BYTES: u64 = 4 * 1024 * 1024;

/// Memory that is only ever pointed at.
static PLACEHOLDER: LazyLock<&'static [u8]> = LazyLock::new(|| Box::leak(vec![0; FRAME_BYTES].into_boxed_slice()));

fn is_placeholder(slice: &[u8]) -> bool {
    PLACEHOLDER.as_ptr_range().contains(&slice.as_ptr())
}

/// The files that the placeholders on their way through one connection stand for, in order.
#[derive(Clone, Default)]
pub(crate) struct FileQueue(Arc<Mutex<VecDeque<Part>>>);

struct Part {
    file: Arc<File>,
    range: Range<u64>,
}

impl FileQueue {
    /// The bytes of `range`, which lies within the file, as a body for a response on this connection.
    pub(crate) fn body(&self, file: File, range: Range<u64>) -> axum::body::Body {
        let body = FileBody { queue: self.clone(), file: Arc::new(file), range };
        axum::body::Body::new(body.map_err(|never| match never {}))
    }

    /// Stands for the first bytes of `range`, which lies within the file and is not empty, for the next frame of a response on
    /// this connection.
    pub(crate) fn piece(&self, file: &Arc<File>, range: Range<u64>) -> Bytes {
        let length = (range.end - range.start).min(FRAME_BYTES as u64);
        let part = Part { file: file.clone(), range: range.start..range.start + length };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_back(part);
        Bytes::from_static(&PLACEHOLDER[..length as usize])
    }

    /// Sends at most `limit` bytes of the first file, and says how many.
    fn send(&self, socket: &TcpStream, limit: usize) -> std::io::Result<usize> {
        let mut parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let part = parts.front_mut().ok_or_else(|| Error::other("there is no file to send"))?;
        let length = part.range.end - part.range.start;
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(limit);
        let sent = rustix::fs::sendfile(socket, &part.file, Some(&mut part.range.start), length)?;
        if sent == 0 {
            return Err(Error::new(ErrorKind::UnexpectedEof, "the file is shorter than it was"));
        }
        if part.range.is_empty() {
            parts.pop_front();
        }
        Ok(sent)
    }
}

/// A body of placeholders.
struct FileBody {
    queue: FileQueue,
    file: Arc<File>,
    range: Range<u64>,
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.range.is_empty() {
            return Poll::Ready(None);
        }
        let start = self.range.start;
        let end = self.range.end.min(start + FRAME_BYTES as u64);
        if start / READ_AHEAD_BYTES != end / READ_AHEAD_BYTES {
            // Only a hint: without it the next parts are merely read when they are sent.
            let length = std::num::NonZeroU64::new(READ_AHEAD_BYTES);
            let _ = rustix::fs::fadvise(&self.file, end, length, Advice::WillNeed);
        }
        self.range.start = end;
        Poll::Ready(Some(Ok(Frame::data(self.queue.piece(&self.file, start..end)))))
    }

    fn is_end_stream(&self) -> bool {
        self.range.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.range.end - self.range.start)
    }
}

/// A connection that sends files where it is asked to write placeholders, and that gives up on a client who takes
/// nothing for a while.
pub(crate) struct Connection {
    stream: TcpStream,
    queue: FileQueue,
    patience: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
    is_stalled: bool,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream, queue: FileQueue, patience: Duration) -> Connection {
        Connection { stream, queue, patience, stalled: None, is_stalled: false }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, limit: usize) -> Poll<std::io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match self.stream.try_io(Interest::WRITABLE, || self.queue.send(&self.stream, limit)) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
        }
    }

    fn poll_slices(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<std::io::Result<usize>> {
        let Some(first) = slices.iter().position(|slice| !slice.is_empty()) else { return Poll::Ready(Ok(0)) };
        let slices = &slices[first..];
        if is_placeholder(&slices[0]) {
            return self.poll_send(cx, slices[0].len());
        }
        let ordinary = slices.iter().position(|slice| is_placeholder(slice)).unwrap_or(slices.len());
        Pin::new(&mut self.stream).poll_write_vectored(cx, &slices[..ordinary])
    }

    /// Turns waiting for too long into an error.
    fn watch<T>(&mut self, cx: &mut Context<'_>, polled: Poll<std::io::Result<T>>) -> Poll<std::io::Result<T>> {
        if polled.is_ready() {
            self.is_stalled = false;
            return polled;
        }
        let deadline = Instant::now() + self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if !self.is_stalled {
            self.is_stalled = true;
            stalled.as_mut().reset(deadline);
        }
        match stalled.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(Error::new(ErrorKind::TimedOut, "the client takes nothing"))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let polled = self.poll_slices(cx, slices);
        self.watch(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
