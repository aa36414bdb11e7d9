//! [`IdMappings`]: which ids of the host the ids of a user namespace are.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxIdMappingBuilder};
use rustix::process::{WaitId, WaitIdOptions};
use serde::{Deserialize, Serialize};

use super::ranges::{self, Range};
use crate::error::ErrorKind;
use crate::step::Step;
use crate::sys::{self, Cloned};

/// A sandbox's id mappings, in the form of `/proc/<pid>/uid_map`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IdMappings {
    uids: String,
    gids: String,
    uid_ranges: Vec<LinuxIdMapping>,
    gid_ranges: Vec<LinuxIdMapping>,
}

impl IdMappings {
    /// The spec's mappings.
    pub(crate) fn of(linux: &Linux) -> Result<IdMappings, ErrorKind> {
        let ranges = |mappings: &Option<Vec<LinuxIdMapping>>, name: &str| match mappings {
            Some(ranges) if !ranges.is_empty() => Ok(ranges.clone()),
            _ => Err(ErrorKind::Invalid(format!("`linux.{name}` is empty, while the other id mappings are not"))),
        };
        let uid_ranges = ranges(linux.uid_mappings(), "uidMappings")?;
        let gid_ranges = ranges(linux.gid_mappings(), "gidMappings")?;
        Ok(IdMappings::new(uid_ranges, gid_ranges))
    }

    /// The ids from 0 on are those of `range`.
    pub(crate) fn of_range(range: Range) -> IdMappings {
        let mapping =
            LinuxIdMappingBuilder::default().container_id(0_u32).host_id(range.first).size(ranges::SIZE).build();
        let mapping = vec![mapping.expect("all of its fields are set")];
        IdMappings::new(mapping.clone(), mapping)
    }

    fn new(uid_ranges: Vec<LinuxIdMapping>, gid_ranges: Vec<LinuxIdMapping>) -> IdMappings {
        IdMappings { uids: text(&uid_ranges), gids: text(&gid_ranges), uid_ranges, gid_ranges }
    }

    /// Gives the user namespace of process `pid` this mapping.
    pub(crate) fn write(&self, pid: i32) -> Result<(), ErrorKind> {
        fs::write(format!("/proc/{pid}/uid_map"), &self.uids).step(|| "write the uid map".into())?;
        fs::write(format!("/proc/{pid}/gid_map"), &self.gids).step(|| "write the gid map".into())
    }

    /// The host's ids of a user and group of the sandbox.
    pub(crate) fn on_host(&self, uid: u32, gid: u32) -> Option<(u32, u32)> {
        Some((on_host(&self.uid_ranges, uid)?, on_host(&self.gid_ranges, gid)?))
    }

    /// As the spec has them: of users, of groups.
    pub(crate) fn ranges(&self) -> (&[LinuxIdMapping], &[LinuxIdMapping]) {
        (&self.uid_ranges, &self.gid_ranges)
    }

    /// A user namespace that has this mapping and no process.
    pub(crate) fn make_namespace(&self) -> Result<OwnedFd, ErrorKind> {
        let (end, keep) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).step(|| "make a pipe".into())?;
        let cloned = sys::clone_process(libc::CLONE_NEWUSER as u64, None).step(|| "make a user namespace".into())?;
        let Cloned::Parent { pid, pidfd } = cloned else {
            drop(keep);
            let _ = rustix::io::read(&end, &mut [0; 1]);
            sys::exit_now(0)
        };
        let namespace = self.write(pid).and_then(|()| {
            let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
            rustix::fs::open(format!("/proc/{pid}/ns/user"), flags, rustix::fs::Mode::empty())
                .step(|| "open the user namespace".into())
        });
        drop(keep);
        let _ = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
        namespace
    }

    /// How many users there are.
    pub(crate) fn describe(&self) -> String {
        match self.uid_ranges.iter().map(LinuxIdMapping::size).sum::<u32>() {
            1 => "a single user".to_owned(),
            count => format!("{count} users"),
        }
    }
}

fn text(ranges: &[LinuxIdMapping]) -> String {
    ranges.iter().map(|range| format!("{} {} {}\n", range.container_id(), range.host_id(), range.size())).collect()
}

fn on_host(ranges: &[LinuxIdMapping], id: u32) -> Option<u32> {
    let holds = |range: &&LinuxIdMapping| id >= range.container_id() && id - range.container_id() < range.size();
    ranges.iter().find(holds).map(|range| range.host_id() + (id - range.container_id()))
}
