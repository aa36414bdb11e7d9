//! What of a machine is there: processes, cgroups, mounts, files, descriptors.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::{MARK, PATIENCE, noted_launchers, socket};

/// The applications' processes of the machine in `directory`: how many each instance has. An instance's process is its
/// only one, so more than one means that it lives twice.
pub fn live_processes(directory: &Path) -> BTreeMap<String, usize> {
    let start = format!("{MARK}={}:", directory.display());
    let mut found = BTreeMap::new();
    for process in processes() {
        let environment = fs::read(process.join("environ")).unwrap_or_default();
        let marked = environment.split(|byte| *byte == 0).find_map(|variable| variable.strip_prefix(start.as_bytes()));
        if let Some(name) = marked {
            *found.entry(String::from_utf8_lossy(name).into_owned()).or_default() += 1;
        }
    }
    found
}

/// The processes of one instance, as the machine numbers them.
pub fn pids_of(directory: &Path, name: &str) -> Vec<i32> {
    let mark = format!("{MARK}={}", crate::support::mark(directory, name));
    let is_one = |process: &PathBuf| {
        let environment = fs::read(process.join("environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
    };
    let number = |process: PathBuf| process.file_name()?.to_str()?.parse().ok();
    processes().filter(is_one).filter_map(number).collect()
}

/// The launcher of the machine in `directory`, and its sandboxes' process 1, which are forks of it.
pub fn launcher_processes(directory: &Path) -> Vec<PathBuf> {
    let socket = socket(directory).display().to_string();
    let is_one = |process: &PathBuf| {
        let line = fs::read(process.join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == socket.as_bytes())
    };
    processes().filter(is_one).collect()
}

fn processes() -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir("/proc").expect("readable").flatten().map(|entry| entry.path());
    entries.filter(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes()[0].is_ascii_digit()))
}

/// Directories of launchers in any cgroup hierarchy whose launcher has the number `pid`.
pub fn cgroups_of_launcher(pid: i32) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("readable");
    let points = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (point, kind) = (fields.nth(1)?, fields.next()?);
        kind.starts_with("cgroup").then(|| PathBuf::from(point))
    });
    let is_his = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        name.starts_with("cfc-") && name.split('-').nth(2) == Some(&pid.to_string())
    };
    points
        .flat_map(|point| fs::read_dir(point).into_iter().flatten().flatten().map(|e| e.path()))
        .filter(is_his)
        .collect()
}

/// How many descriptors a process has open.
pub fn descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// The mounts of this test's namespace that name `directory`.
pub fn mounts(directory: &Path) -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").expect("readable");
    let path = directory.display().to_string();
    text.lines().filter(|line| line.contains(&path)).map(str::to_string).collect()
}

/// Files of instances that no instance has: unfinished ones, disks, and what was to be deleted.
pub fn files_left(directory: &Path) -> Vec<PathBuf> {
    let instances = directory.join("data/instances");
    let mut left = Vec::new();
    for entry in fs::read_dir(&instances).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        match name.as_str() {
            ".ended" => {}
            ".trash" => left.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path())),
            _ => left.push(path),
        }
    }
    left
}

/// A machine that was closed has nothing left of it: waits a moment for what is being deleted.
pub fn assert_nothing_left(directory: &Path) {
    let found = || {
        let processes = live_processes(directory);
        let launchers = launcher_processes(directory);
        let files = files_left(directory);
        let mounts = mounts(directory);
        let cgroups: Vec<_> = noted_launchers(directory).into_iter().flat_map(cgroups_of_launcher).collect();
        let is_clean =
            processes.is_empty() && launchers.is_empty() && files.is_empty() && mounts.is_empty() && cgroups.is_empty();
        (!is_clean).then(|| format!("{processes:?} {launchers:?} {files:?} {mounts:?} {cgroups:?}"))
    };
    let started = Instant::now();
    while let Some(left) = found() {
        assert!(started.elapsed() < PATIENCE, "left over: {left}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
