//! Cgroups: v1, v2, and both at once, by writing files.
//!
//! Each controller is looked up on its own: in the v1 hierarchy that holds it, else in the v2 tree. That covers pure v1,
//! pure v2 and every hybrid. A launcher's sandboxes live below one directory:
//!
//! ```text
//! <hierarchy>/cfc-<launcher>/<sandbox id>/
//! ```

mod delegation;
mod top;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;
use rustix::fs::{Access, Mode, OFlags};
use rustix::io::Errno;

use crate::error::ErrorKind;
use crate::launcher::CgroupState;
use crate::rootless;
use crate::status::Usage;
use crate::step::Step;

/// A failure, before it is known whose.
pub(crate) type Failure = ErrorKind;

/// Where this machine's controllers are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Hierarchies {
    /// Controller to v1 mount point.
    v1: BTreeMap<String, PathBuf>,
    /// The v2 mount point, and which controllers it offers.
    v2: Option<(PathBuf, BTreeSet<String>)>,
    /// Whether limits are left out that no controller can hold: for an ordinary user some is better than nothing.
    is_lenient: bool,
    /// Whether there are others that nobody can write to, as in a container without `--privileged`.
    is_read_only: bool,
}

/// The cgroups of one sandbox, one directory a hierarchy.
#[derive(Debug, Default)]
pub(crate) struct Cgroup {
    directories: Vec<PathBuf>,
    /// Which of them a controller's files are in.
    controllers: BTreeMap<&'static str, (PathBuf, Version)>,
    /// As of the [`Hierarchies`].
    is_lenient: bool,
}

/// Which interface a cgroup's files have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// One limit: the files to write, in order.
struct Limits {
    v1: Vec<(&'static str, String, bool)>,
    v2: Vec<(&'static str, String)>,
}

impl Hierarchies {
    pub(crate) fn detect() -> Hierarchies {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut all = Hierarchies::from_mountinfo(&mounts, |mount| {
            fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default()
        });
        all.leave_out(|mount| rustix::fs::access(mount, Access::WRITE_OK) == Err(Errno::ROFS));
        if rootless::is_in_initial_namespace() {
            return all;
        }
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        delegation::restrict(all, &own, &delegation::Kernel)
    }

    fn from_mountinfo(mounts: &str, v2_controllers: impl Fn(&Path) -> String) -> Hierarchies {
        let mut found = Hierarchies::default();
        for line in mounts.lines() {
            let Some((mount, filesystem)) = line.split_once(" - ") else { continue };
            let Some(point) = mount.split(' ').nth(4).map(PathBuf::from) else { continue };
            let mut fields = filesystem.split(' ');
            match (fields.next(), fields.nth(1)) {
                (Some("cgroup"), Some(options)) => {
                    for controller in options.split(',').filter(|o| KNOWN_CONTROLLERS.contains(o)) {
                        found.v1.entry(controller.to_owned()).or_insert_with(|| point.clone());
                    }
                }
                (Some("cgroup2"), _) if found.v2.is_none() => {
                    let controllers = v2_controllers(&point).split_whitespace().map(str::to_owned).collect();
                    found.v2 = Some((point, controllers));
                }
                _ => {}
            }
        }
        found
    }

    /// Does without the hierarchies that are read-only: sandboxes need no cgroups but for limits.
    fn leave_out(&mut self, is_read_only: impl Fn(&Path) -> bool) {
        let before = (self.v1.len(), self.v2.is_some());
        self.v1.retain(|_, mount| !is_read_only(mount));
        self.v2 = self.v2.take().filter(|(mount, _)| !is_read_only(mount));
        self.is_read_only = before != (self.v1.len(), self.v2.is_some());
    }

    /// Whether any hierarchy offers `controller`.
    pub(crate) fn offers(&self, controller: &str) -> bool {
        self.v1.contains_key(controller) || self.v2.as_ref().is_some_and(|(_, offered)| offered.contains(controller))
    }

    /// Says which kind of machine this is.
    pub(crate) fn describe(&self) -> &'static str {
        match (self.v1.is_empty(), &self.v2) {
            (true, None) if self.is_read_only => "cgroups that are mounted read-only",
            (true, None) => "no cgroups",
            (true, Some(_)) => "cgroup v2",
            (false, None) => "cgroup v1",
            (false, Some(_)) => "cgroup v1 and v2 (hybrid)",
        }
    }

    /// All mount points that may hold a launcher's directory.
    fn mount_points(&self) -> BTreeSet<&Path> {
        self.v1.values().chain(self.v2.iter().map(|(point, _)| point)).map(PathBuf::as_path).collect()
    }

    /// Makes the cgroups `name` below `parent` for `controllers`, without limits.
    pub(crate) fn make(
        &self,
        parent: &str,
        name: &str,
        controllers: &BTreeSet<&'static str>,
    ) -> Result<Cgroup, Failure> {
        let mut cgroup = Cgroup { is_lenient: self.is_lenient, ..Cgroup::default() };
        for controller in controllers {
            if let Err(failure) = self.make_one(&mut cgroup, parent, name, controller) {
                cgroup.remove();
                return Err(failure);
            }
        }
        Ok(cgroup)
    }

    fn make_one(&self, cgroup: &mut Cgroup, parent: &str, name: &str, controller: &'static str) -> Result<(), Failure> {
        if let Some(point) = self.v1.get(controller) {
            cgroup.keep(make_directory(point, parent, name)?, controller, Version::V1);
            return Ok(());
        }
        if let Some((point, offered)) = &self.v2
            && offered.contains(controller)
        {
            // The parent must exist before its own children can be given the controller.
            top::enable_at(point, controller)?;
            let parent_directory = point.join(parent);
            make(&parent_directory)?;
            enable(&parent_directory, controller)?;
            cgroup.keep(make_directory(point, parent, name)?, controller, Version::V2);
        }
        Ok(())
    }

    /// The ids below `parent`, in any hierarchy.
    pub(crate) fn sandboxes(&self, parent: &str) -> BTreeSet<String> {
        let names = |point: &Path| {
            let entries = fs::read_dir(point.join(parent)).into_iter().flatten().flatten();
            entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).filter_map(|e| e.file_name().into_string().ok())
        };
        self.mount_points().into_iter().flat_map(names).collect()
    }

