//! What [`Launcher`](crate::Launcher) and the launcher process say to each other.
//!
//! Over a stream socket, each message is its length as four little-endian bytes and then JSON. Descriptors travel with
//! a message's first byte. A client sends a request and reads its response before it sends the next.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use oci_spec::runtime::LinuxResources;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::cgroup::PARENT_PREFIX;
use crate::config::SandboxConfig;
use crate::disk::{DiskKind, DiskUsage};
use crate::error::Error;
use crate::exec::ExecConfig;
use crate::launcher::{Passing, ReceivedState, take_all};
use crate::status::{Exit, ExitStatus, Started, Status, Usage};

/// The longest message either side accepts. A spec is about 10 KiB; an environment may reach megabytes.
const MESSAGE_LENGTH_MAX: usize = 16 << 20;
/// The most descriptors that go with one message (unix(7)).
pub(crate) const DESCRIPTORS_MAX: usize = 253;
/// What is read at once: most messages whole.
const READ_LENGTH: usize = 16 << 10;

/// Which version of this protocol this program speaks. A launcher outlives the cfc that started it, so the two may be of
/// different programs. Unknown fields are ignored and missing ones have defaults. Where that would be wrong, for a new field
/// that limits or isolates, this number rises, and [`Request::since`] keeps the request from launchers that speak an older
/// one. Version 1 had no [`Request::Hello`], version 2 no [`Request::Succeed`], and of its programs some had no runtimes.
pub(crate) const PROTOCOL: u32 = 3;

/// The oldest version that the other side may speak.
pub(crate) const PROTOCOL_MIN: u32 = 1;

/// What a client may ask.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Which version the launcher speaks.
    Hello,
    /// Only on a private launcher's first connection: the descriptor is a further connection.
    Attach,
    /// With [`Stdio::Files`](crate::Stdio::Files), three descriptors come along.
    Start(Box<SandboxConfig>),
    /// A sandbox with the same spec and network will be started next. Answered before anything is made.
    Expect(Box<SandboxConfig>),
    /// Sets the limits that are named.
    Update {
        id: String,
        resources: Box<LinuxResources>,
    },
    Kill {
        id: String,
        signal: i32,
        /// Nothing is sent unless this is its process 1: another may have been started under its name.
        #[serde(default)]
        pid: Option<i32>,
    },
    KillAll {
        id: String,
        /// As with `Kill`.
        #[serde(default)]
        pid: Option<i32>,
    },
    Wait {
        id: String,
    },
    /// After [`Reply::Done`] the connection brings a [`Reply::Ended`] for every sandbox that has ended or will.
    Ends,
    /// As `Ends`, and each [`Reply::OutOfMemory`] as well. Launchers of before refuse it.
    Watch,
    Remove {
        id: String,
    },
    /// Notes a line about a running sandbox in its log. Launchers of before refuse it.
    Note {
        id: String,
        line: String,
    },
    List,
    /// The reply carries the network namespace.
    Network {
        id: String,
    },
    /// The reply carries the sockets of [`OutboundSockets`](crate::OutboundSockets), TCP first.
    Outbound {
        id: String,
    },
    /// Answered when a disk of this kind is ready.
    PrepareDisk(DiskKind),
    /// How full the disks of the sandboxes are.
    Disks,
    Usage {
        id: String,
    },
    /// A further process for a running sandbox, which then belongs to this connection. Without a terminal, three
    /// descriptors come along. Two replies: [`Reply::ExecStarted`], which carries the terminal, then [`Reply::ExecEnded`].
    Exec {
        id: String,
        exec: Box<ExecConfig>,
    },
    /// To the process of this connection, or to its group. No reply.
    ExecSignal {
        signal: i32,
        group: bool,
    },
    /// The process of this connection no longer ends with it. No reply.
    ExecRelease,
    /// The launcher is to execute this program in its place, which goes on where it left off.
    Succeed {
        program: PathBuf,
    },
    Shutdown,
}

impl Request {
    /// The version of the protocol since which launchers know all that this request says and that must not be ignored: a
    /// launcher ignores fields that it does not know, and one that limits or isolates would be missing without a word. A
    /// kind of request that it does not know it refuses by itself.
    pub(crate) fn since(&self) -> u32 {
        match self {
            Request::Start(config) if config.runtime.is_some() => 3,
            _ => 1,
        }
    }

    /// What is new in it, for a message.
    fn novelty(&self) -> &'static str {
        match self {
            Request::Start(_) => "other runtimes than its own",
            _ => "it",
        }
    }

    /// Why a launcher that greets like this must not be sent it, if that is so.
    pub(crate) fn check_known(&self, hello: &Hello) -> Result<(), String> {
        let Hello { protocol, version, .. } = hello;
        if *protocol >= self.since() {
            return Ok(());
        }
        Err(format!(
            "it is of cfc {version}, which does not know {} (`cfc upgrade` replaces it, if it is new enough for that; else it \
             goes when `cfc serve` is stopped with SIGTERM)",
            self.novelty()
        ))
    }
}

/// What the launcher answers.
pub(crate) type Response = Result<Reply, Error>;

