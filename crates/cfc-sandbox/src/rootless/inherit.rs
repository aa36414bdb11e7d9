//! Executes programs that keep this process's capabilities, which only root's programs get by themselves.

use std::process::{Child, Command};

use rustix::thread::{CapabilitySet, CapabilitySets};

/// Spawns `command` with the capabilities of this thread. Other programs that this process starts have none.
pub fn spawn_with_capabilities(command: &mut Command) -> std::io::Result<Child> {
    // A new process has the capabilities of the thread that made it.
    keep_capabilities(|| command.spawn())?
}

/// Does something during which programs that this thread executes keep its capabilities.
pub(crate) fn keep_capabilities<T>(action: impl FnOnce() -> T) -> std::io::Result<T> {
    let held = rustix::thread::capabilities(None)?;
    let needs_nothing = rustix::process::geteuid().is_root() || held.permitted.is_empty();
    if needs_nothing {
        return Ok(action());
    }
    rustix::thread::set_capabilities(None, CapabilitySets { inheritable: held.permitted, ..held })?;
    for bit in held.permitted.iter() {
        rustix::thread::configure_capability_in_ambient_set(bit, true)?;
    }
    let done = action();
    rustix::thread::clear_ambient_capability_set()?;
    rustix::thread::set_capabilities(None, CapabilitySets { inheritable: CapabilitySet::empty(), ..held })?;
    Ok(done)
}
