//! What the tests of OCI runtimes share.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use std::path::Path;

use cfc_sandbox::{INIT_ANNOTATION, OciRuntime, SandboxConfig};
use serde_json::json;

use super::{Bench, bench, with};

const RUNTIMES: [&str; 3] = ["runc", "crun", "runsc"];

/// Calls `test` with each runtime that is on this machine.
pub fn with_each(test: impl Fn(&Bench, &OciRuntime)) {
    let Some(bench) = bench() else { return };
    installed().iter().for_each(|runtime| test(&bench, runtime));
}

/// The runtimes that are on this machine.
pub fn installed() -> Vec<OciRuntime> {
    let found = RUNTIMES.iter().map(|name| OciRuntime::find(name, Path::new(name), &[], None));
    found.filter_map(|found| found.inspect_err(|error| eprintln!("skipped: {error}")).ok()).collect()
}

pub fn config(bench: &Bench, runtime: &OciRuntime, script: &str) -> SandboxConfig {
    SandboxConfig { runtime: Some(runtime.clone()), ..bench.config(&["sh", "-c", script]) }
}

/// As the runtime of instances has it: a signal that is not handled ends the application.
pub fn as_instance(config: &SandboxConfig) -> SandboxConfig {
    with(config, &[("/annotations", json!({INIT_ANNOTATION: "true"}))])
}

/// A container that stays.
pub fn running(bench: &Bench, runtime: &OciRuntime) -> SandboxConfig {
    let config = as_instance(&config(bench, runtime, "exec sleep 1000"));
    bench.launcher.start(&config).unwrap();
    config
}

/// Ends a container, and looks that nothing of it is left.
pub fn end(bench: &Bench, config: &SandboxConfig) {
    bench.launcher.kill_all(&config.id).unwrap();
    bench.launcher.wait(&config.id).unwrap();
    bench.launcher.remove(&config.id).unwrap();
}
