//! Starts a sandbox, up to the moment when its process goes on by itself.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use oci_spec::runtime::{Linux, LinuxSeccomp, Spec};
use rustix::fs::{FileType, Gid, Mode, OFlags, Uid};
use rustix::pipe::PipeFlags;

use super::blueprint::{Blueprint, owns_terminal, wants_init};
use super::exec_template::{ExecMeans, ExecTemplate};
use super::host_ids::HostIds;
use super::log_file::{LogFile, Stream};
use super::node_maker::NodeMaker;
use super::pool::Pool;
use super::ranges::Ranges;
use super::sandbox::{NewProcess, Sandbox};
use super::shell::{Shell, ShellKind};
use crate::cgroup::Hierarchies;
use crate::child::init_program;
use crate::config::{SandboxConfig, Stdio};
use crate::error::ErrorKind;
use crate::fail::fail_point;
use crate::seccomp::{self, Program};
use crate::step::Step;

/// Profiles kept ready. Callers use very few different ones.
const CACHE_LENGTH: usize = 8;

/// What starting needs and keeps between starts.
pub(crate) struct Starter {
    pub(crate) hierarchies: Hierarchies,
    /// The name of the launcher's cgroup directories.
    pub(crate) parent: String,
    pub(crate) pool: Pool,
    pub(crate) ranges: Ranges,
    ids: HostIds,
    /// The program of process 1, once one was wanted.
    init: Option<OwnedFd>,
    profiles: Vec<(LinuxSeccomp, Program)>,
}

/// Where a new process's output goes, on our side.
pub(super) struct Outputs {
    pub(super) log: Option<LogFile>,
    pub(super) read_ends: Vec<(Stream, OwnedFd)>,
}

impl Starter {
    pub(crate) fn new(parent: String, pool: Pool) -> Starter {
        Starter {
            hierarchies: Hierarchies::detect(),
            parent,
            pool,
            ranges: Ranges::new(),
            ids: HostIds::detect(),
            init: None,
            profiles: Vec::new(),
        }
    }

    /// Makes the process of `config` and lets it go on; `disk` is the mount of its disk. It reports through the returned [`Phase::Starting`].
    pub(crate) fn start(
        &mut self,
        config: &SandboxConfig,
        descriptors: Vec<OwnedFd>,
        client: u64,
        disk: Option<OwnedFd>,
    ) -> Result<Sandbox, ErrorKind> {
        let fitted = self.ids.fit(config);
        let config = fitted.as_ref();
        self.ids.hand_over(&config.root)?;
        if let Some(runtime) = &config.runtime {
            return self.start_with(runtime, config, descriptors, client, disk);
        }
        let kind = self.kind(config)?;
        let (stdio, outputs) = connect(&config.stdio, descriptors)?;
        let shell = self.pool.take(&kind, &self.hierarchies, &mut self.ranges, &self.parent)?;
        let fitted = fail_point("launcher.start.cgroup").step(|| "have cgroups".into());
        let fitted = fitted.and_then(|()| self.fit(config, stdio, disk, &kind, &shell));
        let (exec, node_maker) = match fitted {
            Ok(fitted) => fitted,
            Err(failure) => {
                shell.discard(&mut self.ranges);
                return Err(failure);
            }
        };
        let Shell { started, pidfd, control, mut cgroup, network, range, .. } = shell;
        cgroup.rename(&config.id);
        let process = NewProcess { started, pidfd, control, network, cgroup, range };
        let sandbox = Sandbox::starting(config, client, process, outputs, ExecMeans::Own(Box::new(exec)));
        Ok(Sandbox { node_maker, ..sandbox })
    }

    /// Makes ready what a start of `config` will want that is there of it already: all but its files.
    pub(crate) fn expect(&mut self, config: &SandboxConfig) -> Result<(), ErrorKind> {
        if config.runtime.is_none() {
            let kind = self.kind(self.ids.fit(config).as_ref())?;
            self.pool.expect(&kind, &self.hierarchies, &mut self.ranges, &self.parent);
        }
        Ok(())
    }

    fn kind(&mut self, config: &SandboxConfig) -> Result<ShellKind, ErrorKind> {
        let profile = config.spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
        let seccomp = programs(&mut self.profiles, profile)?;
        ShellKind::of(config, &self.hierarchies, seccomp)
    }

    /// Makes the next shell of the pool.
    pub(crate) fn fill_pool(&mut self) {
        self.pool.fill(&self.hierarchies, &mut self.ranges, &self.parent);
    }

    pub(crate) fn clear_pool(&mut self) {
        self.pool.clear(&mut self.ranges);
    }

    fn init_program(&mut self) -> Result<OwnedFd, ErrorKind> {
        let known = self.init.take().map_or_else(init_program, Ok)?;
        self.init.insert(known).try_clone().step(|| "copy the file of its process 1".into())
    }

