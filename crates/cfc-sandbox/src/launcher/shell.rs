//! [`Shell`]: a process in its namespaces and cgroups that waits for its [`Blueprint`].
//!
//! Every sandbox begins as one. What takes long and depends on little is done here: the namespaces, the id maps, the
//! cgroups, the loopback device, the redirection of what it sends out. So a [`Pool`](super::pool::Pool) can keep some that
//! are finished, and a start only sends one its blueprint.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use oci_spec::runtime::{Linux, LinuxNamespaceType};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{WaitId, WaitIdOptions};
use rustix::time::Timespec;

use super::blueprint::{Blueprint, namespace_flags};
use super::furniture::Furniture;
use super::idmap::IdMappings;
use super::ranges::{Range, Ranges};
use super::slots::{Filled, Slots};
use super::zygote::Zygote;
use crate::cgroup::{Cgroup, Hierarchies, controllers};
use crate::child::{self, Order, Report, Wiring};
use crate::config::{Network, SandboxConfig};
use crate::error::ErrorKind;
use crate::protocol::{self, DESCRIPTORS_MAX, Receiver};
use crate::seccomp::Program;
use crate::status::Started;
use crate::step::Step;
use crate::sys::{self, Cloned};

/// What cannot be changed any more once the process exists. A shell fits a sandbox that wants the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ShellKind {
    pub(crate) clone_flags: u64,
    pub(crate) user_namespace: UserNamespace,
    pub(crate) has_cgroup_namespace: bool,
    pub(crate) has_network_namespace: bool,
    /// How outbound traffic is redirected, when it is.
    pub(crate) redirect: Option<RedirectPlan>,
    /// The cgroup controllers that it is under.
    pub(crate) controllers: BTreeSet<&'static str>,
    pub(crate) furniture: Furniture,
    pub(crate) seccomp: Program,
}

/// Which user namespace a sandbox has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum UserNamespace {
    None,
    /// With a range of host ids that no other sandbox has.
    Own,
    /// With the mappings of its spec.
    Given(IdMappings),
}

/// How the outbound traffic is redirected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RedirectPlan {
    pub(crate) ipv6: bool,
}

impl ShellKind {
    /// What `config` needs. `seccomp` is its filter.
    pub(crate) fn of(
        config: &SandboxConfig,
        hierarchies: &Hierarchies,
        seccomp: Program,
    ) -> Result<ShellKind, ErrorKind> {
        let empty = super::start::empty_linux();
        let linux = config.spec.linux().as_ref().unwrap_or(&empty);
        let flags = namespace_flags(linux, config.network)?;
        let has = |flag: LinuxNamespaceType| flags & flag as u64 != 0;
        let owns_network = has(LinuxNamespaceType::Network);
        let shares_network = !owns_network && has(LinuxNamespaceType::User);
        Ok(ShellKind {
            // The cgroup namespace is entered later, by the process itself, from within its cgroups.
            clone_flags: flags & !(LinuxNamespaceType::Cgroup as u64),
            user_namespace: if has(LinuxNamespaceType::User) { user_namespace(linux)? } else { UserNamespace::None },
            has_cgroup_namespace: has(LinuxNamespaceType::Cgroup),
            has_network_namespace: owns_network,
            redirect: match config.network {
                Network::Redirected { ipv6 } => Some(RedirectPlan { ipv6 }),
                Network::Isolated | Network::Host => None,
            },
            controllers: controllers(hierarchies, linux.resources().as_ref()),
            furniture: Furniture::of(&config.spec, linux, shares_network, owns_network)?,
            seccomp,
        })
    }
}

fn user_namespace(linux: &Linux) -> Result<UserNamespace, ErrorKind> {
    let is_empty = |mappings: &Option<Vec<_>>| mappings.as_ref().is_none_or(Vec::is_empty);
    if is_empty(linux.uid_mappings()) && is_empty(linux.gid_mappings()) {
        return Ok(UserNamespace::Own);
    }
    IdMappings::of(linux).map(UserNamespace::Given)
}

/// A process that waits.
pub(crate) struct Shell {
    pub(crate) started: Started,
    pub(crate) pidfd: OwnedFd,
    /// Takes [`Order`]s, brings reports. Non-blocking on this side.
    pub(crate) control: OwnedFd,
    pub(crate) cgroup: Cgroup,
    pub(crate) network: Option<OwnedFd>,
    /// Its user namespace, when it has one, and what that maps.
    pub(crate) user: Option<(OwnedFd, IdMappings)>,
    pub(crate) range: Option<Range>,
}

