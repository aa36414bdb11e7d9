//! [`Bundle`]: what an OCI runtime is given, made from a sandbox's configuration.
//!
//! ```text
//! <scratch>/               a tmpfs in the mount namespace of the sandbox
//!   bundle/config.json
//!   root/                  the overlay: the container's root
//!   l/ c/                  what the overlay consists of
//!   m/0 … m/n              the bind mounts' sources, ids mapped
//!   sys/                   a sysfs of the sandbox's network
//!   init                   process 1 of the container, where it is ours
//!   state/ log pid         the runtime's own
//! ```

use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    LinuxNamespaceType, LinuxSeccomp, LinuxSeccompAction, LinuxSyscall, Mount, MountBuilder, PosixRlimitBuilder,
    Process, RootBuilder, Spec,
};
use rustix::process::Resource;

use super::blueprint::{Blueprint, MountKind, owns_terminal, wants_init};
use super::idmap::IdMappings;
use crate::config::{Network, SandboxConfig};
use crate::error::ErrorKind;
use crate::oci_runtime::{Kind, OciRuntime};

/// The newest version that all known runtimes accept.
const OCI_VERSION: &str = "1.0.2";

/// The file of process 1, in the scratch filesystem and in the container.
pub(crate) const INIT: &str = "init";
const INIT_INSIDE: &str = "/dev/.cfc-init";

/// The longest name of a container that gVisor takes, which adds to it.
const NAME_LENGTH_MAX: usize = 64;

/// Directories that any host has one of, to lay the scratch filesystem over.
const SCRATCH_CANDIDATES: [&str; 4] = ["/run", "/tmp", "/mnt", "/var"];

/// Everything that the sandbox's first process needs to run the runtime.
pub(crate) struct Bundle {
    /// The root filesystem and the bind mounts' sources, as detached mounts.
    pub(crate) blueprint: Blueprint,
    pub(crate) scratch: PathBuf,
    pub(crate) config: Vec<u8>,
    /// The `process` of that.
    pub(crate) process: Process,
    /// Of the network namespace, which the runtime does not own: names with slashes.
    pub(crate) network_sysctls: Vec<(String, String)>,
    pub(crate) runtime: OciRuntime,
    /// The container's name for the runtime.
    pub(crate) id: String,
    /// The host's ids of the container's root, when it has a user namespace.
    pub(crate) owner: Option<(u32, u32)>,
    /// Whether process 1 is our own, as in a sandbox without a runtime, and the application its child.
    pub(crate) has_init: bool,
    /// The `oom_score_adj` that the runtime inherits.
    pub(crate) oom_score_adj: i32,
}

