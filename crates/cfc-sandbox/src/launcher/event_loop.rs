//! [`EventLoop`]: the launcher's clients and sandboxes, and what happens when something happens.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use rustix::time::Timespec;

use super::connection::Connection;
use super::disks::Disks;
use super::exec::ExecProcess;
use super::log_file::Stream;
use super::pool::Pool;
use super::sandbox::Sandbox;
use super::start::Starter;
use crate::error::{Error, ErrorKind};
use crate::protocol::{Reply, Request, Response};

/// The state of a launcher.
pub(crate) struct EventLoop {
    pub(super) epoll: OwnedFd,
    pub(super) sources: HashMap<u64, Source>,
    pub(super) next_token: u64,
    pub(super) clients: HashMap<u64, Connection>,
    pub(super) sandboxes: BTreeMap<String, Sandbox>,
    /// The sandboxes that were starting when it was last looked: a look at all of them would cost each start more than the
    /// one before.
    pub(super) starting: Vec<String>,
    /// The further processes of sandboxes, by the client that each belongs to.
    pub(super) execs: BTreeMap<u64, ExecProcess>,
    /// Those of them that have ended and cannot be waited for yet.
    pub(super) traced_execs: Vec<u64>,
    pub(super) starter: Starter,
    pub(super) disks: Disks,
    pub(super) socket: Option<PathBuf>,
    pub(super) listener: Option<OwnedFd>,
    /// What is given up for a client when there is no descriptor left, to tell him so.
    spare: Option<OwnedFd>,
    pub(super) ending: Option<Ending>,
    /// The clients that are told of every end.
    pub(super) watchers: Vec<u64>,
    /// Those of them that are also told of each kill for want of memory.
    pub(super) oom_watchers: Vec<u64>,
    /// The sandboxes whose count of such kills is to be looked at, and when.
    pub(super) oom_looks: Vec<(Instant, String)>,
    /// When a start was last begun or over.
    pub(super) last_start: Instant,
    /// Outputs that came too fast, and when to look at them again.
    pub(super) paused: Vec<(Instant, String, Stream)>,
    /// The children of an earlier program that will end and that nobody asks for.
    pub(super) retired: Vec<(i32, OwnedFd)>,
}

/// What a descriptor that became ready is.
#[derive(Clone)]
pub(super) enum Source {
    Listener,
    Client,
    /// A private launcher's first connection: its end is the launcher's.
    Control,
    /// The process that makes disks.
    Disks,
    Exit(String),
    Report(String),
    Output(String, Stream),
    /// The kernel may have killed something in this sandbox at its memory limit.
    OutOfMemory(String),
    ExecReport(u64),
    ExecExit(u64),
    /// The end of a child that nobody asks for: its number.
    Retired(i32),
}

/// The launcher is to end once no sandbox runs.
pub(super) struct Ending {
    /// Who asked, if it was not the death of the owner.
    pub(super) client: Option<u64>,
}

const EVENTS_MAX: usize = 64;

/// How often commands are looked at that have ended and that something in their sandbox still traces.
const TRACED_INTERVAL: Duration = Duration::from_millis(100);

impl EventLoop {
    /// `parent` names the launcher's cgroups.
    pub(crate) fn new(parent: String, pool: Pool, socket: Option<PathBuf>) -> std::io::Result<EventLoop> {
        Ok(EventLoop {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            sources: HashMap::new(),
            next_token: 0,
            clients: HashMap::new(),
            sandboxes: BTreeMap::new(),
            starting: Vec::new(),
            execs: BTreeMap::new(),
            traced_execs: Vec::new(),
            starter: Starter::new(parent, pool),
            disks: Disks::default(),
            socket,
            listener: None,
            spare: spare(),
            ending: None,
            watchers: Vec::new(),
            oom_watchers: Vec::new(),
            oom_looks: Vec::new(),
            last_start: Instant::now(),
            paused: Vec::new(),
            retired: Vec::new(),
        })
    }

    /// Serves whoever connects to `listener`, until told to shut down.
    pub(crate) fn run_listening(mut self, listener: OwnedFd) -> std::io::Result<()> {
        self.watch(&listener, Source::Listener)?;
        self.listener = Some(listener);
        self.run()
    }

    /// Serves connections that come through `control`, until that ends.
    pub(crate) fn run_private(mut self, control: OwnedFd) -> std::io::Result<()> {
        self.add_client(control, Source::Control)?;
        self.run()
    }

