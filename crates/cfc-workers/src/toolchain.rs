//! [`Toolchain`]: the pinned npm packages that cfc runs.
//!
//! The pins are `npm/package.json` and `npm/package-lock.json` of this crate. Of workerd and esbuild they name the
//! packages with the binaries and not the ones that choose between them, which we do here. The lock file has an integrity
//! hash for every package and no address of a registry, so npm takes them from wherever it is set up to. To update a pin,
//! change `package.json` and run `npm install --package-lock-only --omit-lockfile-registry-resolved` beside it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::{WorkersError, WorkersErrorKind};

const PACKAGE_JSON: &str = include_str!("../npm/package.json");
const PACKAGE_LOCK_JSON: &str = include_str!("../npm/package-lock.json");

const INSTALL_HINT: &str = "run `cfc setup`";
const NPM_HINT: &str = "install Node.js with npm (on Debian: `apt-get install npm`), then run `cfc setup`";

/// The pinned npm packages that cfc runs, on this machine.
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// The directory that holds `node_modules`.
    pub directory: PathBuf,
    /// The `workerd` binary.
    pub workerd: PathBuf,
    /// The `esbuild` binary.
    pub esbuild: PathBuf,
}

/// What the names of packages with native binaries begin with.
const NATIVE_SCOPES: [&str; 2] = ["@cloudflare/workerd-", "@esbuild/"];

/// The packages with the native binaries for this machine: workerd's and esbuild's.
fn native_packages() -> Result<(&'static str, &'static str), WorkersError> {
    match (std::env::consts::OS, std::env::consts::ARCH) {
        ("linux", "x86_64") => Ok(("@cloudflare/workerd-linux-64", "@esbuild/linux-x64")),
        ("linux", "aarch64") => Ok(("@cloudflare/workerd-linux-arm64", "@esbuild/linux-arm64")),
        (os, arch) => {
            let reason = format!("there is no workerd for {os} on {arch}");
            Err(WorkersError::new("find the pinned tools", WorkersErrorKind::Unsupported(reason)))
        }
    }
}

impl Toolchain {
    /// The tools in `tools_dir`, if all of them are there in the pinned versions.
    pub fn locate(tools_dir: &Path) -> Result<Toolchain, WorkersError> {
        let (workerd, esbuild) = native_packages()?;
        let node_modules = tools_dir.join("node_modules");
        let needed = |(package, _): &&(String, String)| {
            let is_native = NATIVE_SCOPES.iter().any(|scope| package.starts_with(scope));
            !is_native || [workerd, esbuild].contains(&package.as_str())
        };
        for (package, version) in pins().iter().filter(needed) {
            let found = installed_version(&node_modules.join(package));
            if found.as_deref() != Some(version) {
                let found = found.map(|version| format!(" (found {version})")).unwrap_or_default();
                let what = format!("the npm package `{package}` {version}{found}");
                let subject = format!("use the tools in `{}`", tools_dir.display());
                return Err(WorkersError::new(subject, WorkersErrorKind::Missing(what)).hint(INSTALL_HINT));
            }
        }
        Ok(Toolchain {
            directory: tools_dir.to_path_buf(),
            workerd: node_modules.join(workerd).join("bin/workerd"),
            esbuild: node_modules.join(esbuild).join("bin/esbuild"),
        })
    }

    /// Installs the pinned versions into `tools_dir` with `npm ci`; each line that npm says goes to `progress`.
    /// Blocks. What is installed already is left alone; otherwise the new tools replace the old ones at once, when they
    /// are complete.
    pub fn install(tools_dir: &Path, progress: &mut dyn FnMut(&str)) -> Result<Toolchain, WorkersError> {
        if let Ok(toolchain) = Toolchain::locate(tools_dir) {
            return Ok(toolchain);
        }
        let parent = tools_dir.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(parent).map_err(WorkersError::io("create", parent))?;
        let fresh = tempfile::Builder::new()
            .prefix(".tools-")
            .tempdir_in(parent)
            .map_err(WorkersError::io("create a directory in", parent))?;
        for (name, content) in [("package.json", PACKAGE_JSON), ("package-lock.json", PACKAGE_LOCK_JSON)] {
            let path = fresh.path().join(name);
            std::fs::write(&path, content).map_err(WorkersError::io("write", &path))?;
        }
        npm_ci(fresh.path(), progress)?;
        // npm passes over an optional package that it could not fetch.
        let reachable = "see whether npm reaches its package registry (`npm config get registry`), then try again";
        Toolchain::locate(fresh.path()).map_err(|error| error.hint(reachable))?;
        replace(&fresh.keep(), tools_dir)?;
        Toolchain::locate(tools_dir)
    }

