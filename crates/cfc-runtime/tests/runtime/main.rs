//! The runtime with real sandboxes: adoption, races, and what becomes of it when things fail.
//!
//! This test is its own launcher (that is a program which calls `launcher_main` first thing), and its own victim of
//! `kill -9`. So it has a small harness of its own: `cargo test -p cfc-runtime --test runtime [PART OF A NAME]`.
//! Random tests print `CFC_SEED=…`; with that in the environment they do the same again.

mod adoption;
mod churn;
mod descriptors;
mod fault_points;
mod flood;
mod full_disk;
mod history;
#[path = "../../../cfc-engine/tests/engine/image.rs"]
mod image;
mod inventory;
mod races;
mod support;
mod victim;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

/// A name and what to do.
type Test = (&'static str, fn());

const TESTS: &[&[Test]] = &[
    adoption::TESTS,
    descriptors::TESTS,
    fault_points::TESTS,
    flood::TESTS,
    full_disk::TESTS,
    history::TESTS,
    races::TESTS,
];

fn main() -> ExitCode {
    if std::env::args_os().next().is_some_and(|name| name == cfc_sandbox::LAUNCHER_ARGV0) {
        cfc_sandbox::launcher_main(std::env::args_os());
    }
    if std::env::args_os().next().is_some_and(|name| name == cfc_relay::RELAY_ARGV0) {
        cfc_relay::relay_main();
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    victim::play(&words);
    let filter = words.into_iter().find(|word| !word.starts_with('-'));
    if let Some(reason) = support::lacking() {
        eprintln!("skipped: {reason}");
        return ExitCode::SUCCESS;
    }
    let is_wanted = |name: &str| filter.as_ref().is_none_or(|filter| name.contains(filter.as_str()));
    let tests: Vec<&Test> = TESTS.iter().copied().flatten().filter(|(name, _)| is_wanted(name)).collect();
    eprintln!("\nrunning {} tests", tests.len());
    let failed = tests.iter().filter(|test| !passes(test)).count();
    let _ = std::fs::remove_dir_all(support::store_directory());
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
