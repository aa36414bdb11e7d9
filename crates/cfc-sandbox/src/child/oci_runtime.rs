//! The first process of a sandbox that an OCI runtime runs: it puts the bundle together, runs the runtime, and is process 1
//! of the pid namespace in which that and all it starts lives.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::process::{Gid, Pid, Uid, WaitOptions};
use rustix::thread::CapabilitySets;

use super::exec;
use super::init::{self, code};
use super::oci_command::RuntimeCommand;
use super::overlay::mount_root;
use super::program::PATH_DEFAULT;
use super::report::{Channel, Report};
use super::rootfs::{attach, new_filesystem};
use super::stubs::Stubs;
use super::{FAILED, Wiring, bring_loopback_up, connect_stdio, die_with_launcher, identity, terminal};
use crate::cgroup;
use crate::error::ErrorKind;
use crate::inside::open_inside;
use crate::launcher::blueprint::{Blueprint, MountKind};
use crate::launcher::mount_options::MountOptions;
use crate::launcher::oci_bundle::{Bundle, INIT};
use crate::launcher::shell::ShellKind;
use crate::oci_runtime::Kind;
use crate::redirect;
use crate::step::Step;
use crate::sys;

/// How often it is looked whether the container runs, until it does.
const START_POLL: Duration = Duration::from_millis(2);
/// How often a runtime is asked, which costs a process each time.
const STATE_POLL: Duration = Duration::from_millis(20);

/// The null device, in the scratch filesystem.
const NULL: &str = "null";

/// The process's whole life. `has_user_namespace` says whether it was made with a user namespace of its own.
pub(crate) fn run(bundle: &Bundle, kind: &ShellKind, has_user_namespace: bool, wiring: Wiring) -> ! {
    let Wiring { control, entrances } = wiring;
    let mut channel = Channel::new(control);
    let prepare = || prepare(bundle, kind, has_user_namespace, &mut channel, &entrances);
    let result = std::panic::catch_unwind(AssertUnwindSafe(prepare));
    let failure = match result {
        Ok(Ok(runtime)) => Supervisor::new(bundle, &channel, runtime).run(),
        Ok(Err(failure)) => failure,
        Err(_) => ErrorKind::Step { step: "set up the sandbox (a bug: it panicked)".into(), errno: libc::EIO },
    };
    channel.report(&Report::Failed(failure), &[]);
    sys::exit_now(FAILED)
}

/// Everything up to the start of the runtime, whose pid is returned.
fn prepare(
    bundle: &Bundle,
    kind: &ShellKind,
    has_user_namespace: bool,
    channel: &mut Channel,
    entrances: &[OwnedFd],
) -> Result<i32, ErrorKind> {
    if !channel.wait_for_go()? {
        // The launcher gave up or died. Nobody reads a report.
        sys::exit_now(FAILED);
    }
    entrances.iter().try_for_each(cgroup::enter)?;
    if has_user_namespace {
        identity::become_root()?;
    }
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
    // Where it is a terminal, the runtime wants to hear of its size. gVisor would end by its keys.
    if bundle.runtime.kind() != Kind::Runsc {
        terminal::take_stdin();
    }
    if !has_user_namespace {
        make_null(&bundle.scratch)?;
        use_own_null(&bundle.scratch)?;
    }
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
    if bundle.has_init {
        check_command(&bundle.blueprint)?;
        init::write_program(Path::new(INIT)).step(|| "write the program of process 1".into())?;
    }
    fs::write("bundle/config.json", &bundle.config).step(|| "write config.json".into())?;
    rustix::process::chdir("/").step(|| "enter the root".into())
}

/// A null device of our own.
fn make_null(scratch: &Path) -> Result<(), ErrorKind> {
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(CWD, scratch.join(NULL), rustix::fs::FileType::CharacterDevice, mode, null_device())
        .step(|| "make a null device".into())
}

/// Puts our own null device in place of the machine's where that is a standard stream: runtimes give the streams to the
/// container's user, with `fchown`.
pub(super) fn use_own_null(scratch: &Path) -> Result<(), ErrorKind> {
    let (step, device) = (|| "use the null device".to_owned(), null_device());
    let null = fs::File::options().read(true).write(true).open(scratch.join(NULL)).step(step)?;
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

fn null_device() -> u64 {
    rustix::fs::makedev(1, 3)
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
        let hide = || match rustix::mount::unmount(UNIFIED, UnmountFlags::DETACH) {
            // In an ordinary user's namespace the machine's mounts can be covered only.
            Err(Errno::INVAL) => attach(&new_filesystem("tmpfs", &MountOptions::default())?, CWD, Path::new(UNIFIED)),
            result => result,
        };
        hide().step(|| format!("hide {UNIFIED}"))?;
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
    command(bundle, "log").spawn(&["run", "--bundle", &at("bundle"), "--pid-file", &at("pid"), &bundle.id], || {})
}

/// A call of the runtime. Only what `run` says is about the start.
fn command<'a>(bundle: &'a Bundle, log: &str) -> RuntimeCommand<'a> {
    RuntimeCommand { runtime: &bundle.runtime, scratch: &bundle.scratch, log: bundle.scratch.join(log) }
}

