//! [`NodeMaker`]: the process beside a sandbox that mounts its root and makes device nodes in it.
//!
//! In a user namespace nobody makes a device node, and an overlay that was mounted there makes none for anybody: it works
//! with the rights of who mounted it. So the overlay of such a sandbox is mounted by a process of the machine's root, which
//! then makes the nodes that the sandbox asks for (`child/nodes.rs`). It ends with the sandbox.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::CapabilitySet;

use super::blueprint::{Blueprint, RootPlan, is_annotated};
use super::shell::{Shell, ShellKind, end};
use crate::child::nodes::{self, Customer, Place};
use crate::config::{DEVICE_NODES_ANNOTATION, Root, SandboxConfig};
use crate::error::ErrorKind;
use crate::step::Step;
use crate::sys::{self, Cloned};

/// What the process needs: to mount, to see what a process of the sandbox sees, and to do as that may.
const NEEDED: CapabilitySet = nodes::OF_OVERLAY
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID);

/// The process. It is gone when this is dropped.
pub(crate) struct NodeMaker {
    pidfd: OwnedFd,
}

impl NodeMaker {
    /// Whether a sandbox of `config` gets one from a launcher of the machine's root.
    ///
    /// Its root is `nodev` and no more, so nobody in it may be able to change mounts.
    pub(super) fn is_wanted(config: &SandboxConfig, blueprint: &Blueprint, kind: &ShellKind) -> bool {
        let may_change_mounts = blueprint.capabilities.may_unmount() || kind.seccomp.is_empty();
        let is_able = || rustix::thread::capabilities(None).is_ok_and(|sets| sets.permitted.contains(NEEDED));
        is_annotated(&config.spec, DEVICE_NODES_ANNOTATION)
            && matches!((&config.root, &blueprint.root), (Root::Overlay { .. }, RootPlan::Overlay { .. }))
            && blueprint.has_user_namespace
            && !may_change_mounts
            && is_able()
    }

    /// Starts it for the sandbox of `blueprint`, which `shell` becomes and which gets the connection to it. `owner` are the
    /// host's ids of the sandbox's root.
    pub(super) fn start(blueprint: &mut Blueprint, owner: (u32, u32), shell: &Shell) -> Result<NodeMaker, ErrorKind> {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .step(|| "make a socket".into())?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let open = |name| rustix::fs::open(format!("/proc/{}/ns/{name}", shell.started.pid), flags, Mode::empty());
        let mounts = open("mnt").step(|| "open the mounts of the sandbox".into())?;
        let users = open("user").and_then(Place::of).step(|| "look at the user namespace".into())?;
        let customer = Customer { owner, users, mounts };
        match sys::clone_process(0, None).step(|| "make the process that mounts the root".into())? {
            Cloned::Child => nodes::run(blueprint, &ours, &customer),
            Cloned::Parent { pidfd, .. } => {
                blueprint.node_maker = Some(blueprint.descriptors.keep(theirs));
                Ok(NodeMaker { pidfd })
            }
        }
    }

    /// The process that an earlier program of the launcher has started.
    pub(super) fn restore(pidfd: OwnedFd) -> NodeMaker {
        NodeMaker { pidfd }
    }
}

impl AsFd for NodeMaker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for NodeMaker {
    fn drop(&mut self) {
        end(&self.pidfd);
    }
}