    /// What is pinned: package and version.
    pub fn pins() -> Vec<(String, String)> {
        pins()
    }
}

/// The `dependencies` and `optionalDependencies` of the embedded package.json; npm leaves out those optional ones that
/// are for other machines.
fn pins() -> Vec<(String, String)> {
    let package: Value = serde_json::from_str(PACKAGE_JSON).expect("the embedded package.json is ours");
    let pin = |(name, version): (&String, &Value)| Some((name.clone(), version.as_str()?.to_string()));
    let fields = ["dependencies", "optionalDependencies"];
    fields.iter().filter_map(|field| package[field].as_object()).flatten().filter_map(pin).collect()
}

fn installed_version(package: &Path) -> Option<String> {
    let manifest = std::fs::read(package.join("package.json")).ok()?;
    let manifest: Value = serde_json::from_slice(&manifest).ok()?;
    Some(manifest["version"].as_str()?.to_string())
}

fn npm_ci(directory: &Path, progress: &mut dyn FnMut(&str)) -> Result<(), WorkersError> {
    let subject = || "install the pinned tools with `npm ci`".to_string();
    // No package's script runs: the binaries come in packages of their own, and the scripts only look for them.
    let mut npm = Command::new("npm")
        .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier"])
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                WorkersError::new(subject(), WorkersErrorKind::Missing("`npm`".to_string())).hint(NPM_HINT)
            }
            _ => WorkersError::new(subject(), WorkersErrorKind::Io(error)),
        })?;
    let mut said = String::new();
    for line in npm.stderr.take().into_iter().flat_map(|stderr| BufReader::new(stderr).lines()).map_while(Result::ok) {
        progress(&line);
        said.push_str(&line);
        said.push('\n');
    }
    let status = npm.wait().map_err(|error| WorkersError::new(subject(), WorkersErrorKind::Io(error)))?;
    if status.success() {
        return Ok(());
    }
    Err(WorkersError::new(subject(), WorkersErrorKind::Tool(format!("npm ended with {status}:\n{}", said.trim_end())))
        .hint("npm must reach its package registry once; `npm config get registry` says which one it asks"))
}

/// Puts the directory `fresh` at `destination`, in place of what is there.
fn replace(fresh: &Path, destination: &Path) -> Result<(), WorkersError> {
    if destination.exists() {
        std::fs::remove_dir_all(destination).map_err(WorkersError::io("remove", destination))?;
    }
    std::fs::rename(fresh, destination).map_err(WorkersError::io("create", destination))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_file_pins_what_the_package_file_names_and_no_registry() {
        let lock: Value = serde_json::from_str(PACKAGE_LOCK_JSON).expect("the lock file is JSON");
        for (package, version) in pins() {
            assert_eq!(lock["packages"][format!("node_modules/{package}")]["version"], version, "{package}");
        }
        let packages = lock["packages"].as_object().expect("packages");
        for (path, package) in packages.iter().filter(|(path, _)| !path.is_empty()) {
            assert!(package["integrity"].as_str().is_some_and(|hash| hash.starts_with("sha512-")), "{path}");
            assert!(package.get("resolved").is_none(), "{path} names a registry");
        }
    }

    #[test]
    fn missing_tools_are_named_with_the_command_that_installs_them() {
        let empty = tempfile::tempdir().expect("a directory");
        let error = Toolchain::locate(empty.path()).expect_err("nothing is installed");
        assert!(matches!(&error.kind, WorkersErrorKind::Missing(what) if what.contains("@cloudflare/containers")));
        assert_eq!(error.hint.as_deref(), Some("run `cfc setup`"));
    }
}
