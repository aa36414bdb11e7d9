//! The engine with real sandboxes, over its socket, and under the real workerd.
//!
//! This test is its own launcher (that is a program which calls `launcher_main` first thing), and its own victim of
//! `kill -9`. So it has a small harness of its own: `cargo test -p cfc-engine --test engine [PART OF A NAME]`.

mod adoption;
mod client;
mod crowd;
mod docker_client;
mod egress;
mod exec;
mod fault_points;
mod harness;
mod image;
mod ingress;
mod inside;
mod lifecycle;
mod limits;
mod ownerless;
mod platform;
mod ports;
mod stop;
mod workerd;

use std::process::ExitCode;

use harness::Test;

const TESTS: &[&[Test]] = &[
    lifecycle::TESTS,
    ports::TESTS,
    limits::TESTS,
    adoption::TESTS,
    workerd::TESTS,
    egress::TESTS,
    ingress::TESTS,
    exec::TESTS,
    stop::TESTS,
    crowd::TESTS,
    docker_client::TESTS,
    fault_points::TESTS,
    ownerless::TESTS,
];

fn main() -> ExitCode {
    harness::become_helper();
    let words = harness::words();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [adoption::VICTIM, directory] => adoption::be_victim(directory.as_ref()),
        [egress::ALONE, directory] => egress::be_alone(directory.as_ref()),
        [egress::VICTIM, directory] => egress::be_victim(directory.as_ref()),
        [ingress::APP] => ingress::be_app(),
        [fault_points::VICTIM, directory] => fault_points::be_victim(directory.as_ref()),
        [ownerless::VICTIM, directory] => ownerless::be_victim(directory.as_ref()),
        [inside::ECHO] => inside::be_echo(),
        [crowd::CLIENT, port, count] => crowd::be_client(port, count),
        [adoption::BUSY_VICTIM, directory] => adoption::be_busy_victim(directory.as_ref()),
        _ => {}
    }
    harness::run(TESTS, platform::lacking())
}
