//! [`OciRuntime`]: a program that runs a sandbox's process in place of this crate.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// The runtimes that are looked for by [`well_known_runtimes`](crate::well_known_runtimes).
pub(crate) const WELL_KNOWN: [&str; 5] = ["runc", "crun", "runsc", "youki", "kata-runtime"];

/// Where programs are when the environment has no `PATH`.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program with the command line of runc: crun, runc, runsc, and whatever else has `run --bundle DIR ID`.
///
/// It runs as a child of the launcher, in namespaces that the launcher has made: a mount namespace with the root
/// filesystem in it, the sandbox's network, and a pid namespace, so that nothing outlives the sandbox. The limits are those
/// of the cgroup that it is started in; it sees the cgroup trees read-only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OciRuntime {
    /// What messages call it.
    name: String,
    program: PathBuf,
    /// The operator's arguments, before the command.
    arguments: Vec<String>,
}

/// What is known of a program, by its file's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Runc,
    Crun,
    /// gVisor.
    Runsc,
    Other,
}

impl OciRuntime {
    /// Finds `program`, a name to look for in `path` (a `PATH`; `None` for the usual directories) or a path.
    pub fn find(name: &str, program: &Path, arguments: &[String], path: Option<&str>) -> Result<OciRuntime> {
        let found = if program.components().count() > 1 {
            is_executable(program).then(|| program.to_owned())
        } else {
            let directories = path.unwrap_or(PATH_DEFAULT).split(':').filter(|directory| directory.starts_with('/'));
            directories.map(|directory| Path::new(directory).join(program)).find(|candidate| is_executable(candidate))
        };
        let missing = || {
            let program = program.display();
            Error::new(
                format!("use the OCI runtime `{name}`"),
                ErrorKind::Unavailable(format!("there is no program `{program}` on this machine")),
            )
        };
        let program = std::fs::canonicalize(found.ok_or_else(missing)?).map_err(|_| missing())?;
        if let Some(obstacle) = obstacle(&program) {
            return Err(Error::new(format!("use the OCI runtime `{name}`"), ErrorKind::Unavailable(obstacle)));
        }
        Ok(OciRuntime { name: name.to_owned(), program, arguments: arguments.to_vec() })
    }

    /// What messages call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The program, without links in its path.
    pub fn program(&self) -> &Path {
        &self.program
    }

    pub(crate) fn kind(&self) -> Kind {
        let name = self.program.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let known = [("runsc", Kind::Runsc), ("crun", Kind::Crun), ("runc", Kind::Runc)];
        known.into_iter().find(|(word, _)| name.contains(word)).map_or(Kind::Other, |(_, kind)| kind)
    }

    /// The arguments before the command: what the program needs to work inside ours, then the operator's.
    pub(crate) fn global_arguments(&self) -> Vec<String> {
        let own: &[&str] = match self.kind() {
            // It may go on when it cannot make cgroups.
            Kind::Runc => &["--rootless=true"],
            Kind::Crun => &["--cgroup-manager=disabled"],
            // The network is the namespace that it is started in, and not one inside the sentry: that is what reaches it.
            Kind::Runsc => &["--ignore-cgroups", "--network=host"],
            Kind::Other => &[],
        };
        own.iter().map(|argument| argument.to_string()).chain(self.arguments.iter().cloned()).collect()
    }
}

/// Why a runtime cannot do what is asked of it, as far as that is known before it tries. Kata's virtual machines need the
/// kernel's, and since version 2 it has no `run`: only containerd starts it, by a shim.
fn obstacle(program: &Path) -> Option<String> {
    let name = program.file_name()?.to_str()?;
    if !name.contains("kata") {
        return None;
    }
    let said = std::process::Command::new(program).arg("--help").output().ok();
    let said = said.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let has_run = said.lines().any(|line| line.split_whitespace().next().is_some_and(|word| word == "run"));
    let path = program.display();
    if !has_run {
        return Some(format!(
            "`{path}` has no `run` command: Kata Containers 2 and newer are started by containerd only (use runsc for hostile \
             code)"
        ));
    }
    let kvm = std::fs::File::options().read(true).write(true).open("/dev/kvm");
    kvm.err().map(|error| format!("`{path}` runs virtual machines, which need /dev/kvm: {error}"))
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kata_is_refused_where_it_cannot_run() {
        let directory = tempfile::tempdir().expect("a directory");
        let program = directory.path().join("kata-runtime");
        let find = |help: &str| {
            std::fs::write(&program, format!("#!/bin/sh\necho '{help}'\n")).expect("writable");
            std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("ours");
            OciRuntime::find("kata", &program, &[], None).map_err(|error| error.to_string())
        };
        let refused = find("COMMANDS:\n  check  tests if system can run Kata\n  env").expect_err("there is no `run`");
        assert!(refused.contains("`kata`") && refused.contains("containerd"), "{refused}");
        let has_kvm = std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
        match find("COMMANDS:\n  run  create and run a container") {
            Ok(_) => assert!(has_kvm),
            Err(refused) => assert!(!has_kvm && refused.contains("/dev/kvm"), "{refused}"),
        }
    }

    #[test]
    fn a_program_is_found_by_name_and_by_path_and_a_missing_one_is_named() {
        let find = |program: &str| OciRuntime::find("mine", Path::new(program), &["--debug".to_owned()], None);
        let shell = find("sh").expect("there is a shell");
        assert_eq!(shell.program(), std::fs::canonicalize("/bin/sh").expect("exists"));
        assert_eq!((shell.kind(), shell.global_arguments()), (Kind::Other, vec!["--debug".to_owned()]));
        assert!(find("/bin/sh").is_ok());
        for missing in ["no-such-runtime", "/no/such/runtime", "/etc/passwd", "/etc"] {
            let error = find(missing).expect_err(missing).to_string();
            let expected =
                format!("cannot use the OCI runtime `mine`: there is no program `{missing}` on this machine");
            assert_eq!(error, expected);
        }
    }
}
