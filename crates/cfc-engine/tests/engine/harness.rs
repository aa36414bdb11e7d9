//! The harness of tests that are their own launcher and relay, and their own victims of `kill -9`: what `main` does
//! before and instead of the usual one. Used by the tests of `cfc-engine` and of `cfc-runtime`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

/// A name and what to do.
pub type Test = (&'static str, fn());

/// Becomes the helper process that the program's name asks for; returns where it asks for none. To be called first.
pub fn become_helper() {
    let Some(name) = std::env::args_os().next() else { return };
    if name == cfc_sandbox::LAUNCHER_ARGV0 {
        cfc_sandbox::launcher_main(std::env::args_os());
    }
    if name == cfc_relay::RELAY_ARGV0 {
        cfc_relay::relay_main();
    }
}

/// The arguments of the test program.
pub fn words() -> Vec<String> {
    std::env::args().skip(1).collect()
}

/// Runs those of `tests` whose names contain the first argument that is no option, unless the machine lacks something.
pub fn run(tests: &[&[Test]], lacking: Option<&str>) -> ExitCode {
    if let Some(reason) = lacking {
        eprintln!("skipped: {reason}");
        return ExitCode::SUCCESS;
    }
    let filter = words().into_iter().find(|word| !word.starts_with('-'));
    let is_wanted = |name: &str| filter.as_ref().is_none_or(|filter| name.contains(filter.as_str()));
    let tests: Vec<&Test> = tests.iter().copied().flatten().filter(|(name, _)| is_wanted(name)).collect();
    eprintln!("\nrunning {} tests", tests.len());
    let failed = tests.iter().filter(|test| !passes(test)).count();
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    eprintln!("\ntest result: {verdict}. {} passed; {failed} failed\n", tests.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn passes((name, test): &Test) -> bool {
    let started = std::time::Instant::now();
    let passed = catch_unwind(AssertUnwindSafe(test)).is_ok();
    eprintln!("test {name} ... {} ({:.1?})", if passed { "ok" } else { "FAILED" }, started.elapsed());
    passed
}