/// What a launcher says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// The newest version that it speaks.
    pub(crate) protocol: u32,
    /// The oldest version that a client may speak with it.
    pub(crate) oldest: u32,
    /// The version of the program.
    pub(crate) version: String,
    /// Its process.
    pub(crate) pid: u32,
}

impl Hello {
    /// This program's, as a launcher.
    pub(crate) fn own() -> Hello {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Hello { protocol: PROTOCOL, oldest: PROTOCOL_MIN, version, pid: std::process::id() }
    }

    /// What a launcher would say that does not know the question yet.
    pub(crate) fn of_the_first() -> Hello {
        Hello { protocol: 1, oldest: 1, version: "0.1.0".to_owned(), pid: 0 }
    }

    /// Whether this program and that launcher understand each other, or what to do when not.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.protocol >= PROTOCOL_MIN && self.oldest <= PROTOCOL {
            return Ok(());
        }
        let Hello { protocol, version, pid, .. } = self;
        Err(format!(
            "it is of cfc {version} and speaks version {protocol} of their protocol, this cfc {} speaks {PROTOCOL_MIN} to \
             {PROTOCOL}; start cfc {version} again and stop it with SIGTERM, or end the launcher with `kill {pid}`: both end \
             its instances",
            env!("CARGO_PKG_VERSION")
        ))
    }
}

/// A request's success.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Done,
    Hello(Hello),
    Started(Started),
    Exited(Exit),
    /// The process's id inside.
    ExecStarted {
        pid: u32,
    },
    ExecEnded(ExitStatus),
    Ended {
        id: String,
        exit: Exit,
    },
    /// The kernel has killed something in it: how often by now, and at which limit.
    OutOfMemory {
        id: String,
        kills: u64,
        limit_bytes: Option<u64>,
    },
    List(Vec<Status>),
    Disks(BTreeMap<String, DiskUsage>),
    Usage(Usage),
}

/// The name of the cgroup directory of the launcher with this pid.
///
/// It names the process for good, so that whoever finds the directory later can tell whether its launcher still runs: the
/// pid is told from a later process's by the start time, and from another container's by the pid namespace.
pub(crate) fn cgroup_parent(pid: u32) -> String {
    let start_time = start_time(pid as i32).ok().flatten().unwrap_or(0);
    format!("{PARENT_PREFIX}{}-{pid}-{start_time}", pid_namespace())
}

/// Whether the launcher of a cgroup directory is gone. Unknown names, and launchers of other pid namespaces, are not.
pub(crate) fn is_orphan(parent: &str) -> bool {
    let is_gone = |name: &str| {
        let mut parts = name.split('-').map(str::parse::<u64>);
        let mut part = || parts.next()?.ok();
        let (namespace, pid, started) = (part()?, part()?, part()?);
        // One that cannot be looked at, for want of a descriptor, is not gone for that.
        let is_running = start_time(i32::try_from(pid).ok()?).map_or(true, |found| found == Some(started));
        Some(namespace == pid_namespace() && !is_running)
    };
    parent.strip_prefix(PARENT_PREFIX).and_then(is_gone).unwrap_or(false)
}

fn pid_namespace() -> u64 {
    std::fs::metadata("/proc/self/ns/pid").map_or(0, |metadata| std::os::unix::fs::MetadataExt::ino(&metadata))
}

/// When a process started, in clock ticks since boot; `None` when it is gone, on its way out, or only not waited for yet.
pub(crate) fn start_time(pid: i32) -> io::Result<Option<u64>> {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => Ok(start_time_in(&stat)),
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

fn start_time_in(stat: &str) -> Option<u64> {
    // From linux/sched.h. A process that exits closes its sockets long before it is a zombie when it has disks to unmount.
    const PF_EXITING: u64 = 0x4;
    // The second field is the name in parentheses, which may hold anything. State is the 3rd, flags the 9th, start time the
    // 22nd.
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace();
    let is_dead = matches!(fields.next()?, "Z" | "X");
    let is_exiting = fields.nth(5)?.parse::<u64>().ok()? & PF_EXITING != 0;
    if is_dead || is_exiting { None } else { fields.nth(12)?.parse().ok() }
}

/// A message as bytes, length included.
pub(crate) fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length = bytes.len() - 4;
    if length > MESSAGE_LENGTH_MAX {
        return Err(io::Error::other(format!("a message of {length} bytes exceeds {MESSAGE_LENGTH_MAX}")));
    }
    bytes[..4].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(bytes)
}

/// Sends as much of `bytes` as the socket takes, with `descriptors` on the first byte.
pub(crate) fn send(socket: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> rustix::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(rustix::io::Errno::MSGSIZE);
    }
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(&socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)
    })
}

