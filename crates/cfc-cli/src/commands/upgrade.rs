//! `cfc upgrade`: lets the running server execute its program anew, which a package manager has replaced by now.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::failure::Failure;
use crate::output;
use crate::settings::{Addresses, Settings};

/// Requests under way may take a while, and Workers their time to start.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(50);

pub fn run(settings: &Settings) -> Result<ExitCode, Failure> {
    let before = settings.addresses()?;
    let pid = i32::try_from(before.pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| Failure::new("the server's process id in `serve.json` is no process id"))?;
    kill_process(pid, Signal::USR2)
        .map_err(|errno| Failure::because(format!("cannot signal the server (process {})", before.pid), &errno))?;
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        std::thread::sleep(LOOK);
        let now: Addresses = settings.addresses().map_err(|_| {
            Failure::new(format!("the server (process {}) ended instead of taking its new program", before.pid))
                .hint("its log says why; instances live on: start `cfc serve` again to adopt them")
        })?;
        if now.generation != before.generation {
            output::tell(format!("upgraded to cfc {}; instances went on", now.version));
            if let Some(reason) = now.launcher_refusal {
                output::tell(format!("warning: the launcher goes on with its older program: {reason}"));
            }
            return Ok(ExitCode::SUCCESS);
        }
        if now.refusals != before.refusals {
            let reason = now.refusal.unwrap_or_default();
            return Err(Failure::new(format!("the server goes on as it is: {reason}"))
                .hint("put a working cfc where the server was started from, and try again"));
        }
    }
    Err(Failure::new(format!("the server has not taken its new program within {} s", PATIENCE.as_secs()))
        .hint("its log says what it waits for"))
}
