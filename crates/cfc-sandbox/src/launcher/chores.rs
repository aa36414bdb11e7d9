//! Chores: what the launcher makes in advance and takes down afterwards, when no start needs the machine.
//!
//! A shell takes some milliseconds of a processor, and a disk makes the kernel wait for all of them. Beside a start that
//! goes on, either would be in its way, so both wait until the starts are over for a moment.

use std::time::{Duration, Instant};

use super::event_loop::EventLoop;
use super::sandbox::Phase;

/// How long no sandbox must have been started before a chore is done.
const REST: Duration = Duration::from_millis(3);

/// How long a start that does not end keeps chores waiting.
const PATIENCE: Duration = Duration::from_millis(250);

impl EventLoop {
    /// When the next chore is due, if there is one.
    pub(super) fn chores_due(&self) -> Option<Instant> {
        let disks = self.disks.has_chores().then_some(self.last_start);
        let due = self.starter.pool.due().into_iter().chain(disks).min().filter(|_| self.ending.is_none())?;
        let is_starting = self.disks.are_awaited() || self.starting.iter().any(|id| self.is_starting(id));
        Some(due.max(self.last_start + if is_starting { PATIENCE } else { REST }))
    }

    fn is_starting(&self, id: &str) -> bool {
        self.sandboxes.get(id).is_some_and(|sandbox| matches!(sandbox.phase, Phase::Starting { .. }))
    }

    /// Does one chore, if it is time: each may take as long as a client can wait.
    pub(super) fn do_chore(&mut self) {
        let mut starting = std::mem::take(&mut self.starting);
        starting.retain(|id| self.is_starting(id));
        self.starting = starting;
        if self.chores_due().is_none_or(|due| due > Instant::now()) {
            return;
        }
        if self.disks.has_chores() {
            self.restock_disks();
        } else {
            self.starter.fill_pool();
        }
    }
}
