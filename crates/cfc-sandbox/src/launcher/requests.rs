//! What the launcher does about each request.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use oci_spec::runtime::LinuxResources;

use super::event_loop::{Ending, EventLoop, Source};
use super::sandbox::{Phase, Sandbox};
use crate::config::SandboxConfig;
use crate::error::{Error, ErrorKind};
use crate::exec;
use crate::fail::fail_point;
use crate::protocol::{Hello, Reply, Request};
use crate::step::Step;
use crate::sys;

impl EventLoop {
    pub(super) fn answer(&mut self, client: u64, request: Request, mut descriptors: Vec<OwnedFd>) {
        let response = match request {
            Request::Start(config) => return self.start_with_disk(client, config, descriptors),
            Request::Expect(config) => return self.expect(client, &config),
            Request::PrepareDisk(kind) => return self.prepare_disk(client, kind),
            Request::Disks => Ok(Reply::Disks(self.disk_usage())),
            Request::Wait { id } => {
                match self.sandboxes.get_mut(&id).map(|sandbox| (&sandbox.phase, &mut sandbox.waiting)) {
                    Some((Phase::Exited(exit), _)) => Ok(Reply::Exited(*exit)),
                    Some((_, waiting)) => return waiting.push(client),
                    None => Err(Error::new(format!("wait for sandbox `{id}`"), ErrorKind::NotFound)),
                }
            }
            Request::Ends => return self.tell_ends(client),
            Request::Watch => return self.tell_all(client),
            Request::Network { id } => match self.network(&id) {
                Ok(namespace) => return self.respond(client, Ok(Reply::Done), vec![namespace]),
                Err(kind) => Err(Error::new(format!("reach the network of sandbox `{id}`"), kind)),
            },
            Request::Outbound { id } => match self.outbound(&id) {
                Ok(sockets) => return self.respond(client, Ok(Reply::Done), sockets),
                Err(kind) => Err(Error::new(format!("take what sandbox `{id}` sends out"), kind)),
            },
            Request::Exec { id, exec } => match self.exec(client, &id, &exec, descriptors) {
                Ok(()) => return,
                Err(kind) => Err(Error::new(exec::operation(&id), kind)),
            },
            Request::ExecSignal { signal, group } => return self.signal_exec(client, signal, group),
            Request::ExecRelease => return self.release_exec(client),
            Request::Succeed { program } => return self.succeed(client, &program),
            Request::Shutdown => return self.begin_ending(Some(client)),
            Request::Hello => Ok(Reply::Hello(Hello::own())),
            Request::Attach => match descriptors.pop().map(|socket| self.add_client(socket, Source::Client)) {
                Some(Ok(())) => Ok(Reply::Done),
                _ => Err(Error::new("attach to the launcher", ErrorKind::Launcher("it got no usable socket".into()))),
            },
            Request::Update { id, resources } => {
                let result = self.update(&id, &resources);
                result.map_err(|kind| Error::new(format!("change the limits of sandbox `{id}`"), kind))
            }
            Request::Kill { id, signal, pid } => {
                let result = self.kill(&id, signal, pid);
                result.map_err(|kind| Error::new(format!("send signal {signal} to sandbox `{id}`"), kind))
            }
            Request::KillAll { id, pid } => {
                let sandbox = self.with_process(&id, pid);
                let killed = sandbox.map(Sandbox::kill_all).map(|()| Reply::Done);
                killed.map_err(|kind| Error::new(format!("kill sandbox `{id}`"), kind))
            }
            Request::Remove { id } => {
                self.remove(&id).map_err(|kind| Error::new(format!("remove sandbox `{id}`"), kind))
            }
            Request::Note { id, line } => {
                let result = self.note(&id, &line);
                result.map_err(|kind| Error::new(format!("note something about sandbox `{id}`"), kind))
            }
            Request::Usage { id } => match self.sandboxes.get(&id) {
                Some(sandbox) => Ok(Reply::Usage(sandbox.usage())),
                None => Err(Error::new(format!("measure sandbox `{id}`"), ErrorKind::NotFound)),
            },
            Request::List => Ok(Reply::List(self.sandboxes.values().map(Sandbox::status).collect())),
        };
        self.respond(client, response, Vec::new());
    }

    /// Whether a sandbox of this configuration may be made now.
    pub(super) fn check_start(&self, config: &SandboxConfig) -> Result<(), ErrorKind> {
        config.validate().map_err(|error| error.kind().clone())?;
        if self.ending.is_some() {
            return Err(ErrorKind::Launcher("it is shutting down".into()));
        }
        if self.sandboxes.contains_key(&config.id) || self.waits_for_disk(&config.id) {
            return Err(ErrorKind::AlreadyExists);
        }
        Ok(())
    }

    /// `disk` is the mount of its disk, when it has one.
    pub(super) fn start(
        &mut self,
        client: u64,
        config: &SandboxConfig,
        descriptors: Vec<OwnedFd>,
        disk: Option<OwnedFd>,
    ) -> Result<(), ErrorKind> {
        self.check_start(config)?;
        self.last_start = Instant::now();
        fail_point("launcher.start.asked").step(|| "begin".into())?;
        let sandbox = self.starter.start(config, descriptors, client, disk)?;
        let watched = self.watch_sandbox(&sandbox);
        self.starting.push(sandbox.id.clone());
        self.sandboxes.insert(sandbox.id.clone(), sandbox);
        if watched.is_err() {
            // Out of descriptors: what cannot be watched must not run.
            if let Some(mut sandbox) = self.sandboxes.remove(&config.id) {
                sandbox.kill_all();
                sandbox.finish();
                self.starter.ranges.give_back(sandbox.range.take());
                self.sources.retain(|_, source| !source.belongs_to(&config.id));
            }
            return watched.step(|| "watch its process".into());
        }
        Ok(())
    }

