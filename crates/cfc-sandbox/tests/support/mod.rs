//! What the sandbox tests share: a launcher, a small root filesystem, and one way to run a command in it.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

pub mod exec;
pub mod oci;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use cfc_sandbox::{Exit, ExitStatus, Launcher, Network, Root, SandboxConfig, Stdio, default_spec};

pub const LAUNCHER: &str = env!("CARGO_BIN_EXE_cfc-launcher");
const BUSYBOX: &str = "/bin/busybox";
const APPLETS: [&str; 28] = [
    "sh", "cat", "ls", "id", "echo", "sleep", "mount", "mkdir", "touch", "rm", "ps", "nc", "httpd", "wget", "dd",
    "hostname", "unshare", "chown", "mv", "yes", "head", "true", "ln", "stat", "mknod", "dmesg", "grep", "wc",
];

/// A machine on which sandboxes run, with a private launcher.
pub struct Bench {
    pub launcher: Launcher,
    pub directory: tempfile::TempDir,
}

/// `None`, with the reason on stderr, where sandboxes cannot run.
pub fn bench() -> Option<Bench> {
    let directory = ready()?;
    let launcher = Launcher::private(Path::new(LAUNCHER)).expect("the launcher starts");
    Some(Bench { launcher, directory })
}

/// A directory with a layer in it.
pub fn ready() -> Option<tempfile::TempDir> {
    let skip = |reason: &str| {
        eprintln!("skipped: {reason}");
        None
    };
    if !rustix::process::geteuid().is_root() {
        return skip("needs root");
    }
    if !Path::new(BUSYBOX).exists() {
        return skip("needs a static /bin/busybox");
    }
    let directory = tempfile::Builder::new().prefix("cfc-sandbox-").tempdir().unwrap();
    make_layer(&directory.path().join("layer"));
    Some(directory)
}

fn make_layer(layer: &Path) {
    for name in ["bin", "etc", "tmp", "home"] {
        fs::create_dir_all(layer.join(name)).unwrap();
    }
    fs::copy(BUSYBOX, layer.join("bin/busybox")).unwrap();
    fs::set_permissions(layer.join("bin/busybox"), fs::Permissions::from_mode(0o755)).unwrap();
    for applet in APPLETS {
        symlink("busybox", layer.join("bin").join(applet)).unwrap();
    }
    fs::set_permissions(layer.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::write(layer.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home:/bin/sh\n").unwrap();
    fs::write(layer.join("etc/not-executable"), "x").unwrap();
    fs::write(layer.join("etc/no-interpreter"), "#!/no/such/shell\n").unwrap();
    fs::set_permissions(layer.join("etc/no-interpreter"), fs::Permissions::from_mode(0o755)).unwrap();
}

impl Bench {
    /// A configuration that runs `args` on fresh upper and work directories.
    pub fn config(&self, args: &[&str]) -> SandboxConfig {
        config(self.directory.path(), args)
    }

    /// Runs a shell script to its end.
    pub fn run(&self, script: &str) -> (Exit, String) {
        self.run_config(&self.config(&["sh", "-c", script]))
    }

    /// Runs a configuration to its end. The text is stdout and stderr, line by line.
    pub fn run_config(&self, config: &SandboxConfig) -> (Exit, String) {
        self.launcher.start(config).expect("starts");
        let exit = self.launcher.wait(&config.id).expect("ends");
        self.launcher.remove(&config.id).expect("is removed");
        (exit, log_text(config))
    }

    /// Runs a shell script that must succeed.
    pub fn output(&self, script: &str) -> String {
        let (exit, text) = self.run(script);
        assert_eq!(exit.status, ExitStatus::Code(0), "{script}: {text}");
        text
    }
}

pub fn config(directory: &Path, args: &[&str]) -> SandboxConfig {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let id = format!("t{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let own = directory.join(&id);
    for name in ["upper", "work"] {
        fs::create_dir_all(own.join(name)).unwrap();
    }
    let mut spec = default_spec();
    let process = spec.process_mut().as_mut().unwrap();
    process.set_args(Some(args.iter().map(|arg| arg.to_string()).collect()));
    SandboxConfig {
        id,
        spec,
        root: Root::Overlay { lowers: vec![directory.join("layer")], upper: own.join("upper"), work: own.join("work") },
        network: Network::Isolated,
        stdio: Stdio::Log { path: own.join("log"), max_bytes: 1 << 20 },
        runtime: None,
    }
}

/// The configuration with parts of its spec replaced, as `pointer`: value.
pub fn with(config: &SandboxConfig, changes: &[(&str, serde_json::Value)]) -> SandboxConfig {
    let mut value = serde_json::to_value(config).unwrap();
    for (pointer, change) in changes {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        value["spec"].pointer_mut(parent).unwrap_or_else(|| panic!("{parent}"))[key] = change.clone();
    }
    serde_json::from_value(value).unwrap()
}

/// A static program that prints what it is and sees, serves, or connects: `probe.c`. `None`, with the reason on stderr, where
/// none can be compiled.
pub fn probe() -> Option<PathBuf> {
    static PROBE: std::sync::OnceLock<Option<PathBuf>> = std::sync::OnceLock::new();
    PROBE.get_or_init(|| compiled("probe")).clone()
}

/// The static program of `tests/support/<name>.c`. `None`, with the reason on stderr, where none can be compiled.
pub fn compiled(name: &str) -> Option<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/support/{name}.c"));
    let made = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    let compiled =
        std::process::Command::new("cc").args(["-static", "-O1", "-pthread", "-o"]).arg(&made).arg(source).output();
    match compiled {
        Ok(output) if output.status.success() => Some(made),
        Ok(output) => panic!("{}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => {
            eprintln!("skipped: needs a C compiler: {error}");
            None
        }
    }
}

pub fn own_directory(config: &SandboxConfig) -> PathBuf {
    let Stdio::Log { path, .. } = &config.stdio else { panic!("a log") };
    path.parent().unwrap().to_owned()
}

pub fn log_text(config: &SandboxConfig) -> String {
    let text = fs::read_to_string(own_directory(config).join("log")).unwrap_or_default();
    let line =
        |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["line"].as_str().unwrap().to_owned();
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// The first line of a script's output of the form `<key>:<value>`, as in `/proc/self/status`.
pub fn field<'a>(text: &'a str, key: &str) -> &'a str {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
        .unwrap_or_else(|| panic!("no {key} in {text}"))
        .trim()
}
