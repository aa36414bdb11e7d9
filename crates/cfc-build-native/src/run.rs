//! `RUN`: a program in a sandbox on an overlay of the layers so far; what it wrote becomes the next layer.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once, PoisonError};

use cfc_egress::{Direct, EgressPolicy};
use cfc_plan::{MountKind, OutputStream, Run, RunNetwork, Ulimit};
use cfc_sandbox::{
    ErrorKind, Exit, ExitStatus, Launcher, Network, ResolvedUser, Root, SandboxConfig, Stdio, build_spec,
    insecure_build_spec, oci, resolve_user,
};
use cfc_store::{Encoding, LayerWriter, SealedLayer, Store, UpperOptions, write_upper_as_layer};

use crate::emulation;
use crate::failure::{Failure, OnPath, Result, fail_at};
use crate::layer::Layer;
use crate::mount::{Prepared, Sources};
use crate::output::Capture;
use crate::renewal::{renewal_time, renewed};
use crate::upper;
use crate::view::unpacked;

const SHM: &str = "/dev/shm";

/// Hears what a program writes.
pub(crate) type Listener<'a> = &'a (dyn Fn(OutputStream, &[u8]) + Sync);

/// Runs programs for `RUN`.
pub(crate) struct Runner<'a> {
    pub(crate) store: &'a Store,
    pub(crate) launcher: &'a Launcher,
    pub(crate) running: &'a Running,
    /// The latest modification time of files in the layer, in seconds since 1970.
    pub(crate) mtime: i64,
    pub(crate) encoding: Encoding,
    /// What will be run afterwards.
    pub(crate) next: Option<&'a Run>,
}

impl Runner<'_> {
    /// Runs `run` on top of `base` and returns the layer of what it changed: unpacked in the store, and its blob on the way
    /// there. Nothing is left when it fails.
    pub(crate) fn run(
        &self,
        run: &Run,
        base: &[Layer],
        sources: &Sources<'_>,
        listener: Listener<'_>,
    ) -> Result<SealedLayer> {
        let workspace = self.store.temp_dir()?;
        let workspace = workspace.path();
        let renewed_at = has_cache(run).then(renewal_time).flatten();
        let mut lowers = match has_cache(run) {
            true => renewed(self.store, base, workspace)?,
            false => unpacked(self.store, base)?,
        };
        if lowers.is_empty() {
            lowers.push(make_directory(workspace, "empty")?);
        }
        emulation::check(self.store, run, base)?;
        let root = Root::Overlay {
            upper: make_upper(workspace, &lowers[0])?,
            work: make_directory(workspace, "work")?,
            lowers: lowers.clone(),
        };
        let upper = workspace.join("upper");
        fail_at("build.run.prepare")?;
        let prepared = Prepared::new(self.store, run, sources, workspace, self.running)?;
        let config = self.config(run, workspace, &lowers, root, &prepared)?;
        self.execute(&config, listener)?;
        if let Some(next) = self.next {
            expect(self.launcher, next);
        }
        fail_at("build.run.ended")?;
        drop(prepared);
        upper::remove_stubs(&upper, &lowers)?;
        upper::clamp_times(&upper, self.mtime, renewed_at)?;
        self.take_in(upper)
    }

    fn config(
        &self,
        run: &Run,
        workspace: &Path,
        lowers: &[PathBuf],
        root: Root,
        prepared: &Prepared,
    ) -> Result<SandboxConfig> {
        let user = resolve_user(lowers, &numeric_root(&run.user)).map_err(sandbox_failure)?;
        let name = workspace.file_name().unwrap_or_default().to_string_lossy();
        Ok(SandboxConfig {
            id: format!("build-{}-{}", std::process::id(), name.trim_start_matches('.')),
            spec: spec(run, &user, &files(workspace, run)?, prepared),
            root,
            network: network(run),
            stdio: Stdio::Files,
            runtime: None,
        })
    }

    fn execute(&self, config: &SandboxConfig, listener: Listener<'_>) -> Result<()> {
        let (capture, files) = Capture::start()?;
        let started = self.launcher.start_with_stdio(config, files.stdin, files.stdout, files.stderr);
        started.map_err(sandbox_failure)?;
        let mut sandbox = Sandbox { launcher: self.launcher, id: &config.id, is_over: false };
        let is_redirected = matches!(config.network, Network::Redirected { .. });
        let _way_out = is_redirected.then(|| way_out(self.launcher, &config.id));
        self.running.add(self.launcher, &config.id);
        fail_at("build.run.started")?;
        let tail = capture.read_to_end(listener);
        let exit = sandbox.launcher.wait(sandbox.id).map_err(sandbox_failure)?;
        sandbox.is_over = true;
        match exit.status {
            ExitStatus::Code(0) => Ok(()),
            _ => Err(Failure { output: tail, ..exit_failure(exit) }),
        }
    }

    fn take_in(&self, upper: PathBuf) -> Result<SealedLayer> {
        let mut writer = LayerWriter::new(self.store.layer_writer(self.encoding)?);
        let options = UpperOptions { clamp_mtime: Some(self.mtime), skip: None };
        write_upper_as_layer(&upper, &mut writer, &options)?;
        let sealed = writer.finish().on("finish the layer of", &upper)?.seal()?;
        fail_at("build.run.written")?;
        // The directory is the unpacked layer already.
        self.store.layers().adopt_directory(&sealed.layer().diff_id, upper)?;
        Ok(sealed)
    }
}

