//! [`Memory`]: what all uploads of a process may hold in memory together until the store has it.
//!
//! Room is taken for bytes that are there, not for those that were promised. Whoever has to wait for room holds none
//! meanwhile, so nobody waits for somebody who waits himself; and who holds some for long is told that others want it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

/// What room is counted in.
const UNIT: u64 = 64 * 1024;

/// For how long somebody may fill room that others want: who sends 8 MiB in that time, a part, never gives any back.
const TURN: Duration = Duration::from_secs(5);

/// Memory for parts of uploads.
pub(super) struct Memory {
    free: Arc<Semaphore>,
    units: u32,
    turn: Duration,
    /// How many wait for room.
    waiting: watch::Sender<usize>,
}

/// Memory that somebody may fill. Others may when it is dropped.
pub(super) struct Room {
    units: OwnedSemaphorePermit,
    since: Instant,
}

impl Room {
    /// Whether so many bytes fit.
    pub(super) fn is_for(&self, bytes: u64) -> bool {
        self.units.num_permits() as u64 * UNIT >= bytes
    }
}

impl Memory {
    /// Room for `bytes`.
    pub(super) fn new(bytes: u64) -> Memory {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).clamp(1, u32::MAX / 8);
        Memory { free: Arc::new(Semaphore::new(units as usize)), units, turn: TURN, waiting: watch::Sender::new(0) }
    }

    /// For what is larger than all of it, all of it is enough.
    fn units(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).min(self.units)
    }

    fn room(units: OwnedSemaphorePermit) -> Room {
        Room { units, since: Instant::now() }
    }

    /// Makes `room` one for `bytes`, if there is so much now, and nobody was first; else it is as it was.
    pub(super) fn try_grow(&self, room: &mut Option<Room>, bytes: u64) -> bool {
        let has = room.as_ref().map_or(0, |room| room.units.num_permits() as u32);
        let missing = self.units(bytes).saturating_sub(has);
        let Ok(units) = self.free.clone().try_acquire_many_owned(missing) else { return false };
        match room {
            Some(room) => room.units.merge(units),
            None => *room = Some(Memory::room(units)),
        }
        true
    }

    /// Waits for room for `bytes`, those who came first before us. Only for who holds none.
    pub(super) async fn take(&self, bytes: u64) -> Room {
        let _waiting = Waiting::new(&self.waiting);
        let units = self.free.clone().acquire_many_owned(self.units(bytes)).await;
        Memory::room(units.expect("never closed"))
    }

    /// Returns when `room` was held for its time and others want it.
    pub(super) async fn wants_back(&self, room: &Room) {
        tokio::time::sleep_until(room.since + self.turn).await;
        // It ends with this.
        let _ = self.waiting.subscribe().wait_for(|waiting| *waiting > 0).await;
    }
}

/// One who waits.
struct Waiting<'a>(&'a watch::Sender<usize>);

impl<'a> Waiting<'a> {
    fn new(waiting: &'a watch::Sender<usize>) -> Waiting<'a> {
        waiting.send_modify(|waiting| *waiting += 1);
        Waiting(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|waiting| *waiting -= 1);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn room_is_given_in_turn_and_wanted_back_after_a_while() {
        let memory = Memory { turn: Duration::from_millis(20), ..Memory::new(10 * UNIT) };
        let mut first = None;
        assert!(memory.try_grow(&mut first, 4 * UNIT) && memory.try_grow(&mut first, 8 * UNIT - 1));
        assert_eq!(first.as_ref().map(|room| room.units.num_permits()), Some(8));
        let mut second = None;
        assert!(!memory.try_grow(&mut second, 3 * UNIT) && second.is_none());
        let mut large = Box::pin(memory.take(100 * UNIT));
        assert!((&mut large).now_or_never().is_none());
        assert!(!memory.try_grow(&mut second, UNIT), "who waits was first");
        memory.wants_back(first.as_ref().expect("held")).await;
        drop(first);
        let all = large.await;
        assert_eq!(all.units.num_permits(), 10);
        assert!(memory.wants_back(&all).now_or_never().is_none(), "nobody waits");
        drop((all, memory.take(UNIT).now_or_never()));
        assert!(memory.try_grow(&mut second, 10 * UNIT));
    }
}