    /// Makes the sandbox of `config` out of `shell`: what only the launcher may do for it, then its blueprint.
    fn fit(
        &mut self,
        config: &SandboxConfig,
        stdio: [OwnedFd; 3],
        disk: Option<OwnedFd>,
        kind: &ShellKind,
        shell: &Shell,
    ) -> Result<(ExecTemplate, Option<NodeMaker>), ErrorKind> {
        if let Some(resources) = config.spec.linux().as_ref().and_then(|linux| linux.resources().as_ref()) {
            shell.cgroup.limit(resources)?;
        }
        let idmap = shell.user_namespace().filter(|_| self.ids.can_map_mounts());
        let mut blueprint = Blueprint::new(config, idmap, disk, stdio)?;
        if wants_init(&config.spec) {
            let program = self.init_program()?;
            blueprint.init = Some(blueprint.descriptors.keep(program));
        }
        let user = &blueprint.user;
        let Some((uid, gid)) = shell.on_host(user.uid, user.gid) else {
            return Err(ErrorKind::Invalid(format!(
                "its user {}:{} does not exist: sandboxes have {} here (`cfc doctor` says more)",
                user.uid,
                user.gid,
                shell.user.as_ref().map_or_else(String::new, |(_, mappings)| mappings.describe()),
            )));
        };
        let streams = blueprint.stdio.map(|handle| blueprint.descriptors.get(handle));
        give_streams(&config.spec, &streams, uid, gid);
        if let Some(adjustment) = blueprint.oom_score_adj {
            fs::write(format!("/proc/{}/oom_score_adj", shell.started.pid), adjustment.to_string())
                .step(|| format!("set oom_score_adj to {adjustment}"))?;
        }
        let has_maker = idmap.is_some() && NodeMaker::is_wanted(config, &blueprint, kind);
        let root = shell.on_host(0, 0).filter(|_| has_maker);
        let node_maker = root.map(|root| NodeMaker::start(&mut blueprint, root, shell)).transpose()?;
        fail_point("launcher.start.cloned").step(|| "have a process".into())?;
        shell.become_sandbox(&blueprint)?;
        fail_point("launcher.start.gone").step(|| "have let it go on".into())?;
        let exec = ExecTemplate::new(&blueprint, kind, shell.user.as_ref().map(|(_, mappings)| mappings))?;
        Ok((exec, node_maker))
    }
}

fn programs(cache: &mut Vec<(LinuxSeccomp, Program)>, profile: Option<&LinuxSeccomp>) -> Result<Program, ErrorKind> {
    let Some(profile) = profile else { return Ok(Program::default()) };
    if let Some((_, programs)) = cache.iter().find(|(known, _)| known == profile) {
        return Ok(programs.clone());
    }
    let programs = seccomp::compile(profile)?;
    if cache.len() == CACHE_LENGTH {
        cache.remove(0);
    }
    cache.push((profile.clone(), programs.clone()));
    Ok(programs)
}

/// The process's ends of its streams, and ours.
pub(super) fn connect(stdio: &Stdio, descriptors: Vec<OwnedFd>) -> Result<([OwnedFd; 3], Outputs), ErrorKind> {
    match stdio {
        Stdio::Files => {
            let stdio = descriptors
                .try_into()
                .map_err(|_| ErrorKind::Invalid("`Stdio::Files` needs exactly three descriptors".into()))?;
            Ok((stdio, Outputs { log: None, read_ends: Vec::new() }))
        }
        Stdio::Log { path, max_bytes } => {
            let log = LogFile::open(path, *max_bytes)?;
            let stdin = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .step(|| "open /dev/null".into())?;
            let (stdout_read, stdout) = output_pipe()?;
            let (stderr_read, stderr) = output_pipe()?;
            let read_ends = vec![(Stream::Stdout, stdout_read), (Stream::Stderr, stderr_read)];
            Ok(([stdin, stdout, stderr], Outputs { log: Some(log), read_ends }))
        }
    }
}

/// A pipe of which only our end is non-blocking.
pub(super) fn output_pipe() -> Result<(OwnedFd, OwnedFd), ErrorKind> {
    let (read, write) = pipe()?;
    rustix::fs::fcntl_setfl(&read, OFlags::NONBLOCK).step(|| "make a pipe".into())?;
    Ok((read, write))
}

pub(super) fn pipe() -> Result<(OwnedFd, OwnedFd), ErrorKind> {
    rustix::pipe::pipe_with(PipeFlags::CLOEXEC).step(|| "make a pipe".into())
}

/// Makes pipes the application's own, so that it can open `/dev/stdout` as any user. Files and terminals stay as they are.
pub(crate) fn give_pipes(stdio: &[impl AsFd; 3], uid: u32, gid: u32) {
    for descriptor in stdio {
        let is_pipe = rustix::fs::fstat(descriptor).is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Fifo);
        if is_pipe {
            let _ = rustix::fs::fchown(descriptor, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        }
    }
}

/// The same for the terminal that the sandbox may own instead. Its group stays, as a login leaves it.
pub(crate) fn give_streams(spec: &Spec, stdio: &[impl AsFd; 3], uid: u32, gid: u32) {
    if owns_terminal(spec) {
        let _ = rustix::fs::fchown(&stdio[0], Some(Uid::from_raw(uid)), None);
    } else {
        give_pipes(stdio, uid, gid);
    }
}

/// The library's `default()` is not empty: it has namespaces, masked paths and devices of its own choosing.
pub(crate) fn empty_linux() -> Linux {
    serde_json::from_str("{}").expect("every field of `linux` is optional")
}