    pub(super) fn watch_sandbox(&mut self, sandbox: &Sandbox) -> rustix::io::Result<()> {
        self.watch(&sandbox.pidfd, Source::Exit(sandbox.id.clone()))?;
        if let Phase::Starting { control, .. } = &sandbox.phase {
            self.watch(control, Source::Report(sandbox.id.clone()))?;
        }
        for (stream, pipe) in &sandbox.outputs {
            self.watch(pipe, Source::Output(sandbox.id.clone(), *stream))?;
        }
        Ok(())
    }

    /// The client need not wait for it; what fails now, the start will meet and say.
    fn expect(&mut self, client: u64, config: &SandboxConfig) {
        self.respond(client, Ok(Reply::Done), Vec::new());
        if self.ending.is_none() {
            let _ = self.starter.expect(config);
        }
    }

    fn tell_all(&mut self, client: u64) {
        self.tell_ends(client);
        self.oom_watchers.push(client);
    }

    fn tell_ends(&mut self, client: u64) {
        self.respond(client, Ok(Reply::Done), Vec::new());
        let ended = self.sandboxes.values().filter_map(|sandbox| match sandbox.phase {
            Phase::Exited(exit) => Some(Reply::Ended { id: sandbox.id.clone(), exit }),
            _ => None,
        });
        for reply in ended.collect::<Vec<_>>() {
            self.respond(client, Ok(reply), Vec::new());
        }
        self.watchers.push(client);
    }

    fn network(&self, id: &str) -> Result<OwnedFd, ErrorKind> {
        let sandbox = self.sandboxes.get(id).ok_or(ErrorKind::NotFound)?;
        if sandbox.is_over() {
            return Err(ErrorKind::NotRunning);
        }
        let namespace =
            sandbox.network.as_ref().ok_or_else(|| ErrorKind::Invalid("it uses the host's network".into()))?;
        namespace.try_clone().step(|| "copy its descriptor".into())
    }

    fn outbound(&self, id: &str) -> Result<Vec<OwnedFd>, ErrorKind> {
        let sandbox = self.sandboxes.get(id).ok_or(ErrorKind::NotFound)?;
        let sockets = match &sandbox.outbound {
            _ if sandbox.is_over() => return Err(ErrorKind::NotRunning),
            None => return Err(ErrorKind::Invalid("its network is not redirected".into())),
            Some(Err(kind)) => return Err(kind.clone()),
            Some(Ok(sockets)) => sockets,
        };
        let copies = sockets.iter().map(OwnedFd::try_clone).collect::<Result<_, _>>();
        copies.map_err(|error| ErrorKind::Launcher(error.to_string()))
    }

    fn update(&self, id: &str, resources: &LinuxResources) -> Result<Reply, ErrorKind> {
        let sandbox = self.sandboxes.get(id).ok_or(ErrorKind::NotFound)?;
        if sandbox.is_over() {
            return Err(ErrorKind::NotRunning);
        }
        sandbox.cgroup.limit(resources).map(|()| Reply::Done)
    }

    fn note(&mut self, id: &str, line: &str) -> Result<Reply, ErrorKind> {
        let sandbox = self.sandboxes.get_mut(id).ok_or(ErrorKind::NotFound)?;
        if sandbox.is_over() {
            return Err(ErrorKind::NotRunning);
        }
        if let Some(log) = &mut sandbox.log {
            log.say(line);
        }
        Ok(Reply::Done)
    }

    /// The sandbox, if its process 1 is `pid` or any will do.
    fn with_process(&mut self, id: &str, pid: Option<i32>) -> Result<&mut Sandbox, ErrorKind> {
        let sandbox = self.sandboxes.get_mut(id).ok_or(ErrorKind::NotFound)?;
        if pid.is_some_and(|pid| pid != sandbox.started.pid) { Err(ErrorKind::NotRunning) } else { Ok(sandbox) }
    }

    fn kill(&mut self, id: &str, signal: i32, pid: Option<i32>) -> Result<Reply, ErrorKind> {
        let sandbox = self.with_process(id, pid)?;
        if sandbox.is_over() {
            return Err(ErrorKind::NotRunning);
        }
        match sys::send_signal(sandbox.pidfd.as_fd(), signal) {
            Ok(()) => {
                sandbox.is_killed |= signal == libc::SIGKILL;
                Ok(Reply::Done)
            }
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
        fail_point("launcher.remove.asked").step(|| "begin".into())?;
        sandbox.cgroup.remove();
        let range = sandbox.range.take();
        self.starter.ranges.give_back(range);
        self.sandboxes.remove(id);
        Ok(Reply::Done)
    }

    pub(super) fn begin_ending(&mut self, client: Option<u64>) {
        self.ending.get_or_insert(Ending { client });
        for sandbox in self.sandboxes.values_mut().filter(|sandbox| !sandbox.is_over()) {
            sandbox.kill_all();
        }
    }
}
