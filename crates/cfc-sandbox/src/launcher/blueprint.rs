//! [`Blueprint`]: a sandbox's configuration with everything resolved that can be, before its process exists.
//!
//! The launcher is privileged on the host and the sandbox's process is not, so here the launcher opens what the sandbox
//! will need from the host: detached, id-mapped copies of mounts. The process, which exists already and waits as a
//! [`Shell`](super::shell::Shell), gets the descriptors and everything else over its control socket.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceType, LinuxNamespaceType, Mount, Process, Spec};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags};
use serde::{Deserialize, Serialize};

use crate::child::capabilities::CapabilityMasks;
use crate::config::{INIT_ANNOTATION, Network, Root, SandboxConfig, TERMINAL_ANNOTATION};
use crate::disk::Disk;
use crate::error::ErrorKind;
use crate::launcher::mount_options::MountOptions;
use crate::seccomp::Program;
use crate::step::Step;
use crate::sys;

/// What the new process does, in the terms of system calls.
#[derive(Serialize, Deserialize)]
pub(crate) struct Blueprint {
    pub(crate) has_user_namespace: bool,
    pub(crate) stdio: [Handle; 3],
    pub(crate) root: RootPlan,
    pub(crate) is_root_readonly: bool,
    pub(crate) mounts: Vec<MountPlan>,
    /// Device nodes to show below `/dev` besides those that every `/dev` shows, when the spec mounts one.
    pub(crate) devices: Vec<(PathBuf, Handle)>,
    pub(crate) masked_paths: Vec<String>,
    pub(crate) readonly_paths: Vec<String>,
    pub(crate) sysctl: Vec<(String, String)>,
    pub(crate) hostname: Option<String>,
    pub(crate) rlimits: Vec<(u32, u64, u64)>,
    pub(crate) capabilities: CapabilityMasks,
    pub(crate) no_new_privileges: bool,
    /// The shell has it already.
    #[serde(skip)]
    pub(crate) seccomp: Program,
    pub(crate) user: UserPlan,
    /// Neither these nor the environment hold a zero byte.
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<String>,
    pub(crate) cwd: PathBuf,
    /// The program that becomes process 1, when the application is not to be.
    pub(crate) init: Option<Handle>,
    /// The connection to the [`NodeMaker`](super::node_maker::NodeMaker), which mounts the root, when there is one.
    pub(crate) node_maker: Option<Handle>,
    pub(crate) oom_score_adj: Option<i32>,
    /// They travel beside the rest, in this order.
    #[serde(skip)]
    pub(crate) descriptors: Descriptors,
}

/// The descriptors of a blueprint.
#[derive(Default)]
pub(crate) struct Descriptors(pub(crate) Vec<OwnedFd>);

/// One of a blueprint's [`Descriptors`].
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Handle(usize);

impl Descriptors {
    pub(crate) fn keep(&mut self, descriptor: OwnedFd) -> Handle {
        self.0.push(descriptor);
        Handle(self.0.len() - 1)
    }

    /// The descriptor of a handle that [`keep`](Descriptors::keep) gave.
    pub(crate) fn get(&self, handle: Handle) -> &OwnedFd {
        &self.0[handle.0]
    }
}

/// The process's identity inside the sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct UserPlan {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) umask: u32,
}

/// The root filesystem as detached mounts.
#[derive(Serialize, Deserialize)]
pub(crate) enum RootPlan {
    Overlay {
        lowers: Vec<Handle>,
        /// The directory that holds both upper and work: an overlay insists on one mount for both.
        changes: Handle,
        upper: String,
        work: String,
    },
    Directory(Handle),
}

/// One mount inside the root.
#[derive(Serialize, Deserialize)]
pub(crate) struct MountPlan {
    pub(crate) target: PathBuf,
    pub(crate) kind: MountKind,
}

