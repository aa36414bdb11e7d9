//! A victim that makes, starts, ends and removes instances without pause, each in another way.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use cfc_runtime::{Result, RuntimeError};

use crate::support::{Machine, block_on};
use crate::victim::say_ready;

pub const ROLE: &str = "--churn";
/// Ends as a crash would, as soon as something fails.
pub const UNTIL_FAILURE: &str = "until-failure";
/// Ends when something has failed, and then all has gone well for a while.
pub const UNTIL_RECOVERY: &str = "until-recovery";
/// As [`UNTIL_FAILURE`], and ends with [`ENOUGH`] when all has gone well often enough.
pub const UNTIL_ENOUGH: &str = "until-enough";
/// Goes on.
pub const FOREVER: &str = "forever";

pub const SCRIPT: &str = "echo up; exec sleep 0.02";
/// The exit code of a churn that did what it was to do.
pub const DONE: i32 = 11;
/// That of one in which nothing has failed.
pub const ENOUGH: i32 = 12;

const CYCLES_OF_RECOVERY: u64 = 10;
/// Each is removed but the last of each of the four names, so more than seven are, which is where the tests let one fail.
const CYCLES_ENOUGH: u64 = 12;

struct Churn {
    machine: Machine,
    goal: String,
    failures: AtomicU64,
    /// Successes since the last failure.
    successes: AtomicU64,
}

pub fn play(directory: &Path, goal: &str) -> ! {
    block_on(async {
        let machine = match Machine::try_open(directory, SCRIPT, 9).await {
            Ok(machine) => machine,
            Err(error) => {
                eprintln!("{}", in_full(&error));
                std::process::exit(DONE);
            }
        };
        say_ready();
        let (failures, successes) = (AtomicU64::new(0), AtomicU64::new(0));
        let churn = &Churn { machine, goal: goal.to_string(), failures, successes };
        let forever = async |name: &'static str, way: Way| {
            loop {
                churn.count(name, churn.cycle(name, way).await);
                // It may have failed halfway.
                churn.machine.runtime.remove(name).await;
            }
        };
        tokio::join!(
            forever("waits", Way::Wait),
            forever("removes", Way::Remove),
            forever("kills", Way::Kill),
            forever("twice", Way::Twice)
        )
        .0
    })
}

#[derive(Clone, Copy)]
enum Way {
    Wait,
    Remove,
    Kill,
    Twice,
}

impl Churn {
    async fn cycle(&self, name: &str, way: Way) -> Result<i32> {
        let Machine { runtime, .. } = &self.machine;
        self.machine.run(name).await?;
        match way {
            Way::Wait => Ok(self.machine.wait(name).await.code),
            Way::Remove => Ok(0),
            Way::Kill => {
                // It may have ended by itself.
                let _ = runtime.kill(name, 9).await;
                Ok(if matches!(self.machine.wait(name).await.code, 0 | 137) { 0 } else { 1 })
            }
            Way::Twice => {
                let first = self.machine.wait(name).await.code;
                runtime.start(name).await?;
                Ok(first + self.machine.wait(name).await.code)
            }
        }
    }

    fn count(&self, name: &str, outcome: Result<i32>) {
        let failure = match outcome {
            Ok(0) => None,
            Ok(code) => Some(format!("{name} ended with {code}")),
            Err(error) => Some(in_full(&error)),
        };
        match failure {
            None => drop(self.successes.fetch_add(1, Ordering::Relaxed)),
            Some(failure) => {
                eprintln!("{failure}");
                self.failures.fetch_add(1, Ordering::Relaxed);
                self.successes.store(0, Ordering::Relaxed);
            }
        }
        let has_failed = self.failures.load(Ordering::Relaxed) > 0;
        let has_recovered = has_failed && self.successes.load(Ordering::Relaxed) >= CYCLES_OF_RECOVERY;
        let ends_at_failure = [UNTIL_FAILURE, UNTIL_ENOUGH].contains(&self.goal.as_str());
        if ends_at_failure && has_failed || self.goal == UNTIL_RECOVERY && has_recovered {
            std::process::exit(DONE);
        }
        if self.goal == UNTIL_ENOUGH && self.successes.load(Ordering::Relaxed) >= CYCLES_ENOUGH {
            std::process::exit(ENOUGH);
        }
    }
}

pub fn in_full(error: &RuntimeError) -> String {
    format!("{error}: {}", error.kind)
}
