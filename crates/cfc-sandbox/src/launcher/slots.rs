//! [`Slots`]: low descriptor numbers through which a new process gets its descriptors.
//!
//! A launcher has several descriptors for each sandbox, thousands in all. A fork copies them, and the new process would have
//! to close each again: with a thousand sandboxes that takes longer than everything else. So a zygote, and a shell that is
//! forked from the launcher itself, shares the launcher's table for its first moment, and leaves it with the low part alone,
//! in one call that looks at nothing above.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags};

use crate::child::Wiring;
use crate::error::ErrorKind;
use crate::step::Step;
use crate::sys;

/// The first slot, above what a launcher opens before it has any sandbox.
const FIRST: RawFd = 64;
/// A control socket, and an entrance to each of the v1 cgroups (there are 13 controllers).
const COUNT: usize = 24;

/// The slots of a launcher.
pub(crate) struct Slots {
    /// What is in those that are not used.
    null: OwnedFd,
}

/// What is in the slots while a process is made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Filled {
    count: usize,
}

impl Slots {
    /// The first number and how many: a launcher's next program must find nothing there.
    pub(crate) const NUMBERS: (RawFd, usize) = (FIRST, COUNT);

    /// Takes the numbers. To be called before the launcher opens much: whatever has them is closed.
    pub(crate) fn reserve() -> std::io::Result<Slots> {
        let slots = Slots { null: rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())? };
        slots.clear(COUNT)?;
        Ok(slots)
    }

    /// Puts descriptors into the slots.
    pub(crate) fn fill(&self, wiring: &Wiring) -> Result<Filled, ErrorKind> {
        let step = || "hand descriptors to a new process".to_owned();
        let descriptors: Vec<BorrowedFd<'_>> = wiring.descriptors().collect();
        if descriptors.len() > COUNT {
            return Err(rustix::io::Errno::MFILE).step(step);
        }
        for (number, descriptor) in (FIRST..).zip(&descriptors) {
            sys::put_at(*descriptor, number).step(step)?;
        }
        Ok(Filled { count: descriptors.len() })
    }

    /// Empties them again: a copy of the control socket's other end would hide its end.
    pub(crate) fn empty(&self, filled: Filled) -> Result<(), ErrorKind> {
        self.clear(filled.count).step(|| "take descriptors back".into())
    }

    fn clear(&self, count: usize) -> std::io::Result<()> {
        (FIRST..).take(count).try_for_each(|number| sys::put_at(self.null.as_fd(), number))
    }
}

impl Filled {
    /// In the new process: leaves the launcher's table with nothing but the standard descriptors and what is in the slots.
    pub(crate) fn leave(self) -> std::io::Result<Wiring> {
        let mut descriptors = sys::leave_shared_descriptors(FIRST, self.count)?.into_iter();
        let control = descriptors.next().ok_or(std::io::ErrorKind::NotFound)?;
        Ok(Wiring { control, entrances: descriptors.collect() })
    }
}
