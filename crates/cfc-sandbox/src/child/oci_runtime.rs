//! The first process of a sandbox that an OCI runtime runs: it puts the bundle together, runs the runtime, and is process 1
//! of the pid namespace in which that and all it starts lives.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::time::Duration;

use rustix::fs::CWD;
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::process::{Gid, Pid, Uid, WaitOptions};
use rustix::thread::CapabilitySets;

use super::init::{close_all, code};
use super::overlay::mount_root;
use super::report::{Channel, Report};
use super::rootfs::{attach, new_filesystem};
use super::stubs::Stubs;
use super::{FAILED, Wiring, bring_loopback_up, connect_stdio, die_with_launcher};
use crate::cgroup;
use crate::error::ErrorKind;
use crate::launcher::blueprint::MountKind;
use crate::launcher::mount_options::MountOptions;
use crate::launcher::oci_bundle::Bundle;
use crate::launcher::shell::ShellKind;
use crate::oci_runtime::Kind;
use crate::redirect;
use crate::step::Step;
use crate::sys::{self, Cloned};

/// How often it is looked whether the container runs, until it does.
const START_POLL: Duration = Duration::from_millis(2);
/// How often a runtime is asked, which costs a process each time.
const STATE_POLL: Duration = Duration::from_millis(20);

/// The process's whole life.
pub(crate) fn run(bundle: &Bundle, kind: &ShellKind, wiring: Wiring) -> ! {
    let Wiring { control, entrances } = wiring;
    let mut channel = Channel::new(control);
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| prepare(bundle, kind, &mut channel, &entrances)));
    let failure = match result {
        Ok(Ok(runtime)) => Supervisor::new(bundle, &channel, runtime).run(),
        Ok(Err(failure)) => failure,
        Err(_) => ErrorKind::Step { step: "set up the sandbox (a bug: it panicked)".into(), errno: libc::EIO },
    };
    channel.report(&Report::Failed(failure), &[]);
    sys::exit_now(FAILED)
}

/// Everything up to the start of the runtime, whose pid is returned.
fn prepare(bundle: &Bundle, kind: &ShellKind, channel: &mut Channel, entrances: &[OwnedFd]) -> Result<i32, ErrorKind> {
    if !channel.wait_for_go()? {
        // The launcher gave up or died. Nobody reads a report.
        sys::exit_now(FAILED);
    }
    entrances.iter().try_for_each(cgroup::enter)?;
    rustix::process::setsid().step(|| "start a session".into())?;
    if kind.has_network_namespace {
        bring_loopback_up()?;
    }
    if let Some(plan) = kind.redirect {
        let (outcome, sockets) = match redirect::set_up(plan) {
            Ok(sockets) => (Ok(()), sockets),
            Err(failure) => (Err(failure), Vec::new()),
        };
        channel.report(&Report::Outbound(outcome), &sockets);
    }
    mount_bundle(bundle)?;
    // The credentials have changed for the last time: from here on the launcher's death is ours.
    die_with_launcher()?;
    for (name, value) in &bundle.network_sysctls {
        fs::write(Path::new("/proc/sys").join(name), value).step(|| format!("set the sysctl {name} to `{value}`"))?;
    }
    sys::reset_signals();
    connect_stdio(&bundle.blueprint.stdio.map(|handle| bundle.blueprint.descriptors.get(handle)))?;
    own_null(&bundle.scratch)?;
    sys::close_on_exec_from(3).step(|| "close inherited files".into())?;
    start_runtime(bundle)
}