/// Asks the runtime something, whose answer goes into a file. What it says beside is not the application's output.
fn ask(bundle: &Bundle, words: &[&str], answer: Option<&fs::File>) -> Result<i32, ErrorKind> {
    command(bundle, "log-of-others").spawn(words, || {
        let _ = fs::File::options().write(true).open("/dev/null").map(|null| {
            let _ = rustix::stdio::dup2_stderr(&null);
            rustix::stdio::dup2_stdout(answer.map_or(null.as_fd(), AsFd::as_fd))
        });
    })
}

/// Process 1: reaps, passes on signals, and ends as the runtime ends.
struct Supervisor<'a> {
    bundle: &'a Bundle,
    channel: &'a Channel,
    runtime: i32,
}

/// How a child ended.
enum Ended {
    Runtime(i32),
    Other,
    None,
}

impl<'a> Supervisor<'a> {
    fn new(bundle: &'a Bundle, channel: &'a Channel, runtime: i32) -> Supervisor<'a> {
        Supervisor { bundle, channel, runtime }
    }

    /// Returns why the container did not start; ends the process when it has started and ended.
    fn run(&self) -> ErrorKind {
        sys::block_signals();
        if let Err(code) = self.wait_for_start() {
            return command(self.bundle, "log").failure(&self.bundle.blueprint.arguments[0], code);
        }
        self.channel.report(&Report::Ready(Stubs::default()), &[]);
        // Whoever waits for the end of a pipe must not wait for this process.
        if exec::connect_nothing().is_ok() {
            sys::close_from(3);
        }
        loop {
            match self.reap() {
                Ended::Runtime(code) => sys::exit_now(code),
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
        let look = || -> Result<bool, ErrorKind> {
            let answer = self.bundle.scratch.join("answer");
            let file = fs::File::create(&answer).step(|| "make a file".into())?;
            let pid = ask(self.bundle, &["state", &self.bundle.id], Some(&file))?;
            let _ = Pid::from_raw(pid).map(|pid| rustix::process::waitpid(Some(pid), WaitOptions::empty()));
            let text = fs::read_to_string(&answer).step(|| "read the state".into())?;
            let state: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
            Ok(state["status"] == "running")
        };
        look().unwrap_or(false)
    }

    fn reap(&self) -> Ended {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if Some(pid) == Pid::from_raw(self.runtime) => Ended::Runtime(code(status)),
            Ok(Some(_)) => Ended::Other,
            _ => Ended::None,
        }
    }

    fn pass_on(&self, signal: i32) {
        let Some(container) = self.container() else { return sys::forward_signal(self.runtime, signal) };
        match self.bundle.runtime.kind() {
            Kind::Runc | Kind::Crun => sys::forward_signal(container, signal),
            // What the file calls the container may be a whole virtual machine.
            Kind::Runsc | Kind::Other => {
                let _ = ask(self.bundle, &["kill", &self.bundle.id, &signal.to_string()], None);
            }
        }
    }

    fn has_complained(&self) -> bool {
        !command(self.bundle, "log").complaints().is_empty()
    }
}

/// Looks whether the command is there. Our process 1 would find out too late: when it runs, the container has started.
/// What the container's own mounts may show is left to it.
fn check_command(blueprint: &Blueprint) -> Result<(), ErrorKind> {
    let command = &blueprint.arguments[0];
    let path = blueprint.environment.iter().rev().find_map(|variable| variable.strip_prefix("PATH="));
    let candidates: Vec<PathBuf> = match command.contains('/') {
        true => vec![blueprint.cwd.join(command)],
        false => path.unwrap_or(PATH_DEFAULT).split(':').map(|directory| Path::new(directory).join(command)).collect(),
    };
    let root = rustix::fs::open("root", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let root = root.step(|| "open the new root".into())?;
    let mut outcome = Err(ErrorKind::CommandNotFound(command.clone()));
    for candidate in candidates {
        if blueprint.mounts.iter().any(|mount| mount.target != Path::new("/") && candidate.starts_with(&mount.target)) {
            return Ok(());
        }
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let Ok(file) = open_inside(&root, &candidate, OFlags::PATH, resolve) else { continue };
        let mode = rustix::fs::fstat(&file).step(|| format!("look at {}", candidate.display()))?.st_mode;
        let is_file = FileType::from_raw_mode(mode) == FileType::RegularFile;
        if is_file && mode & 0o111 != 0 {
            return Ok(());
        }
        outcome = Err(ErrorKind::NotExecutable { command: command.clone(), errno: libc::EACCES });
    }
    outcome
}
