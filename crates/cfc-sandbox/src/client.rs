//! [`Launcher`]: the handle through which sandboxes are started and watched.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio as ProcessStdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use oci_spec::runtime::LinuxResources;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::config::{SandboxConfig, Stdio};
use crate::disk::{DiskKind, DiskUsage};
use crate::error::{Error, ErrorKind, Result};
use crate::exec::{self, Exec, ExecConfig};
use crate::launcher::{LAUNCHER_ARGV0, PRIVATE};
use crate::network::NetworkHandle;
use crate::protocol::{self, Receiver, Reply, Request, Response};
use crate::redirect::OutboundSockets;
use crate::rootless::spawn_with_capabilities;
use crate::status::{Exit, Started, Status, Usage};

/// A handle to a launcher process. Cheap to clone; its methods block and may be called from many threads.
#[derive(Debug, Clone)]
pub struct Launcher {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    reach: Reach,
    /// Connections on which nobody waits.
    idle: Mutex<Vec<OwnedFd>>,
    /// It was told to end, and shall not be replaced: somebody may just be about to ask it something.
    is_over: AtomicBool,
}

/// How further connections are made.
#[derive(Debug)]
enum Reach {
    Socket {
        socket: PathBuf,
        /// What to start a launcher from when none listens any more.
        program: Option<PathBuf>,
    },
    Private(Mutex<PrivateLauncher>),
}

/// A launcher that is ours alone: it ends when `control` is closed.
#[derive(Debug)]
struct PrivateLauncher {
    control: Option<OwnedFd>,
    process: Child,
}

impl Launcher {
    /// Connects to the launcher listening on `socket`, or starts one that outlives this process.
    ///
    /// A launcher is started by executing `program` with the arguments `["cfc-launcher", socket]`; what it has to say goes
    /// to `<socket>.log`. The directory of `socket` must exist.
    /// Should it die (its sandboxes then die with it), the next [`start`](Launcher::start) starts another.
    ///
    /// One that listens may be of another version of this program. Fails, and says what to do, when the two do not
    /// understand each other.
    pub fn connect_or_start(program: &Path, socket: &Path) -> Result<Launcher> {
        let socket =
            std::path::absolute(socket).map_err(|error| launcher_error(format!("find its socket: {error}")))?;
        let connection = match connect(&socket) {
            Ok(connection) => connection,
            Err(_) => start_listening(program, &socket)?,
        };
        let connection = greet(connection, &socket, program)?;
        Ok(Launcher::new(Reach::Socket { socket, program: Some(program.to_owned()) }, connection))
    }

    /// Connects to the launcher listening on `socket`; `None` when there is none.
    pub fn connect(socket: &Path) -> Option<Launcher> {
        let socket = std::path::absolute(socket).ok()?;
        let connection = connect(&socket).ok()?;
        Some(Launcher::new(Reach::Socket { socket, program: None }, connection))
    }

    /// Starts a launcher that ends, with all its sandboxes, when this process ends or drops the last handle to it.
    ///
    /// For builds and `cfc run`. It is `program` with the arguments `["cfc-launcher", "--private"]`.
    pub fn private(program: &Path) -> Result<Launcher> {
        let (control, theirs) = pair()?;
        let mut command = command(program);
        command.arg(PRIVATE).stdin(theirs).stdout(ProcessStdio::null());
        let process = spawn_with_capabilities(&mut command)
            .map_err(|error| launcher_error(format!("start {}: {error}", program.display())))?;
        let private = PrivateLauncher { control: Some(control), process };
        let reach = Reach::Private(Mutex::new(private));
        let connection = reach.connect()?;
        Ok(Launcher::new(reach, connection))
    }

    fn new(reach: Reach, connection: OwnedFd) -> Launcher {
        Launcher {
            shared: Arc::new(Shared { reach, idle: Mutex::new(vec![connection]), is_over: AtomicBool::new(false) }),
        }
    }