impl Shell {
    /// Makes the process, in cgroups called `name` below `parent`.
    pub(crate) fn make(
        kind: &ShellKind,
        hierarchies: &Hierarchies,
        ranges: &mut Ranges,
        origin: &Origin<'_>,
        parent: &str,
        name: &str,
    ) -> Result<Shell, ErrorKind> {
        let (range, mappings) = match &kind.user_namespace {
            UserNamespace::None => (None, None),
            UserNamespace::Given(mappings) => (None, Some(mappings.clone())),
            UserNamespace::Own => {
                let range = ranges.take()?;
                (Some(range), Some(IdMappings::of_range(range)))
            }
        };
        let mut cgroup = match hierarchies.make(parent, name, &kind.controllers) {
            Ok(cgroup) => cgroup,
            Err(failure) => {
                ranges.give_back(range);
                return Err(failure);
            }
        };
        let made = make_process(kind, mappings, &cgroup, origin);
        match made {
            Ok(process) => {
                let Process { started, pidfd, control, network, user } = process;
                Ok(Shell { started, pidfd, control, cgroup, network, user, range })
            }
            Err(failure) => {
                cgroup.remove();
                ranges.give_back(range);
                Err(failure)
            }
        }
    }

    pub(crate) fn user_namespace(&self) -> Option<BorrowedFd<'_>> {
        self.user.as_ref().map(|(namespace, _)| namespace.as_fd())
    }

    /// The host's ids of a user and group of the sandbox; `None` when its user namespace has no such ids.
    pub(crate) fn on_host(&self, uid: u32, gid: u32) -> Option<(u32, u32)> {
        match &self.user {
            Some((_, mappings)) => mappings.on_host(uid, gid),
            None => Some((uid, gid)),
        }
    }

    /// Whether it has ended, which only an accident does to it.
    pub(crate) fn is_dead(&self) -> bool {
        is_dead(&self.pidfd)
    }

    /// Lets it become the sandbox. What becomes of it, its reports say.
    ///
    /// Never waits: what may be large goes through a file in memory.
    pub(crate) fn become_sandbox(&self, blueprint: &Blueprint) -> Result<(), ErrorKind> {
        let step = || "send the sandbox its blueprint".to_owned();
        let text = serde_json::to_vec(blueprint).map_err(std::io::Error::from).step(step)?;
        let file = rustix::fs::memfd_create("cfc-blueprint", MemfdFlags::CLOEXEC).step(step)?;
        let mut file = fs::File::from(file);
        std::io::Write::write_all(&mut file, &text).step(step)?;
        let mut descriptors: Vec<BorrowedFd<'_>> = vec![file.as_fd()];
        descriptors.extend(blueprint.descriptors.0.iter().map(AsFd::as_fd));
        let mut batches = descriptors.chunks(DESCRIPTORS_MAX).peekable();
        while let Some(batch) = batches.next() {
            let order = if batches.peek().is_some() { Order::Take } else { Order::Become };
            if let Err(error) = self.send(&order, batch) {
                return self.last_words().map_or_else(|| Err(error).step(step), Err);
            }
        }
        Ok(())
    }

    /// Why it ended while it waited, if it said so.
    fn last_words(&self) -> Option<ErrorKind> {
        let mut receiver = Receiver::default();
        while receiver.receive(&self.control).is_ok_and(|is_open| is_open) {
            while let Ok(Some((report, _))) = receiver.next::<Report>() {
                if let Report::Failed(failure) = report {
                    return Some(failure);
                }
            }
        }
        None
    }

    fn send(&self, order: &Order, descriptors: &[BorrowedFd<'_>]) -> std::io::Result<()> {
        send(&self.control, order, descriptors)
    }

    /// Ends it. Nothing of it remains.
    pub(crate) fn discard(mut self, ranges: &mut Ranges) {
        end(&self.pidfd);
        self.cgroup.remove();
        ranges.give_back(self.range);
    }
}

pub(super) fn send(control: &OwnedFd, order: &Order, descriptors: &[BorrowedFd<'_>]) -> std::io::Result<()> {
    let bytes = protocol::encode(order)?;
    let sent = protocol::send(control, &bytes, descriptors)?;
    // The messages are a few bytes each, and few.
    if sent == bytes.len() { Ok(()) } else { Err(rustix::io::Errno::MSGSIZE.into()) }
}

/// Whether a child has ended.
pub(super) fn is_dead(pidfd: &OwnedFd) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    !matches!(rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), options), Ok(None))
}

/// Kills a child and waits for it.
pub(super) fn end(pidfd: &OwnedFd) {
    let _ = sys::send_signal(pidfd.as_fd(), libc::SIGKILL);
    let _ = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
}

/// A connection with a process that is about to be made: our end, which is non-blocking, and its own.
pub(super) fn socket_pair() -> Result<(OwnedFd, OwnedFd), ErrorKind> {
    let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .step(|| "make a socket".into())?;
    rustix::io::ioctl_fionbio(&ours, true).step(|| "make a socket".into())?;
    Ok((ours, theirs))
}

struct Process {
    started: Started,
    pidfd: OwnedFd,
    control: OwnedFd,
    network: Option<OwnedFd>,
    user: Option<(OwnedFd, IdMappings)>,
}

