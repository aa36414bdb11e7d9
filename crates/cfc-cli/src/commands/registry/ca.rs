//! `cfc registry ca`: the registry's own certificate authority, and who on this machine trusts it.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use cfc_registry::LocalCa;

use crate::args::{RegistryCa, RegistryCaTrust};
use crate::failure::Failure;
use crate::output;
use crate::server::registry;
use crate::settings::Settings;

/// Where systems keep what an administrator trusts, and what takes notice of it.
const SYSTEMS: [(&str, &str); 2] = [
    ("/usr/local/share/ca-certificates", "update-ca-certificates"),
    ("/etc/pki/ca-trust/source/anchors", "update-ca-trust"),
];

pub fn run(settings: &Settings, command: &RegistryCa) -> Result<ExitCode, Failure> {
    let directory = registry::ca_directory(settings);
    let ca = LocalCa::find(&directory)?.ok_or_else(|| {
        Failure::new(format!("no registry has made an authority in `{}`", directory.display())).hint(
            "one with `tls_names` below `[registry]` makes it when it is served first; if that runs on another data \
             directory, as another user's does, name it with --data DIR",
        )
    })?;
    match command {
        RegistryCa::Show => output::data(ca.certificate().display()),
        RegistryCa::Install(trust) => install(&ca, trust)?,
        RegistryCa::Uninstall(trust) => uninstall(&ca, trust)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn install(ca: &LocalCa, trust: &RegistryCaTrust) -> Result<(), Failure> {
    let certificate = read(ca.certificate())?;
    for path in client_files(ca, trust)? {
        write(&path, &certificate)?;
        output::data(path.display());
    }
    if trust.system {
        let (path, update) = system_file(ca)?;
        write(&path, &certificate)?;
        output::data(path.display());
        run_program(update)?;
    }
    Ok(())
}

/// Removes what [`install`] has put there, and nothing that is another's.
fn uninstall(ca: &LocalCa, trust: &RegistryCaTrust) -> Result<(), Failure> {
    for path in client_files(ca, trust)? {
        if remove_own(&path, ca)? {
            output::data(path.display());
            // Only if nothing else is in it.
            let _ = path.parent().map(std::fs::remove_dir);
        }
    }
    if trust.system {
        let (path, update) = system_file(ca)?;
        if remove_own(&path, ca)? {
            output::data(path.display());
            run_program(update)?;
        }
    }
    Ok(())
}

/// Where Docker's daemon and the podman family look for certificates of a registry.
fn client_files(ca: &LocalCa, trust: &RegistryCaTrust) -> Result<Vec<PathBuf>, Failure> {
    let bases = match cfc_sandbox::user_id() {
        0 => [PathBuf::from("/etc/docker/certs.d"), PathBuf::from("/etc/containers/certs.d")],
        _ => {
            let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
            let own = std::env::var_os("XDG_CONFIG_HOME").map_or_else(|| home.join(".config"), PathBuf::from);
            [own.join("docker/certs.d"), own.join("containers/certs.d")]
        }
    };
    let mut files = Vec::new();
    for host in &trust.hosts {
        let is_host = |character: char| character.is_ascii_alphanumeric() || ".-:[]_".contains(character);
        if host.is_empty() || host.starts_with('.') || !host.chars().all(is_host) {
            return Err(Failure::new(format!("`{host}` is no host, or host and port, of a registry")));
        }
        files.extend(bases.iter().map(|base| base.join(host).join(format!("{}.crt", file_name(ca)))));
    }
    Ok(files)
}

fn file_name(ca: &LocalCa) -> String {
    ca.name().replace(' ', "-")
}

fn system_file(ca: &LocalCa) -> Result<(PathBuf, &'static str), Failure> {
    let found = SYSTEMS.iter().find(|(directory, _)| Path::new(directory).is_dir());
    let (directory, update) = found.ok_or_else(|| {
        Failure::new("this system keeps the certificates that it trusts in a place that cfc does not know")
            .hint(format!("add `{}` by the system's own means", ca.certificate().display()))
    })?;
    Ok((Path::new(directory).join(format!("{}.crt", file_name(ca))), update))
}

fn run_program(program: &str) -> Result<(), Failure> {
    let output = Command::new(program)
        .output()
        .map_err(|error| Failure::because(format!("cannot run `{program}`, which takes notice of it"), &error))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(Failure::new(format!("`{program}` failed: {}", String::from_utf8_lossy(&output.stderr).trim()))),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| Failure::because(format!("cannot read `{}`", path.display()), &error))
}

/// Whole or not at all, since what is half written would be trusted by nobody, and complained of by some.
fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let new = path.with_extension("new");
    let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    let written = made.and_then(|()| std::fs::write(&new, bytes)).and_then(|()| std::fs::File::open(&new)?.sync_all());
    written.and_then(|()| std::fs::rename(&new, path)).map_err(|error| {
        Failure::because(format!("cannot write `{}`", path.display()), &error)
            .hint("as root, for Docker's daemon and the system; as another user, for what that user runs")
    })
}

/// False when there is no such file, or one of others.
fn remove_own(path: &Path, ca: &LocalCa) -> Result<bool, Failure> {
    if std::fs::read(path).is_ok_and(|found| ca.is_own(&found)) {
        let removed = std::fs::remove_file(path);
        removed.map_err(|error| Failure::because(format!("cannot remove `{}`", path.display()), &error))?;
        return Ok(true);
    }
    Ok(false)
}
