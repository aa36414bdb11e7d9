//! [`Passed`]: a descriptor on its way from one program of a process to the next.

use std::cell::RefCell;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use serde::{Deserialize, Serialize};

use crate::sys;

/// The number of a descriptor that the next program finds open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Passed(RawFd);

impl Passed {
    /// Makes it the next program's own. To be called once for each.
    pub(crate) fn take(self) -> std::io::Result<OwnedFd> {
        sys::adopt_descriptor(self.0)
    }
}

/// Takes all of them over.
pub(crate) fn take_all(passed: Vec<Passed>) -> std::io::Result<Vec<OwnedFd>> {
    passed.into_iter().map(Passed::take).collect()
}

/// The descriptors that are to stay open when the process executes its next program.
#[derive(Default)]
pub(crate) struct Passing {
    numbers: RefCell<Vec<RawFd>>,
}

impl Passing {
    pub(crate) fn pass(&self, descriptor: impl AsFd) -> Passed {
        let number = descriptor.as_fd().as_raw_fd();
        self.numbers.borrow_mut().push(number);
        Passed(number)
    }

    pub(crate) fn pass_all<'a>(&self, descriptors: impl IntoIterator<Item = &'a OwnedFd>) -> Vec<Passed> {
        descriptors.into_iter().map(|descriptor| self.pass(descriptor)).collect()
    }

    /// Lets them stay open at `execve`, or, after that has failed, be closed as all others.
    pub(crate) fn keep_open(&self, is_kept: bool) -> std::io::Result<()> {
        self.numbers.borrow().iter().try_for_each(|number| sys::close_on_exec(*number, !is_kept))
    }
}
