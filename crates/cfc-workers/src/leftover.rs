//! A workerd that an earlier run left behind: two of them on one directory of state would destroy it.
//!
//! `dir/pid` holds `<pid> <start time>` of the one that was started last. The start time, in clock ticks since boot,
//! tells it from another process that got the same number later.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::{WorkersError, WorkersErrorKind};

/// Notes that the process `pid` now uses `dir`.
pub(crate) fn note(dir: &Path, pid: u32) -> Result<(), WorkersError> {
    let path = dir.join("pid");
    let start_time = start_time(pid).unwrap_or_default();
    std::fs::write(&path, format!("{pid} {start_time}\n")).map_err(WorkersError::io("write", &path))
}

/// Ends the process that the last [`note`] named, if it still runs.
pub(crate) fn end(dir: &Path) -> Result<(), WorkersError> {
    let Ok(noted) = std::fs::read_to_string(dir.join("pid")) else { return Ok(()) };
    let mut fields = noted.split_whitespace();
    let pid = fields.next().and_then(|field| field.parse::<u32>().ok());
    let noted_start = fields.next().and_then(|field| field.parse::<u64>().ok());
    let (Some(pid), Some(noted_start)) = (pid, noted_start) else { return Ok(()) };

    let deadline = Instant::now() + Duration::from_secs(5);
    while start_time(pid) == Some(noted_start) {
        if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
            // It may end at any moment by itself; the loop sees what came of it.
            let _ = kill_process(pid, Signal::KILL);
        }
        if Instant::now() > deadline {
            let reason = format!("process {pid} of an earlier run still uses it, and SIGKILL does not end it");
            let subject = format!("take over `{}`", dir.display());
            return Err(WorkersError::new(subject, WorkersErrorKind::NotReady(reason)));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Field 22 of `/proc/<pid>/stat`; `None` when there is no such process, or only its remains that nobody waited for.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in brackets, which may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let is_zombie = fields.next()? == "Z";
    if is_zombie { None } else { fields.nth(18)?.parse().ok() }
}
