//! [`Pieces`]: what arrives in messages, read as one stream by a thread that may wait.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

/// Takes pieces, or why there are no more.
pub(crate) type PieceSender = mpsc::Sender<io::Result<Bytes>>;

/// Bytes that are handed over piece by piece. Ends where the last sender is dropped. Read on threads that may wait, not in
/// tasks.
pub(crate) struct Pieces {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
}

/// The two ends; whoever sends waits while `waiting` pieces are not read.
pub(crate) fn pieces(waiting: usize) -> (PieceSender, Pieces) {
    let (sender, receiver) = mpsc::channel(waiting);
    (sender, Pieces { receiver, piece: Bytes::new() })
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}
