//! A further process of a running sandbox, from its first instruction to `execve`.
//!
//! It is a fork of the launcher, born in the sandbox's pid namespace, so the sandbox's processes see it at once. The order
//! is what keeps them off it. Until it joins the user namespace nobody in there has any right to it; before that it has
//! let go of every descriptor and of the host's files. From then on until `execve` its memory is closed to them, and as
//! long as it has all capabilities a process with fewer could not look at it anyway.
//!
//! Whatever the container could have replaced (its `/proc`, `/dev`, `/etc/passwd`, its shell) is taken for hostile: paths
//! are resolved below the root without magic links, a terminal must come from a devpts, names from regular files.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::ThreadNameSpaceType;
use serde::{Deserialize, Serialize};

use super::identity::{self, Identity};
use super::{FAILED, program, report, terminal};
use crate::cgroup;
use crate::error::ErrorKind;
use crate::exec::ExecConfig;
use crate::launcher::blueprint::{UserPlan, c_strings};
use crate::launcher::exec_template::{Defaults, ExecTemplate};
use crate::launcher::give_pipes;
use crate::rootless;
use crate::step::Step;
use crate::sys;
use crate::user::resolve_user;

/// What the process reports, as one line of JSON; then the pipe ends when `execve` has succeeded.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ExecReport {
    /// `execve` is next. The number is its process id inside.
    Ready(u32),
    /// It ends here.
    Failed(ErrorKind),
}

/// The descriptors that the process is given.
pub(crate) struct ExecWiring {
    /// Takes [`ExecReport`]s.
    pub(crate) report: OwnedFd,
    /// Takes the outer end of its terminal, if it is to have one.
    pub(crate) handover: Option<OwnedFd>,
    /// Its stdin, stdout and stderr, if it is to have no terminal.
    pub(crate) stdio: Option<[OwnedFd; 3]>,
    /// Through these it joins the sandbox's v1 cgroups.
    pub(crate) entrances: Vec<OwnedFd>,
    /// The sandbox's process 1.
    pub(crate) first: OwnedFd,
}

/// The process's whole life before `execve`. Never returns.
pub(crate) fn run(template: &ExecTemplate, config: &ExecConfig, wiring: &ExecWiring) -> ! {
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| join_and_execute(template, config, wiring)));
    let failure = match result {
        Ok(Err(failure)) => failure,
        Ok(Ok(never)) => match never {},
        Err(_) => ErrorKind::Step { step: "join the sandbox (a bug: it panicked)".into(), errno: libc::EIO },
    };
    report::send(&wiring.report, &ExecReport::Failed(failure));
    sys::exit_now(FAILED)
}

fn join_and_execute(
    template: &ExecTemplate,
    config: &ExecConfig,
    wiring: &ExecWiring,
) -> Result<std::convert::Infallible, ErrorKind> {
    leave_host(template, wiring)?;
    join(template, &wiring.first)?;
    let (user, environment) = find_user(&template.defaults, config, Path::new("/"))?;
    match &wiring.handover {
        Some(handover) => terminal::open(config.terminal, &user, handover)?,
        None => give_pipes(&standard_descriptors(), user.uid, user.gid),
    }
    identity::set_rlimits(&template.rlimits)?;
    let cwd: &Path = config.cwd.as_deref().unwrap_or(&template.defaults.cwd);
    let is_cwd_set = program::change_directory(cwd)?;
    sys::reset_signals();
    sys::close_on_exec_from(3).step(|| "close inherited files".into())?;
    let identity = Identity {
        user: &user,
        capabilities: &template.capabilities,
        no_new_privileges: template.no_new_privileges,
        seccomp: &template.seccomp,
    };
    identity::take(&identity)?;
    if !is_cwd_set {
        program::change_directory_as_user(cwd)?;
    }
    let arguments = c_strings(&config.arguments, "arguments")?;
    if template.no_new_privileges {
        identity::install_seccomp(&identity)?;
    }
    report::send(&wiring.report, &ExecReport::Ready(std::process::id()));
    Err(program::execute(&arguments, &environment))
}

/// What has to be done while the host's files are in view, and letting go of the host.
fn leave_host(template: &ExecTemplate, wiring: &ExecWiring) -> Result<(), ErrorKind> {
    identity::close_memory()?;
    wiring.entrances.iter().try_for_each(cgroup::enter)?;
    adjust_oom_score(template.defaults.oom_score_adj)?;
    rustix::process::setsid().step(|| "start a session".into())?;
    connect_stdio(template, wiring)?;
    let kept = [Some(&wiring.report), Some(&wiring.first), wiring.handover.as_ref()];
    let kept: Vec<_> = kept.into_iter().flatten().map(AsRawFd::as_raw_fd).collect();
    sys::close_all_but(&kept);
    Ok(())
}

