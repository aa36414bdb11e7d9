//! [`Blueprint`]: a sandbox's configuration with everything resolved that can be, before its process exists.
//!
//! The launcher is privileged on the host and the new process is not, so here the launcher opens what the sandbox will
//! need from the host: detached, id-mapped copies of mounts. The new process inherits the descriptors.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxNamespaceType, Mount, Process};
use rustix::fs::CWD;
use rustix::mount::OpenTreeFlags;

use crate::child::capabilities::CapabilityMasks;
use crate::config::{INIT_ANNOTATION, Network, Root, SandboxConfig};
use crate::disk::Disk;
use crate::error::ErrorKind;
use crate::launcher::mount_options::MountOptions;
use crate::seccomp::Program;
use crate::step::Step;
use crate::sys;

/// What the new process does, in the terms of system calls.
pub(crate) struct Blueprint {
    pub(crate) clone_flags: u64,
    pub(crate) has_user_namespace: bool,
    pub(crate) has_cgroup_namespace: bool,
    pub(crate) has_network_namespace: bool,
    /// How outbound traffic is redirected, when it is.
    pub(crate) redirect: Option<RedirectPlan>,
    pub(crate) root: RootPlan,
    pub(crate) is_root_readonly: bool,
    pub(crate) mounts: Vec<MountPlan>,
    /// Host device nodes to show below `/dev`, when the spec mounts a `/dev`.
    pub(crate) devices: Vec<(PathBuf, OwnedFd)>,
    /// A copy of the host's `/dev/null`, to lay over masked files.
    pub(crate) null: OwnedFd,
    pub(crate) masked_paths: Vec<String>,
    pub(crate) readonly_paths: Vec<String>,
    pub(crate) sysctl: Vec<(String, String)>,
    pub(crate) hostname: Option<String>,
    pub(crate) rlimits: Vec<(u32, u64, u64)>,
    pub(crate) capabilities: CapabilityMasks,
    pub(crate) no_new_privileges: bool,
    pub(crate) seccomp: Program,
    pub(crate) user: UserPlan,
    pub(crate) arguments: Vec<CString>,
    pub(crate) environment: Vec<CString>,
    pub(crate) cwd: PathBuf,
    pub(crate) has_init: bool,
    pub(crate) oom_score_adj: Option<i32>,
}

/// How the outbound traffic is redirected.
#[derive(Clone, Copy)]
pub(crate) struct RedirectPlan {
    pub(crate) ipv6: bool,
}

/// The process's identity inside the sandbox.
#[derive(Clone)]
pub(crate) struct UserPlan {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) umask: u32,
}

/// The root filesystem as detached mounts.
pub(crate) enum RootPlan {
    Overlay {
        lowers: Vec<OwnedFd>,
        /// The directory that holds both upper and work: an overlay insists on one mount for both.
        changes: OwnedFd,
        upper: String,
        work: String,
    },
    Directory(OwnedFd),
}

/// One mount inside the root.
pub(crate) struct MountPlan {
    pub(crate) target: PathBuf,
    pub(crate) kind: MountKind,
}

/// What is mounted.
pub(crate) enum MountKind {
    /// A detached copy of something on the host.
    Bind { tree: OwnedFd, is_directory: bool },
    /// A new filesystem.
    New { filesystem: String, options: MountOptions },
}

/// The device nodes that every `/dev` shows.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

const UMASK_DEFAULT: u32 = 0o022;

