//! [`Ranges`]: which host ids are whose.
//!
//! Every sandbox has 65,536 user and group ids of the host that no other sandbox has, so that neither the ids of one mean
//! anything in another, nor the limits that the kernel keeps by user are shared.
//!
//! The ids from 100,000 on are cut into ranges, and these into blocks of 256. A launcher takes whole blocks, of which each
//! is a file that it keeps locked: several launchers on one machine (of several data directories, of builds) never meet,
//! and what a dead one had is free.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::succession::{Passing, RangesState, take_all};
use crate::error::ErrorKind;
use crate::step::Step;

/// Where the ids of sandboxes begin on the host.
const FIRST: u32 = 100_000;
/// How many ids a sandbox has.
pub(crate) const SIZE: u32 = 65_536;
const RANGES_IN_BLOCK: u32 = 256;
/// More do not fit below 2³² - 1, which is nobody's id.
const BLOCKS: u32 = (u32::MAX - FIRST) / SIZE / RANGES_IN_BLOCK;

/// Where the locks of the blocks are, for root.
const LOCKS: &str = "/run/cfc/ids";

/// One sandbox's ids: 65,536 from the first on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) first: u32,
}

/// The ranges that this launcher may give to sandboxes.
#[derive(Debug)]
pub(crate) struct Ranges {
    locks: PathBuf,
    /// What was given back last is taken last.
    free: VecDeque<Range>,
    /// Keep the blocks ours.
    blocks: Vec<File>,
}

impl Ranges {
    pub(crate) fn new() -> Ranges {
        Ranges::at(Path::new(LOCKS))
    }

    fn at(locks: &Path) -> Ranges {
        Ranges { locks: locks.to_owned(), free: VecDeque::new(), blocks: Vec::new() }
    }

    /// A range that no sandbox of this machine has.
    pub(crate) fn take(&mut self) -> Result<Range, ErrorKind> {
        if self.free.is_empty() {
            self.take_block()?;
        }
        self.free.pop_front().ok_or_else(|| ErrorKind::Unavailable("all host ids are given to sandboxes".into()))
    }

    /// To be called when no process and no file of the sandbox is left.
    pub(crate) fn give_back(&mut self, range: Option<Range>) {
        self.free.extend(range);
    }

    /// For the next program.
    pub(crate) fn save(&self, passing: &Passing) -> RangesState {
        let blocks = self.blocks.iter().map(|block| passing.pass(block)).collect();
        RangesState { free: self.free.iter().map(|range| range.first).collect(), blocks }
    }

    pub(crate) fn restore(state: RangesState) -> std::io::Result<Ranges> {
        let blocks = take_all(state.blocks)?.into_iter().map(File::from).collect();
        let free = state.free.into_iter().map(|first| Range { first }).collect();
        Ok(Ranges { free, blocks, ..Ranges::new() })
    }

    fn take_block(&mut self) -> Result<(), ErrorKind> {
        let step = || format!("lock host ids in {}", self.locks.display());
        fs::create_dir_all(&self.locks).step(step)?;
        for block in 0..BLOCKS {
            let file = File::options().create(true).append(true).open(self.locks.join(block.to_string())).step(step)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    let first = |i: u32| FIRST + (block * RANGES_IN_BLOCK + i) * SIZE;
                    self.free.extend((0..RANGES_IN_BLOCK).map(|i| Range { first: first(i) }));
                    self.blocks.push(file);
                    return Ok(());
                }
                Err(Errno::WOULDBLOCK) => {}
                Err(errno) => return Err(errno).step(step),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn launchers_never_meet_and_what_one_leaves_is_used_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut launchers = [Ranges::at(directory.path()), Ranges::at(directory.path())];
        let mut seen = BTreeSet::new();
        for ranges in &mut launchers {
            for _ in 0..300 {
                let range = ranges.take().expect("there are enough");
                assert!(seen.insert(range.first), "{range:?} twice");
                assert_eq!((range.first - FIRST) % SIZE, 0);
            }
        }
        let [first, mut second] = launchers;
        drop(first);
        let taken = (0..300).map(|_| second.take().expect("there are enough").first).filter(|id| seen.contains(id));
        assert!(taken.count() > 0, "a dead launcher's block is free");
    }

    #[test]
    fn a_range_rests_before_it_is_used_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut ranges = Ranges::at(directory.path());
        let range = ranges.take().expect("there are enough");
        ranges.give_back(Some(range));
        assert_ne!(ranges.take().expect("there are enough"), range);
    }

    #[test]
    fn the_last_range_ends_before_the_id_that_is_nobodys() {
        let last = FIRST as u64 + u64::from(BLOCKS) * u64::from(RANGES_IN_BLOCK) * u64::from(SIZE);
        assert!(last < u64::from(u32::MAX), "{last}");
    }
}
