//! [`Pieces`]: what arrives in messages, read as one stream by a thread that may wait.

use std::io::{self, Read};
use std::sync::mpsc;

/// Bytes that are handed over piece by piece. Ends where the last sender is dropped.
pub(crate) struct Pieces {
    receiver: mpsc::Receiver<Vec<u8>>,
    piece: Vec<u8>,
    read: usize,
}

/// The two ends; whoever sends waits while `waiting` pieces are not read.
pub(crate) fn pieces(waiting: usize) -> (mpsc::SyncSender<Vec<u8>>, Pieces) {
    let (sender, receiver) = mpsc::sync_channel(waiting);
    (sender, Pieces { receiver, piece: Vec::new(), read: 0 })
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.read == self.piece.len() {
            match self.receiver.recv() {
                Ok(piece) => (self.piece, self.read) = (piece, 0),
                Err(mpsc::RecvError) => return Ok(0),
            }
        }
        let length = buffer.len().min(self.piece.len() - self.read);
        buffer[..length].copy_from_slice(&self.piece[self.read..self.read + length]);
        self.read += length;
        Ok(length)
    }
}