    /// The directories of sandbox `id`, wherever they are.
    pub(crate) fn existing(&self, parent: &str, id: &str) -> Cgroup {
        let directories: Vec<_> = self.mount_points().iter().map(|point| point.join(parent).join(id)).collect();
        Cgroup { directories: directories.into_iter().filter(|d| d.is_dir()).collect(), ..Cgroup::default() }
    }

    /// Removes the launcher's own directories. They must be empty of sandboxes.
    pub(crate) fn remove_parent(&self, parent: &str) {
        for point in self.mount_points() {
            let _ = fs::remove_dir(point.join(parent));
        }
    }

    /// The launchers' directories on this machine.
    pub(crate) fn parents(&self) -> BTreeSet<String> {
        let names = |point: &Path| {
            let entries = fs::read_dir(point).into_iter().flatten().flatten();
            entries.filter_map(|e| e.file_name().into_string().ok()).filter(|name| name.starts_with(PARENT_PREFIX))
        };
        self.mount_points().into_iter().flat_map(names).collect()
    }
}

/// How the names of launchers' directories begin.
pub(crate) const PARENT_PREFIX: &str = "cfc-";

const KNOWN_CONTROLLERS: [&str; 6] = ["cpu", "cpuacct", "cpuset", "memory", "pids", "freezer"];

const SWAP_MAX: &str = "memory.swap.max";

/// The turn and the share of it in cgroup v1, and both in v2. A write to one, of the same value too, has the kernel walk every
/// cgroup of the machine.
const CPU_PERIOD: &str = "cpu.cfs_period_us";
const CPU_QUOTA: &str = "cpu.cfs_quota_us";
const CPU_MAX: &str = "cpu.max";

/// A cpu period in microseconds, when the spec gives a quota only.
const CPU_PERIOD_DEFAULT: u64 = 100_000;

impl Cgroup {
    fn keep(&mut self, directory: PathBuf, controller: &'static str, version: Version) {
        if !self.directories.contains(&directory) {
            self.directories.push(directory.clone());
        }
        self.controllers.insert(controller, (directory, version));
    }