impl Blueprint {
    /// Resolves `config`. `idmap` is a user namespace with the mapping of the sandbox's own, when it has one, and `disk` the
    /// mount of its disk.
    pub(crate) fn new(
        config: &SandboxConfig,
        seccomp: Program,
        idmap: Option<BorrowedFd<'_>>,
        disk: Option<OwnedFd>,
    ) -> Result<Blueprint, ErrorKind> {
        let spec = &config.spec;
        let process = spec.process().as_ref().ok_or_else(|| ErrorKind::Invalid("the spec has no `process`".into()))?;
        let empty = super::start::empty_linux();
        let linux = spec.linux().as_ref().unwrap_or(&empty);
        let flags = namespace_flags(linux, config.network)?;
        let has = |flag: LinuxNamespaceType| flags & flag as u64 != 0;
        let has_user_namespace = has(LinuxNamespaceType::User);
        let shares_network = !has(LinuxNamespaceType::Network) && has_user_namespace;
        let mounts = spec.mounts().iter().flatten();
        let mounts = mounts.map(|mount| plan_mount(mount, idmap, shares_network)).collect::<Result<Vec<_>, _>>()?;
        let rlimits = process.rlimits().iter().flatten();
        Ok(Blueprint {
            // The cgroup namespace is entered later, by the process itself, from within its cgroups.
            clone_flags: flags & !(LinuxNamespaceType::Cgroup as u64),
            has_user_namespace,
            has_cgroup_namespace: has(LinuxNamespaceType::Cgroup),
            has_network_namespace: has(LinuxNamespaceType::Network),
            redirect: match config.network {
                Network::Redirected { ipv6 } => Some(RedirectPlan { ipv6 }),
                Network::Isolated | Network::Host => None,
            },
            root: plan_root(&config.root, idmap, disk)?,
            is_root_readonly: spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false),
            mounts,
            devices: plan_devices(linux)?,
            null: detached(Path::new("/dev/null"), false)?,
            masked_paths: linux.masked_paths().clone().unwrap_or_default(),
            readonly_paths: linux.readonly_paths().clone().unwrap_or_default(),
            sysctl: plan_sysctl(linux, has(LinuxNamespaceType::Network))?,
            hostname: has(LinuxNamespaceType::Uts).then(|| hostname(config)),
            rlimits: rlimits.map(|limit| (limit.typ() as u32, limit.soft(), limit.hard())).collect(),
            capabilities: CapabilityMasks::new(process.capabilities().as_ref()),
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            seccomp,
            user: plan_user(process),
            arguments: c_strings(process.args().as_deref().unwrap_or_default(), "process.args")?,
            environment: c_strings(process.env().as_deref().unwrap_or_default(), "process.env")?,
            cwd: process.cwd().clone(),
            has_init: spec.annotations().as_ref().and_then(|a| a.get(INIT_ANNOTATION)).is_some_and(|v| v == "true"),
            oom_score_adj: process.oom_score_adj(),
        })
    }
}

/// The namespaces to make. A mount and a pid namespace always are; the network follows `network`.
fn namespace_flags(linux: &Linux, network: Network) -> Result<u64, ErrorKind> {
    let mut flags = LinuxNamespaceType::Mount as u64 | LinuxNamespaceType::Pid as u64;
    for namespace in linux.namespaces().iter().flatten() {
        if let Some(path) = namespace.path() {
            let path = path.display();
            return Err(ErrorKind::Invalid(format!("joining an existing namespace (`{path}`) is not supported")));
        }
        if namespace.typ() == LinuxNamespaceType::Time {
            return Err(ErrorKind::Invalid("a time namespace is not supported".into()));
        }
        flags |= namespace.typ() as u64;
    }
    match network {
        Network::Isolated | Network::Redirected { .. } => Ok(flags | LinuxNamespaceType::Network as u64),
        Network::Host => Ok(flags & !(LinuxNamespaceType::Network as u64)),
    }
}

fn plan_root(root: &Root, idmap: Option<BorrowedFd<'_>>, disk: Option<OwnedFd>) -> Result<RootPlan, ErrorKind> {
    match root {
        Root::Disk { lowers, .. } => {
            let changes = disk.ok_or_else(|| ErrorKind::Unavailable("it was given no disk".into()))?;
            if let Some(idmap) = idmap {
                sys::set_mount_attributes(changes.as_fd(), false, 0, Some(idmap))
                    .step(|| "map the ids of its disk".into())?;
            }
            Ok(RootPlan::Overlay {
                lowers: lowers.iter().map(|lower| mapped(lower, false, idmap)).collect::<Result<_, _>>()?,
                changes,
                upper: Disk::UPPER.into(),
                work: Disk::WORK.into(),
            })
        }
        Root::Directory { path } => Ok(RootPlan::Directory(mapped(path, false, idmap)?)),
        Root::Overlay { lowers, upper, work } => {
            clear_volatile_mark(work);
            let (parent, upper, work) = common_parent(upper, work)?;
            Ok(RootPlan::Overlay {
                lowers: lowers.iter().map(|lower| mapped(lower, false, idmap)).collect::<Result<_, _>>()?,
                changes: mapped(&parent, false, idmap)?,
                upper,
                work,
            })
        }
    }
}

