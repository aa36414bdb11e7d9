//! The runtime with real sandboxes: adoption, races, and what becomes of it when things fail.
//!
//! This test is its own launcher (that is a program which calls `launcher_main` first thing), and its own victim of
//! `kill -9`. So it has a small harness of its own: `cargo test -p cfc-runtime --test runtime [PART OF A NAME]`.
//! Random tests print `CFC_SEED=…`; with that in the environment they do the same again.

mod adoption;
mod bounds;
mod churn;
mod descriptors;
mod fault_points;
mod flood;
mod full_disk;
#[path = "../../../cfc-engine/tests/engine/harness.rs"]
mod harness;
mod helpers;
mod history;
#[path = "../../../cfc-engine/tests/engine/image.rs"]
mod image;
mod inventory;
mod races;
mod support;
mod victim;

use std::process::ExitCode;

use harness::Test;

const TESTS: &[&[Test]] = &[
    adoption::TESTS,
    bounds::TESTS,
    descriptors::TESTS,
    fault_points::TESTS,
    flood::TESTS,
    full_disk::TESTS,
    helpers::TESTS,
    history::TESTS,
    races::TESTS,
];

fn main() -> ExitCode {
    harness::become_helper();
    victim::play(&harness::words());
    let code = harness::run(TESTS, support::lacking());
    let _ = std::fs::remove_dir_all(support::store_directory());
    code
}
