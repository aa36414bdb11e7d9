//! [`Frames`]: what arrives of an upload, gathered into batches.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;

use crate::{AppendError, ByteStream};

/// What is held of a body in memory while what came before is written.
const BATCH_MAX: usize = 2 << 20;
/// What a frame costs beside its bytes, and more: a client may send them one by one.
const FRAME_COST: usize = 512;
/// From this size on, a batch is written at once. Every hand-over to another thread costs two wake-ups; what does not fit
/// the processor's cache costs more.
const BATCH_ENOUGH: usize = 512 << 10;
/// How long a smaller batch waits for more. No thread ever waits for a client.
const LINGER: Duration = Duration::from_millis(2);

/// A body and how much of it has come.
pub(crate) struct Frames<'a> {
    body: ByteStream<'a>,
    /// How long the body is, where that was promised.
    length: Option<u64>,
    /// Bytes in batches so far.
    found: u64,
    gathered: Vec<Bytes>,
    /// What the gathered frames are counted as.
    cost: usize,
    /// How the body ended, once it has.
    ended: Option<Result<(), String>>,
}

impl<'a> Frames<'a> {
    pub(crate) fn new(body: ByteStream<'a>, length: Option<u64>) -> Frames<'a> {
        Frames { body, length, found: 0, gathered: Vec::new(), cost: 0, ended: None }
    }

    /// Receives one frame. May be dropped at any time without a loss.
    async fn receive(&mut self) {
        match self.body.next().await {
            Some(Ok(frame)) => {
                self.cost += frame.len().max(FRAME_COST);
                self.gathered.push(frame);
            }
            Some(Err(reason)) => self.ended = Some(Err(reason)),
            None => self.ended = Some(Ok(())),
        }
    }

    /// The next frames, of which there is at least one; `None` at the body's end.
    ///
    /// # Errors
    /// When the body breaks off, after all that came of it, and as soon as it is not as long as was promised.
    pub(crate) async fn batch(&mut self) -> Result<Option<Vec<Bytes>>, AppendError> {
        if self.gathered.is_empty() && self.ended.is_none() {
            self.receive().await;
        }
        let _ = tokio::time::timeout(LINGER, async {
            while self.cost < BATCH_ENOUGH && self.ended.is_none() {
                self.receive().await;
            }
        })
        .await;
        let frames = std::mem::take(&mut self.gathered);
        self.cost = 0;
        self.found += frames.iter().map(|frame| frame.len() as u64).sum::<u64>();
        let is_over = frames.is_empty();
        if let Some(Err(reason)) = self.ended.as_ref().filter(|_| is_over) {
            return Err(AppendError::Body(reason.clone()));
        }
        match self.length {
            Some(expected) if self.found > expected || (is_over && self.found < expected) => {
                Err(AppendError::Length { expected, found: self.found })
            }
            _ => Ok((!is_over).then_some(frames)),
        }
    }

    /// Receives until `writing` is done.
    pub(crate) async fn gather_during<T>(&mut self, writing: impl Future<Output = T>) -> T {
        let mut writing = pin!(writing);
        loop {
            let may_receive = self.cost < BATCH_MAX && self.ended.is_none();
            tokio::select! {
                biased;
                written = &mut writing => return written,
                () = self.receive(), if may_receive => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_of_single_bytes_is_held_back_while_it_cannot_be_written() {
        let body = Box::pin(futures::stream::repeat_with(|| Ok(Bytes::from_static(b"x"))));
        let mut body = Frames::new(body, None);
        let may_come = BATCH_MAX / FRAME_COST;
        let mut polls = 2 * may_come;
        let writing = std::future::poll_fn(|context| {
            polls -= 1;
            context.waker().wake_by_ref();
            if polls == 0 { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        });
        body.gather_during(writing).await;
        assert_eq!(body.gathered.len(), may_come);
        let frames = body.batch().await.expect("goes on").expect("is there");
        assert_eq!((frames.len(), body.found), (may_come, may_come as u64));
    }
}