impl Bundle {
    /// Resolves `config`. `user` is a user namespace with the mapping of the container's own, when it has one, `disk` the
    /// mount of its disk, and `stdio` becomes its own.
    pub(crate) fn new(
        runtime: &OciRuntime,
        config: &SandboxConfig,
        user: Option<(BorrowedFd<'_>, &IdMappings)>,
        disk: Option<OwnedFd>,
        stdio: [OwnedFd; 3],
    ) -> Result<Bundle, ErrorKind> {
        let blueprint = Blueprint::new(config, user.map(|(namespace, _)| namespace), disk, stdio)?;
        let mappings = user.map(|(_, mappings)| mappings);
        let scratch = scratch(runtime.program())?;
        let mut spec = config.spec.clone();
        let sysctls = set_linux(&mut spec, config, mappings);
        set_mounts(&mut spec, &blueprint, &scratch)?;
        clamp_rlimits(&mut spec)?;
        let readonly = blueprint.is_root_readonly;
        spec.set_root(Some(RootBuilder::default().path(scratch.join("root")).readonly(readonly).build().map_err(bug)?));
        spec.set_version(OCI_VERSION.to_owned());
        if spec.hostname().as_deref().unwrap_or_default().is_empty() {
            spec.set_hostname(blueprint.hostname.clone());
        }
        if owns_terminal(&config.spec)
            && makes_terminal(runtime)
            && let Some(process) = spec.process_mut()
        {
            process.set_terminal(Some(true));
        }
        let oom_score_adj = inherited_oom_score(&mut spec, runtime);
        let has_init = wants_init(&config.spec);
        if has_init {
            add_init(&mut spec, &scratch)?;
        }
        Ok(Bundle {
            blueprint,
            config: serde_json::to_vec(&spec).map_err(bug)?,
            process: spec.process().clone().unwrap_or_default(),
            scratch,
            network_sysctls: sysctls,
            runtime: runtime.clone(),
            id: name_for(runtime, &config.id),
            owner: mappings.and_then(|mappings| mappings.on_host(0, 0)),
            has_init,
            oom_score_adj,
        })
    }
}

/// Whether the runtime is to make the container's terminal, and show it in the one that it gets itself. crun passes its own on
/// as it is, which does: of one that it makes (1.8) the size is lost.
fn makes_terminal(runtime: &OciRuntime) -> bool {
    runtime.kind() != Kind::Crun
}

/// Whatever is inherited from cfc, the runtime is no better a victim than what it runs. runsc sets the spec's adjustment on
/// processes that have dropped their rights by then, or not yet: to an ordinary user's it would be denied now and again. So
/// it is not told, and inherits it.
fn inherited_oom_score(spec: &mut Spec, runtime: &OciRuntime) -> i32 {
    let Some(process) = spec.process_mut().as_mut().filter(|_| runtime.kind() == Kind::Runsc) else { return 0 };
    let adjustment = process.oom_score_adj().unwrap_or(0);
    process.set_oom_score_adj(None::<i32>);
    adjustment
}

/// Whether the runtime makes the spec's user namespace. gVisor has no use for one: its kernel is its own, and what reaches
/// the host has already dropped its rights.
pub(crate) fn makes_user_namespace(runtime: &OciRuntime) -> bool {
    runtime.kind() != Kind::Runsc
}

/// How the runtime is to call the container. gVisor makes a socket of the name, which must be short; it shares a network
/// with no other, and names of instances differ at their ends. In a cgroup v2 tree runc wants a cgroup of that name beside
/// the one it is in, and goes on without when it cannot make it; one of the sandbox's own name is there, and read-only.
fn name_for(runtime: &OciRuntime, id: &str) -> String {
    let surplus = if runtime.kind() == Kind::Runsc { id.len().saturating_sub(NAME_LENGTH_MAX) } else { 0 };
    let name = id[surplus..].trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    let suffix = if runtime.kind() == Kind::Runc { "+" } else { "" };
    format!("{name}{suffix}")
}

/// The runtime must still be found below the scratch filesystem.
fn scratch(program: &Path) -> Result<PathBuf, ErrorKind> {
    let is_free = |path: &&&str| !program.starts_with(path) && Path::new(path).is_dir();
    let found = SCRATCH_CANDIDATES.iter().find(is_free).map(PathBuf::from);
    found.ok_or_else(|| ErrorKind::Unavailable("the host has no /run or /tmp".into()))
}

/// Leaves to the runtime what it is to do; returns the sysctls that are done for it.
fn set_linux(spec: &mut Spec, config: &SandboxConfig, mappings: Option<&IdMappings>) -> Vec<(String, String)> {
    let Some(linux) = spec.linux_mut() else { return Vec::new() };
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    namespaces.retain(|namespace| match namespace.typ() {
        LinuxNamespaceType::Network => false,
        LinuxNamespaceType::User => mappings.is_some(),
        _ => true,
    });
    linux.set_namespaces(Some(namespaces));
    let (users, groups) = mappings.map(|mappings| mappings.ranges()).unzip();
    linux.set_uid_mappings(users.map(<[_]>::to_vec)).set_gid_mappings(groups.map(<[_]>::to_vec));
    // The cgroup that it is started in has the limits.
    linux.set_resources(None);
    let profile = linux.seccomp().as_ref().map(for_libseccomp);
    linux.set_seccomp(profile);
    let all = linux.sysctl().clone().unwrap_or_default();
    let (of_network, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
        all.into_iter().partition(|(name, _)| name.starts_with("net."));
    linux.set_sysctl((!others.is_empty()).then(|| others.into_iter().collect()));
    match config.network {
        Network::Host => Vec::new(),
        _ => of_network.into_iter().map(|(name, value)| (name.replace('.', "/"), value)).collect(),
    }
}

/// For libseccomp an entry without conditions hides those with conditions of the same call. Such a refusal is left out: what
/// no condition allows gets the default answer, which is a refusal too.
fn for_libseccomp(profile: &LinuxSeccomp) -> LinuxSeccomp {
    let mut entries = profile.syscalls().clone().unwrap_or_default();
    let has_conditions = |entry: &LinuxSyscall| entry.args().as_ref().is_some_and(|args| !args.is_empty());
    let conditional: Vec<String> =
        entries.iter().filter(|entry| has_conditions(entry)).flat_map(|entry| entry.names().clone()).collect();
    for entry in entries.iter_mut().filter(|entry| !has_conditions(entry)) {
        if entry.action() == LinuxSeccompAction::ScmpActErrno {
            entry.set_names(
                entry.names().iter().filter(|name| !conditional.contains(name)).cloned().collect::<Vec<_>>(),
            );
        }
    }
    entries.retain(|entry| !entry.names().is_empty());
    let mut profile = profile.clone();
    profile.set_syscalls(Some(entries));
    profile
}

/// Sources become those in the bundle. A sysfs is bound, because only the owner of a network may mount its sysfs.
fn set_mounts(spec: &mut Spec, blueprint: &Blueprint, scratch: &Path) -> Result<(), ErrorKind> {
    let given = spec.mounts().clone().unwrap_or_default();
    let mounts = given.iter().zip(&blueprint.mounts).enumerate().map(|(i, (mount, plan))| match &plan.kind {
        MountKind::Bind { .. } => bound(mount, &scratch.join("m").join(i.to_string())),
        MountKind::New { filesystem } if filesystem == "sysfs" => bound(mount, &scratch.join("sys")),
        MountKind::New { .. } => Ok(mount.clone()),
        MountKind::Overlay { .. } | MountKind::File { .. } => {
            let (kind, target) = (mount.typ().as_deref().unwrap_or_default(), mount.destination().display());
            let message = format!("the {kind} at {target} cannot be mounted for an OCI runtime");
            Err(ErrorKind::Invalid(message))
        }
    });
    spec.set_mounts(Some(mounts.collect::<Result<_, _>>()?));
    Ok(())
}

fn bound(mount: &Mount, source: &Path) -> Result<Mount, ErrorKind> {
    let flags = ["ro", "rw", "nosuid", "nodev", "noexec", "noatime"];
    let given = mount.options().iter().flatten().filter(|option| flags.contains(&option.as_str())).cloned();
    let options = ["rbind".to_owned(), "rprivate".to_owned()].into_iter().chain(given).collect::<Vec<_>>();
    let destination = mount.destination().clone();
    MountBuilder::default().typ("bind").source(source).destination(destination).options(options).build().map_err(bug)
}

/// Has the application started by a process 1 of ours: a file in the container's `/dev`, which is no part of its disk.
fn add_init(spec: &mut Spec, scratch: &Path) -> Result<(), ErrorKind> {
    let options = ["bind", "rprivate", "ro", "nosuid", "nodev"].map(str::to_owned).to_vec();
    let mount =
        MountBuilder::default().typ("bind").source(scratch.join(INIT)).destination(INIT_INSIDE).options(options);
    let mounts = spec.mounts().iter().flatten().cloned().chain([mount.build().map_err(bug)?]).collect();
    spec.set_mounts(Some(mounts));
    let Some(process) = spec.process_mut() else { return Ok(()) };
    let own = [INIT_INSIDE.to_owned(), "--".to_owned()];
    let arguments = own.into_iter().chain(process.args().iter().flatten().cloned()).collect();
    process.set_args(Some(arguments));
    Ok(())
}

/// To what this machine's hard limits allow: runtimes give up where one is higher.
fn clamp_rlimits(spec: &mut Spec) -> Result<(), ErrorKind> {
    let Some(process) = spec.process_mut() else { return Ok(()) };
    let clamp = |limit: &oci_spec::runtime::PosixRlimit| {
        let allowed = crate::child::resource(limit.typ() as u32)
            .and_then(|resource: Resource| rustix::process::getrlimit(resource).maximum)
            .unwrap_or(u64::MAX);
        let hard = limit.hard().min(allowed);
        PosixRlimitBuilder::default().typ(limit.typ()).hard(hard).soft(limit.soft().min(hard)).build().map_err(bug)
    };
    let limits = process.rlimits().iter().flatten().map(clamp).collect::<Result<Vec<_>, _>>()?;
    process.set_rlimits(Some(limits));
    Ok(())
}

fn bug(error: impl std::fmt::Display) -> ErrorKind {
    ErrorKind::Invalid(format!("the bundle cannot be made: {error}"))
}