/// What a shell is forked from.
pub(crate) enum Origin<'a> {
    /// The launcher itself.
    Launcher(&'a Slots),
    Zygote(&'a Zygote),
}

fn make_process(
    kind: &ShellKind,
    mappings: Option<IdMappings>,
    cgroup: &Cgroup,
    origin: &Origin<'_>,
) -> Result<Process, ErrorKind> {
    let (control, theirs) = socket_pair()?;
    let wiring = Wiring { control: theirs, entrances: cgroup.entrances()? };
    let birthplace = cgroup.birthplace()?;
    let (pid, pidfd, sharing) = match origin {
        Origin::Launcher(slots) => {
            let forked = fork(kind.clone_flags, birthplace.as_ref(), slots, wiring, |wiring| child::run(kind, wiring))?;
            (forked.pid, forked.pidfd, Some((slots, forked.filled)))
        }
        Origin::Zygote(zygote) => {
            let (pid, pidfd) = zygote.bear(wiring, birthplace.as_ref())?;
            (pid, pidfd, None)
        }
    };
    let prepared = prepare(kind, mappings, pid).and_then(|prepared| {
        // Also of one that shares nothing: so it runs already, and goes on beside us when it is told to.
        wait_until_apart(&control)?;
        sharing.map_or(Ok(()), |(slots, filled)| slots.empty(filled))?;
        send(&control, &Order::Go, &[]).step(|| "let the sandbox go on".into())?;
        Ok(prepared)
    });
    match prepared {
        Ok((network, user, start_time)) => {
            Ok(Process { started: Started { pid, start_time }, pidfd, control, network, user })
        }
        Err(failure) => {
            end(&pidfd);
            sharing.map_or(Ok(()), |(slots, filled)| slots.empty(filled))?;
            Err(failure)
        }
    }
}

/// The step in which a process is made.
pub(super) fn make_step() -> String {
    "make the namespaces".to_owned()
}

/// A process that the launcher forked, and the slots that are its own until it is apart.
pub(super) struct Forked {
    pid: i32,
    pub(super) pidfd: OwnedFd,
    pub(super) filled: Filled,
}

/// Forks the launcher with `flags`, into the v2 cgroup `birthplace` if one is given. The new process lives as `live` says,
/// from when it has its own descriptors ([`wait_until_apart`]): the standard ones and those of `wiring`.
pub(super) fn fork(
    flags: u64,
    birthplace: Option<&OwnedFd>,
    slots: &Slots,
    wiring: Wiring,
    live: impl FnOnce(Wiring),
) -> Result<Forked, ErrorKind> {
    let filled = slots.fill(&wiring)?;
    match sys::clone_process(flags | libc::CLONE_FILES as u64, birthplace.map(AsFd::as_fd)).step(make_step) {
        Ok(Cloned::Parent { pid, pidfd }) => Ok(Forked { pid, pidfd, filled }),
        Ok(Cloned::Child) => {
            // What belongs to other sandboxes would stay open for as long as it waits.
            let Ok(wiring) = filled.leave() else { sys::exit_now(child::FAILED) };
            say_apart(&wiring);
            live(wiring);
            sys::exit_now(child::FAILED)
        }
        Err(failure) => slots.empty(filled).and(Err(failure)),
    }
}

/// How long a new process may take for its first moment: far longer than it takes on the busiest machine.
pub(super) const PATIENCE: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };

/// The first thing that a forked process says: it has its own descriptors.
const APART: &[u8; 1] = b"a";

/// In the new process, once it has its own descriptors: from here on the launcher may use the slots for another.
pub(super) fn say_apart(wiring: &Wiring) {
    let _ = rustix::io::write(&wiring.control, APART);
}

/// Waits until a new process has its own descriptors, which is the first thing that it does.
pub(super) fn wait_until_apart(control: &OwnedFd) -> Result<(), ErrorKind> {
    let step = || "let the new process have its own descriptors".to_owned();
    let mut awaited = [PollFd::new(control, PollFlags::IN)];
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut awaited, Some(&PATIENCE))).step(step)?;
    match rustix::io::read(control, &mut [0; APART.len()]).step(step)? {
        0 => Err(ErrorKind::Unavailable("the process died while it was made (out of memory?)".into())),
        _ => Ok(()),
    }
}

type Prepared = (Option<OwnedFd>, Option<(OwnedFd, IdMappings)>, u64);

/// What only the launcher may do to the new process, which waits meanwhile.
fn prepare(kind: &ShellKind, mappings: Option<IdMappings>, pid: i32) -> Result<Prepared, ErrorKind> {
    let namespace = |name: &str| {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::open(format!("/proc/{pid}/ns/{name}"), flags, Mode::empty())
            .step(|| format!("open the {name} namespace"))
    };
    let user = match mappings {
        None => None,
        Some(mappings) => {
            mappings.write(pid)?;
            Some((namespace("user")?, mappings))
        }
    };
    let network = kind.has_network_namespace.then(|| namespace("net")).transpose()?;
    let start_time =
        protocol::start_time(pid).step(|| "look at the new process".into())?.ok_or(ErrorKind::NotRunning)?;
    Ok((network, user, start_time))
}
