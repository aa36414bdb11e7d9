//! [`FileIdentity`]: who a process is for a moment, as far as files know.

use rustix::fs::Mode;
use rustix::thread::{CapabilitySet, CapabilitySets, Gid};

use crate::error::ErrorKind;
use crate::step::Step;
use crate::sys;

/// What the kernel looks at when it decides about files. Ids are the host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileIdentity {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    pub(super) umask: u32,
    /// Over the whole machine.
    pub(super) capabilities: CapabilitySet,
}

impl FileIdentity {
    /// Does something as this one, then is root again with all that root may. An error says that one or the other cannot be:
    /// then this process must go no further.
    pub(super) fn act<T>(&self, action: impl FnOnce() -> T) -> Result<T, ErrorKind> {
        let step = || "become another user for a moment".to_owned();
        let held = rustix::thread::capabilities(None).step(step)?;
        let have = |effective| CapabilitySets { effective, inheritable: CapabilitySet::empty(), ..held };
        let groups: Vec<Gid> = self.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        rustix::thread::set_thread_groups(&groups).step(step)?;
        sys::set_filesystem_ids(self.uid, self.gid).step(step)?;
        rustix::process::umask(Mode::from_raw_mode(self.umask));
        rustix::thread::set_capabilities(None, have(self.capabilities & held.permitted)).step(step)?;
        let outcome = action();
        rustix::thread::set_capabilities(None, have(held.permitted)).step(step)?;
        sys::set_filesystem_ids(0, 0).step(step)?;
        rustix::thread::set_thread_groups(&[]).step(step)?;
        Ok(outcome)
    }
}