    /// The launcher's process id, when a connection to it is idle.
    pub(crate) fn process_id(&self) -> Option<i32> {
        let idle = lock(&self.shared.idle);
        let credentials = rustix::net::sockopt::socket_peercred(idle.first()?).ok()?;
        Some(credentials.pid.as_raw_nonzero().get())
    }

    /// Makes a sandbox and starts its command. Returns once the command executes.
    ///
    /// Fails with [`ErrorKind::CommandNotFound`](crate::ErrorKind::CommandNotFound) or
    /// [`ErrorKind::NotExecutable`](crate::ErrorKind::NotExecutable) when the image lacks it; nothing remains then.
    pub fn start(&self, config: &SandboxConfig) -> Result<Started> {
        config.validate()?;
        if config.stdio == Stdio::Files {
            let message = "`Stdio::Files` is for `start_with_stdio`".to_owned();
            return Err(Error::new(format!("start sandbox `{}`", config.id), ErrorKind::Invalid(message)));
        }
        started(self.call(&Request::Start(Box::new(config.clone())), &[])?.0)
    }

    /// As [`start`](Launcher::start), with these three descriptors as the command's own. `config.stdio` must be
    /// [`Stdio::Files`](crate::Stdio::Files).
    pub fn start_with_stdio(
        &self,
        config: &SandboxConfig,
        stdin: OwnedFd,
        stdout: OwnedFd,
        stderr: OwnedFd,
    ) -> Result<Started> {
        config.validate()?;
        if config.stdio != Stdio::Files {
            let message = "`start_with_stdio` is for `Stdio::Files`".to_owned();
            return Err(Error::new(format!("start sandbox `{}`", config.id), ErrorKind::Invalid(message)));
        }
        let descriptors = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        started(self.call(&Request::Start(Box::new(config.clone())), &descriptors)?.0)
    }

    /// Says that a sandbox with the spec and the network of `config` will be started soon. The launcher then makes ready what
    /// depends on nothing else; its root need not be there yet. Returns at once, and nothing depends on it.
    pub fn expect(&self, config: &SandboxConfig) -> Result<()> {
        done(self.call(&Request::Expect(Box::new(config.clone())), &[])?.0)
    }

    /// Sets the limits that `resources` names on a running sandbox; others stay. A quota of -1 is none. Only controllers of
    /// which it had a limit when it was started can be changed.
    pub fn update(&self, id: &str, resources: &LinuxResources) -> Result<()> {
        let request = Request::Update { id: id.to_owned(), resources: Box::new(resources.clone()) };
        done(self.call(&request, &[])?.0)
    }

    /// Sends `signal` to the sandbox's process 1.
    pub fn kill(&self, id: &str, signal: i32) -> Result<()> {
        done(self.call(&Request::Kill { id: id.to_owned(), signal, pid: None }, &[])?.0)
    }

    /// Sends `signal` to the sandbox's process 1 if that is `pid`, as [`Started`] told it. A sandbox that was started
    /// again under the same name meanwhile is left alone, with [`ErrorKind::NotRunning`](crate::ErrorKind::NotRunning).
    pub fn kill_process(&self, id: &str, pid: i32, signal: i32) -> Result<()> {
        done(self.call(&Request::Kill { id: id.to_owned(), signal, pid: Some(pid) }, &[])?.0)
    }

    /// Kills every process of the sandbox. One that has ended already is fine.
    pub fn kill_all(&self, id: &str) -> Result<()> {
        done(self.call(&Request::KillAll { id: id.to_owned(), pid: None }, &[])?.0)
    }

    /// Kills every process of the sandbox if its process 1 is `pid`, as [`Launcher::kill_process`] does.
    pub fn kill_all_with(&self, id: &str, pid: i32) -> Result<()> {
        done(self.call(&Request::KillAll { id: id.to_owned(), pid: Some(pid) }, &[])?.0)
    }

    /// Puts a line about the sandbox, which runs, into its log.
    pub fn note(&self, id: &str, line: &str) -> Result<()> {
        done(self.call(&Request::Note { id: id.to_owned(), line: line.to_owned() }, &[])?.0)
    }

