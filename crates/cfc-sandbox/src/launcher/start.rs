//! Starts a sandbox, up to the moment when its process goes on by itself.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use oci_spec::runtime::{Linux, LinuxResources, LinuxSeccomp};
use rustix::fs::{FileType, Gid, Mode, OFlags, Uid};
use rustix::pipe::PipeFlags;
use rustix::process::{WaitId, WaitIdOptions};

use super::blueprint::Blueprint;
use super::exec_template::ExecTemplate;
use super::host_ids::HostIds;
use super::idmap::IdMappings;
use super::log_file::{LogFile, Stream};
use super::sandbox::{Phase, Rate, Sandbox};
use crate::cgroup::{Cgroup, Hierarchies};
use crate::child::{self, GO, Stubs, Wiring};
use crate::config::{Root, SandboxConfig, Stdio};
use crate::error::ErrorKind;
use crate::fail::fail_point;
use crate::protocol;
use crate::redirect;
use crate::seccomp::{self, Program};
use crate::status::Started;
use crate::step::Step;
use crate::sys::{self, Cloned};

/// Profiles and mappings kept ready. Callers use very few different ones.
const CACHE_LENGTH: usize = 8;

/// What starting needs and keeps between starts.
pub(crate) struct Starter {
    pub(crate) hierarchies: Hierarchies,
    /// The name of the launcher's cgroup directories.
    pub(crate) parent: String,
    ids: HostIds,
    profiles: Vec<(LinuxSeccomp, Program)>,
    mappings: Vec<(IdMappings, OwnedFd)>,
}

/// Where a new process's output goes: its ends, and ours.
struct Outputs {
    stdio: [OwnedFd; 3],
    log: Option<LogFile>,
    read_ends: Vec<(Stream, OwnedFd)>,
}

