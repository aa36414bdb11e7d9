//! [`DiskPool`]: the disks that are ready, those that are being made, and who waits for them.

use std::collections::VecDeque;

use crate::disk::{Disk, DiskKind};

/// How many disks of a size are kept ready. A disk costs about 300 KiB of the kernel's memory and 70 KiB of space.
const READY: usize = 6;
/// With how few left more are ordered at once, although a start is under way: starts come faster than they can rest.
const SCARCE: usize = 1;
/// For how many sizes disks are kept ready: those that were wanted last.
const KINDS_MAX: usize = 4;

/// The disks of a launcher that no sandbox has yet. `W` is whoever waits for one.
pub(super) struct DiskPool<W> {
    shelves: Vec<Shelf>,
    waiting: VecDeque<(DiskKind, W)>,
}

/// The disks of one kind.
struct Shelf {
    kind: DiskKind,
    ready: Vec<Disk>,
    /// How many are being made.
    ordered: usize,
    /// Whether one was wanted since those that are kept ready were ordered last. What cannot be made is thus not ordered
    /// again and again.
    has_sold: bool,
}

impl<W> Default for DiskPool<W> {
    fn default() -> Self {
        DiskPool { shelves: Vec::new(), waiting: VecDeque::new() }
    }
}

impl<W> DiskPool<W> {
    /// A disk that is ready.
    pub(super) fn take(&mut self, kind: &DiskKind) -> Option<Disk> {
        let shelf = self.shelf(kind);
        shelf.has_sold = true;
        shelf.ready.pop()
    }

    /// Whether a disk of this kind is ready.
    pub(super) fn has(&self, kind: &DiskKind) -> bool {
        self.shelves.iter().any(|shelf| shelf.kind == *kind && !shelf.ready.is_empty())
    }

    /// Lets `who` wait for a disk of this kind.
    pub(super) fn wait(&mut self, kind: DiskKind, who: W) {
        self.shelf(&kind).has_sold = true;
        self.waiting.push_back((kind, who));
    }

    /// Those who wait, for whatever disk.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &W> {
        self.waiting.iter().map(|(_, who)| who)
    }

    /// The disks that are ready.
    pub(super) fn ready(&self) -> impl Iterator<Item = (&DiskKind, &Disk)> {
        self.shelves.iter().flat_map(|shelf| shelf.ready.iter().map(|disk| (&shelf.kind, disk)))
    }

    /// Those who wait, and for which disk.
    pub(super) fn all_waiting(&self) -> impl Iterator<Item = &(DiskKind, W)> {
        self.waiting.iter()
    }

    /// How many disks of this kind are to be ordered at once: for those who wait, and when hardly any are left. They count
    /// as ordered from now on.
    pub(super) fn order_urgent(&mut self, kind: &DiskKind) -> usize {
        let waiting = self.count_waiting(kind);
        let shelf = self.shelf(kind);
        let is_scarce = shelf.has_sold && shelf.ready.len() <= SCARCE;
        shelf.order(waiting + if is_scarce { READY } else { 0 })
    }

    /// How many of each kind are to be ordered so that some are kept ready. They count as ordered from now on.
    pub(super) fn order_ready(&mut self) -> Vec<(DiskKind, usize)> {
        let awaited: Vec<usize> = self.shelves.iter().map(|shelf| self.count_waiting(&shelf.kind)).collect();
        let shelves = self.shelves.iter_mut().zip(awaited);
        let order = |(shelf, awaited): (&mut Shelf, usize)| {
            std::mem::take(&mut shelf.has_sold).then(|| (shelf.kind.clone(), shelf.order(awaited + READY)))
        };
        shelves.filter_map(order).collect()
    }

    /// Whether [`order_ready`](DiskPool::order_ready) may order any.
    pub(super) fn has_sold(&self) -> bool {
        self.shelves.iter().any(|shelf| shelf.has_sold)
    }

    fn count_waiting(&self, kind: &DiskKind) -> usize {
        self.waiting.iter().filter(|(wanted, _)| wanted == kind).count()
    }

    /// An ordered disk is there, or will not come. Then as [`put`](DiskPool::put).
    pub(super) fn arrive<E>(&mut self, kind: &DiskKind, made: Result<Disk, E>) -> Option<(W, Result<Disk, E>)> {
        let shelf = self.shelf(kind);
        shelf.ordered = shelf.ordered.saturating_sub(1);
        self.put(kind, made)
    }

    /// Gives what was made to the first who waits for one, else puts it on its shelf.
    pub(super) fn put<E>(&mut self, kind: &DiskKind, made: Result<Disk, E>) -> Option<(W, Result<Disk, E>)> {
        let first = self.waiting.iter().position(|(wanted, _)| wanted == kind);
        match first.and_then(|first| self.waiting.remove(first)) {
            Some((_, who)) => Some((who, made)),
            None => {
                self.shelf(kind).ready.extend(made.ok());
                None
            }
        }
    }

    /// Those who wait no longer. Disks that were ordered for them are for others.
    pub(super) fn forget(&mut self, is_gone: impl Fn(&W) -> bool) {
        self.waiting.retain(|(_, who)| !is_gone(who));
    }

    /// Nothing that was ordered will come. Gives all who wait.
    pub(super) fn lose_orders(&mut self) -> impl Iterator<Item = W> + use<W> {
        self.shelves.iter_mut().for_each(|shelf| shelf.ordered = 0);
        std::mem::take(&mut self.waiting).into_iter().map(|(_, who)| who)
    }

    /// The disks that are ready and of a kind that was not wanted for long.
    pub(super) fn outdated(&mut self) -> Vec<Disk> {
        let surplus = self.shelves.len().saturating_sub(KINDS_MAX);
        let (old, kept): (Vec<_>, Vec<_>) =
            self.shelves.drain(..).enumerate().partition(|(i, shelf)| *i < surplus && shelf.ordered == 0);
        self.shelves = kept.into_iter().map(|(_, shelf)| shelf).collect();
        old.into_iter().flat_map(|(_, shelf)| shelf.ready).collect()
    }

    /// All disks that are ready.
    pub(super) fn drain(&mut self) -> Vec<Disk> {
        self.shelves.drain(..).flat_map(|shelf| shelf.ready).collect()
    }

    /// The shelf of `kind`, which becomes the one that was used last.
    fn shelf(&mut self, kind: &DiskKind) -> &mut Shelf {
        let at = self.shelves.iter().position(|shelf| shelf.kind == *kind);
        let shelf = match at {
            Some(at) => self.shelves.remove(at),
            None => Shelf { kind: kind.clone(), ready: Vec::new(), ordered: 0, has_sold: false },
        };
        self.shelves.push(shelf);
        let last = self.shelves.len() - 1;
        &mut self.shelves[last]
    }
}