/// Sandboxes are mounted `volatile` (their upper need not survive a power cut), which leaves a mark in `work` that would
/// stop the next mount of the same pair.
fn clear_volatile_mark(work: &Path) {
    let _ = fs::remove_dir(work.join("work/incompat/volatile"));
    let _ = fs::remove_dir(work.join("work/incompat"));
}

/// The deepest directory that holds both, and both relative to it.
fn common_parent(upper: &Path, work: &Path) -> Result<(PathBuf, String, String), ErrorKind> {
    let canonical = |path: &Path| fs::canonicalize(path).step(|| format!("find {}", path.display()));
    let (upper, work) = (canonical(upper)?, canonical(work)?);
    let shared = upper.components().zip(work.components()).take_while(|(a, b)| a == b).map(|(a, _)| a);
    let parent: PathBuf = shared.collect();
    let relative = |path: &Path| -> Result<String, ErrorKind> {
        let name = path.strip_prefix(&parent).ok().and_then(Path::to_str).unwrap_or_default();
        // These end up in the options of mount(2), where commas and colons separate.
        if name.is_empty() || name.contains([',', ':', '\\']) {
            return Err(ErrorKind::Invalid(format!("`{}` cannot be an overlay's upper or work", path.display())));
        }
        Ok(name.to_owned())
    };
    let (upper, work) = (relative(&upper)?, relative(&work)?);
    Ok((parent, upper, work))
}

fn plan_mount(mount: &Mount, idmap: Option<BorrowedFd<'_>>, shares_network: bool) -> Result<MountPlan, ErrorKind> {
    let target = mount.destination().clone();
    let options = MountOptions::parse(mount.options().as_deref().unwrap_or_default());
    let kind = mount.typ().as_deref().unwrap_or_default();
    let source = || {
        mount
            .source()
            .clone()
            .ok_or_else(|| ErrorKind::Invalid(format!("the mount at {} has no source", target.display())))
    };
    let kind = match kind {
        _ if options.is_bind => plan_bind(&source()?, &target, &options, idmap)?,
        "bind" => plan_bind(&source()?, &target, &options, idmap)?,
        // A new sysfs shows a network namespace, which must be the user namespace's own.
        "sysfs" if shares_network => plan_sys(&target, options)?,
        "proc" | "sysfs" | "tmpfs" | "devpts" | "mqueue" | "cgroup2" => {
            MountKind::New { filesystem: kind.to_owned(), options }
        }
        other => {
            let target = target.display();
            return Err(ErrorKind::Invalid(format!("a mount of type `{other}` (at {target}) is not supported")));
        }
    };
    Ok(MountPlan { target, kind })
}

/// The machine's `/sys`. To an ordinary user the kernel gives it only with all that is mounted below.
fn plan_sys(target: &Path, options: MountOptions) -> Result<MountKind, ErrorKind> {
    let sys = Path::new("/sys");
    match plan_bind(sys, target, &options, None) {
        Err(ErrorKind::Step { errno: libc::EINVAL, .. }) => {
            plan_bind(sys, target, &MountOptions { is_recursive: true, ..options }, None)
        }
        result => result,
    }
}

fn plan_bind(
    source: &Path,
    target: &Path,
    options: &MountOptions,
    idmap: Option<BorrowedFd<'_>>,
) -> Result<MountKind, ErrorKind> {
    let metadata = fs::metadata(source).step(|| format!("find the mount source {}", source.display()))?;
    let tree = mapped_if_possible(source, options.is_recursive, idmap)?;
    sys::set_mount_attributes(tree.as_fd(), options.is_recursive, options.attributes, None)
        .step(|| format!("set the options of the mount at {}", target.display()))?;
    Ok(MountKind::Bind { tree, is_directory: metadata.is_dir() })
}