    /// For the launcher's next program.
    pub(crate) fn save(&self) -> CgroupState {
        let controllers = self.controllers.iter();
        let controllers = controllers.map(|(name, (path, version))| {
            let is_v2 = *version == Version::V2;
            ((*name).to_owned(), path.clone(), is_v2)
        });
        CgroupState {
            directories: self.directories.clone(),
            controllers: controllers.collect(),
            is_lenient: self.is_lenient,
        }
    }

    pub(crate) fn restore(state: CgroupState) -> Cgroup {
        let CgroupState { directories, controllers, is_lenient } = state;
        let controllers = controllers.into_iter().filter_map(|(name, path, is_v2)| {
            let known = KNOWN_CONTROLLERS.into_iter().find(|known| *known == name)?;
            Some((known, (path, if is_v2 { Version::V2 } else { Version::V1 })))
        });
        Cgroup { directories, controllers: controllers.collect(), is_lenient }
    }

    /// Sets the limits of `resources`. What they do not name stays as it is.
    pub(crate) fn limit(&self, resources: &LinuxResources) -> Result<(), Failure> {
        for (controller, limits) in limits(resources) {
            match self.controllers.get(controller) {
                Some((directory, Version::V1)) => {
                    for (file, value, required) in &limits.v1 {
                        match set(directory, file, value) {
                            Err(_) if !required => {}
                            result => result?,
                        }
                    }
                }
                Some((directory, Version::V2)) => {
                    // A kernel without swap has no file for it, and nothing to limit.
                    let has = |file: &str| file != SWAP_MAX || directory.join(file).exists();
                    let mut limits = limits.v2.iter().filter(|(file, _)| has(file));
                    limits.try_for_each(|(file, value)| set(directory, file, value))?;
                }
                None if self.is_lenient => {}
                None => {
                    return Err(ErrorKind::Unavailable(format!(
                        "a {controller} limit was asked for, but no cgroup hierarchy that can be written to has the `{controller}` controller"
                    )));
                }
            }
        }
        Ok(())
    }

    /// The one directory that is in the v2 tree.
    fn v2(&self) -> Option<&PathBuf> {
        self.controllers.values().find_map(|(directory, version)| (*version == Version::V2).then_some(directory))
    }

    /// Calls them `name`, where the kernel can rename a cgroup, which it can in v1.
    pub(crate) fn rename(&mut self, name: &str) {
        let v2 = self.v2().cloned();
        for directory in self.directories.iter_mut().filter(|directory| Some(&**directory) != v2.as_ref()) {
            let renamed = directory.with_file_name(name);
            if fs::rename(&*directory, &renamed).is_ok() {
                for (known, _) in self.controllers.values_mut().filter(|(known, _)| known == directory) {
                    known.clone_from(&renamed);
                }
                *directory = renamed;
            }
        }
    }

    /// The v2 directory, in which a process can be made right away.
    pub(crate) fn birthplace(&self) -> Result<Option<OwnedFd>, Failure> {
        let Some(directory) = self.v2() else { return Ok(None) };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(directory, flags, Mode::empty()).step(|| format!("open {}", directory.display())).map(Some)
    }

    /// The v1 directories' files through which a process moves itself in, with [`enter`].
    pub(crate) fn entrances(&self) -> Result<Vec<OwnedFd>, Failure> {
        let v1 = self.directories.iter().filter(|directory| Some(*directory) != self.v2());
        let open = |directory: &PathBuf| {
            let file = directory.join("tasks");
            let opened = rustix::fs::open(&file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
            opened.step(|| format!("open {}", file.display()))
        };
        v1.map(open).collect()
    }

    /// The directory with the memory controller's files, and whether that is of the v2 tree.
    pub(crate) fn memory(&self) -> Option<(&Path, bool)> {
        let (directory, version) = self.controllers.get("memory")?;
        Some((directory, *version == Version::V2))
    }

    /// How many processes the kernel has killed in it for want of memory.
    pub(crate) fn oom_kills(&self) -> u64 {
        let Some((memory, _)) = self.controllers.get("memory") else { return 0 };
        ["memory.events", "memory.oom_control"]
            .iter()
            .filter_map(|file| fs::read_to_string(memory.join(file)).ok())
            .find_map(|text| text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()))
            .unwrap_or(0)
    }

