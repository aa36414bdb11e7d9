//! The engine with real sandboxes, over its socket, and under the real workerd.
//!
//! This test is its own launcher (that is a program which calls `launcher_main` first thing), and its own victim of
//! `kill -9`. So it has a small harness of its own: `cargo test -p cfc-engine --test engine [PART OF A NAME]`.

mod adoption;
mod client;
mod crowd;
mod egress;
mod exec;
mod image;
mod inside;
mod lifecycle;
mod limits;
mod platform;
mod ports;
mod stop;
mod workerd;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

/// A name and what to do.
type Test = (&'static str, fn());

const TESTS: &[&[Test]] = &[
    lifecycle::TESTS,
    ports::TESTS,
    limits::TESTS,
    adoption::TESTS,
    workerd::TESTS,
    egress::TESTS,
    exec::TESTS,
    stop::TESTS,
    crowd::TESTS,
];

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    if arguments.next().is_some_and(|name| name == cfc_sandbox::LAUNCHER_ARGV0) {
        cfc_sandbox::launcher_main(std::env::args_os());
    }
    if std::env::args_os().next().is_some_and(|name| name == cfc_relay::RELAY_ARGV0) {
        cfc_relay::relay_main();
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [adoption::VICTIM, directory] => adoption::be_victim(directory.as_ref()),
        [egress::ALONE, directory] => egress::be_alone(directory.as_ref()),
        [egress::VICTIM, directory] => egress::be_victim(directory.as_ref()),
        [inside::ECHO] => inside::be_echo(),
        [crowd::CLIENT, port, count] => crowd::be_client(port, count),
        [adoption::BUSY_VICTIM, directory] => adoption::be_busy_victim(directory.as_ref()),
        _ => {}
    }
    let filter = words.into_iter().find(|word| !word.starts_with('-'));
    if let Some(reason) = platform::lacking() {
        eprintln!("skipped: {reason}");
        return ExitCode::SUCCESS;
    }
    let is_wanted = |name: &str| filter.as_ref().is_none_or(|filter| name.contains(filter.as_str()));
    let tests: Vec<&Test> = TESTS.iter().copied().flatten().filter(|(name, _)| is_wanted(name)).collect();
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
