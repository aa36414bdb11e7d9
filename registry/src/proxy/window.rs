//! [`Window`]: the last bytes of what is fetched, in memory, for those who keep up with it. Whoever writes never waits for
//! whoever reads.

use std::collections::VecDeque;
use std::sync::Mutex;

use bytes::Bytes;

use super::lock;

/// What is kept, about as much as an upload to a bucket keeps of the same bytes for itself.
const WINDOW_BYTES: u64 = 8 << 20;
/// What a frame costs beside its bytes, and more.
const FRAME_COST: u64 = 512;
/// Below this size, a frame is copied: it may be a slice of memory that is much larger.
const SMALL_BYTES: usize = 16 << 10;

/// The last bytes of a stream.
#[derive(Default)]
pub(super) struct Window(Mutex<Frames>);

#[derive(Default)]
struct Frames {
    /// Each with its offset in the stream.
    frames: VecDeque<(u64, Bytes)>,
    /// How many bytes have come.
    come: u64,
    cost: u64,
    is_closed: bool,
}

fn cost(frame: &Bytes) -> u64 {
    frame.len() as u64 + FRAME_COST
}

impl Window {
    /// Adds a frame, and forgets the oldest ones that have no room beside it. Says how many bytes have come.
    pub(super) fn push(&self, frame: &Bytes) -> u64 {
        let mut all = lock(&self.0);
        if frame.is_empty() {
            return all.come;
        }
        let frame = if frame.len() < SMALL_BYTES { Bytes::copy_from_slice(frame) } else { frame.clone() };
        let start = all.come;
        all.come += frame.len() as u64;
        if all.is_closed {
            return all.come;
        }
        all.cost += cost(&frame);
        all.frames.push_back((start, frame));
        while all.cost > WINDOW_BYTES && all.frames.len() > 1 {
            let oldest = all.frames.pop_front().map_or(0, |(_, frame)| cost(&frame));
            all.cost -= oldest;
        }
        all.come
    }

    /// Forgets all of it. Who follows is not to hold what the store has, or nobody will have.
    pub(super) fn close(&self) {
        let mut all = lock(&self.0);
        (all.frames, all.cost, all.is_closed) = (VecDeque::new(), 0, true);
    }

    /// Whether the byte at `offset` is still there, or has yet to come.
    pub(super) fn has(&self, offset: u64) -> bool {
        let all = lock(&self.0);
        !all.is_closed && offset >= all.frames.front().map_or(all.come, |(start, _)| *start)
    }

    /// Bytes from `start` on, up to `end` at most; `None` when they are not there any more, or not yet.
    pub(super) fn read(&self, start: u64, end: u64) -> Option<Bytes> {
        let all = lock(&self.0);
        let number = all.frames.partition_point(|(offset, _)| *offset <= start).checked_sub(1)?;
        let (offset, frame) = &all.frames[number];
        let (from, to) = ((start - offset) as usize, end.saturating_sub(*offset).min(frame.len() as u64) as usize);
        (from < to).then(|| frame.slice(from..to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_last_is_read_and_what_came_long_ago_is_not() {
        let window = Window::default();
        assert!(window.has(0) && window.read(0, 10).is_none());
        assert_eq!(window.push(&Bytes::from_static(b"abc")), 3);
        assert_eq!(window.push(&Bytes::new()), 3);
        assert_eq!(window.push(&Bytes::from_static(b"defg")), 7);
        assert_eq!(window.read(0, 10).as_deref(), Some(&b"abc"[..]));
        assert_eq!(window.read(1, 2).as_deref(), Some(&b"b"[..]));
        assert_eq!(window.read(3, 10).as_deref(), Some(&b"defg"[..]));
        assert_eq!(window.read(6, 10).as_deref(), Some(&b"g"[..]));
        assert_eq!((window.read(7, 10), window.read(2, 2)), (None, None));
        for _ in 0..9 {
            window.push(&Bytes::from(vec![1; 1 << 20]));
        }
        assert!(!window.has(0) && window.read(0, 10).is_none() && window.has(7 + (9 << 20)));
        assert_eq!(window.read((9 << 20) + 6, u64::MAX).map(|bytes| bytes.len()), Some(1));
        let mut small = 0;
        for _ in 0..100_000 {
            small = window.push(&Bytes::from_static(b"x"));
        }
        let frames = lock(&window.0);
        assert!(frames.cost <= WINDOW_BYTES && frames.frames.len() < 20_000 && frames.come == small);
        drop(frames);
        window.close();
        assert!(!window.has(small) && window.read(small - 1, small).is_none());
        assert_eq!(window.push(&Bytes::from_static(b"x")), small + 1);
        assert_eq!((window.read(small, small + 1), lock(&window.0).frames.len()), (None, 0));
    }
}