    /// What its processes use. Reads a handful of files, which takes about a tenth of a millisecond.
    pub(crate) fn usage(&self) -> Usage {
        let is_v2 = |directory: &PathBuf| self.v2() == Some(directory);
        let mut usage = Usage { oom_kills: self.oom_kills(), ..Usage::default() };
        for directory in &self.directories {
            if is_v2(directory) {
                usage.cpu_usec = keyed(directory, "cpu.stat", "usage_usec").unwrap_or(usage.cpu_usec);
            } else if let Some(nanoseconds) = number(directory, "cpuacct.usage") {
                usage.cpu_usec = nanoseconds / 1_000;
            }
            usage.pids = number(directory, "pids.current").unwrap_or(usage.pids);
        }
        let Some((memory, _)) = self.controllers.get("memory") else { return usage };
        let (current, peak, anonymous) = match is_v2(memory) {
            true => ("memory.current", "memory.peak", "anon"),
            false => ("memory.usage_in_bytes", "memory.max_usage_in_bytes", "rss"),
        };
        usage.memory_bytes = number(memory, current).unwrap_or(0);
        usage.memory_peak_bytes = number(memory, peak).unwrap_or(usage.memory_bytes);
        usage.memory_anonymous_bytes = keyed(memory, "memory.stat", anonymous).unwrap_or(0);
        usage
    }

    /// The memory that its processes may use together, in bytes, when it is limited.
    pub(crate) fn memory_limit(&self) -> Option<u64> {
        let (memory, _) = self.controllers.get("memory")?;
        ["memory.max", "memory.limit_in_bytes"]
            .iter()
            .find_map(|file| fs::read_to_string(memory.join(file)).ok()?.trim().parse().ok())
    }

    /// The processes in it, as the host numbers them.
    pub(crate) fn processes(&self) -> BTreeSet<i32> {
        let read = |directory: &PathBuf| fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        let texts: Vec<String> = self.directories.iter().map(read).collect();
        texts.iter().flat_map(|text| text.lines()).filter_map(|line| line.parse().ok()).collect()
    }

    /// Removes the directories that are empty. `true` when none is left.
    pub(crate) fn remove(&mut self) -> bool {
        let is_left =
            |directory: &PathBuf| fs::remove_dir(directory).is_err_and(|error| error.kind() != io::ErrorKind::NotFound);
        self.directories.retain(is_left);
        self.directories.is_empty()
    }
}

/// Moves this process, which must have a single thread, into the cgroup of an [entrance](Cgroup::entrances).
///
/// Writing another process's number to `cgroup.procs` takes ten milliseconds, for the kernel then waits for a grace period.
/// A thread that moves itself needs none: this takes 60 microseconds. The kernel checks the rights of whoever opened the
/// file.
pub(crate) fn enter(entrance: &OwnedFd) -> Result<(), Failure> {
    rustix::io::write(entrance, b"0").map(drop).step(|| "join a cgroup".into())
}

/// The number that is all of a file's text.
fn number(directory: &Path, file: &str) -> Option<u64> {
    fs::read_to_string(directory.join(file)).ok()?.trim().parse().ok()
}

/// The number behind `key` in a file of such lines.
fn keyed(directory: &Path, file: &str, key: &str) -> Option<u64> {
    let text = fs::read_to_string(directory.join(file)).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

fn make_directory(point: &Path, parent: &str, id: &str) -> Result<PathBuf, Failure> {
    let directory = point.join(parent).join(id);
    match fs::create_dir(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make(&point.join(parent))?;
            make(&directory)?;
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        result => result.map_err(|error| failure("make", &directory, &error))?,
    }
    Ok(directory)
}

fn make(directory: &Path) -> Result<(), Failure> {
    match fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failure("make", directory, &error)),
        _ => Ok(()),
    }
}

/// Lets the children of `directory` have `controller`.
fn enable(directory: &Path, controller: &str) -> Result<(), Failure> {
    let file = directory.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&file).unwrap_or_default();
    if enabled.split_whitespace().any(|name| name == controller) {
        return Ok(());
    }
    write(&file, &format!("+{controller}"))
}

/// Writes `value`, unless that is what a costly file says already.
fn set(directory: &Path, file: &str, value: &str) -> Result<(), Failure> {
    let path = directory.join(file);
    let is_costly = matches!(file, CPU_PERIOD | CPU_QUOTA | CPU_MAX);
    if is_costly && has_value(&path, value) { Ok(()) } else { write(&path, value) }
}

