//! [`OciRuntime`]: a program that runs a sandbox's process in place of this crate.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// The runtimes that are looked for by [`check_host`](crate::check_host).
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

fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

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