    /// Blocks until the sandbox has ended and its last output is in its log.
    pub fn wait(&self, id: &str) -> Result<Exit> {
        match self.call(&Request::Wait { id: id.to_owned() }, &[])?.0 {
            Reply::Exited(exit) => Ok(exit),
            other => Err(unexpected(&other)),
        }
    }

    /// The ends of all sandboxes, as they come.
    pub fn ends(&self) -> Result<Ends> {
        let connection = self.shared.reach.connect()?;
        let bytes = protocol::encode(&Request::Ends).map_err(|error| launcher_error(format!("ask it: {error}")))?;
        let mut receiver = Receiver::default();
        done(exchange_first(&connection, &bytes, &[], &mut receiver)?.0?)?;
        Ok(Ends { connection, receiver })
    }

    /// What happens to all sandboxes, as it comes. A launcher that was started by an earlier version of this program tells
    /// of ends only.
    pub fn watch(&self) -> Result<Happenings> {
        let connection = self.shared.reach.connect()?;
        let bytes = protocol::encode(&Request::Watch).map_err(|error| launcher_error(format!("ask it: {error}")))?;
        let mut receiver = Receiver::default();
        match exchange_first(&connection, &bytes, &[], &mut receiver)?.0 {
            Ok(reply) => {
                done(reply)?;
                Ok(Happenings { connection, receiver })
            }
            Err(error) if error.is_out_of_descriptors() => Err(error),
            Err(_) => self.ends().map(|Ends { connection, receiver }| Happenings { connection, receiver }),
        }
    }

    /// Forgets an ended sandbox and removes its cgroups. Its disk must be gone or unused from now on: its host ids may become
    /// another's. Its upper and work directories are the caller's.
    pub fn remove(&self, id: &str) -> Result<()> {
        done(self.call(&Request::Remove { id: id.to_owned() }, &[])?.0)
    }

    /// All sandboxes that have not been removed.
    pub fn list(&self) -> Result<Vec<Status>> {
        match self.call(&Request::List, &[])?.0 {
            Reply::List(statuses) => Ok(statuses),
            other => Err(unexpected(&other)),
        }
    }

    /// What a sandbox uses; for one that has ended, what it had used.
    pub fn usage(&self, id: &str) -> Result<Usage> {
        match self.call(&Request::Usage { id: id.to_owned() }, &[])?.0 {
            Reply::Usage(usage) => Ok(usage),
            other => Err(unexpected(&other)),
        }
    }

    /// Runs a further process in a running sandbox, with `stdio` as its stdin, stdout and stderr. Returns once its command
    /// executes.
    ///
    /// Fails with [`ErrorKind::CommandNotFound`](crate::ErrorKind::CommandNotFound) or
    /// [`ErrorKind::NotExecutable`](crate::ErrorKind::NotExecutable) when the sandbox lacks the command.
    pub fn exec(&self, id: &str, config: &ExecConfig, stdio: [OwnedFd; 3]) -> Result<Exec> {
        if config.terminal.is_some() {
            let message = "a terminal is for `exec_in_terminal`".to_owned();
            return Err(Error::new(exec::operation(id), ErrorKind::Invalid(message)));
        }
        self.exec_with(id, config, &[stdio[0].as_fd(), stdio[1].as_fd(), stdio[2].as_fd()])
    }

    /// As [`exec`](Launcher::exec), with a terminal, which `config` gives a size.
    pub fn exec_in_terminal(&self, id: &str, config: &ExecConfig) -> Result<Exec> {
        if config.terminal.is_none() {
            let message = "`exec_in_terminal` needs the terminal's size".to_owned();
            return Err(Error::new(exec::operation(id), ErrorKind::Invalid(message)));
        }
        self.exec_with(id, config, &[])
    }