/// Tells the launcher that `run` comes next, so that it makes ready what does not depend on files. Mounts decide about that
/// too, so a program with some is no matter of this.
pub(crate) fn expect(launcher: &Launcher, run: &Run) {
    if !run.mounts.is_empty() {
        return;
    }
    let config = SandboxConfig {
        id: "expected".to_string(),
        spec: spec(run, &ResolvedUser::default(), &[], &Prepared::default()),
        root: Root::Directory { path: PathBuf::from("/") },
        network: network(run),
        stdio: Stdio::Files,
        runtime: None,
    };
    if let Err(error) = launcher.expect(&config) {
        tracing::debug!(%error, "nothing is made ready for the next RUN instruction");
    }
}

fn network(run: &Run) -> Network {
    match run.network {
        RunNetwork::Default => Network::Redirected { ipv6: cfc_sandbox::has_ipv6_route() },
        RunNetwork::None => Network::Isolated,
        RunNetwork::Host => Network::Host,
    }
}

/// Carries what the program sends out, until this is dropped. A build without a network goes on: most need none.
fn way_out(launcher: &Launcher, id: &str) -> Option<Direct> {
    let sockets = match launcher.outbound(id) {
        Ok(sockets) => sockets,
        // It is over already.
        Err(error) if *error.kind() == ErrorKind::NotRunning => return None,
        Err(error) => {
            tracing::warn!(%error, "a RUN instruction without a network");
            return None;
        }
    };
    let started = Direct::start(id, sockets, EgressPolicy::of_builds());
    started.inspect_err(|error| tracing::warn!(%error, "a RUN instruction without a network")).ok()
}

/// The sandboxes of a build, so that one failure ends the others.
#[derive(Default)]
pub(crate) struct Running(Mutex<RunningState>);

#[derive(Default)]
struct RunningState {
    is_stopped: bool,
    sandboxes: Vec<(Launcher, String)>,
}

impl Running {
    fn add(&self, launcher: &Launcher, id: &str) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.is_stopped {
            let _ = launcher.kill_all(id);
        }
        state.sandboxes.push((launcher.clone(), id.to_string()));
    }

    /// Sandboxes may start again.
    pub(crate) fn go_on(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_stopped = false;
    }

    /// Whether the build is over, so that nobody need wait for anything.
    pub(crate) fn is_stopped(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_stopped
    }

    /// Ends all sandboxes, and those to come.
    pub(crate) fn stop_all(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.is_stopped = true;
        // Most have ended and are not known any more, which is what we want.
        state.sandboxes.drain(..).for_each(|(launcher, id)| drop(launcher.kill_all(&id)));
    }
}