impl Starter {
    pub(crate) fn new(parent: String) -> Starter {
        Starter {
            hierarchies: Hierarchies::detect(),
            parent,
            ids: HostIds::detect(),
            profiles: Vec::new(),
            mappings: Vec::new(),
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
        let empty = empty_linux();
        let linux = config.spec.linux().as_ref().unwrap_or(&empty);
        let mappings = IdMappings::of(linux)?;
        if let Some(mappings) = mappings.as_ref().filter(|_| self.ids.can_map_mounts()) {
            self.prepare_mapping(mappings)?;
        }
        let idmap = mappings.as_ref().and_then(|m| self.mappings.iter().find(|(known, _)| known == m));
        let idmap = idmap.map(|(_, namespace)| namespace.as_fd());
        let seccomp = programs(&mut self.profiles, linux.seccomp().as_ref())?;
        let blueprint = Blueprint::new(config, seccomp, idmap, disk)?;
        let outputs = connect(&config.stdio, descriptors)?;
        let resources = linux.resources().clone().unwrap_or_else(no_limits);
        let mut cgroup = self.hierarchies.create(&self.parent, &config.id, &resources)?;
        let launched = fail_point("launcher.start.cgroup").step(|| "have cgroups".into());
        let launched = launched.and_then(|()| launch(&blueprint, outputs.stdio, mappings.as_ref(), &cgroup));
        let launched = match launched {
            Ok(launched) => launched,
            Err(failure) => {
                cgroup.remove();
                return Err(failure);
            }
        };
        let upper = match &config.root {
            Root::Overlay { upper, .. } => Some(upper.clone()),
            Root::Disk { .. } | Root::Directory { .. } => None,
        };
        Ok(Sandbox {
            id: config.id.clone(),
            started: launched.started,
            phase: Phase::Starting {
                client,
                report: launched.report,
                handover: launched.handover,
                received: Vec::new(),
            },
            pidfd: launched.pidfd,
            network: launched.network,
            outbound: None,
            cgroup,
            exec: ExecTemplate::new(&blueprint, mappings.as_ref()),
            annotations: config.spec.annotations().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect(),
            log: outputs.log,
            outputs: outputs.read_ends,
            rate: Rate::new(),
            upper,
            disk: None,
            stubs: Stubs::default(),
            waiting: Vec::new(),
        })
    }

    fn prepare_mapping(&mut self, mappings: &IdMappings) -> Result<(), ErrorKind> {
        if self.mappings.iter().any(|(known, _)| known == mappings) {
            return Ok(());
        }
        let namespace = mappings.make_namespace()?;
        if self.mappings.len() == CACHE_LENGTH {
            self.mappings.remove(0);
        }
        self.mappings.push((mappings.clone(), namespace));
        Ok(())
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

fn connect(stdio: &Stdio, descriptors: Vec<OwnedFd>) -> Result<Outputs, ErrorKind> {
    match stdio {
        Stdio::Files => {
            let stdio = descriptors
                .try_into()
                .map_err(|_| ErrorKind::Invalid("`Stdio::Files` needs exactly three descriptors".into()))?;
            Ok(Outputs { stdio, log: None, read_ends: Vec::new() })
        }
        Stdio::Log { path, max_bytes } => {
            let log = LogFile::open(path, *max_bytes)?;
            let stdin = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .step(|| "open /dev/null".into())?;
            let (stdout_read, stdout) = output_pipe()?;
            let (stderr_read, stderr) = output_pipe()?;
            let read_ends = vec![(Stream::Stdout, stdout_read), (Stream::Stderr, stderr_read)];
            Ok(Outputs { stdio: [stdin, stdout, stderr], log: Some(log), read_ends })
        }
    }
}

/// A pipe of which only our end is non-blocking.
pub(super) fn output_pipe() -> Result<(OwnedFd, OwnedFd), ErrorKind> {
    let (read, write) = pipe()?;
    rustix::fs::fcntl_setfl(&read, OFlags::NONBLOCK).step(|| "make a pipe".into())?;
    Ok((read, write))
}

fn pipe() -> Result<(OwnedFd, OwnedFd), ErrorKind> {
    rustix::pipe::pipe_with(PipeFlags::CLOEXEC).step(|| "make a pipe".into())
}

struct Launched {
    started: Started,
    pidfd: OwnedFd,
    network: Option<OwnedFd>,
    report: OwnedFd,
    handover: Option<OwnedFd>,
}

fn launch(
    blueprint: &Blueprint,
    stdio: [OwnedFd; 3],
    mappings: Option<&IdMappings>,
    cgroup: &Cgroup,
) -> Result<Launched, ErrorKind> {
    let (go_read, go) = pipe()?;
    let (report, report_write) = output_pipe()?;
    let (handover, handover_write) = blueprint.redirect.map(|_| redirect::handover()).transpose()?.unzip();
    let wiring =
        Wiring { go: go_read, report: report_write, handover: handover_write, stdio, entrances: cgroup.entrances()? };
    let birthplace = cgroup.birthplace()?;
    let cloned = sys::clone_process(blueprint.clone_flags, birthplace.as_ref().map(|fd| fd.as_fd()));
    let (pid, pidfd) = match cloned.step(|| "make the namespaces".into())? {
        Cloned::Parent { pid, pidfd } => (pid, pidfd),
        Cloned::Child => {
            // Only the launcher may hold this end, so that its death is noticed.
            drop(go);
            child::run(blueprint, &wiring)
        }
    };
    let prepared = prepare(blueprint, &wiring, mappings, pid).and_then(|prepared| {
        fail_point("launcher.start.cloned").step(|| "have a process".into())?;
        rustix::io::write(&go, &[GO]).step(|| "let the sandbox go on".into())?;
        fail_point("launcher.start.gone").step(|| "have let it go on".into())?;
        Ok(prepared)
    });
    match prepared {
        Ok((network, start_time)) => {
            Ok(Launched { started: Started { pid, start_time }, pidfd, network, report, handover })
        }
        Err(failure) => {
            let _ = sys::send_signal(pidfd.as_fd(), libc::SIGKILL);
            let _ = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
            Err(failure)
        }
    }
}

/// What only the launcher may do to the new process, which waits meanwhile.
fn prepare(
    blueprint: &Blueprint,
    wiring: &Wiring,
    mappings: Option<&IdMappings>,
    pid: i32,
) -> Result<(Option<OwnedFd>, u64), ErrorKind> {
    if let Some(mappings) = mappings {
        mappings.write(pid)?;
    }
    let user = &blueprint.user;
    let owner = mappings.map_or(Some((user.uid, user.gid)), |mappings| mappings.on_host(user.uid, user.gid));
    let Some((uid, gid)) = owner else {
        return Err(ErrorKind::Invalid(format!(
            "its user {}:{} does not exist: sandboxes have {} here (`cfc doctor` says more)",
            user.uid,
            user.gid,
            mappings.map_or_else(String::new, IdMappings::describe),
        )));
    };
    give_pipes(&wiring.stdio, uid, gid);
    if let Some(adjustment) = blueprint.oom_score_adj {
        fs::write(format!("/proc/{pid}/oom_score_adj"), adjustment.to_string())
            .step(|| format!("set oom_score_adj to {adjustment}"))?;
    }
    let network = match blueprint.has_network_namespace {
        false => None,
        true => {
            let path = format!("/proc/{pid}/ns/net");
            let namespace = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
            Some(namespace.step(|| "open the network namespace".into())?)
        }
    };
    let start_time = protocol::start_time(pid).ok_or(ErrorKind::NotRunning)?;
    Ok((network, start_time))
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

/// The library's `default()` is not empty: it has namespaces, masked paths and devices of its own choosing.
pub(crate) fn empty_linux() -> Linux {
    serde_json::from_str("{}").expect("every field of `linux` is optional")
}

fn no_limits() -> LinuxResources {
    serde_json::from_str("{}").expect("every field of `resources` is optional")
}