fn mount_bundle(bundle: &Bundle) -> Result<(), ErrorKind> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).step(|| "make the mounts private".into())?;
    // Runtimes take `/proc/self` for granted; and the container's own proc can only be mounted while one is in full view.
    let none = MountOptions::default();
    let proc = new_filesystem("proc", &none).step(|| "make a proc".into())?;
    attach(&proc, CWD, Path::new("/proc")).step(|| "mount a proc".into())?;
    protect_cgroups(bundle.runtime.kind())?;
    let data = [("mode".to_owned(), Some("755".to_owned()))];
    let scratch = new_filesystem("tmpfs", &MountOptions { data: data.into(), ..MountOptions::default() })
        .step(|| "make the scratch filesystem".into())?;
    attach(&scratch, CWD, &bundle.scratch).step(|| "mount the scratch filesystem".into())?;
    rustix::process::chdir(&bundle.scratch).step(|| "enter the scratch filesystem".into())?;
    for directory in ["l", "c", "root", "m", "sys", "bundle", "state"] {
        fs::create_dir(directory).step(|| "fill the scratch filesystem".into())?;
    }
    let sys = new_filesystem("sysfs", &none).step(|| "make a sysfs".into())?;
    attach(&sys, CWD, Path::new("sys")).step(|| "mount a sysfs".into())?;
    as_owner(bundle.owner, || mount_root(&bundle.blueprint).map(drop))?;
    let root =
        rustix::fs::open("root", rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC, rustix::fs::Mode::empty())
            .step(|| "open the new root".into())?;
    // This mount belongs to the host, and so an image's device nodes would be alive.
    sys::set_mount_attributes(root.as_fd(), false, libc::MOUNT_ATTR_NODEV, None)
        .step(|| "set the options of the root".into())?;
    for (i, mount) in bundle.blueprint.mounts.iter().enumerate() {
        if let MountKind::Bind { tree, is_directory } = &mount.kind {
            let source = format!("m/{i}");
            let made = if *is_directory { fs::create_dir(&source) } else { fs::write(&source, "") };
            made.step(|| "fill the scratch filesystem".into())?;
            attach(bundle.blueprint.descriptors.get(*tree), CWD, Path::new(&source))
                .step(|| format!("mount the source of {}", mount.target.display()))?;
        }
    }
    fs::write("bundle/config.json", &bundle.config).step(|| "write config.json".into())?;
    rustix::process::chdir("/").step(|| "enter the root".into())
}

/// Puts a node of our own in place of the machine's `/dev/null` where that is a standard stream: runtimes give the streams
/// to the container's user, with `fchown`.
fn own_null(scratch: &Path) -> Result<(), ErrorKind> {
    let step = || "make a null device".to_owned();
    let (path, device) = (scratch.join("null"), rustix::fs::makedev(1, 3));
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(CWD, &path, rustix::fs::FileType::CharacterDevice, mode, device).step(step)?;
    let null = fs::File::options().read(true).write(true).open(&path).step(step)?;
    let is_null = |stream: BorrowedFd<'_>| rustix::fs::fstat(stream).is_ok_and(|stat| stat.st_rdev == device);
    if is_null(rustix::stdio::stdin()) {
        rustix::stdio::dup2_stdin(&null).step(step)?;
    }
    if is_null(rustix::stdio::stdout()) {
        rustix::stdio::dup2_stdout(&null).step(step)?;
    }
    if is_null(rustix::stdio::stderr()) {
        rustix::stdio::dup2_stderr(&null).step(step)?;
    }
    Ok(())
}

/// Does something as the host's user who is the container's root, with all rights. An overlay writes as whoever mounted it,
/// and to a directory with mapped ids only those can write who have an id there.
fn as_owner(owner: Option<(u32, u32)>, action: impl FnOnce() -> Result<(), ErrorKind>) -> Result<(), ErrorKind> {
    let Some((uid, gid)) = owner else { return action() };
    let step = || format!("become the user {uid}:{gid}");
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::from_raw(gid), Gid::ROOT).step(step)?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::from_raw(uid), Uid::ROOT).step(step)?;
    let held = rustix::thread::capabilities(None).step(step)?;
    let all = CapabilitySets { effective: held.permitted, ..held };
    rustix::thread::set_capabilities(None, all).step(step)?;
    action()?;
    let step = || "become root again".to_owned();
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).step(step)?;
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).step(step)
}

/// The limits are the launcher's business: the runtime stays in the cgroup that it is in.
fn protect_cgroups(kind: Kind) -> Result<(), ErrorKind> {
    const POINT: &str = "/sys/fs/cgroup";
    const UNIFIED: &str = "/sys/fs/cgroup/unified";
    if !Path::new(POINT).exists() {
        return Ok(());
    }
    // crun refuses a v2 tree with a controller beside v1 trees, which it is not to touch at all.
    if kind == Kind::Crun && Path::new(UNIFIED).join("cgroup.controllers").exists() {
        rustix::mount::unmount(UNIFIED, UnmountFlags::DETACH).step(|| format!("hide {UNIFIED}"))?;
    }
    let step = || format!("make {POINT} read-only");
    let make_readonly = || {
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        let tree = rustix::fs::open(POINT, flags, rustix::fs::Mode::empty())?;
        sys::set_mount_attributes(tree.as_fd(), true, libc::MOUNT_ATTR_RDONLY, None)
    };
    match make_readonly() {
        // Nothing is mounted at that very place.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            rustix::mount::mount_bind_recursive(POINT, POINT).step(step)?;
            make_readonly().step(step)
        }
        result => result.step(step),
    }
}

