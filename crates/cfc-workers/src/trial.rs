//! [`try_version`]: whether workerd accepts a version, without touching the Worker's state.

use std::path::Path;
use std::time::Duration;

use crate::{Toolchain, WorkerVersion, Workerd, WorkersError, WorkersErrorKind, write_config};

/// What workerd says, among its warnings, about a Durable Object class that the main module does not export.
const NO_SUCH_CLASS: &str = "no such Durable Object class is exported";

/// Starts workerd on the version in a temporary directory below `scratch`, without state and without a container
/// engine, until it listens or refuses. Finds what would keep the version from serving: a module that throws or does
/// not parse, a missing import, a compatibility date or flag that workerd does not know, a Durable Object class that is
/// not exported. Takes about 0.1 s.
pub async fn try_version(toolchain: &Toolchain, scratch: &Path, version: &WorkerVersion) -> Result<(), WorkersError> {
    std::fs::create_dir_all(scratch).map_err(WorkersError::io("create", scratch))?;
    let dir = tempfile::Builder::new()
        .prefix("try-")
        .tempdir_in(scratch)
        .map_err(WorkersError::io("create a directory in", scratch))?;
    let subject = || format!("use this version of the Worker `{}`", version.name);
    let config = write_config(toolchain, dir.path(), version, &dir.path().join("no-engine"), "none")?;
    let started = Workerd::start(toolchain, dir.path(), &config.path, &dir.path().join("http")).await;
    match started {
        Ok(workerd) => workerd.stop(Duration::from_secs(2)).await,
        Err(WorkersError { kind, hint, .. }) => return Err(WorkersError { subject: subject(), kind, hint }),
    };
    let log_path = dir.path().join("log");
    let log = std::fs::read_to_string(&log_path).map_err(WorkersError::io("read", &log_path))?;
    let missing = |line: &str| Some(line.split("the class \"").nth(1)?.split('"').next()?.to_string());
    let classes: Vec<String> = log
        .lines()
        .filter(|line| line.contains(NO_SUCH_CLASS))
        .filter_map(missing)
        .map(|class| format!("`{class}`"))
        .collect();
    if classes.is_empty() {
        return Ok(());
    }
    let reason = format!("its main module does not export the Durable Object class {}", classes.join(", "));
    Err(WorkersError::new(subject(), WorkersErrorKind::Tool(reason))
        .hint("export a class of that name from the file that `main` names, or correct `class_name` in the config"))
}
