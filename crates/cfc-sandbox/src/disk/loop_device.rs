//! [`LoopDevice`]: a file as a block device that goes away with its last user.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Mode, OFlags};

use crate::error::ErrorKind;
use crate::step::Step;
use crate::sys;

const CONTROL: &str = "/dev/loop-control";
/// Other programs may take a device between our asking for one and our using it.
const ATTEMPTS: usize = 32;
const BLOCK: u32 = 4096;

/// Attaches files to devices that no other thread is about to use.
pub(super) struct LoopDevices {
    control: OwnedFd,
    claimed: Mutex<BTreeSet<u32>>,
}

/// A device with a file behind it. The kernel detaches it when nothing uses it any more.
pub(super) struct LoopDevice {
    pub(super) path: String,
    /// Keeps the device until it is mounted.
    _device: OwnedFd,
}

impl LoopDevices {
    pub(super) fn open() -> Result<LoopDevices, ErrorKind> {
        let control = rustix::fs::open(CONTROL, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        let control = control.step(|| format!("open {CONTROL}"))?;
        Ok(LoopDevices { control, claimed: Mutex::default() })
    }

    /// Puts `file` behind a free device.
    pub(super) fn attach(&self, file: &File) -> Result<LoopDevice, ErrorKind> {
        for _ in 0..ATTEMPTS {
            let number = self.claim()?;
            let attached = attach_to(number, file);
            self.claimed().remove(&number);
            if let Some(device) = attached? {
                return Ok(device);
            }
        }
        Err(ErrorKind::Unavailable("other programs take every loop device first".into()))
    }

    /// The number of a free device.
    fn claim(&self) -> Result<u32, ErrorKind> {
        let mut claimed = self.claimed();
        let step = || "find a free loop device".to_owned();
        let mut number = sys::free_loop_device(self.control.as_fd()).step(step)?;
        if claimed.contains(&number) {
            number = sys::add_loop_device(self.control.as_fd()).step(step)?;
        }
        claimed.insert(number);
        Ok(number)
    }

    fn claimed(&self) -> std::sync::MutexGuard<'_, BTreeSet<u32>> {
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `None` when somebody else was faster.
fn attach_to(number: u32, file: &File) -> Result<Option<LoopDevice>, ErrorKind> {
    let path = format!("/dev/loop{number}");
    let device = rustix::fs::open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let device = device.step(|| format!("open {path}"))?;
    match sys::configure_loop_device(device.as_fd(), file.as_fd(), BLOCK) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(None),
        result => {
            result.step(|| format!("attach a file to {path}"))?;
            Ok(Some(LoopDevice { path, _device: device }))
        }
    }
}
