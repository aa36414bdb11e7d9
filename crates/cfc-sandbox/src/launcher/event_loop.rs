//! [`EventLoop`]: the launcher's clients and sandboxes, and what happens when something happens.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::net::SocketFlags;

use super::connection::Connection;
use super::log_file::Stream;
use super::sandbox::{Output, Phase, Sandbox};
use super::start::Starter;
use crate::child::Report;
use crate::config::SandboxConfig;
use crate::error::{Error, ErrorKind};
use crate::protocol::{Reply, Request, Response};
use crate::sys;

/// The state of a launcher.
pub(crate) struct EventLoop {
    epoll: OwnedFd,
    sources: HashMap<u64, Source>,
    next_token: u64,
    clients: HashMap<u64, Connection>,
    sandboxes: BTreeMap<String, Sandbox>,
    starter: Starter,
    socket: Option<PathBuf>,
    listener: Option<OwnedFd>,
    ending: Option<Ending>,
}

/// What a descriptor that became ready is.
#[derive(Clone)]
enum Source {
    Listener,
    Client,
    /// A private launcher's first connection: its end is the launcher's.
    Control,
    Exit(String),
    Report(String),
    Output(String, Stream),
}

/// The launcher is to end once no sandbox runs.
struct Ending {
    /// Who asked, if it was not the death of the owner.
    client: Option<u64>,
}

const EVENTS_MAX: usize = 64;