/// What is mounted.
#[derive(Serialize, Deserialize)]
pub(crate) enum MountKind {
    /// A detached copy of something on the host.
    Bind { tree: Handle, is_directory: bool },
    /// A new filesystem.
    New { filesystem: String },
    /// A copy of a small file, in memory that nobody else sees and that cannot be written to.
    File { content: Handle, mode: u32, uid: u32, gid: u32 },
    /// A part of layers over each other. What is written goes to `changes`; without, nothing can be written.
    Overlay { lowers: Vec<Handle>, changes: Option<Changes>, subpath: PathBuf, attributes: u64 },
}

/// Where an overlay is written to: a directory that holds both upper and work.
#[derive(Serialize, Deserialize)]
pub(crate) struct Changes {
    pub(crate) parent: Handle,
    pub(crate) upper: String,
    pub(crate) work: String,
}

const UMASK_DEFAULT: u32 = 0o022;

impl Blueprint {
    /// Resolves `config`. `idmap` is the sandbox's user namespace, when it has one, `disk` the mount of its disk, and `stdio`
    /// becomes the process's own.
    pub(crate) fn new(
        config: &SandboxConfig,
        idmap: Option<BorrowedFd<'_>>,
        disk: Option<OwnedFd>,
        stdio: [OwnedFd; 3],
    ) -> Result<Blueprint, ErrorKind> {
        let spec = &config.spec;
        let process = spec.process().as_ref().ok_or_else(|| ErrorKind::Invalid("the spec has no `process`".into()))?;
        let empty = super::start::empty_linux();
        let linux = spec.linux().as_ref().unwrap_or(&empty);
        let flags = namespace_flags(linux, config.network)?;
        let has = |flag: LinuxNamespaceType| flags & flag as u64 != 0;
        let has_user_namespace = has(LinuxNamespaceType::User);
        let mut planner = Planner {
            idmap,
            shares_network: !has(LinuxNamespaceType::Network) && has_user_namespace,
            descriptors: Descriptors::default(),
        };
        let mounts = spec.mounts().iter().flatten();
        let rlimits = process.rlimits().iter().flatten();
        Ok(Blueprint {
            has_user_namespace,
            stdio: stdio.map(|descriptor| planner.descriptors.keep(descriptor)),
            root: planner.root(&config.root, disk)?,
            is_root_readonly: spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false),
            mounts: mounts.map(|mount| planner.mount(mount)).collect::<Result<_, _>>()?,
            devices: planner.devices(linux)?,
            masked_paths: linux.masked_paths().clone().unwrap_or_default(),
            readonly_paths: linux.readonly_paths().clone().unwrap_or_default(),
            sysctl: plan_sysctl(linux, has(LinuxNamespaceType::Network))?,
            hostname: has(LinuxNamespaceType::Uts).then(|| hostname(config)),
            rlimits: rlimits.map(|limit| (limit.typ() as u32, limit.soft(), limit.hard())).collect(),
            capabilities: CapabilityMasks::new(process.capabilities().as_ref()),
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            seccomp: Program::default(),
            user: plan_user(process),
            arguments: without_zeros(process.args().as_deref().unwrap_or_default(), "process.args")?,
            environment: without_zeros(process.env().as_deref().unwrap_or_default(), "process.env")?,
            cwd: process.cwd().clone(),
            init: None,
            node_maker: None,
            oom_score_adj: process.oom_score_adj(),
            descriptors: planner.descriptors,
        })
    }
}

/// Whether the mount is a new filesystem. A sandbox that shares the host's network is shown the host's sysfs.
pub(crate) fn is_new(mount: &Mount, shares_network: bool) -> bool {
    let is_bind = mount.options().iter().flatten().any(|option| option == "bind" || option == "rbind");
    match mount.typ().as_deref().unwrap_or_default() {
        _ if is_bind => false,
        "sysfs" => !shares_network,
        kind => ["proc", "tmpfs", "devpts", "mqueue", "cgroup2"].contains(&kind),
    }
}

/// Whether the application is not to be process 1.
pub(crate) fn wants_init(spec: &Spec) -> bool {
    is_annotated(spec, INIT_ANNOTATION)
}

/// Whether its standard streams are a terminal of its own.
pub(crate) fn owns_terminal(spec: &Spec) -> bool {
    is_annotated(spec, TERMINAL_ANNOTATION)
}

