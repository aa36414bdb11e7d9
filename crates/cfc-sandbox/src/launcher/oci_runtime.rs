//! Starts a sandbox whose process is made by an OCI runtime.
//!
//! What the launcher makes is a process in a mount, pid and network namespace of its own, in the sandbox's cgroup. It is the
//! sandbox as everybody else knows it: who kills it kills the runtime and what that has started.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use oci_spec::runtime::LinuxNamespaceType;
use rustix::fs::{Mode, OFlags};
use rustix::process::{WaitId, WaitIdOptions};

use super::exec_template::ExecMeans;
use super::idmap::IdMappings;
use super::oci_bundle::{Bundle, makes_user_namespace};
use super::oci_exec::OciExec;
use super::ranges::Range;
use super::sandbox::{NewProcess, Sandbox};
use super::shell::{ShellKind, UserNamespace, send, socket_pair};
use super::start::{Starter, connect, give_streams};
use crate::cgroup::Cgroup;
use crate::child::{self, Order, Wiring};
use crate::config::SandboxConfig;
use crate::error::ErrorKind;
use crate::oci_runtime::OciRuntime;
use crate::protocol;
use crate::rootless::is_rootless;
use crate::seccomp::Program;
use crate::status::Started;
use crate::step::Step;
use crate::sys::{self, Cloned};

/// The process, and what the launcher keeps of it.
struct Process {
    started: Started,
    pidfd: OwnedFd,
    control: OwnedFd,
    network: Option<OwnedFd>,
    exec: OciExec,
}

impl Starter {
    /// As [`Starter::start`], by means of `runtime`.
    pub(super) fn start_with(
        &mut self,
        runtime: &OciRuntime,
        config: &SandboxConfig,
        descriptors: Vec<OwnedFd>,
        client: u64,
        disk: Option<OwnedFd>,
    ) -> Result<Sandbox, ErrorKind> {
        let kind = ShellKind::of(config, &self.hierarchies, Program::default())?;
        let (stdio, outputs) = connect(&config.stdio, descriptors)?;
        let (range, mappings) = self.mappings_for(runtime, &kind)?;
        let made = self.hierarchies.make(&self.parent, &config.id, &kind.controllers);
        let made = made.and_then(|mut cgroup| {
            let process = make_process(runtime, config, &kind, mappings.as_ref(), &cgroup, disk, stdio);
            match process {
                Ok(process) => Ok((process, cgroup)),
                Err(failure) => {
                    cgroup.remove();
                    Err(failure)
                }
            }
        });
        let (Process { started, pidfd, control, network, exec }, cgroup) =
            made.inspect_err(|_| self.ranges.give_back(range))?;
        let process = NewProcess { started, pidfd, control, network, cgroup, range };
        Ok(Sandbox::starting(config, client, process, outputs, ExecMeans::Runtime(Box::new(exec))))
    }

    fn mappings_for(
        &mut self,
        runtime: &OciRuntime,
        kind: &ShellKind,
    ) -> Result<(Option<Range>, Option<IdMappings>), ErrorKind> {
        match &kind.user_namespace {
            UserNamespace::Given(mappings) if is_rootless() => Ok((None, Some(mappings.clone()))),
            // It would be the user who runs cfc.
            UserNamespace::None if is_rootless() => Err(ErrorKind::Invalid(
                "without root, an OCI runtime needs `linux.namespaces` to have a user one".into(),
            )),
            UserNamespace::Given(mappings) if makes_user_namespace(runtime) => Ok((None, Some(mappings.clone()))),
            UserNamespace::Own if makes_user_namespace(runtime) => {
                let range = self.ranges.take()?;
                Ok((Some(range), Some(IdMappings::of_range(range))))
            }
            _ => Ok((None, None)),
        }
    }
}

fn make_process(
    runtime: &OciRuntime,
    config: &SandboxConfig,
    kind: &ShellKind,
    mappings: Option<&IdMappings>,
    cgroup: &Cgroup,
    disk: Option<OwnedFd>,
    stdio: [OwnedFd; 3],
) -> Result<Process, ErrorKind> {
    if let Some(resources) = config.spec.linux().as_ref().and_then(|linux| linux.resources().as_ref()) {
        cgroup.limit(resources)?;
    }
    // Of an ordinary user's, the namespace is made with the process, and the runtime is root in it.
    let (of_runtime, of_process) = if is_rootless() { (None, mappings) } else { (mappings, None) };
    let namespace = of_runtime.map(IdMappings::make_namespace).transpose()?;
    let user = namespace.as_ref().map(AsFd::as_fd).zip(of_runtime);
    let bundle = Bundle::new(runtime, config, user, disk, stdio)?;
    let flags = clone_flags(kind, of_process.is_some());
    let exec = OciExec::new(&bundle, mappings, flags)?;
    let ids = (bundle.blueprint.user.uid, bundle.blueprint.user.gid);
    let owner = mappings.map_or(Some(ids), |mappings| mappings.on_host(ids.0, ids.1));
    let (uid, gid) =
        owner.ok_or_else(|| ErrorKind::Invalid(format!("the user {}:{} is not in the id mappings", ids.0, ids.1)))?;
    let streams = bundle.blueprint.stdio.map(|handle| bundle.blueprint.descriptors.get(handle));
    give_streams(&config.spec, &streams, uid, gid);
    let (control, theirs) = socket_pair()?;
    let wiring = Wiring { control: theirs, entrances: cgroup.entrances()? };
    let birthplace = cgroup.birthplace()?;
    let cloned = sys::clone_process(flags, birthplace.as_ref().map(|fd| fd.as_fd()));
    let (pid, pidfd) = match cloned.step(|| "make the namespaces".into())? {
        Cloned::Parent { pid, pidfd } => (pid, pidfd),
        Cloned::Child => {
            // Only the launcher may hold this end, so that its death is noticed.
            drop(control);
            child::oci_runtime::run(&bundle, kind, of_process.is_some(), wiring)
        }
    };
    match release(pid, kind, of_process, bundle.oom_score_adj, &control) {
        Ok(network) => {
            let started = Started { pid, start_time: protocol::start_time(pid).ok().flatten().unwrap_or(0) };
            Ok(Process { started, pidfd, control, network, exec })
        }
        Err(failure) => {
            let _ = sys::send_signal(pidfd.as_fd(), libc::SIGKILL);
            let _ = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
            Err(failure)
        }
    }
}

/// The machine's root has the runtime make the user namespace of the container.
fn clone_flags(kind: &ShellKind, has_user_namespace: bool) -> u64 {
    let network = if kind.has_network_namespace { LinuxNamespaceType::Network as u64 } else { 0 };
    let user = if has_user_namespace { LinuxNamespaceType::User as u64 } else { 0 };
    LinuxNamespaceType::Mount as u64 | LinuxNamespaceType::Pid as u64 | network | user
}

fn release(
    pid: i32,
    kind: &ShellKind,
    mappings: Option<&IdMappings>,
    oom_score_adj: i32,
    control: &OwnedFd,
) -> Result<Option<OwnedFd>, ErrorKind> {
    let open = || {
        let path = format!("/proc/{pid}/ns/net");
        rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .step(|| "open the network namespace".into())
    };
    if let Some(mappings) = mappings {
        mappings.write(pid)?;
    }
    let network = kind.has_network_namespace.then(open).transpose()?;
    let _ = fs::write(format!("/proc/{pid}/oom_score_adj"), oom_score_adj.to_string());
    send(control, &Order::Go, &[]).step(|| "let the sandbox go on".into())?;
    Ok(network)
}
