//! Whether an OCI runtime works on this machine, for this user: by having it run something.

use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use crate::child::{INIT_USAGE, write_init_program};
use crate::client::Launcher;
use crate::config::{Network, Root, SandboxConfig, Stdio};
use crate::default_spec::default_spec;
use crate::error::{Error, ErrorKind, Result};
use crate::oci_runtime::OciRuntime;
use crate::status::ExitStatus;
use crate::step::Step;

/// How long a runtime may take for a program that ends at once.
const PATIENCE: Duration = Duration::from_secs(30);

impl OciRuntime {
    /// What the program says of its version: the first line. `None` when it does not say.
    pub fn version(&self) -> Option<String> {
        let output = Command::new(self.program()).arg("--version").output().ok()?;
        let said = String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().trim().to_owned();
        (output.status.success() && !said.is_empty()).then_some(said)
    }

    /// Runs a program in a container by it, in a launcher of its own that is made from `program`. An error says why it does
    /// not work here.
    pub fn check(&self, program: &Path) -> Result<()> {
        let directory = std::env::temp_dir().join(format!("cfc-check-{}-{}", std::process::id(), self.name().len()));
        let result = self.run_in(&directory, program);
        let _ = std::fs::remove_dir_all(&directory);
        result
    }

    fn run_in(&self, directory: &Path, program: &Path) -> Result<()> {
        let failed = |kind: ErrorKind| Error::new(format!("use the OCI runtime `{}`", self.name()), kind);
        prepare(directory).map_err(failed)?;
        let launcher = Launcher::private(program)?;
        launcher.start(&config(self, directory))?;
        let (sender, receiver) = mpsc::channel();
        let waiting = launcher.clone();
        std::thread::spawn(move || drop(sender.send(waiting.wait(ID))));
        match receiver.recv_timeout(PATIENCE) {
            Ok(exit) if exit.as_ref().is_ok_and(|exit| exit.status == ExitStatus::Code(INIT_USAGE)) => Ok(()),
            Ok(exit) => Err(failed(ErrorKind::Unavailable(format!(
                "a program that should end with {INIT_USAGE} ended with {:?}",
                exit?.status
            )))),
            Err(_) => {
                let _ = launcher.kill_all(ID);
                let seconds = PATIENCE.as_secs();
                Err(failed(ErrorKind::Unavailable(format!("a program had not run after {seconds} s"))))
            }
        }
    }
}

const ID: &str = "cfc-check";

/// A root filesystem with one program, which says how it is called and ends.
fn prepare(directory: &Path) -> std::result::Result<(), ErrorKind> {
    let step = || format!("make a root filesystem in {}", directory.display());
    for name in ["root", "upper", "work"] {
        std::fs::create_dir_all(directory.join(name)).step(step)?;
    }
    write_init_program(&directory.join("root/program")).step(step)
}

fn config(runtime: &OciRuntime, directory: &Path) -> SandboxConfig {
    let mut spec = default_spec();
    if let Some(process) = spec.process_mut() {
        process.set_args(Some(vec!["/program".to_owned()]));
    }
    let lowers = vec![directory.join("root")];
    SandboxConfig {
        id: ID.to_owned(),
        spec,
        root: Root::Overlay { lowers, upper: directory.join("upper"), work: directory.join("work") },
        network: Network::Isolated,
        stdio: Stdio::Log { path: directory.join("log"), max_bytes: 1 << 20 },
        runtime: Some(runtime.clone()),
    }
}