fn has_value(file: &Path, value: &str) -> bool {
    fs::read_to_string(file).is_ok_and(|current| current.trim_end() == value)
}

fn write(file: &Path, value: &str) -> Result<(), Failure> {
    // Not fs::write: these files exist already, and truncating one is meaningless.
    let result =
        fs::OpenOptions::new().write(true).open(file).and_then(|mut f| io::Write::write_all(&mut f, value.as_bytes()));
    result.map_err(|error| failure(&format!("write `{value}` to"), file, &error))
}

fn failure(verb: &str, path: &Path, error: &io::Error) -> Failure {
    ErrorKind::Step { step: format!("{verb} {}", path.display()), errno: error.raw_os_error().unwrap_or(libc::EIO) }
}

/// The controllers that a sandbox with the limits of `resources` is under.
///
/// `pids` is used even without a limit: it is how [`sweep`](crate::sweep) finds what was left.
pub(crate) fn controllers(hierarchies: &Hierarchies, resources: Option<&LinuxResources>) -> BTreeSet<&'static str> {
    let mut wanted: BTreeSet<_> = resources.map(limits).unwrap_or_default().into_keys().collect();
    let has_any = wanted.iter().any(|controller| hierarchies.offers(controller));
    if hierarchies.offers("pids") || !has_any {
        wanted.insert("pids");
    }
    // v1 counts the time on processors by a controller of its own, v2 always.
    if hierarchies.v1.contains_key("cpuacct") {
        wanted.insert("cpuacct");
    }
    wanted
}

fn limits(resources: &LinuxResources) -> BTreeMap<&'static str, Limits> {
    let mut wanted = BTreeMap::new();
    if let Some(limit) = resources.pids().as_ref().map(|pids| pids.limit()).filter(|limit| *limit != 0) {
        let value = if limit < 0 { "max".to_owned() } else { limit.to_string() };
        wanted.insert("pids", Limits { v1: vec![("pids.max", value.clone(), true)], v2: vec![("pids.max", value)] });
    }
    if let Some(memory) = resources.memory().as_ref()
        && let Some(limit) = memory.limit().filter(|limit| *limit > 0)
    {
        // In the spec, `swap` is memory and swap together; absent means none. v1 without swap accounting has no such
        // file, and no swap can be used beyond what the machine has.
        let total = memory.swap().filter(|swap| *swap >= limit).unwrap_or(limit);
        let v1 = vec![
            ("memory.limit_in_bytes", limit.to_string(), true),
            ("memory.memsw.limit_in_bytes", total.to_string(), false),
            // Buffers of TCP sockets, which v1 counts apart, and v2 with the rest. Unlimited, one sandbox could bring the
            // whole machine's TCP under pressure.
            ("memory.kmem.tcp.limit_in_bytes", limit.to_string(), false),
        ];
        let v2 = vec![("memory.max", limit.to_string()), (SWAP_MAX, (total - limit).to_string())];
        wanted.insert("memory", Limits { v1, v2 });
    }
    if let Some(cpu) = resources.cpu().as_ref() {
        let mut limits = Limits { v1: Vec::new(), v2: Vec::new() };
        if let Some(quota) = cpu.quota().filter(|quota| *quota != 0) {
            let period = cpu.period().unwrap_or(CPU_PERIOD_DEFAULT);
            // A negative quota is none.
            let quota = (quota > 0).then(|| quota.to_string());
            limits.v1.push((CPU_PERIOD, period.to_string(), true));
            limits.v1.push((CPU_QUOTA, quota.clone().unwrap_or("-1".into()), true));
            limits.v2.push((CPU_MAX, format!("{} {period}", quota.unwrap_or("max".into()))));
        }
        if let Some(shares) = cpu.shares().filter(|shares| *shares > 0) {
            limits.v1.push(("cpu.shares", shares.to_string(), true));
            // The kernel documentation's mapping of [2, 262144] onto [1, 10000].
            let weight = 1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142;
            limits.v2.push(("cpu.weight", weight.to_string()));
        }
        if !limits.v1.is_empty() {
            wanted.insert("cpu", limits);
        }
    }
    wanted
}

#[cfg(test)]
#[path = "cgroup_tests.rs"]
mod tests;