/// A started sandbox: gone, with everything in it, when this is dropped.
struct Sandbox<'a> {
    launcher: &'a Launcher,
    id: &'a str,
    /// Whether it has been waited for.
    is_over: bool,
}

impl Drop for Sandbox<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            // Both are fine on a sandbox that has ended.
            let _ = self.launcher.kill_all(self.id);
            let _ = self.launcher.wait(self.id);
        }
        if let Err(error) = self.launcher.remove(self.id) {
            tracing::warn!(sandbox = self.id, %error, "cannot remove a build's sandbox");
        }
    }
}

/// Whether the program finds what an earlier build left.
pub(crate) fn has_cache(run: &Run) -> bool {
    run.mounts.iter().any(|mount| matches!(mount.kind, MountKind::Cache { .. }))
}

/// `root` is user and group 0 even in an image that has no `/etc/passwd`.
fn numeric_root(user: &str) -> String {
    let numeric = |name: &str| if name == "root" { "0".to_string() } else { name.to_string() };
    user.split(':').map(numeric).collect::<Vec<_>>().join(":")
}

/// The process and its mounts.
fn spec(run: &Run, user: &ResolvedUser, files: &[oci::Mount], prepared: &Prepared) -> oci::Spec {
    let mut spec = if run.is_insecure { insecure_build_spec() } else { build_spec() };
    if cfc_sandbox::missing_controllers().contains(&"pids") {
        without_limits(&mut spec);
    }
    let mut identity = oci::User::default();
    identity.set_uid(user.uid);
    identity.set_gid(user.gid);
    identity.set_additional_gids(Some(user.additional_gids.clone()));
    let mut process = spec.process().clone().unwrap_or_default();
    process.set_args(Some(run.args.clone()));
    process.set_env(Some(environment(run, &user.home, &prepared.variables)));
    process.set_cwd(PathBuf::from(if run.working_directory.is_empty() { "/" } else { &run.working_directory }));
    process.set_user(identity);
    if !run.ulimits.is_empty() {
        process.set_rlimits(Some(run.ulimits.iter().map(rlimit).collect()));
    }
    spec.set_process(Some(process));
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    if let Some(size) = run.shm_size {
        mounts.iter_mut().filter(|mount| mount.destination() == Path::new(SHM)).for_each(|shm| resize(shm, size));
    }
    mounts.extend(files.iter().cloned());
    mounts.extend(prepared.mounts.iter().cloned());
    spec.set_mounts(Some(mounts));
    spec
}

/// As on a machine, or in a container, where no cgroup can be made: a build needs none.
fn without_limits(spec: &mut oci::Spec) {
    static WARNED: Once = Once::new();
    WARNED.call_once(|| {
        tracing::warn!("RUN may make as many processes as it likes: no cgroup can be made here (see `cfc doctor`)");
    });
    if let Some(linux) = spec.linux_mut() {
        linux.set_resources(None);
    }
}

/// The limit in the runtime specification's words.
fn rlimit(limit: &Ulimit) -> oci::PosixRlimit {
    let name = format!("RLIMIT_{}", limit.name.to_ascii_uppercase());
    let value = serde_json::json!({"type": name, "soft": limit.soft, "hard": limit.hard});
    serde_json::from_value(value).expect("the names of limits are the specification's")
}

/// Makes `mount`, a filesystem in memory, one of `size` bytes.
fn resize(mount: &mut oci::Mount, size: u64) {
    let mut options = mount.options().clone().unwrap_or_default();
    options.retain(|option| !option.starts_with("size="));
    options.push(format!("size={size}"));
    mount.set_options(Some(options));
}

fn environment(run: &Run, home: &str, of_mounts: &[(String, String)]) -> Vec<String> {
    let is_secret = |key: &String| run.secret_variables.iter().any(|secret| secret.name == *key);
    let (secrets, others): (Vec<_>, Vec<_>) = of_mounts.iter().cloned().partition(|(key, _)| is_secret(key));
    let mut variables = run.env.clone();
    variables.retain(|(key, _)| !secrets.iter().any(|(name, _)| name == key));
    variables.extend(secrets);
    let home = [("HOME".to_string(), home.to_string())];
    for (key, value) in run.unkeyed_env.iter().chain(&others).chain(&home) {
        if !variables.iter().any(|(existing, _)| existing == key) {
            variables.push((key.clone(), value.clone()));
        }
    }
    variables.into_iter().map(|(key, value)| format!("{key}={value}")).collect()
}