/// Collects a stream's bytes into messages.
#[derive(Debug, Default)]
pub(crate) struct Receiver {
    bytes: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

impl Receiver {
    /// Reads once from `socket`. `Ok(false)` at its end.
    pub(crate) fn receive(&mut self, socket: impl AsFd) -> io::Result<bool> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        // Not in the heap: most messages are short, and a large piece of it is cleared, merged and split each time.
        let mut buffer = [0; READ_LENGTH];
        let received = rustix::io::retry_on_intr(|| {
            let mut parts = [IoSliceMut::new(&mut buffer)];
            rustix::net::recvmsg(&socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        })?;
        self.bytes.extend_from_slice(&buffer[..received.bytes]);
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        Ok(received.bytes > 0)
    }

    /// For the launcher's next program.
    pub(crate) fn save(&self, passing: &Passing) -> ReceivedState {
        ReceivedState { bytes: self.bytes.clone(), descriptors: passing.pass_all(&self.descriptors) }
    }

    pub(crate) fn restore(state: ReceivedState) -> io::Result<Receiver> {
        let ReceivedState { bytes, descriptors } = state;
        Ok(Receiver { bytes, descriptors: take_all(descriptors)?.into() })
    }

    /// A descriptor that has come.
    pub(crate) fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.pop_front()
    }

    /// The next whole message, with the descriptors that have come so far.
    pub(crate) fn next<M: DeserializeOwned>(&mut self) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
        let Some(header) = self.bytes.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*header) as usize;
        if length > MESSAGE_LENGTH_MAX {
            return Err(io::Error::other(format!("a message of {length} bytes exceeds {MESSAGE_LENGTH_MAX}")));
        }
        let Some(body) = self.bytes.get(4..4 + length) else { return Ok(None) };
        let message = serde_json::from_slice(body)?;
        self.bytes.drain(..4 + length);
        Ok(Some((message, self.descriptors.drain(..).collect())))
    }
}

#[cfg(test)]
#[path = "protocol_tests.rs"]
mod older_launchers;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_directory_tells_whether_its_launcher_runs() {
        let own = cgroup_parent(std::process::id());
        assert!(!is_orphan(&own), "{own}");
        assert!(is_orphan(&format!("{own}0")), "another process had this pid");
        for foreign in ["cfc-", "cfc-x", "cfc-1-2", "cfc-0-1-1", "other"] {
            assert!(!is_orphan(foreign), "{foreign}");
        }
    }

    #[test]
    fn what_a_later_version_adds_is_no_harm() {
        let reply: Response = serde_json::from_str(r#"{"Ok":{"Started":{"pid":7,"start_time":8,"later":[1]}}}"#)
            .expect("an unknown field is ignored");
        assert!(matches!(reply, Ok(Reply::Started(Started { pid: 7, start_time: 8 }))));
        let unknown =
            serde_json::from_str::<Request>(r#"{"OfALaterVersion":{"id":"x"}}"#).expect_err("nobody knows it");
        assert!(unknown.to_string().contains("OfALaterVersion"), "{unknown}");
    }

    #[test]
    fn a_launcher_too_old_or_too_new_is_named_with_what_to_do() {
        let launcher = |oldest, protocol| Hello { protocol, oldest, version: "9.9.9".to_owned(), pid: 4711 };
        for (oldest, protocol) in [(1, 1), (1, PROTOCOL), (PROTOCOL, PROTOCOL + 5)] {
            launcher(oldest, protocol).check().expect("they understand each other");
        }
        for (oldest, protocol) in [(PROTOCOL + 1, PROTOCOL + 1), (0, PROTOCOL_MIN - 1)] {
            let said = launcher(oldest, protocol).check().expect_err("they do not");
            assert!(said.contains("9.9.9") && said.contains("kill 4711"), "{said}");
        }
    }

    #[test]
    fn a_process_that_nobody_waited_for_is_gone() {
        let mut child = std::process::Command::new("true").spawn().expect("starts");
        let pid = child.id() as i32;
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while start_time(pid).expect("readable").is_some() {
            assert!(std::time::Instant::now() < deadline, "a zombie counts as running");
            std::thread::yield_now();
        }
        assert!(std::path::Path::new(&format!("/proc/{pid}")).exists(), "it is still there");
        child.wait().expect("ends");
    }

    #[test]
    fn messages_survive_being_cut_anywhere_and_carry_descriptors() {
        let flags = rustix::net::SocketFlags::CLOEXEC;
        let (left, right) =
            rustix::net::socketpair(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, flags, None)
                .expect("a socket pair");
        let bytes = encode(&Request::Wait { id: "x".into() }).expect("encodes");
        let mut receiver = Receiver::default();
        for (i, byte) in bytes.iter().enumerate() {
            assert!(receiver.next::<Request>().expect("no error").is_none(), "complete after {i} bytes");
            let descriptors = if i == 0 { vec![left.as_fd()] } else { Vec::new() };
            send(&left, std::slice::from_ref(byte), &descriptors).expect("sends");
            assert!(receiver.receive(&right).expect("receives"));
        }
        let (message, descriptors) = receiver.next::<Request>().expect("parses").expect("is complete");
        assert!(matches!(message, Request::Wait { id } if id == "x"));
        assert_eq!(descriptors.len(), 1);
        drop((left, descriptors));
        assert!(!receiver.receive(&right).expect("sees the end"));
    }
}