fn plan_devices(linux: &Linux) -> Result<Vec<(PathBuf, OwnedFd)>, ErrorKind> {
    let usual = DEVICES.iter().map(|name| Path::new("/dev").join(name));
    let more = linux.devices().iter().flatten().map(|device| device.path().clone());
    let mut devices = Vec::new();
    for path in usual.chain(more) {
        let metadata = fs::metadata(&path).step(|| format!("find the device {}", path.display()))?;
        if metadata.file_type().is_char_device() && metadata.rdev() != 0 {
            let tree = detached(&path, false)?;
            devices.push((path, tree));
        }
    }
    Ok(devices)
}

fn plan_sysctl(linux: &Linux, owns_network: bool) -> Result<Vec<(String, String)>, ErrorKind> {
    let ordered: BTreeMap<_, _> = linux.sysctl().iter().flatten().collect();
    let mut plan = Vec::new();
    for (name, value) in ordered {
        let is_network = name.starts_with("net.");
        let is_namespaced = is_network || name.starts_with("kernel.msg") || name.starts_with("kernel.shm");
        if !is_namespaced && name != "kernel.sem" && !name.starts_with("fs.mqueue.") {
            return Err(ErrorKind::Invalid(format!("the sysctl `{name}` would change the host")));
        }
        if owns_network || !is_network {
            plan.push((name.replace('.', "/"), value.clone()));
        }
    }
    Ok(plan)
}

fn plan_user(process: &Process) -> UserPlan {
    let user = process.user();
    UserPlan {
        uid: user.uid(),
        gid: user.gid(),
        groups: user.additional_gids().clone().unwrap_or_default(),
        umask: user.umask().unwrap_or(UMASK_DEFAULT),
    }
}

/// The given host name, else the id cut to what the kernel takes.
fn hostname(config: &SandboxConfig) -> String {
    let given = config.spec.hostname().as_deref().filter(|name| !name.is_empty());
    given.unwrap_or(&config.id).chars().take(63).collect()
}

pub(crate) fn c_strings(strings: &[String], what: &str) -> Result<Vec<CString>, ErrorKind> {
    let convert = |s: &String| {
        CString::new(s.as_str()).map_err(|_| ErrorKind::Invalid(format!("`{what}` holds a zero byte: {s:?}")))
    };
    strings.iter().map(convert).collect()
}

/// A detached copy of the mount at `path`, with ids mapped when the sandbox has a user namespace.
fn mapped(path: &Path, is_recursive: bool, idmap: Option<BorrowedFd<'_>>) -> Result<OwnedFd, ErrorKind> {
    let tree = detached(path, is_recursive)?;
    if let Some(idmap) = idmap {
        sys::set_mount_attributes(tree.as_fd(), is_recursive, 0, Some(idmap))
            .step(|| format!("map the ids of {} (its filesystem must support it, as ext4 does)", path.display()))?;
    }
    Ok(tree)
}

/// As [`mapped`]; on a filesystem that cannot map ids (devtmpfs, sysfs, an overlay) they stay the host's.
fn mapped_if_possible(path: &Path, is_recursive: bool, idmap: Option<BorrowedFd<'_>>) -> Result<OwnedFd, ErrorKind> {
    let tree = detached(path, is_recursive)?;
    let result = idmap.map_or(Ok(()), |idmap| sys::set_mount_attributes(tree.as_fd(), is_recursive, 0, Some(idmap)));
    match result {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(tree),
        result => result.step(|| format!("map the ids of {}", path.display())).map(|()| tree),
    }
}

fn detached(path: &Path, is_recursive: bool) -> Result<OwnedFd, ErrorKind> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if is_recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(CWD, path.as_os_str().as_bytes(), flags).step(|| format!("open {}", path.display()))
}
