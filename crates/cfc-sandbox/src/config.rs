//! [`SandboxConfig`]: one sandbox, as its caller describes it.

use std::path::PathBuf;

use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use crate::disk::DiskKind;
use crate::error::{Error, ErrorKind, Result};
use crate::oci_runtime::OciRuntime;
use crate::unsupported::first_unsupported;

/// With this annotation set to `true`, the sandbox's process 1 is a small reaper and the application is its child.
///
/// Without it the application itself is process 1, as with Docker: it must reap its orphans, and a signal for which it
/// has no handler does nothing to it, `SIGKILL` excepted.
pub const INIT_ANNOTATION: &str = "cfc.init";

/// With this annotation set to `true`, stdin, stdout and stderr are a terminal that is the sandbox's own: the application gets
/// it as its owner, so that it can open `/dev/stdout` as any user. Without it a terminal stays whose it is.
pub const TERMINAL_ANNOTATION: &str = "cfc.terminal";

/// With this annotation set to `true`, the sandbox can make device nodes in its root, where the launcher is the machine's root,
/// the root is an overlay, and no process can have CAP_SYS_ADMIN. Nobody can open them there. Without it, or elsewhere,
/// `mknod` of a device answers EPERM.
pub const DEVICE_NODES_ANNOTATION: &str = "cfc.device-nodes";

const ID_LENGTH_MAX: usize = 200;

/// One sandbox: an OCI runtime spec plus what the spec cannot say.
///
/// Start from [`default_spec`](crate::default_spec) and change what the caller needs. What the launcher reads of the
/// spec: `process` (args, env, cwd, user, capabilities, rlimits, no_new_privileges, oom_score_adj), `root.readonly`,
/// `mounts`, `hostname`, `annotations`, and of `linux`: namespaces, uid and gid mappings, resources (cpu, memory, pids),
/// seccomp, masked and readonly paths, sysctl, devices. What else a spec can ask for is refused by name.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxConfig {
    /// Names the sandbox and its cgroup: 1 to 200 of `[A-Za-z0-9_.-]`, not starting with a dot.
    pub id: String,
    /// What runs, and under which restrictions.
    pub spec: Spec,
    /// Where its root filesystem comes from.
    pub root: Root,
    /// Which network it sees.
    pub network: Network,
    /// Where its output goes.
    pub stdio: Stdio,
    /// What runs it in place of this crate.
    #[serde(default)]
    pub runtime: Option<OciRuntime>,
}

/// Where a sandbox's root filesystem comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Root {
    /// An overlay mounted inside the sandbox's own mount namespace.
    ///
    /// `upper` and `work` must exist, be empty or from an earlier overlay, and lie on one filesystem. After the exit
    /// `upper` holds exactly what changed, with the image's own ids.
    Overlay {
        /// Unpacked layers, topmost first.
        lowers: Vec<PathBuf>,
        /// Receives what the sandbox writes.
        upper: PathBuf,
        /// The overlay's scratch directory.
        work: PathBuf,
    },
    /// As [`Root::Overlay`], with what the sandbox writes on a disk of its own, which is empty at the start and gone
    /// after the end. When it is full, or has no inode left, the sandbox gets `ENOSPC` and nobody else.
    Disk {
        /// Unpacked layers, topmost first.
        lowers: Vec<PathBuf>,
        /// How large the disk is, and where its space comes from.
        disk: DiskKind,
    },
    /// A directory used as it is; the sandbox writes into it.
    Directory {
        /// The directory.
        path: PathBuf,
    },
}

/// Which network a sandbox sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// A network namespace of its own, in which only the loopback device is up.
    Isolated,
    /// As [`Network::Isolated`], with all TCP that is not for the sandbox's own loopback, and all DNS, redirected to the
    /// sockets of [`Launcher::outbound`](crate::Launcher::outbound), from the first instruction on. Everything else finds
    /// nobody. Where the kernel cannot redirect, the sandbox starts without, and `outbound` says why.
    Redirected {
        /// Whether IPv6 is redirected too. Without, connections to IPv6 addresses fail at once, which lets a program try
        /// IPv4 next.
        ipv6: bool,
    },
    /// The launcher's network. For builds.
    Host,
}

/// Where a sandbox's output goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stdio {
    /// The launcher reads stdout and stderr and appends JSON lines `{"time","stream","line"}` to the file; stdin is
    /// empty. At `max_bytes` the file is renamed to `<path>.1`, replacing an older one, and a new one begins.
    Log {
        /// The log file; created when absent, its directory must exist.
        path: PathBuf,
        /// The size at which the file is rotated.
        max_bytes: u64,
    },
    /// The three descriptors given to [`Launcher::start_with_stdio`](crate::Launcher::start_with_stdio).
    Files,
}

impl SandboxConfig {
    /// Refuses a configuration that no launcher could carry out, before anything is made.
    pub(crate) fn validate(&self) -> Result<()> {
        let invalid =
            |message: String| Err(Error::new(format!("start sandbox `{}`", self.id), ErrorKind::Invalid(message)));
        if !is_valid_id(&self.id) {
            return invalid(format!("the id must be 1 to {ID_LENGTH_MAX} of [A-Za-z0-9_.-], not starting with a dot"));
        }
        let Some(process) = self.spec.process() else { return invalid("the spec has no `process`".into()) };
        if process.args().as_ref().is_none_or(Vec::is_empty) {
            return invalid("`process.args` is empty: there is no command to run".into());
        }
        if !process.cwd().is_absolute() {
            return invalid(format!("`process.cwd` must be absolute, got `{}`", process.cwd().display()));
        }
        if let Some(path) = first_unsupported(&self.spec) {
            return invalid(format!("`{path}` of the spec is not supported"));
        }
        if let Root::Overlay { lowers, .. } | Root::Disk { lowers, .. } = &self.root
            && lowers.is_empty()
        {
            return invalid("an overlay root needs at least one lower directory".into());
        }
        Ok(())
    }
}

fn is_valid_id(id: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    !id.is_empty() && id.len() <= ID_LENGTH_MAX && !id.starts_with('.') && id.chars().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::is_valid_id;

    #[test]
    fn ids_cannot_leave_their_cgroup() {
        for good in ["a", "workerd-abc_1.2", "0"] {
            assert!(is_valid_id(good), "{good}");
        }
        for bad in ["", ".", "..", ".hidden", "a/b", "a b", "é", &"x".repeat(201)] {
            assert!(!is_valid_id(bad), "{bad}");
        }
    }
}
