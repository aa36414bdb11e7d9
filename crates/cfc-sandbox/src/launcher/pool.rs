//! [`Pool`]: shells that are kept ready, so that a start need not make one.
//!
//! It is filled one shell at a time, when no start needs the machine (`super::chores`). It holds shells of the kind that was started last, so a change of kind empties it.
//! That of a launcher which lives for a moment keeps none, but one that is expected.

use std::time::{Duration, Instant};

use super::ranges::Ranges;
use super::shell::{Origin, Shell, ShellKind};
use super::slots::Slots;
use super::zygote::Zygote;
use crate::cgroup::Hierarchies;
use crate::error::ErrorKind;

/// How many shells wait. Each is a process with a network namespace: about 0.3 MiB.
const SIZE: usize = 4;

/// How long the pool leaves off after a shell could not be made.
const PENALTY: Duration = Duration::from_secs(1);

/// Shells of one kind that wait, and which kind is to wait.
pub(crate) struct Pool {
    size: usize,
    wanted: Option<ShellKind>,
    ready: Vec<Shell>,
    /// Not before this moment is another one made.
    due: Instant,
    made: u64,
    slots: Slots,
    /// What shells of the wanted kind are forked from, if any are kept.
    zygote: Option<Zygote>,
}

impl Pool {
    /// A pool that keeps shells ready.
    pub(crate) fn new() -> std::io::Result<Pool> {
        Ok(Pool { size: SIZE, ..Pool::empty()? })
    }

    /// A pool that holds none but what is expected, for a launcher that lives for a moment.
    pub(crate) fn empty() -> std::io::Result<Pool> {
        let slots = Slots::reserve()?;
        Ok(Pool { size: 0, wanted: None, ready: Vec::new(), due: Instant::now(), made: 0, slots, zygote: None })
    }

    /// As [`new`](Pool::new), in the place of a pool that has made so many: no two shells of a launcher have one name.
    pub(crate) fn continuing(made: u64) -> std::io::Result<Pool> {
        Ok(Pool { made, ..Pool::new()? })
    }

    /// How many it has made.
    pub(crate) fn made(&self) -> u64 {
        self.made
    }

    /// A shell of this kind: one that waits, or a new one.
    pub(crate) fn take(
        &mut self,
        kind: &ShellKind,
        hierarchies: &Hierarchies,
        ranges: &mut Ranges,
        parent: &str,
    ) -> Result<Shell, ErrorKind> {
        while self.want(kind, ranges)
            && let Some(shell) = self.ready.pop()
        {
            if !shell.is_dead() {
                return Ok(shell);
            }
            shell.discard(ranges);
        }
        self.make(kind, hierarchies, ranges, parent)
    }

    /// Makes the only shell of a pool that keeps none by itself: a start is about to come that wants this kind.
    pub(crate) fn expect(&mut self, kind: &ShellKind, hierarchies: &Hierarchies, ranges: &mut Ranges, parent: &str) {
        if self.size > 0 {
            return;
        }
        if self.wanted.as_ref() != Some(kind) {
            self.clear(ranges);
            self.wanted = Some(kind.clone());
        }
        if self.ready.is_empty() {
            self.fill(hierarchies, ranges, parent);
        }
    }

    /// From when on the next shell may be made, if one is missing.
    pub(crate) fn due(&self) -> Option<Instant> {
        (self.wanted.is_some() && self.ready.len() < self.size).then_some(self.due)
    }

    /// Makes the next shell.
    pub(crate) fn fill(&mut self, hierarchies: &Hierarchies, ranges: &mut Ranges, parent: &str) {
        let Some(kind) = self.wanted.clone() else { return };
        match self.make(&kind, hierarchies, ranges, parent) {
            Ok(shell) => self.ready.push(shell),
            // The next start will meet the same, and say it.
            Err(_) => self.due = Instant::now() + PENALTY,
        }
    }

    /// Ends all shells.
    pub(crate) fn clear(&mut self, ranges: &mut Ranges) {
        self.wanted = None;
        self.zygote = None;
        self.ready.drain(..).for_each(|shell| shell.discard(ranges));
    }

    /// Whether the shells that wait are of this kind, or will be.
    fn want(&mut self, kind: &ShellKind, ranges: &mut Ranges) -> bool {
        if self.size > 0 && self.wanted.as_ref() != Some(kind) {
            self.clear(ranges);
            self.wanted = Some(kind.clone());
        }
        self.wanted.as_ref() == Some(kind)
    }

    fn make(
        &mut self,
        kind: &ShellKind,
        hierarchies: &Hierarchies,
        ranges: &mut Ranges,
        parent: &str,
    ) -> Result<Shell, ErrorKind> {
        self.made += 1;
        let name = format!("shell-{}", self.made);
        let origin = match self.size {
            0 => Origin::Launcher(&self.slots),
            _ => Origin::Zygote(Self::zygote(&mut self.zygote, kind, &self.slots)?),
        };
        let made = Shell::make(kind, hierarchies, ranges, &origin, parent, &name);
        if made.is_err() {
            self.zygote = None;
        }
        made
    }

    fn zygote<'a>(known: &'a mut Option<Zygote>, kind: &ShellKind, slots: &Slots) -> Result<&'a Zygote, ErrorKind> {
        let living = known.take().filter(|zygote| !zygote.is_dead());
        Ok(known.insert(living.map_or_else(|| Zygote::make(kind, slots), Ok)?))
    }
}
