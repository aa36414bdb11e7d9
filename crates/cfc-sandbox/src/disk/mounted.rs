//! [`Disk`]: a mounted filesystem that is in nobody's mount table.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::image::Image;
use super::loop_device::LoopDevices;
use super::{DiskKind, DiskUsage};
use crate::error::ErrorKind;
use crate::step::Step;
use crate::sys;

/// An empty disk, with the directories of an overlay in it.
#[derive(Debug)]
pub(crate) struct Disk {
    /// The mount, attached nowhere yet.
    pub(crate) mount: OwnedFd,
    /// Its root directory. The disk lives at least as long as this is open.
    pub(crate) root: OwnedFd,
}

impl Disk {
    /// The overlay's upper directory.
    pub(crate) const UPPER: &str = "upper";
    /// The overlay's work directory.
    pub(crate) const WORK: &str = "work";

    pub(super) fn make(kind: &DiskKind, image: &Image, devices: &LoopDevices) -> Result<Disk, ErrorKind> {
        let file = image.write(kind)?;
        let device = devices.attach(&file)?;
        let mount = mount(&device.path).step(|| format!("mount {kind}"))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(&mount, ".", flags, Mode::empty()).step(|| format!("open {kind}"))?;
        for name in [Disk::UPPER, Disk::WORK] {
            rustix::fs::mkdirat(&root, name, Mode::from_raw_mode(0o755)).step(|| format!("fill {kind}"))?;
        }
        Ok(Disk { mount, root })
    }
}

/// How full the disk is whose root is `root`.
pub(crate) fn usage(root: &OwnedFd) -> rustix::io::Result<DiskUsage> {
    let stat = rustix::fs::fstatfs(root)?;
    let block = stat.f_bsize as u64;
    Ok(DiskUsage { total_bytes: stat.f_blocks * block, used_bytes: (stat.f_blocks - stat.f_bfree) * block })
}

/// Takes a disk down whose sandbox is gone. What was written and is not on disk yet is thrown away.
pub(super) fn take_down(root: OwnedFd) {
    // Without it, gigabytes that nobody will read would be written out first. A failure only means that they are.
    let _ = sys::shut_down_ext4(root.as_fd());
}

fn mount(device: &str) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(context.as_fd(), "source", device)?;
    // The file is sparse: its inode tables are zero already, and writing them would only take space.
    for option in ["noinit_itable", "nobarrier", "noauto_da_alloc"] {
        rustix::mount::fsconfig_set_flag(context.as_fd(), option)?;
    }
    rustix::mount::fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOATIME;
    Ok(rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}
