//! `cfc run`: one container in the foreground, for trying an image.

use std::io::{IsTerminal, PipeReader};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;

use cfc_egress::{Direct, EgressPolicy};
use cfc_oci::Reference;
use cfc_runtime::{ForegroundPlace, InstanceSpec, InstanceType, RuntimeErrorKind, check_disks, foreground_sandbox};
use cfc_sandbox::{ErrorKind, Exit, Launcher, SandboxConfig, TERMINAL_ANNOTATION};

use crate::args::Run;
use crate::failure::Failure;
use crate::images::base;
use crate::images::build::sandbox_failure;
use crate::isolation;
use crate::output;
use crate::settings::Settings;
use crate::terminal::{Pseudoterminal, RawTerminal};

/// Runs the container to its end. The exit code is the container's; 128 plus the signal's number when one ended it.
pub fn run(settings: &Settings, arguments: &Run) -> Result<ExitCode, Failure> {
    let reference = Reference::parse(&arguments.image)?;
    let instance_type = instance_type(&arguments.instance_type)?;
    for variable in &arguments.environment {
        if !variable.contains('=') {
            return Err(Failure::new(format!("--env `{variable}` is not NAME=VALUE")));
        }
    }
    if arguments.tty && !std::io::stdin().is_terminal() {
        return Err(Failure::new("the input is no terminal, which `-t` needs")
            .hint("leave out `-t`: input and output then are pipes"));
    }
    let isolation = isolation::of_run(settings, arguments.runtime.as_deref(), &arguments.grants)?;
    // Before any thread: the launcher is started from a process that has only one.
    let launcher = Launcher::private(&crate::server::launcher_program()?).map_err(sandbox_failure)?;
    let store = settings.open_store()?;
    let image = base::find(&store, &reference, &settings.transfer_options()?, false)?;
    let image = store.images().load(&image)?;
    let mut env = arguments.environment.clone();
    if arguments.tty && !image.config.config.env.iter().flatten().chain(&env).any(|one| one.starts_with("TERM=")) {
        env.push("TERM=xterm".to_string());
    }
    let directory = store.temp_dir()?;
    let spec = InstanceSpec {
        name: format!("run-{}", std::process::id()),
        application: "run".to_string(),
        image: image.descriptor,
        command: (!arguments.command.is_empty()).then(|| arguments.command.clone()),
        env,
        labels: Default::default(),
    };
    let has_disk = has_disk(&launcher, &instance_type, directory.path());
    let place = ForegroundPlace { directory: directory.path(), has_disk };
    let mut config = foreground_sandbox(&store, &spec, &instance_type, place, &isolation).map_err(runtime_failure)?;
    let Streams { ends: [stdin, stdout, stderr], outputs, terminal } = Streams::of(arguments, &mut config)?;
    launcher.start_with_stdio(&config, stdin, stdout, stderr).map_err(not_started)?;
    let launcher = Arc::new(launcher);
    let _way_out = way_out(settings, &launcher, &config.id);
    forward_signals(&launcher, &config.id, terminal.as_ref())?;
    let shown = terminal.map(Shown::start).transpose()?;
    let exit = launcher.wait(&config.id).map_err(sandbox_failure)?;
    launcher.remove(&config.id).map_err(sandbox_failure)?;
    outputs.finish();
    drop(shown);
    Ok(exit_code(&exit, &arguments.instance_type))
}

/// Whether it gets a disk as large as the instance type says. An ordinary user's containers have none, of which `cfc doctor`
/// tells.
fn has_disk(launcher: &Launcher, instance_type: &InstanceType, directory: &Path) -> bool {
    let checked = check_disks(launcher, instance_type, directory);
    if let Err(error) = &checked
        && !cfc_sandbox::is_rootless()
    {
        output::tell(format!("warning: what the container writes has no limit: {error} (`cfc doctor` says more)"));
    }
    checked.is_ok()
}

/// What the container has for stdin, stdout and stderr.
struct Streams {
    /// Its ends.
    ends: [OwnedFd; 3],
    outputs: Outputs,
    /// The outer end of what it has for them, where that is a terminal.
    terminal: Option<Pseudoterminal>,
}

impl Streams {
    /// By what was asked for. A terminal is noted in `config`.
    fn of(arguments: &Run, config: &mut SandboxConfig) -> Result<Streams, Failure> {
        if !arguments.tty {
            let (outputs, [stdout, stderr]) = Outputs::start()?;
            return Ok(Streams { ends: [descriptor(std::io::stdin())?, stdout, stderr], outputs, terminal: None });
        }
        let (terminal, inner) = Pseudoterminal::open()?;
        let annotations = config.spec.annotations_mut().get_or_insert_default();
        annotations.insert(TERMINAL_ANNOTATION.to_string(), "true".to_string());
        let ends = [descriptor(&inner)?, descriptor(&inner)?, inner];
        Ok(Streams { ends, outputs: Outputs::default(), terminal: Some(terminal) })
    }
}

/// The container's terminal, shown in this one. Dropping it shows the rest, and puts this terminal back: it must have ended.
struct Shown {
    output: Option<JoinHandle<()>>,
    _raw: RawTerminal,
}

impl Shown {
    fn start(terminal: Pseudoterminal) -> Result<Shown, Failure> {
        let raw = RawTerminal::enter()?;
        terminal.try_clone()?.type_input();
        Ok(Shown { output: Some(terminal.show_output()), _raw: raw })
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(output) = self.output.take() {
            let _ = output.join();
        }
    }
}