/// The files that every container gets from its machine; they never get into a layer.
fn files(workspace: &Path, run: &Run) -> Result<[oci::Mount; 2]> {
    const HOSTS: &str = "127.0.0.1\tlocalhost buildkitsandbox\n::1\tlocalhost ip6-localhost ip6-loopback\n";
    let machines = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let resolver = if run.network == RunNetwork::Host { machines } else { resolver(&machines) };
    let extra = run.hosts.iter().map(|host| format!("{}\t{}\n", host.address, host.name));
    let hosts = HOSTS.to_string() + &extra.collect::<String>();
    let files = [("resolv.conf", resolver.into_bytes()), ("hosts", hosts.into_bytes())];
    for (name, content) in &files {
        let path = workspace.join(name);
        fs::write(&path, content).on("write", &path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).on("open up", &path)?;
    }
    Ok(files.map(|(name, _)| {
        let mut mount = oci::Mount::default();
        mount.set_destination(Path::new("/etc").join(name));
        mount.set_typ(Some("bind".to_string()));
        mount.set_source(Some(workspace.join(name)));
        mount.set_options(Some(vec!["bind".to_string(), "ro".to_string()]));
        mount
    }))
}

/// This machine's way of completing names. Who is asked is decided outside, so any address does that is not the loopback's.
fn resolver(machines: &str) -> String {
    let is_kept = |line: &&str| matches!(line.split_whitespace().next(), Some("search" | "domain" | "options"));
    let kept = machines.lines().filter(is_kept).map(|line| format!("{line}\n"));
    kept.chain(["nameserver 192.0.2.53\n".to_string()]).collect()
}

fn make_directory(workspace: &Path, name: &str) -> Result<PathBuf> {
    let path = workspace.join(name);
    fs::create_dir(&path).on("make the directory", &path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).on("open up", &path)?;
    Ok(path)
}

/// The upper directory shows as the image's root, so it looks like the root below it.
pub(crate) fn make_upper(workspace: &Path, lower: &Path) -> Result<PathBuf> {
    let upper = make_directory(workspace, "upper")?;
    let root = lower.metadata().on("look at", lower)?;
    chown(&upper, Some(root.uid()), Some(root.gid())).on("give away", &upper)?;
    fs::set_permissions(&upper, fs::Permissions::from_mode(root.mode() & 0o7777)).on("open up", &upper)?;
    Ok(upper)
}

fn exit_failure(exit: Exit) -> Failure {
    // Whatever failed, that something was killed is what to know of it: compilers run below others that say little.
    if exit.usage.oom_kills > 0 {
        return Failure::new("it was killed for want of memory").hint("give the machine more, or let it use less");
    }
    match exit.status {
        ExitStatus::Signal(signal) => Failure::new(format!("it was ended by signal {signal}")),
        ExitStatus::Code(code) => {
            let failure = Failure::new(format!("it exited with code {code}"));
            match code {
                127 => failure.hint("the shell found no such command in the image"),
                126 => failure.hint("the command is in the image, but it cannot be executed"),
                _ => failure,
            }
        }
    }
}

/// A sandbox that could not be had, as an instruction's failure.
pub(crate) fn sandbox_failure(error: cfc_sandbox::Error) -> Failure {
    let hint = match error.kind() {
        cfc_sandbox::ErrorKind::CommandNotFound(command) if command == "/bin/sh" => {
            Some("the image has no shell: write `RUN [\"/path/to/program\", \"argument\"]`")
        }
        cfc_sandbox::ErrorKind::CommandNotFound(_) => Some("check that an earlier instruction put it into the image"),
        _ => error.hint(),
    };
    let failure = Failure::new(error.to_string());
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
