//! `cfc doctor`: names what this machine lacks, and how to get it.

use std::path::Path;
use std::process::ExitCode;

use cfc_sandbox::{Finding, Severity, check_host, check_runtime, well_known_runtimes};
use cfc_workers::Toolchain;
use rustix::fs::Access;

use crate::failure::Failure;
use crate::isolation;
use crate::output;
use crate::server::launcher_program;
use crate::settings::Settings;

/// Prints a line a finding. The exit code is 1 when something that cfc cannot do without is missing.
pub fn run(settings: &Settings) -> Result<ExitCode, Failure> {
    let mut findings = check_host();
    findings.extend(check_tools(settings));
    findings.extend(check_data(settings));
    findings.extend(check_runtimes(settings)?);
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    for finding in &findings {
        let label = match finding.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        };
        output::data(format!("{label}: {}\n  {}", finding.what, finding.remedy));
    }
    let is_broken = findings.iter().any(|finding| finding.severity == Severity::Error);
    if is_broken {
        return Ok(ExitCode::FAILURE);
    }
    output::data("this machine can run cfc");
    Ok(ExitCode::SUCCESS)
}

/// Each runtime that the configuration file names, and those that are there besides: whether they work, they have to show.
fn check_runtimes(settings: &Settings) -> Result<Vec<Finding>, Failure> {
    let program = launcher_program()?;
    let configured = isolation::configured(settings);
    let names: Vec<String> = configured.iter().map(|(name, _)| name.clone()).collect();
    let of_configured = configured.into_iter().map(|(name, found)| match found {
        Ok(runtime) => check_runtime(&runtime, &program, true),
        Err(failure) => Finding {
            severity: Severity::Warning,
            what: format!("the OCI runtime `{name}`: {}", failure.message),
            remedy: "install it, or correct the configuration file".to_string(),
        },
    });
    let others = well_known_runtimes().into_iter().filter(|runtime| !names.iter().any(|name| name == runtime.name()));
    let of_others = others.map(|runtime| check_runtime(&runtime, &program, false));
    let mut findings: Vec<Finding> = of_configured.chain(of_others).collect();
    if findings.is_empty() {
        findings.push(Finding {
            severity: Severity::Note,
            what: "no OCI runtime besides cfc's own sandbox".to_string(),
            remedy: "none needed; for hostile code install runsc (gVisor), and set `runtime = \"runsc\"`".to_string(),
        });
    }
    Ok(findings)
}

/// Whether the data directory is where it can be made, written to and laid overlays on.
fn check_data(settings: &Settings) -> Vec<Finding> {
    let Some(there) = settings.data.ancestors().find(|path| path.exists()) else { return Vec::new() };
    let findings = [check_overlay(settings, there), check_writable(settings, there), check_room(settings, there)];
    findings.into_iter().flatten().collect()
}

fn check_writable(settings: &Settings, there: &Path) -> Option<Finding> {
    let error = rustix::fs::access(there, Access::WRITE_OK | Access::EXEC_OK).err()?;
    let error = std::io::Error::from(error);
    Some(Finding {
        severity: Severity::Error,
        what: format!(
            "the data directory `{}` cannot be written to: `{}`: {error}",
            settings.data.display(),
            there.display()
        ),
        remedy: "name another one with --data DIR or CFC_DATA, or make it this user's".to_string(),
    })
}

fn check_room(settings: &Settings, there: &Path) -> Option<Finding> {
    let found = rustix::fs::statvfs(there).ok()?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let (severity, what) = match free {
        _ if free < LEAST_ROOM => (Severity::Error, "nothing fits there"),
        _ if free < ROOM => {
            (Severity::Warning, "the smallest instances have 2000 MB of disk, images and builds need more")
        }
        _ => return None,
    };
    let data = settings.data.display();
    Some(Finding {
        severity,
        what: format!("the data directory `{data}` has {} MB of free disk: {what}", free / 1_000_000),
        remedy: "free some, or name a directory on another disk with --data DIR or CFC_DATA".to_string(),
    })
}

/// Less has no room for workerd.
const LEAST_ROOM: u64 = 100_000_000;
/// Less has no room for two instances.
const ROOM: u64 = 4_000_000_000;

/// Containers' own files are mostly on an overlay, and the kernel lays none over another's upper directory.
fn check_overlay(settings: &Settings, there: &Path) -> Option<Finding> {
    /// `OVERLAYFS_SUPER_MAGIC` of linux/magic.h.
    const OVERLAY: u64 = 0x794c_7630;
    let is_overlay = rustix::fs::statfs(there).is_ok_and(|found| found.f_type as u64 == OVERLAY);
    is_overlay.then(|| Finding {
        severity: Severity::Error,
        what: format!("the data directory `{}` is on an overlay, which can hold no other", settings.data.display()),
        remedy:
            "in a container, put it on a volume (Docker and Podman: `-v cfc:DIR`) or a tmpfs: `--data /dev/shm/cfc`"
                .to_string(),
    })
}

fn check_tools(settings: &Settings) -> Option<cfc_sandbox::Finding> {
    let error = Toolchain::locate(&settings.tools()).err()?;
    Some(cfc_sandbox::Finding {
        severity: Severity::Error,
        what: format!("workerd and esbuild are not installed in `{}`: {error}", settings.tools().display()),
        remedy: "run `cfc setup`".to_string(),
    })
}