pub(super) fn adjust_oom_score(adjustment: Option<i32>) -> Result<(), ErrorKind> {
    let Some(adjustment) = adjustment else { return Ok(()) };
    std::fs::write("/proc/self/oom_score_adj", adjustment.to_string())
        .step(|| format!("set oom_score_adj to {adjustment}"))
}

fn connect_stdio(template: &ExecTemplate, wiring: &ExecWiring) -> Result<(), ErrorKind> {
    if let Some(stdio) = &wiring.stdio {
        if let Some((uid, gid)) = template.defaults.on_host(0, 0) {
            give_pipes(stdio, uid, gid);
        }
        return super::connect_stdio(stdio);
    }
    // The launcher's own would do until the terminal is there, were its stderr not a file of the host.
    connect_nothing()
}

pub(super) fn connect_nothing() -> Result<(), ErrorKind> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    connect_all(&null.step(|| "open /dev/null".into())?)
}

pub(super) fn connect_all(descriptor: &OwnedFd) -> Result<(), ErrorKind> {
    let connected = rustix::stdio::dup2_stdin(descriptor)
        .and_then(|()| rustix::stdio::dup2_stdout(descriptor))
        .and_then(|()| rustix::stdio::dup2_stderr(descriptor));
    connected.step(|| "connect stdin, stdout and stderr".into())
}

/// Joins the namespaces of process `first` and becomes root in them. The pid namespace was given at birth.
fn join(template: &ExecTemplate, first: &OwnedFd) -> Result<(), ErrorKind> {
    let flags = ThreadNameSpaceType::from_bits_retain(template.namespaces as u32);
    match rustix::thread::move_into_thread_name_spaces(first.as_fd(), flags) {
        Err(Errno::SRCH) => return Err(ErrorKind::NotRunning),
        // To whoever is not the machine's root the kernel says EPERM of a process that is ending.
        Err(Errno::PERM) if rootless::is_rootless() => return Err(ErrorKind::NotRunning),
        result => result.step(|| "join the sandbox's namespaces".into())?,
    }
    if template.has_user_namespace {
        identity::become_root()?;
    }
    Ok(())
}

pub(super) fn standard_descriptors() -> [BorrowedFd<'static>; 3] {
    [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()]
}

/// The user that is asked for, of those in the files below `root`, and the environment, in which `HOME` is that user's where
/// it was the default before.
pub(super) fn find_user(
    template: &Defaults,
    config: &ExecConfig,
    root: &Path,
) -> Result<(UserPlan, Vec<CString>), ErrorKind> {
    let resolve = |user: &str| resolve_user(&[root.to_owned()], user).map_err(|error| error.kind().clone());
    let mut defaults = template.environment.clone();
    if config.terminal.is_some() && value(&defaults, "TERM").is_none() {
        defaults.push(c"TERM=xterm".to_owned());
    }
    let mut user = template.user.clone();
    if let Some(name) = &config.user {
        let resolved = resolve(name)?;
        let own_home = resolve(&template.user.uid.to_string()).map(|own| own.home);
        let is_default = value(&defaults, "HOME").is_none_or(|home| own_home.is_ok_and(|own| own.as_bytes() == home));
        if is_default {
            defaults = merge(defaults, c_strings(&[format!("HOME={}", resolved.home)], "the user's home")?);
        }
        user = UserPlan { uid: resolved.uid, gid: resolved.gid, groups: resolved.additional_gids, umask: user.umask };
    }
    if template.on_host(user.uid, user.gid).is_none() {
        return Err(ErrorKind::Invalid(format!("the user {}:{} is not in the id mappings", user.uid, user.gid)));
    }
    Ok((user, merge(defaults, c_strings(&config.environment, "environment")?)))
}

/// `defaults` with `given` in their places, the last of a key only.
fn merge(mut defaults: Vec<CString>, given: Vec<CString>) -> Vec<CString> {
    for variable in given {
        match defaults.iter_mut().find(|other| key(other) == key(&variable)) {
            Some(other) => *other = variable,
            None => defaults.push(variable),
        }
    }
    defaults
}

fn key(variable: &CString) -> &[u8] {
    variable.as_bytes().split(|byte| *byte == b'=').next().unwrap_or_default()
}

fn value<'a>(variables: &'a [CString], name: &str) -> Option<&'a [u8]> {
    let variable = variables.iter().find(|variable| key(variable) == name.as_bytes())?;
    variable.as_bytes().get(name.len() + 1..)
}