fn start_runtime(bundle: &Bundle) -> Result<i32, ErrorKind> {
    let at = |name: &str| bundle.scratch.join(name).to_string_lossy().into_owned();
    let words = ["run", "--bundle", &at("bundle"), "--pid-file", &at("pid"), &bundle.id].map(str::to_owned);
    spawn(bundle, &words, None)
}

/// Runs the runtime with a command of its own, and optionally its output elsewhere.
fn spawn(bundle: &Bundle, command: &[String], output: Option<&OwnedFd>) -> Result<i32, ErrorKind> {
    let program = bundle.runtime.program().display().to_string();
    let at = |name: &str| bundle.scratch.join(name).to_string_lossy().into_owned();
    // Only what `run` says is about the start.
    let log = if command.first().is_some_and(|word| word == "run") { "log" } else { "log-of-others" };
    let own = ["--root", &at("state"), "--log", &at(log), "--log-format", "json"].map(str::to_owned);
    let global = bundle.runtime.global_arguments();
    let words = [program.clone()].into_iter().chain(global).chain(own).chain(command.iter().cloned());
    let arguments = words.map(|word| c_string(&word)).collect::<Result<Vec<_>, _>>()?;
    let path = std::env::var("PATH").unwrap_or_else(|_| super::program::PATH_DEFAULT.to_owned());
    let environment = [c_string(&format!("PATH={path}"))?, c_string("HOME=/")?];
    let (path, step) = (c_string(&program)?, || format!("run {program}"));
    match sys::clone_process(0, None).step(step)? {
        Cloned::Parent { pid, .. } => Ok(pid),
        Cloned::Child => {
            if log != "log" {
                // What it says about such a question is not the application's output.
                let _ = fs::File::options().write(true).open("/dev/null").map(|null| {
                    let _ = rustix::stdio::dup2_stderr(&null);
                    rustix::stdio::dup2_stdout(output.map_or(null.as_fd(), AsFd::as_fd))
                });
            }
            sys::reset_signals();
            let error = sys::execute(&path, &arguments, &environment);
            let entry = serde_json::json!({"level": "error", "msg": format!("cannot execute {program}: {error}")});
            let _ = fs::write(at(log), entry.to_string());
            sys::exit_now(FAILED)
        }
    }
}

fn c_string(text: &str) -> Result<CString, ErrorKind> {
    CString::new(text).map_err(|_| ErrorKind::Invalid(format!("a zero byte in {text:?}")))
}

/// Process 1: reaps, passes on signals, and ends as the runtime ends.
struct Supervisor<'a> {
    bundle: &'a Bundle,
    channel: &'a Channel,
    runtime: i32,
    /// The signal that was answered for an application that does not handle it.
    ended_by: Option<i32>,
}

/// How a child ended.
enum Ended {
    Runtime(i32),
    Other,
    None,
}

