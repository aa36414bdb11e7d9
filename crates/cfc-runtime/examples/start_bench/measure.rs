//! What processes use: memory and processor time, from `/proc`.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::Outcome;

/// The processor time of a process, its ended threads left out. Without one: of this process.
pub fn cpu(process: Option<i32>) -> Outcome<Duration> {
    let process = process.map_or("self".to_string(), |pid| pid.to_string());
    let threads = fs::read_dir(format!("/proc/{process}/task"))?.flatten();
    let of = |path: PathBuf| -> Option<u64> {
        fs::read_to_string(path.join("schedstat")).ok()?.split_whitespace().next()?.parse().ok()
    };
    Ok(Duration::from_nanos(threads.filter_map(|thread| of(thread.path())).sum()))
}

/// Bytes, summed over all instances.
#[derive(Debug)]
pub struct Memory {
    /// This process: the runtime.
    pub own: u64,
    pub launcher: u64,
    pub inits: u64,
    /// The applications' own, which are nobody's fault.
    pub apps: u64,
    /// What the kernel keeps for the sandboxes, this process and the launcher.
    pub kernel: u64,
}

pub fn memory(launcher: i32) -> Memory {
    let mut memory =
        Memory { own: pss("self"), launcher: pss(&launcher.to_string()), inits: 0, apps: 0, kernel: kernel() };
    for pid in descendants(launcher) {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        match name.trim() {
            "cfc-init" | "cfc-launcher" | "cfc-shell" | "cfc-zygote" => memory.inits += pss(&pid.to_string()),
            _ => memory.apps += pss(&pid.to_string()),
        }
    }
    memory
}

fn pss(process: &str) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).unwrap_or_default();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).unwrap_or(0) << 10
}

/// Slabs that cannot be reclaimed, per-cpu memory, page tables and stacks of the whole machine.
fn kernel() -> u64 {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| -> u64 {
        let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).unwrap_or(0) << 10
    };
    field("SUnreclaim") + field("Percpu") + field("PageTables") + field("KernelStack")
}

pub fn launcher_pid() -> i32 {
    let own = std::process::id() as i32;
    *children(own).first().expect("the launcher is this process's only child")
}

fn children(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of = |task: fs::DirEntry| fs::read_to_string(task.path().join("children")).unwrap_or_default();
    tasks
        .map(of)
        .flat_map(|text| text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

fn descendants(pid: i32) -> Vec<i32> {
    let direct = children(pid);
    direct.iter().copied().chain(direct.iter().flat_map(|child| descendants(*child))).collect()
}