/// Whether the annotation is `true`.
pub(super) fn is_annotated(spec: &Spec, annotation: &str) -> bool {
    spec.annotations().as_ref().and_then(|annotations| annotations.get(annotation)).is_some_and(|v| v == "true")
}

/// The namespaces to make. A mount and a pid namespace always are; the network follows `network`.
pub(crate) fn namespace_flags(linux: &Linux, network: Network) -> Result<u64, ErrorKind> {
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

/// Opens what a blueprint needs of the host.
struct Planner<'a> {
    idmap: Option<BorrowedFd<'a>>,
    shares_network: bool,
    descriptors: Descriptors,
}

impl Planner<'_> {
    fn root(&mut self, root: &Root, disk: Option<OwnedFd>) -> Result<RootPlan, ErrorKind> {
        match root {
            Root::Disk { lowers, .. } => {
                let changes = disk.ok_or_else(|| ErrorKind::Unavailable("it was given no disk".into()))?;
                if let Some(idmap) = self.idmap {
                    sys::set_mount_attributes(changes.as_fd(), false, 0, Some(idmap))
                        .step(|| "map the ids of its disk".into())?;
                }
                Ok(RootPlan::Overlay {
                    lowers: lowers.iter().map(|lower| self.mapped(lower)).collect::<Result<_, _>>()?,
                    changes: self.descriptors.keep(changes),
                    upper: Disk::UPPER.into(),
                    work: Disk::WORK.into(),
                })
            }
            Root::Directory { path } => Ok(RootPlan::Directory(self.mapped(path)?)),
            Root::Overlay { lowers, upper, work } => {
                clear_volatile_mark(work);
                let (parent, upper, work) = common_parent(upper, work)?;
                Ok(RootPlan::Overlay {
                    lowers: lowers.iter().map(|lower| self.mapped(lower)).collect::<Result<_, _>>()?,
                    changes: self.mapped(&parent)?,
                    upper,
                    work,
                })
            }
        }
    }

    fn mapped(&mut self, path: &Path) -> Result<Handle, ErrorKind> {
        Ok(self.descriptors.keep(mapped(path, false, self.idmap)?))
    }

    fn mount(&mut self, mount: &Mount) -> Result<MountPlan, ErrorKind> {
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
            // A new sysfs shows a network namespace, which must be the user namespace's own.
            "sysfs" if self.shares_network && !options.is_bind => self.sys(&target, options)?,
            _ if is_new(mount, self.shares_network) => MountKind::New { filesystem: kind.to_owned() },
            "overlay" => self.overlay(&options, &target)?,
            "file" => self.file(&source()?, &options)?,
            _ if options.is_bind || kind == "bind" => self.bind(&source()?, &target, &options, self.idmap)?,
            other => {
                let target = target.display();
                return Err(ErrorKind::Invalid(format!("a mount of type `{other}` (at {target}) is not supported")));
            }
        };
        Ok(MountPlan { target, kind })
    }

    /// An overlay from the options `lowerdir=PATH`, once for each layer, topmost first; `upperdir=PATH` and `workdir=PATH`,
    /// both or neither; and `subpath=PATH`, the part of it that is mounted.
    fn overlay(&mut self, options: &MountOptions, target: &Path) -> Result<MountKind, ErrorKind> {
        let values = |name: &str| -> Vec<PathBuf> {
            let named = options.data.iter().filter(|(key, _)| key == name);
            named.filter_map(|(_, value)| value.as_ref().map(PathBuf::from)).collect()
        };
        let lowers = values("lowerdir");
        let changes = match (values("upperdir").as_slice(), values("workdir").as_slice()) {
            ([], []) if lowers.len() > 1 => None,
            ([upper], [work]) if !lowers.is_empty() => {
                let (parent, upper, work) = common_parent(upper, work)?;
                Some(Changes { parent: self.mapped(&parent)?, upper, work })
            }
            _ => {
                let target = target.display();
                let rule = "needs lower directories, and an upper with its work or two lower ones";
                return Err(ErrorKind::Invalid(format!("the overlay at {target} {rule}")));
            }
        };
        Ok(MountKind::Overlay {
            lowers: lowers.iter().map(|lower| self.mapped(lower)).collect::<Result<_, _>>()?,
            changes,
            subpath: values("subpath").pop().unwrap_or_else(|| PathBuf::from("/")),
            attributes: options.attributes,
        })
    }

    /// The file `source`, copied into memory, with the options `mode`, `uid` and `gid`.
    fn file(&mut self, source: &Path, options: &MountOptions) -> Result<MountKind, ErrorKind> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let content = rustix::fs::open(source, flags, Mode::empty()).step(|| "open a file to show".into())?;
        let number = |name: &str, radix: u32, default: u32| {
            let value = options.data.iter().find(|(key, _)| key == name).and_then(|(_, value)| value.as_ref());
            let number = value.map_or(Some(default), |value| u32::from_str_radix(value, radix).ok());
            number.ok_or_else(|| ErrorKind::Invalid(format!("the option `{name}` of a file's mount is no number")))
        };
        let (mode, uid, gid) = (number("mode", 8, 0o400)?, number("uid", 10, 0)?, number("gid", 10, 0)?);
        Ok(MountKind::File { content: self.descriptors.keep(content), mode, uid, gid })
    }

    /// The machine's `/sys`. To an ordinary user the kernel gives it only with all that is mounted below.
    fn sys(&mut self, target: &Path, options: MountOptions) -> Result<MountKind, ErrorKind> {
        let sys = Path::new("/sys");
        match self.bind(sys, target, &options, None) {
            Err(ErrorKind::Step { errno: libc::EINVAL, .. }) => {
                self.bind(sys, target, &MountOptions { is_recursive: true, ..options }, None)
            }
            result => result,
        }
    }

    fn bind(
        &mut self,
        source: &Path,
        target: &Path,
        options: &MountOptions,
        idmap: Option<BorrowedFd<'_>>,
    ) -> Result<MountKind, ErrorKind> {
        let metadata = fs::metadata(source).step(|| format!("find the mount source {}", source.display()))?;
        let tree = mapped_if_possible(source, options.is_recursive, idmap)?;
        sys::set_mount_attributes(tree.as_fd(), options.is_recursive, options.attributes, None)
            .step(|| format!("set the options of the mount at {}", target.display()))?;
        Ok(MountKind::Bind { tree: self.descriptors.keep(tree), is_directory: metadata.is_dir() })
    }

    fn devices(&mut self, linux: &Linux) -> Result<Vec<(PathBuf, Handle)>, ErrorKind> {
        let mut devices = Vec::new();
        for device in linux.devices().iter().flatten() {
            // A node of our own has the mode that the spec says, whatever the host's has; a launcher that may not make
            // nodes shows the host's.
            let tree = made_node(device).or_else(|_| detached(device.path(), false))?;
            devices.push((device.path().clone(), self.descriptors.keep(tree)));
        }
        Ok(devices)
    }
}

/// A character device on a filesystem of its own.
fn made_node(device: &LinuxDevice) -> rustix::io::Result<OwnedFd> {
    if !matches!(device.typ(), LinuxDeviceType::C | LinuxDeviceType::U) {
        return Err(rustix::io::Errno::NOTSUP);
    }
    let (major, minor) = (device.major() as u32, device.minor() as u32);
    let mode = Mode::from_raw_mode(device.file_mode().unwrap_or(0o666));
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(context.as_fd())?;
    let filesystem = rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let number = rustix::fs::makedev(major, minor);
    rustix::fs::mknodat(&filesystem, "node", FileType::CharacterDevice, mode, number)?;
    rustix::fs::chmodat(&filesystem, "node", mode, AtFlags::empty())?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(&filesystem, "node", flags)
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

pub(crate) fn plan_sysctl(linux: &Linux, owns_network: bool) -> Result<Vec<(String, String)>, ErrorKind> {
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

fn without_zeros(strings: &[String], what: &str) -> Result<Vec<String>, ErrorKind> {
    c_strings(strings, what).map(|_| strings.to_vec())
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