    /// On a connection of its own, which then is the process's.
    fn exec_with(&self, id: &str, config: &ExecConfig, descriptors: &[BorrowedFd<'_>]) -> Result<Exec> {
        config.validate(id)?;
        let request = Request::Exec { id: id.to_owned(), exec: Box::new(config.clone()) };
        let bytes = protocol::encode(&request).map_err(|error| launcher_error(format!("ask it: {error}")))?;
        let connection = self.shared.reach.connect()?;
        let mut receiver = Receiver::default();
        let answer = exchange_first(&connection, &bytes, descriptors, &mut receiver);
        let (response, descriptors) = answer.map_err(Error::from)?;
        Exec::new(id, connection, receiver, &response?, descriptors)
    }

    /// The network of a running sandbox.
    pub fn network(&self, id: &str) -> Result<NetworkHandle> {
        let (_, mut descriptors) = self.call(&Request::Network { id: id.to_owned() }, &[])?;
        let namespace = descriptors.pop().ok_or_else(|| launcher_error("it sent no network namespace".into()))?;
        Ok(NetworkHandle::new(id, namespace))
    }

    /// The sockets that get what a running sandbox with [`Network::Redirected`](crate::Network::Redirected) sends out.
    ///
    /// The launcher keeps them, so they can be asked for again: what comes meanwhile waits in them.
    pub fn outbound(&self, id: &str) -> Result<OutboundSockets> {
        let (_, descriptors) = self.call(&Request::Outbound { id: id.to_owned() }, &[])?;
        OutboundSockets::new(descriptors).ok_or_else(|| launcher_error("it sent no sockets".into()))
    }

    /// Makes a disk of this kind, so that the next start that wants one finds it ready. An error says why this machine
    /// makes none.
    pub fn prepare_disk(&self, kind: &DiskKind) -> Result<()> {
        done(self.call(&Request::PrepareDisk(kind.clone()), &[])?.0)
    }

    /// How full the disks of the running sandboxes with [`Root::Disk`](crate::Root::Disk) are, by id.
    pub fn disks(&self) -> Result<BTreeMap<String, DiskUsage>> {
        match self.call(&Request::Disks, &[])?.0 {
            Reply::Disks(disks) => Ok(disks),
            other => Err(unexpected(&other)),
        }
    }

    /// Has the launcher execute `program` in its place. Its process, its sandboxes and all connections to it stay, this one
    /// included. Returns when the new program serves.
    ///
    /// Fails, and the launcher goes on as it is, when it is of a cfc that could not do that yet, or when `program` does not
    /// understand what it knows.
    pub fn replace(&self, program: &Path) -> Result<()> {
        let program =
            std::path::absolute(program).map_err(|error| launcher_error(format!("find its program: {error}")))?;
        match self.call(&Request::Succeed { program }, &[])?.0 {
            Reply::Hello(_) => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Whether the launcher's program is another than that of this process.
    pub fn is_of_another_program(&self) -> bool {
        use std::os::unix::fs::MetadataExt;
        let identity = |pid: &str| {
            std::fs::metadata(format!("/proc/{pid}/exe"))
                .ok()
                .map(|file| (file.dev(), file.ino(), file.mtime(), file.ctime_nsec()))
        };
        let theirs = self.process_id().and_then(|pid| identity(&pid.to_string()));
        theirs.is_some_and(|theirs| Some(theirs) != identity("self"))
    }

    /// Ends all sandboxes and the launcher, and returns when they are gone. No handle that shares this one starts another.
    pub fn shutdown(&self) -> Result<()> {
        self.shared.is_over.store(true, Ordering::SeqCst);
        done(self.call(&Request::Shutdown, &[])?.0)
    }

    /// Sends a request on a connection of its own while it lasts, so that a long wait is in nobody's way.
    fn call(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<(Reply, Vec<OwnedFd>)> {
        let bytes = protocol::encode(request).map_err(|error| launcher_error(format!("ask it: {error}")))?;
        let idle = lock(&self.shared.idle).pop();
        if let Some(connection) = idle {
            match exchange_if_known(&connection, request, &bytes, descriptors) {
                Ok(answer) => return self.finish(connection, answer),
                // It belongs to a launcher that had ended before. A new one may have taken its place.
                Err(Broken::Unsent) => {}
                // What it had begun is not begun again: half of it may be done.
                Err(broken) => return Err(broken.into()),
            }
        }
        let connection = match (self.shared.reach.connect(), request) {
            (Err(error), _) if error.is_out_of_descriptors() => return Err(error),
            // Nothing runs any more that it could know of: a new launcher is as good.
            (Err(_), Request::Start(_) | Request::List) if !self.shared.is_over.load(Ordering::SeqCst) => {
                self.shared.reach.revive()?
            }
            (connected, _) => connected?,
        };
        let answer = exchange_if_known(&connection, request, &bytes, descriptors)?;
        self.finish(connection, answer)
    }

    fn finish(&self, connection: OwnedFd, answer: (Response, Vec<OwnedFd>)) -> Result<(Reply, Vec<OwnedFd>)> {
        lock(&self.shared.idle).push(connection);
        let (response, descriptors) = answer;
        Ok((response?, descriptors))
    }
}

/// The ends of a launcher's sandboxes: first of those that have ended already and were not removed, then of each that ends.
/// The iterator ends when the launcher does, and its sandboxes with it; or when the launcher was replaced by another
/// process, which then knows them.
#[derive(Debug)]
pub struct Ends {
    connection: OwnedFd,
    receiver: Receiver,
}

impl Iterator for Ends {
    type Item = (String, Exit);

    fn next(&mut self) -> Option<(String, Exit)> {
        match receive(&self.connection, &mut self.receiver)? {
            Reply::Ended { id, exit } => Some((id, exit)),
            _ => None,
        }
    }
}

/// Something that happened to a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happening {
    /// The kernel killed a process in it, which need not be process 1, at its memory limit.
    OutOfMemory {
        /// The sandbox.
        id: String,
        /// How many it has killed there by now.
        kills: u64,
        /// The limit.
        limit_bytes: Option<u64>,
    },
    /// It has ended.
    Ended {
        /// The sandbox.
        id: String,
        /// How.
        exit: Exit,
    },
}

/// What happens to a launcher's sandboxes: first the ends of those that were not removed, then whatever comes. Ends when
/// [`Ends`] would.
#[derive(Debug)]
pub struct Happenings {
    connection: OwnedFd,
    receiver: Receiver,
}

impl Iterator for Happenings {
    type Item = Happening;

    fn next(&mut self) -> Option<Happening> {
        match receive(&self.connection, &mut self.receiver)? {
            Reply::Ended { id, exit } => Some(Happening::Ended { id, exit }),
            Reply::OutOfMemory { id, kills, limit_bytes } => Some(Happening::OutOfMemory { id, kills, limit_bytes }),
            _ => None,
        }
    }
}

fn receive(connection: &OwnedFd, receiver: &mut Receiver) -> Option<Reply> {
    loop {
        if let Some((response, _)) = receiver.next::<Response>().ok()? {
            return response.ok();
        }
        if !receiver.receive(connection).ok()? {
            return None;
        }
    }
}

impl Reach {
    fn connect(&self) -> Result<OwnedFd> {
        match self {
            Reach::Socket { socket, .. } => connect(socket).map_err(|error| {
                let step = format!("connect to {}", socket.display());
                match error.raw_os_error() {
                    Some(errno @ (libc::EMFILE | libc::ENFILE)) => Error::step("use the launcher", step, errno),
                    _ => launcher_error(format!("{step}: {error}")),
                }
            }),
            Reach::Private(private) => {
                let (ours, theirs) = pair()?;
                let bytes = protocol::encode(&Request::Attach).map_err(|error| launcher_error(error.to_string()))?;
                let private = lock(private);
                let control = private.control.as_ref().ok_or_else(|| launcher_error("it has been dropped".into()))?;
                let (response, _) =
                    exchange(control, &bytes, &[theirs.as_fd()]).map_err(|_| launcher_error("it has ended".into()))?;
                response.map(|_| ours)
            }
        }
    }

    /// As [`connect`](Reach::connect), starting a launcher in place of one that has died, and removing what that left.
    fn revive(&self) -> Result<OwnedFd> {
        let Reach::Socket { socket, program: Some(program) } = self else { return self.connect() };
        let connection = start_listening(program, socket)?;
        // What cannot be removed now is in nobody's way, and the next sweep tries again.
        let _ = crate::host::sweep(socket);
        Ok(connection)
    }
}

impl Drop for PrivateLauncher {
    /// Returns when the launcher and all its sandboxes are gone.
    fn drop(&mut self) {
        self.control = None;
        let _ = self.process.wait();
    }
}

/// How far an exchange came that got no answer.
enum Broken {
    /// The launcher has seen nothing of it.
    Unsent,
    /// The launcher may have acted on it.
    Unanswered(std::io::Error),
}

impl<E: Into<std::io::Error>> From<E> for Broken {
    fn from(error: E) -> Broken {
        Broken::Unanswered(error.into())
    }
}

impl From<Broken> for Error {
    fn from(broken: Broken) -> Error {
        launcher_error(match broken {
            Broken::Unsent => "it ended before it was asked".into(),
            Broken::Unanswered(error) => format!("it ended before it answered: {error}"),
        })
    }
}

fn exchange(
    connection: &OwnedFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> std::result::Result<(Response, Vec<OwnedFd>), Broken> {
    exchange_first(connection, bytes, descriptors, &mut Receiver::default())
}

/// As [`exchange`], with a launcher that knows all of `request`: it is asked each time for its version, since it may have
/// been replaced meanwhile, be it by an older one.
fn exchange_if_known(
    connection: &OwnedFd,
    request: &Request,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> std::result::Result<(Response, Vec<OwnedFd>), Broken> {
    if request.since() > protocol::PROTOCOL_MIN {
        let greeting = protocol::encode(&Request::Hello)?;
        // Of the request itself nothing was sent.
        let (answer, _) = exchange(connection, &greeting, &[]).map_err(|_| Broken::Unsent)?;
        let hello = match answer {
            Ok(Reply::Hello(hello)) => hello,
            _ => protocol::Hello::of_the_first(),
        };
        if let Err(reason) = request.check_known(&hello) {
            return Ok((Err(launcher_error(reason)), Vec::new()));
        }
    }
    exchange(connection, bytes, descriptors)
}

/// As [`exchange`], where more than one answer may come: `receiver` has what came with the first.
fn exchange_first(
    connection: &OwnedFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
    receiver: &mut Receiver,
) -> std::result::Result<(Response, Vec<OwnedFd>), Broken> {
    let mut sent = match protocol::send(connection, bytes, descriptors) {
        Ok(sent) => sent,
        // It may have said why it hung up.
        Err(_) => {
            return receiver.receive(connection).and_then(|_| receiver.next()).ok().flatten().ok_or(Broken::Unsent);
        }
    };
    while sent < bytes.len() {
        sent += protocol::send(connection, &bytes[sent..], &[])?;
    }
    loop {
        if !receiver.receive(connection)? {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
        if let Some(answer) = receiver.next()? {
            return Ok(answer);
        }
    }
}

/// Asks the launcher which protocol it speaks; one that this program does not understand is to execute it in its place. A
/// connection on which all others can be asked.
fn greet(connection: OwnedFd, socket: &Path, program: &Path) -> Result<OwnedFd> {
    let bytes = protocol::encode(&Request::Hello).map_err(|error| launcher_error(error.to_string()))?;
    match exchange(&connection, &bytes, &[])?.0 {
        Ok(Reply::Hello(hello)) => match hello.check() {
            Ok(()) => Ok(connection),
            Err(reason) => succeed(socket, program).map_err(|error| launcher_error(format!("{reason} ({error})"))),
        },
        // The first version knows no greeting, says so, and hangs up.
        _ if protocol::PROTOCOL_MIN == 1 => {
            connect(socket).map_err(|error| launcher_error(format!("connect to {} again: {error}", socket.display())))
        }
        _ => Err(launcher_error("it is of a cfc from before 0.1.0, which this one does not understand; end it".into())),
    }
}

/// Has the launcher execute `program` in its place; a connection to what it is then.
fn succeed(socket: &Path, program: &Path) -> std::io::Result<OwnedFd> {
    let program = std::path::absolute(program)?;
    let bytes = protocol::encode(&Request::Succeed { program })?;
    let connection = connect(socket)?;
    let ended = || std::io::Error::other("it was asked to go on with this program, and ended");
    match exchange(&connection, &bytes, &[]).map_err(|_| ended())?.0 {
        Ok(Reply::Hello(hello)) => hello.check().map_err(std::io::Error::other).map(|()| connection),
        Ok(other) => Err(std::io::Error::other(format!("it gave an answer to another question: {other:?}"))),
        Err(error) => Err(std::io::Error::other(error)),
    }
}

fn connect(socket: &Path) -> std::io::Result<OwnedFd> {
    let connection = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    rustix::net::connect(&connection, &SocketAddrUnix::new(socket)?)?;
    Ok(connection)
}

fn pair() -> Result<(OwnedFd, OwnedFd)> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(|errno| launcher_error(format!("make a socket: {errno}")))
}

fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg0(LAUNCHER_ARGV0);
    command
}

/// Connects to a launcher that was started for it, by us or by another process meanwhile.
fn start_listening(program: &Path, socket: &Path) -> Result<OwnedFd> {
    // Only one of several processes may start it; the others then find it.
    let lock = append_suffix(socket, ".lock");
    let lock_file = File::create(&lock).map_err(|error| launcher_error(format!("make {}: {error}", lock.display())))?;
    rustix::fs::flock(&lock_file, rustix::fs::FlockOperation::LockExclusive)
        .map_err(|error| launcher_error(format!("lock {}: {error}", lock.display())))?;
    if let Ok(connection) = connect(socket) {
        return Ok(connection);
    }
    spawn_listening(program, socket)?;
    connect(socket).map_err(|error| launcher_error(format!("it does not answer on {}: {error}", socket.display())))
}

/// Starts a launcher and waits until it accepts connections.
fn spawn_listening(program: &Path, socket: &Path) -> Result<()> {
    let log_path = append_suffix(socket, ".log");
    let log = File::options().append(true).create(true).open(&log_path);
    let log = log.map_err(|error| launcher_error(format!("open {}: {error}", log_path.display())))?;
    let mut command = command(program);
    command.arg(socket).stdin(ProcessStdio::null()).stdout(ProcessStdio::piped()).stderr(log);
    let mut process = spawn_with_capabilities(&mut command)
        .map_err(|error| launcher_error(format!("start {}: {error}", program.display())))?;
    let mut said = Vec::new();
    if let Some(mut stdout) = process.stdout.take() {
        let _ = stdout.read_to_end(&mut said);
    }
    if said != crate::launcher::READY {
        let _ = process.wait();
        return Err(launcher_error(format!("it did not start; {} says why", log_path.display())));
    }
    // It outlives us, or else somebody must take note of its end.
    let _ = std::thread::Builder::new().name("cfc-launcher-reaper".into()).spawn(move || process.wait());
    Ok(())
}

fn append_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn started(reply: Reply) -> Result<Started> {
    match reply {
        Reply::Started(started) => Ok(started),
        other => Err(unexpected(&other)),
    }
}

fn done(reply: Reply) -> Result<()> {
    match reply {
        Reply::Done => Ok(()),
        other => Err(unexpected(&other)),
    }
}

fn unexpected(reply: &Reply) -> Error {
    launcher_error(format!("it gave an answer to another question: {reply:?}"))
}

fn launcher_error(message: String) -> Error {
    Error::new("use the launcher", ErrorKind::Launcher(message))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // What is guarded is a list or a socket: no panic leaves it half-changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// Answers each connection's first request with `answers`, one after another, and hangs up.
    fn launcher_that_says(socket: &Path, answers: Vec<Response>) -> std::thread::JoinHandle<Vec<String>> {
        let listener = UnixListener::bind(socket).expect("binds");
        std::thread::spawn(move || {
            let answer = |response: Response| {
                let (stream, _) = listener.accept().expect("somebody connects");
                let mut receiver = Receiver::default();
                let (request, _) = loop {
                    if let Some(request) = receiver.next::<serde_json::Value>().expect("JSON") {
                        break request;
                    }
                    assert!(receiver.receive(&stream).expect("readable"), "nothing was asked");
                };
                let bytes = protocol::encode(&response).expect("encodes");
                protocol::send(&stream, &bytes, &[]).expect("sends");
                request.to_string()
            };
            answers.into_iter().map(answer).collect()
        })
    }

    #[test]
    fn a_launcher_from_before_the_greeting_is_spoken_to_all_the_same() {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("socket");
        let unknown = Err(launcher_error("it does not understand the request: unknown variant `Hello`".into()));
        let theirs = launcher_that_says(&socket, vec![unknown, Ok(Reply::List(Vec::new()))]);
        let launcher = Launcher::connect_or_start(Path::new("/no/such/program"), &socket).expect("it is old enough");
        assert_eq!(launcher.list().expect("it answers"), []);
        assert_eq!(theirs.join().expect("it was asked"), ["\"Hello\"", "\"List\""]);
    }

    /// What limits or isolates is not sent to a launcher that would ignore it, whatever it was when it was connected to.
    #[test]
    fn a_runtime_is_asked_of_no_launcher_that_would_not_use_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("socket");
        let hello =
            |protocol| Ok(Reply::Hello(protocol::Hello { protocol, oldest: 1, version: "7.0.0".to_owned(), pid: 42 }));
        // One of now, in whose place there is an older one when the start comes.
        let theirs = launcher_that_says(&socket, vec![hello(protocol::PROTOCOL), hello(2)]);
        let launcher =
            Launcher::connect_or_start(Path::new("/no/such/program"), &socket).expect("they understand each other");
        let runtime = crate::OciRuntime::find("sh", Path::new("sh"), &[], None).expect("there is a shell");
        let config = SandboxConfig {
            id: "x".to_owned(),
            spec: crate::build_spec(),
            root: crate::Root::Directory { path: "/".into() },
            network: crate::Network::Isolated,
            stdio: Stdio::Log { path: "/log".into(), max_bytes: 1 },
            runtime: Some(runtime),
        };
        let mut config = config;
        config.spec.process_mut().as_mut().expect("has one").set_args(Some(vec!["true".to_owned()]));
        let refused = launcher.start(&config).expect_err("it would run in the launcher's own sandbox");
        assert!(refused.to_string().contains("7.0.0") && refused.to_string().contains("runtimes"), "{refused}");
        assert_eq!(theirs.join().expect("it was asked"), ["\"Hello\"", "\"Hello\""]);
    }

    /// It executes this program in its place, and then they understand each other.
    #[test]
    fn a_launcher_that_is_not_understood_is_replaced_first() {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("socket");
        let hello = |protocol, oldest| {
            Ok(Reply::Hello(protocol::Hello { protocol, oldest, version: "7.0.0".to_owned(), pid: 42 }))
        };
        let theirs = launcher_that_says(&socket, vec![hello(99, 98), hello(protocol::PROTOCOL, 1)]);
        Launcher::connect_or_start(Path::new("/the/program"), &socket).expect("it is this program's now");
        let asked = theirs.join().expect("it was asked");
        assert_eq!(asked, ["\"Hello\"", "{\"Succeed\":{\"program\":\"/the/program\"}}"]);
    }

    #[test]
    fn a_launcher_of_another_age_is_refused_with_what_to_do() {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("socket");
        let hello = protocol::Hello { protocol: 99, oldest: 98, version: "7.0.0".to_owned(), pid: 42 };
        let theirs = launcher_that_says(&socket, vec![Ok(Reply::Hello(hello))]);
        let refused = Launcher::connect_or_start(Path::new("/no/such/program"), &socket).expect_err("it is too new");
        assert!(refused.to_string().contains("7.0.0") && refused.to_string().contains("kill 42"), "{refused}");
        theirs.join().expect("it was asked");
    }
}
