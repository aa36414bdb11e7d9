//! [`Process`]: one of the processes of an instance, as the machine numbers them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::error::{Result, RuntimeErrorKind};
use crate::runtime::{Runtime, blocking};

/// One process of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// As the machine numbers it.
    pub pid: i32,
    /// The process that it belongs to, as the machine numbers it.
    pub parent: i32,
    /// Its user, as the machine numbers them.
    pub uid: u32,
    /// When it was started.
    pub started: SystemTime,
    /// Time on processors.
    pub cpu: Duration,
    /// Its words, with spaces between them; its name in brackets where it has none.
    pub command: String,
}

impl Runtime {
    /// The processes in the instance's pid namespace, by number: the application's, those of commands, and the init that
    /// reaps for them.
    ///
    /// # Errors
    /// `NotRunning` when its process does not run.
    pub async fn processes(&self, name: &str) -> Result<Vec<Process>> {
        let not_running = || RuntimeErrorKind::NotRunning.of("list the processes of", name);
        let pid = self.inspect(name).and_then(|view| view.phase.pid()).ok_or_else(not_running)?;
        blocking(move || processes_beside(pid)).await.ok_or_else(not_running)
    }
}

/// Those in the pid namespace of `pid`. `None` when it has ended.
fn processes_beside(pid: i32) -> Option<Vec<Process>> {
    let namespace = namespace_of(&process_directory(pid))?;
    let booted = booted()?;
    let entries = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path());
    let is_inside = |path: &PathBuf| namespace_of(path).as_ref() == Some(&namespace);
    // One that ends meanwhile is not there any more.
    let mut processes: Vec<Process> = entries.filter(is_inside).filter_map(|path| read(&path, booted)).collect();
    processes.sort_by_key(|process| process.pid);
    Some(processes)
}

fn process_directory(pid: i32) -> PathBuf {
    Path::new("/proc").join(pid.to_string())
}

fn namespace_of(process: &Path) -> Option<PathBuf> {
    fs::read_link(process.join("ns/pid")).ok()
}

/// When this machine was booted, by its clock of now.
fn booted() -> Option<SystemTime> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let seconds = stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

fn read(process: &Path, booted: SystemTime) -> Option<Process> {
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    // The name stands in brackets and may have any character, brackets too.
    let (before, after) = stat.rsplit_once(')')?;
    let (pid, name) = before.split_once('(')?;
    let fields: Vec<&str> = after.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    let uid = fs::metadata(process).ok().map(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata))?;
    let line = fs::read(process.join("cmdline")).ok()?;
    let words: Vec<_> = line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
    let command = words.join(" ").trim_end().to_string();
    Some(Process {
        pid: pid.trim().parse().ok()?,
        parent: fields.get(1)?.parse().ok()?,
        uid,
        started: booted.checked_add(ticks(number(19)?))?,
        cpu: ticks(number(11)? + number(12)?),
        command: if command.is_empty() { format!("[{name}]") } else { command },
    })
}

fn ticks(count: u64) -> Duration {
    // The kernel tells user space hundredths of a second, whatever it counts in.
    Duration::from_millis(count.saturating_mul(10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_process_is_among_those_beside_it() {
        let pid = std::process::id() as i32;
        let processes = processes_beside(pid).expect("we run");
        let own = processes.iter().find(|process| process.pid == pid).expect("we are one of them");
        assert_eq!(own.uid, rustix::process::geteuid().as_raw());
        assert!(!own.command.is_empty() && own.parent > 0 && own.started <= SystemTime::now(), "{own:?}");
        assert_eq!(processes_beside(-1), None);
    }
}