impl Shelf {
    /// How many are missing to `wanted`. They count as ordered from now on.
    fn order(&mut self, wanted: usize) -> usize {
        let missing = wanted.saturating_sub(self.ready.len() + self.ordered);
        self.ordered += missing;
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(bytes: u64) -> DiskKind {
        DiskKind { bytes, directory: "/".into() }
    }

    /// Descriptors of anything: the pool looks at none.
    fn disk() -> Result<Disk, ()> {
        let open = || std::fs::File::open("/dev/null").expect("opens").into();
        Ok(Disk { mount: open(), root: open() })
    }

    /// What is to be ordered so that some of a kind are kept ready.
    fn restock(pool: &mut DiskPool<&'static str>) -> Vec<(u64, usize)> {
        pool.order_ready().into_iter().map(|(kind, missing)| (kind.bytes, missing)).collect()
    }

    #[test]
    fn who_waits_is_served_first_and_the_rest_is_kept_ready() {
        let mut pool = DiskPool::default();
        assert!(pool.take(&kind(1)).is_none());
        pool.wait(kind(1), "a");
        assert_eq!((pool.order_urgent(&kind(1)), pool.order_urgent(&kind(1))), (1 + READY, 0));
        assert_eq!(restock(&mut pool), [(1, 0)]);
        assert!(!pool.has_sold());
        assert!(matches!(pool.arrive(&kind(1), disk()), Some(("a", Ok(_)))));
        for _ in 0..READY {
            assert!(pool.arrive(&kind(1), disk()).is_none());
        }
        assert_eq!(restock(&mut pool), []);
        assert!(pool.take(&kind(2)).is_none() && pool.take(&kind(1)).is_some());
        assert!(pool.has_sold());
        assert_eq!(pool.order_urgent(&kind(1)), 0, "there are enough for the moment");
        assert_eq!(restock(&mut pool), [(2, READY), (1, 1)]);
    }

    #[test]
    fn the_disk_of_one_who_has_gone_is_for_the_next() {
        let mut pool = DiskPool::default();
        pool.wait(kind(1), "gone");
        pool.wait(kind(1), "stays");
        assert_eq!(pool.order_urgent(&kind(1)), 2 + READY);
        pool.forget(|who| *who == "gone");
        assert!(matches!(pool.arrive(&kind(1), disk()), Some(("stays", Ok(_)))));
        assert!(pool.arrive(&kind(1), disk()).is_none() && pool.has(&kind(1)));
    }

    #[test]
    fn a_disk_that_cannot_be_made_fails_one_who_waits_and_is_ordered_again_by_the_next() {
        let mut pool = DiskPool::default();
        pool.wait(kind(1), "a");
        pool.order_urgent(&kind(1));
        restock(&mut pool);
        assert!(matches!(pool.arrive(&kind(1), Err("full")), Some(("a", Err("full")))));
        for _ in 0..READY {
            assert!(pool.arrive(&kind(1), Err("full")).is_none());
        }
        assert_eq!(restock(&mut pool), []);
        pool.wait(kind(1), "b");
        assert_eq!(pool.order_urgent(&kind(1)), 1 + READY);
        assert_eq!(restock(&mut pool), [(1, 0)]);
        assert_eq!(pool.lose_orders().collect::<Vec<_>>(), ["b"]);
        assert!(!pool.has_sold());
        pool.take(&kind(1));
        assert_eq!(restock(&mut pool), [(1, READY)]);
    }

    #[test]
    fn only_the_sizes_wanted_last_are_kept_ready() {
        let mut pool = DiskPool::<&str>::default();
        for bytes in 0..6 {
            pool.take(&kind(bytes));
            restock(&mut pool);
            for _ in 0..READY {
                pool.arrive(&kind(bytes), disk());
            }
        }
        assert_eq!(pool.outdated().len(), 2 * READY);
        assert!(pool.has(&kind(2)) && !pool.has(&kind(1)));
        assert_eq!(pool.drain().len(), KINDS_MAX * READY);
    }
}