impl<'a> Supervisor<'a> {
    fn new(bundle: &'a Bundle, channel: &'a Channel, runtime: i32) -> Supervisor<'a> {
        Supervisor { bundle, channel, runtime, ended_by: None }
    }

    /// Returns why the container did not start; ends the process when it has started and ended.
    fn run(&mut self) -> ErrorKind {
        sys::block_signals();
        if let Err(code) = self.wait_for_start() {
            return self.failure(code);
        }
        self.channel.report(&Report::Ready(Stubs::default()), &[]);
        // Whoever waits for the end of a pipe must not wait for this process.
        let _ = close_all();
        loop {
            match self.reap() {
                Ended::Runtime(code) => sys::exit_now(self.ended_by.map_or(code, |signal| 128 + signal)),
                Ended::Other => continue,
                Ended::None => {}
            }
            match sys::next_signal() {
                libc::SIGCHLD => {}
                signal => self.pass_on(signal),
            }
        }
    }

    /// Until the container runs; or the code with which the runtime ended before that.
    fn wait_for_start(&self) -> Result<(), i32> {
        loop {
            match self.reap() {
                // A command that ends at once: it has run when there is its pid.
                Ended::Runtime(code) if self.container().is_none() || self.has_complained() => return Err(code),
                Ended::Runtime(code) => self.end_at_once(code),
                Ended::Other => continue,
                Ended::None => {}
            }
            if self.container().is_some() {
                match self.bundle.runtime.kind() {
                    // These write the file when the command executes.
                    Kind::Runc | Kind::Crun => return Ok(()),
                    Kind::Runsc | Kind::Other if self.says_running() => return Ok(()),
                    Kind::Runsc | Kind::Other => std::thread::sleep(STATE_POLL),
                }
            }
            std::thread::sleep(START_POLL);
        }
    }

    fn end_at_once(&self, code: i32) -> ! {
        self.channel.report(&Report::Ready(Stubs::default()), &[]);
        sys::exit_now(code)
    }

    /// The container's process 1, once there is one.
    fn container(&self) -> Option<i32> {
        fs::read_to_string(self.bundle.scratch.join("pid")).ok()?.trim().parse().ok()
    }

    /// Asks the runtime.
    fn says_running(&self) -> bool {
        let ask = || -> Result<bool, ErrorKind> {
            let answer = self.bundle.scratch.join("answer");
            let file = fs::File::create(&answer).step(|| "make a file".into())?;
            let pid = spawn(self.bundle, &["state".to_owned(), self.bundle.id.clone()], Some(&file.into()))?;
            let _ = Pid::from_raw(pid).map(|pid| rustix::process::waitpid(Some(pid), WaitOptions::empty()));
            let text = fs::read_to_string(&answer).step(|| "read the state".into())?;
            let state: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
            Ok(state["status"] == "running")
        };
        ask().unwrap_or(false)
    }

    fn reap(&self) -> Ended {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if Some(pid) == Pid::from_raw(self.runtime) => Ended::Runtime(code(status)),
            Ok(Some(_)) => Ended::Other,
            _ => Ended::None,
        }
    }

    fn pass_on(&mut self, signal: i32) {
        let Some(container) = self.container() else { return sys::forward_signal(self.runtime, signal) };
        match self.bundle.runtime.kind() {
            Kind::Runc | Kind::Crun => {
                let is_the_end =
                    self.bundle.ends_on_signals && ends_by_default(signal) && !is_handled(container, signal);
                self.ended_by = is_the_end.then_some(signal).or(self.ended_by);
                sys::forward_signal(container, if is_the_end { libc::SIGKILL } else { signal });
            }
            // What the file calls the container may be a whole virtual machine.
            Kind::Runsc | Kind::Other => {
                let words = ["kill".to_owned(), self.bundle.id.clone(), signal.to_string()];
                let _ = spawn(self.bundle, &words, None);
            }
        }
    }

    /// Why the container did not start, as the runtime put it.
    fn failure(&self, code: i32) -> ErrorKind {
        let command = self.bundle.blueprint.arguments[0].clone();
        let said = self.complaints();
        let is_missing = said.contains("executable file") && said.contains("not found");
        let is_absent = said.contains(&format!("{}: no such file", command.to_lowercase()));
        let is_nowhere = said.contains("error finding executable");
        if is_missing || is_absent || is_nowhere {
            return ErrorKind::CommandNotFound(command);
        }
        if said.contains("exec") && said.contains("permission denied") {
            return ErrorKind::NotExecutable { command, errno: libc::EACCES };
        }
        let name = self.bundle.runtime.name();
        match said.is_empty() {
            true => ErrorKind::Unavailable(format!("the runtime `{name}` ended with {code} and did not say why")),
            false => ErrorKind::Unavailable(format!("the runtime `{name}` failed: {said}")),
        }
    }

    fn has_complained(&self) -> bool {
        !self.complaints().is_empty()
    }

    /// The errors in the runtime's log.
    fn complaints(&self) -> String {
        let text = fs::read_to_string(self.bundle.scratch.join("log")).unwrap_or_default();
        let entries = serde_json::Deserializer::from_str(&text).into_iter::<serde_json::Value>().map_while(Result::ok);
        let is_error = |entry: &serde_json::Value| matches!(entry["level"].as_str(), Some("error" | "fatal"));
        let messages = entries.filter(is_error).filter_map(|entry| entry["msg"].as_str().map(str::to_owned));
        messages.collect::<Vec<_>>().join("; ").to_lowercase()
    }
}

/// Whether a process without a handler ends.
fn ends_by_default(signal: i32) -> bool {
    let others = [libc::SIGCHLD, libc::SIGURG, libc::SIGWINCH, libc::SIGCONT, libc::SIGSTOP, libc::SIGTSTP];
    !others.contains(&signal) && ![libc::SIGTTIN, libc::SIGTTOU].contains(&signal)
}

/// Whether the process catches, ignores or blocks the signal. One that cannot be looked at has ended.
fn is_handled(pid: i32, signal: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = |key: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        value.and_then(|value| u64::from_str_radix(value.trim(), 16).ok()).unwrap_or(u64::MAX)
    };
    ["SigCgt", "SigIgn", "SigBlk"].iter().any(|key| mask(key) & 1 << (signal - 1) != 0)
}