/// Carries what the container sends out, to where a platform's containers may go too, until this is dropped.
fn way_out(settings: &Settings, launcher: &Launcher, id: &str) -> Option<Direct> {
    let tell = |problem: String| output::tell(format!("warning: the container has no network: {problem}"));
    let sockets = match launcher.outbound(id) {
        Ok(sockets) => sockets,
        // It is over already.
        Err(error) if *error.kind() == ErrorKind::NotRunning => return None,
        Err(error) => {
            tell(error.to_string());
            return None;
        }
    };
    let policy = EgressPolicy { allowed: settings.file.egress_allow.clone(), ..EgressPolicy::default() };
    Direct::start(id, sockets, policy).inspect_err(|error| tell(error.to_string())).ok()
}

fn instance_type(name: &str) -> Result<InstanceType, Failure> {
    InstanceType::named(name).map_err(|error| {
        let names = cfc_project::InstanceType::names().collect::<Vec<_>>().join(", ");
        Failure::from(error).hint(format!("use one of {names}"))
    })
}

/// What the container writes, carried to our own streams. It gets pipes, which are its own: it may open `/dev/stdout` anew,
/// as nginx's image does, and could not do so with somebody else's file or terminal.
#[derive(Default)]
struct Outputs(Vec<JoinHandle<()>>);

impl Outputs {
    /// The carriers, and the container's ends.
    fn start() -> Result<(Outputs, [OwnedFd; 2]), Failure> {
        let (stdout, stderr) = (descriptor(std::io::stdout())?, descriptor(std::io::stderr())?);
        let failed = |error| Failure::because("cannot make a pipe for the container", &error);
        let (reader, end) = std::io::pipe().map_err(failed)?;
        if is_same(&stdout, &stderr) {
            // One pipe, so that what it writes stays in order.
            let ends = [end.try_clone().map_err(failed)?.into(), end.into()];
            return Ok((Outputs(vec![carry(reader, stdout)]), ends));
        }
        let (error_reader, error_end) = std::io::pipe().map_err(failed)?;
        Ok((Outputs(vec![carry(reader, stdout), carry(error_reader, stderr)]), [end.into(), error_end.into()]))
    }

    /// Waits until all is carried: the container has ended.
    fn finish(self) {
        self.0.into_iter().for_each(|carrier| drop(carrier.join()));
    }
}

fn is_same(one: &OwnedFd, other: &OwnedFd) -> bool {
    let identity = |file: &OwnedFd| rustix::fs::fstat(file).map(|stat| (stat.st_dev, stat.st_ino));
    identity(one).is_ok_and(|found| identity(other) == Ok(found))
}

fn carry(mut from: PipeReader, to: OwnedFd) -> JoinHandle<()> {
    let mut to = std::fs::File::from(to);
    // When nobody reads any more, the pipe closes, and the container learns of it as any program does.
    std::thread::spawn(move || drop(std::io::copy(&mut from, &mut to)))
}

fn descriptor(stream: impl AsFd) -> Result<OwnedFd, Failure> {
    stream
        .as_fd()
        .try_clone_to_owned()
        .map_err(|error| Failure::because("cannot pass a standard stream to the container", &error))
}

/// Passes on what would end a program in the foreground, each time it comes, and to its terminal the size of this one.
fn forward_signals(launcher: &Arc<Launcher>, id: &str, terminal: Option<&Pseudoterminal>) -> Result<(), Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = super::client_runtime()?;
    let (launcher, id) = (launcher.clone(), id.to_string());
    let terminal = terminal.map(Pseudoterminal::try_clone).transpose()?;
    std::thread::spawn(move || {
        let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup(), SignalKind::quit()];
        let passing = kinds.map(|kind| {
            let (launcher, id) = (&launcher, &id);
            async move {
                let Ok(mut stream) = signal(kind) else { return };
                while stream.recv().await.is_some() {
                    let _ = launcher.kill(id, kind.as_raw_value());
                }
            }
        });
        let fitting = async {
            let (Some(terminal), Ok(mut resized)) = (&terminal, signal(SignalKind::window_change())) else { return };
            // It may have changed before anybody listened.
            terminal.fit();
            while resized.recv().await.is_some() {
                terminal.fit();
            }
        };
        runtime.block_on(async { tokio::join!(futures::future::join_all(passing), fitting) });
    });
    Ok(())
}

fn exit_code(exit: &Exit, instance_type: &str) -> ExitCode {
    if exit.oom_killed {
        output::tell(format!("warning: the container ran out of the memory of instance type {instance_type}"));
    } else if exit.usage.oom_kills > 0 {
        output::tell(format!(
            "warning: processes of the container were killed at the memory limit of instance type {instance_type}, {} in all",
            exit.usage.oom_kills
        ));
    }
    ExitCode::from(u8::try_from(exit.status.shell_code()).unwrap_or(u8::MAX))
}

/// As a shell exits, so that a script can tell a command that is not there from one that failed.
fn not_started(error: cfc_sandbox::Error) -> Failure {
    let exit_code = error.exit_code().and_then(|code| u8::try_from(code).ok());
    sandbox_failure(error).exits_with(exit_code)
}

fn runtime_failure(error: cfc_runtime::RuntimeError) -> Failure {
    let hint = match &error.kind {
        RuntimeErrorKind::NoCommand => Some("give a command after the image, or add CMD to its Dockerfile".to_string()),
        kind => kind.hint().map(str::to_string),
    };
    Failure::from(error).maybe_hint(hint)
}