    pub(super) fn run(mut self) -> std::io::Result<()> {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        while !self.is_done() {
            events.clear();
            let looks = self.oom_looks.iter().map(|(due, _)| *due);
            let due = self.paused.iter().map(|(due, ..)| *due).chain(looks).chain(self.chores_due()).min();
            let timeout = due.map(|due| due.saturating_duration_since(Instant::now()));
            let again = (!self.traced_execs.is_empty()).then_some(TRACED_INTERVAL);
            let timeout = timeout.into_iter().chain(again).min();
            let timeout = timeout.and_then(|duration| Timespec::try_from(duration).ok());
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
                Err(rustix::io::Errno::INTR) => continue,
                result => result?,
            };
            for event in &events {
                let token = event.data.u64();
                // An earlier event of this round may have removed it.
                if let Some(source) = self.sources.get(&token).cloned() {
                    self.handle(token, source);
                }
            }
            self.reap_execs();
            if !self.paused.is_empty() {
                self.resume_outputs();
            }
            if !self.oom_looks.is_empty() {
                self.look_for_oom_kills();
            }
            self.do_chore();
        }
        self.leave();
        Ok(())
    }

    fn handle(&mut self, token: u64, source: Source) {
        match source {
            Source::Listener => self.accept(),
            Source::Client | Source::Control => self.serve(token),
            Source::Disks => self.on_disks(),
            Source::Exit(id) => self.on_exit(token, &id),
            Source::Report(id) => {
                self.on_report(token, &id);
            }
            Source::Output(id, stream) => self.on_output(token, &id, stream),
            Source::OutOfMemory(id) => self.on_out_of_memory(&id),
            Source::ExecReport(client) => {
                self.on_exec_report(token, client);
            }
            Source::ExecExit(client) => self.on_exec_exit(token, client),
            Source::Retired(pid) => self.on_retired(token, pid),
        }
    }

    fn is_done(&self) -> bool {
        self.ending.is_some() && self.sandboxes.values().all(Sandbox::is_over)
    }

    /// The last things: the socket and the cgroups go, then whoever asked is told.
    fn leave(mut self) {
        if let Some(socket) = &self.socket {
            let _ = std::fs::remove_file(socket);
        }
        for sandbox in self.sandboxes.values_mut() {
            sandbox.cgroup.remove();
        }
        self.starter.clear_pool();
        self.starter.hierarchies.remove_parent(&self.starter.parent);
        self.end_disks();
        if let Some(client) = self.ending.as_ref().and_then(|ending| ending.client) {
            self.respond(client, Ok(Reply::Done), Vec::new());
        }
    }

    // Watching descriptors.

    pub(super) fn watch(&mut self, descriptor: impl AsFd, source: Source) -> rustix::io::Result<u64> {
        let token = self.next_token;
        self.next_token += 1;
        epoll::add(&self.epoll, descriptor, EventData::new_u64(token), EventFlags::IN)?;
        self.sources.insert(token, source);
        Ok(token)
    }

    /// To be called while `descriptor` is still open.
    pub(super) fn unwatch(&mut self, token: u64, descriptor: impl AsFd) {
        self.sources.remove(&token);
        let _ = epoll::delete(&self.epoll, descriptor);
    }

    // Clients.

    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match rustix::net::accept_with(listener, flags) {
            Ok(socket) => drop(self.add_client(socket, Source::Client)),
            Err(Errno::MFILE | Errno::NFILE) => self.turn_away(),
            // A client that is gone already.
            Err(_) => {}
        }
    }

    /// Tells the next client that there is no descriptor for him. Without an answer he would wait, and we be woken without end.
    fn turn_away(&mut self) {
        self.spare = None;
        if let Some(Ok(socket)) = self.listener.as_ref().map(rustix::net::accept) {
            let failure = Error::step("serve a client of the launcher", "accept its connection", libc::EMFILE);
            let mut connection = Connection::new(socket);
            connection.queue(&Err(failure), Vec::new());
            // Whatever it was about to ask is not begun; an error says that it has gone.
            let _ = connection.flush();
        }
        self.spare = spare();
    }

    pub(super) fn add_client(&mut self, socket: OwnedFd, source: Source) -> std::io::Result<()> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        let token = self.watch(&socket, source)?;
        self.clients.insert(token, Connection::new(socket));
        Ok(())
    }

    /// A client of the program before.
    pub(super) fn restore_client(&mut self, token: u64, connection: Connection) -> rustix::io::Result<()> {
        epoll::add(&self.epoll, &connection.socket, EventData::new_u64(token), EventFlags::IN)?;
        self.sources.insert(token, Source::Client);
        self.clients.insert(token, connection);
        self.flush(token);
        Ok(())
    }

    pub(super) fn serve(&mut self, token: u64) {
        let Some(client) = self.clients.get_mut(&token) else { return };
        let is_open = match client.receiver.receive(&client.socket) {
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
            Ok(is_open) => is_open,
        };
        while let Some(client) = self.clients.get_mut(&token) {
            match client.receiver.next::<Request>() {
                Ok(Some((request, descriptors))) => self.answer(token, request, descriptors),
                Ok(None) => break,
                Err(error) => {
                    let kind = ErrorKind::Launcher(format!("it does not understand the request: {error}"));
                    self.respond(token, Err(Error::new("ask the launcher", kind)), Vec::new());
                    self.drop_client(token);
                }
            }
        }
        if is_open { self.flush(token) } else { self.drop_client(token) }
    }

    pub(super) fn respond(&mut self, client: u64, response: Response, descriptors: Vec<OwnedFd>) {
        if let Some(connection) = self.clients.get_mut(&client) {
            connection.queue(&response, descriptors);
            self.flush(client);
        }
    }

    fn flush(&mut self, token: u64) {
        let Some(client) = self.clients.get_mut(&token) else { return };
        let interest = match client.flush() {
            Err(_) => return self.drop_client(token),
            Ok(true) => EventFlags::IN,
            Ok(false) => EventFlags::IN | EventFlags::OUT,
        };
        let _ = epoll::modify(&self.epoll, &client.socket, EventData::new_u64(token), interest);
    }

    fn drop_client(&mut self, token: u64) {
        let Some(client) = self.clients.remove(&token) else { return };
        self.watchers.retain(|watcher| *watcher != token);
        self.oom_watchers.retain(|watcher| *watcher != token);
        let is_control = matches!(self.sources.get(&token), Some(Source::Control));
        self.unwatch(token, &client.socket);
        self.abandon_exec(token);
        self.forget_waiting(token);
        if is_control {
            self.begin_ending(None);
        }
    }
}

fn spare() -> Option<OwnedFd> {
    rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()
}

impl Source {
    pub(super) fn belongs_to(&self, id: &str) -> bool {
        match self {
            Source::Exit(known) | Source::Report(known) | Source::Output(known, _) => known == id,
            Source::OutOfMemory(known) => known == id,
            Source::Listener | Source::Client | Source::Control | Source::Disks => false,
            Source::ExecReport(_) | Source::ExecExit(_) | Source::Retired(_) => false,
        }
    }
}