impl EventLoop {
    /// `parent` names the launcher's cgroups.
    pub(crate) fn new(parent: String, socket: Option<PathBuf>) -> std::io::Result<EventLoop> {
        Ok(EventLoop {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            sources: HashMap::new(),
            next_token: 0,
            clients: HashMap::new(),
            sandboxes: BTreeMap::new(),
            starter: Starter::new(parent),
            socket,
            listener: None,
            ending: None,
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

    fn run(mut self) -> std::io::Result<()> {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        while !self.is_done() {
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
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
        }
        self.leave();
        Ok(())
    }

    fn handle(&mut self, token: u64, source: Source) {
        match source {
            Source::Listener => self.accept(),
            Source::Client | Source::Control => self.serve(token),
            Source::Exit(id) => self.on_exit(token, &id),
            Source::Report(id) => self.on_report(token, &id),
            Source::Output(id, stream) => self.on_output(token, &id, stream),
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
        self.starter.hierarchies.remove_parent(&self.starter.parent);
        if let Some(client) = self.ending.as_ref().and_then(|ending| ending.client) {
            self.respond(client, Ok(Reply::Done), None);
        }
    }

    // Watching descriptors.

    fn watch(&mut self, descriptor: impl AsFd, source: Source) -> rustix::io::Result<u64> {
        let token = self.next_token;
        self.next_token += 1;
        epoll::add(&self.epoll, descriptor, EventData::new_u64(token), EventFlags::IN)?;
        self.sources.insert(token, source);
        Ok(token)
    }

    /// To be called while `descriptor` is still open.
    fn unwatch(&mut self, token: u64, descriptor: impl AsFd) {
        self.sources.remove(&token);
        let _ = epoll::delete(&self.epoll, descriptor);
    }

    // Clients.

    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // A client that is gone already, or no descriptor left: the next event tries again.
        let Ok(socket) = rustix::net::accept_with(listener, flags) else { return };
        let _ = self.add_client(socket, Source::Client);
    }

    fn add_client(&mut self, socket: OwnedFd, source: Source) -> std::io::Result<()> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        let token = self.watch(&socket, source)?;
        self.clients.insert(token, Connection::new(socket));
        Ok(())
    }

    fn serve(&mut self, token: u64) {
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
                    self.respond(token, Err(Error::new("ask the launcher", kind)), None);
                    self.drop_client(token);
                }
            }
        }
        if is_open { self.flush(token) } else { self.drop_client(token) }
    }

    fn respond(&mut self, client: u64, response: Response, descriptor: Option<OwnedFd>) {
        if let Some(connection) = self.clients.get_mut(&client) {
            connection.queue(&response, descriptor);
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
        let is_control = matches!(self.sources.get(&token), Some(Source::Control));
        self.unwatch(token, &client.socket);
        if is_control {
            self.begin_ending(None);
        }
    }

    // Requests.

    fn answer(&mut self, client: u64, request: Request, mut descriptors: Vec<OwnedFd>) {
        let response = match request {
            Request::Start(config) => match self.start(client, &config, descriptors) {
                Ok(()) => return,
                Err(kind) => Err(Error::new(format!("start sandbox `{}`", config.id), kind)),
            },
            Request::Wait { id } => {
                match self.sandboxes.get_mut(&id).map(|sandbox| (&sandbox.phase, &mut sandbox.waiting)) {
                    Some((Phase::Exited(exit), _)) => Ok(Reply::Exited(*exit)),
                    Some((_, waiting)) => return waiting.push(client),
                    None => Err(Error::new(format!("wait for sandbox `{id}`"), ErrorKind::NotFound)),
                }
            }
            Request::Network { id } => match self.network(&id) {
                Ok(namespace) => return self.respond(client, Ok(Reply::Done), Some(namespace)),
                Err(kind) => Err(Error::new(format!("reach the network of sandbox `{id}`"), kind)),
            },
            Request::Shutdown => return self.begin_ending(Some(client)),
            Request::Attach => match descriptors.pop().map(|socket| self.add_client(socket, Source::Client)) {
                Some(Ok(())) => Ok(Reply::Done),
                _ => Err(Error::new("attach to the launcher", ErrorKind::Launcher("it got no usable socket".into()))),
            },
            Request::Kill { id, signal } => {
                let result = self.kill(&id, signal);
                result.map_err(|kind| Error::new(format!("send signal {signal} to sandbox `{id}`"), kind))
            }
            Request::KillAll { id } => match self.sandboxes.get(&id) {
                Some(sandbox) => {
                    sandbox.kill_all();
                    Ok(Reply::Done)
                }
                None => Err(Error::new(format!("kill sandbox `{id}`"), ErrorKind::NotFound)),
            },
            Request::Remove { id } => {
                self.remove(&id).map_err(|kind| Error::new(format!("remove sandbox `{id}`"), kind))
            }
            Request::List => Ok(Reply::List(self.sandboxes.values().map(Sandbox::status).collect())),
        };
        self.respond(client, response, None);
    }

    fn start(&mut self, client: u64, config: &SandboxConfig, descriptors: Vec<OwnedFd>) -> Result<(), ErrorKind> {
        config.validate().map_err(|error| error.kind().clone())?;
        if self.ending.is_some() {
            return Err(ErrorKind::Launcher("it is shutting down".into()));
        }
        if self.sandboxes.contains_key(&config.id) {
            return Err(ErrorKind::AlreadyExists);
        }
        let sandbox = self.starter.start(config, descriptors, client)?;
        let watched = self.watch_sandbox(&sandbox);
        self.sandboxes.insert(sandbox.id.clone(), sandbox);
        if watched.is_err() {
            // Out of descriptors: what cannot be watched must not run.
            if let Some(mut sandbox) = self.sandboxes.remove(&config.id) {
                sandbox.kill_all();
                sandbox.finish();
                self.sources.retain(|_, source| !source.belongs_to(&config.id));
            }
            return Err(ErrorKind::Unavailable("the launcher cannot watch another process".into()));
        }
        Ok(())
    }

    fn watch_sandbox(&mut self, sandbox: &Sandbox) -> rustix::io::Result<()> {
        self.watch(&sandbox.pidfd, Source::Exit(sandbox.id.clone()))?;
        if let Phase::Starting { report, .. } = &sandbox.phase {
            self.watch(report, Source::Report(sandbox.id.clone()))?;
        }
        for (stream, pipe) in &sandbox.outputs {
            self.watch(pipe, Source::Output(sandbox.id.clone(), *stream))?;
        }
        Ok(())
    }

    fn network(&self, id: &str) -> Result<OwnedFd, ErrorKind> {
        let sandbox = self.sandboxes.get(id).ok_or(ErrorKind::NotFound)?;
        if sandbox.is_over() {
            return Err(ErrorKind::NotRunning);
        }
        let namespace =
            sandbox.network.as_ref().ok_or_else(|| ErrorKind::Invalid("it uses the host's network".into()))?;
        namespace.try_clone().map_err(|error| ErrorKind::Launcher(error.to_string()))
    }

    fn kill(&self, id: &str, signal: i32) -> Result<Reply, ErrorKind> {
        let sandbox = self.sandboxes.get(id).ok_or(ErrorKind::NotFound)?;
        if sandbox.is_over() {
            return Err(ErrorKind::NotRunning);
        }
        match sys::send_signal(sandbox.pidfd.as_fd(), signal) {
            Ok(()) => Ok(Reply::Done),
            // It has ended, and we have not been told yet.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Err(ErrorKind::NotRunning),
            Err(error) => {
                Err(ErrorKind::Step { step: "send it".into(), errno: error.raw_os_error().unwrap_or(libc::EIO) })
            }
        }
    }

    fn remove(&mut self, id: &str) -> Result<Reply, ErrorKind> {
        let sandbox = self.sandboxes.get_mut(id).ok_or(ErrorKind::NotFound)?;
        if !sandbox.is_over() {
            return Err(ErrorKind::StillRunning);
        }
        sandbox.cgroup.remove();
        self.sandboxes.remove(id);
        Ok(Reply::Done)
    }

    fn begin_ending(&mut self, client: Option<u64>) {
        self.ending.get_or_insert(Ending { client });
        for sandbox in self.sandboxes.values().filter(|sandbox| !sandbox.is_over()) {
            sandbox.kill_all();
        }
    }

    // Sandboxes.

    fn on_report(&mut self, token: u64, id: &str) {
        let Some(sandbox) = self.sandboxes.get_mut(id) else { return };
        let Phase::Starting { client, report, received } = &mut sandbox.phase else { return };
        let client = *client;
        let mut buffer = [0; 4096];
        match rustix::io::retry_on_intr(|| rustix::io::read(&*report, &mut buffer)) {
            Ok(0) => {}
            Ok(count) => return received.extend_from_slice(&buffer[..count]),
            Err(rustix::io::Errno::AGAIN) => return,
            Err(_) => {}
        }
        let mut outcome = Err(ErrorKind::Unavailable("the process died while it was set up (out of memory?)".into()));
        for report in Report::parse_all(received) {
            match report {
                Report::Ready(stubs) => {
                    sandbox.stubs = stubs;
                    outcome = Ok(());
                }
                Report::Failed(failure) => outcome = Err(failure),
            }
        }
        sandbox.reap_joiner();
        if let Phase::Starting { report, .. } = std::mem::replace(&mut sandbox.phase, Phase::Running) {
            self.sources.remove(&token);
            let _ = epoll::delete(&self.epoll, report);
        }
        match outcome {
            Ok(()) => {
                let started = sandbox.started;
                self.respond(client, Ok(Reply::Started(started)), None);
            }
            Err(kind) => {
                self.forget_failed(id);
                self.respond(client, Err(Error::new(format!("start sandbox `{id}`"), kind)), None);
            }
        }
    }

    /// Takes down a sandbox whose command never executed.
    fn forget_failed(&mut self, id: &str) {
        if let Some(mut sandbox) = self.sandboxes.remove(id) {
            sandbox.kill_all();
            let exit = sandbox.finish();
            self.sources.retain(|_, source| !source.belongs_to(id));
            for client in std::mem::take(&mut sandbox.waiting) {
                self.respond(client, Ok(Reply::Exited(exit)), None);
            }
        }
    }

    fn on_output(&mut self, token: u64, id: &str, stream: Stream) {
        let Some(sandbox) = self.sandboxes.get_mut(id) else { return };
        if sandbox.copy_output(stream) == Output::End {
            let pipe =
                sandbox.outputs.iter().position(|(known, _)| *known == stream).map(|i| sandbox.outputs.remove(i));
            if let Some((_, pipe)) = pipe {
                self.unwatch(token, pipe);
            }
        }
    }

    fn on_exit(&mut self, token: u64, id: &str) {
        if let Some(sandbox) = self.sandboxes.get_mut(id) {
            sandbox.reap_joiner();
        }
        // A command that ends at once may be seen before its start: that comes first.
        while let Some(report) = self.report_token(id) {
            self.on_report(report, id);
        }
        let Some(sandbox) = self.sandboxes.get_mut(id) else { return };
        let exit = sandbox.finish();
        let waiting = std::mem::take(&mut sandbox.waiting);
        let _ = epoll::delete(&self.epoll, &sandbox.pidfd);
        self.sources.remove(&token);
        self.sources.retain(|_, source| !source.belongs_to(id));
        for client in waiting {
            self.respond(client, Ok(Reply::Exited(exit)), None);
        }
    }

    /// The token of a starting sandbox's report. The process is over, so reading it cannot wait.
    fn report_token(&self, id: &str) -> Option<u64> {
        let is_starting = matches!(self.sandboxes.get(id)?.phase, Phase::Starting { .. });
        let find =
            |(token, source): (&u64, &Source)| matches!(source, Source::Report(known) if known == id).then_some(*token);
        if is_starting { self.sources.iter().find_map(find) } else { None }
    }
}

impl Source {
    fn belongs_to(&self, id: &str) -> bool {
        match self {
            Source::Exit(known) | Source::Report(known) | Source::Output(known, _) => known == id,
            Source::Listener | Source::Client | Source::Control => false,
        }
    }
}
