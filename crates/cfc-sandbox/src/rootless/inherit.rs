//! Starts a program that keeps this process's capabilities.

use std::process::{Child, Command};

use rustix::thread::{CapabilitySet, CapabilitySets};

/// Spawns `command` with the capabilities of this thread, which only root's programs get by themselves. Other programs
/// that this process starts have none.
pub fn spawn_with_capabilities(command: &mut Command) -> std::io::Result<Child> {
    let held = rustix::thread::capabilities(None)?;
    let needs_nothing = rustix::process::geteuid().is_root() || held.permitted.is_empty();
    if needs_nothing {
        return command.spawn();
    }
    rustix::thread::set_capabilities(None, CapabilitySets { inheritable: held.permitted, ..held })?;
    for bit in held.permitted.iter() {
        rustix::thread::configure_capability_in_ambient_set(bit, true)?;
    }
    // A new process has the capabilities of the thread that made it.
    let spawned = command.spawn();
    rustix::thread::clear_ambient_capability_set()?;
    rustix::thread::set_capabilities(None, CapabilitySets { inheritable: CapabilitySet::empty(), ..held })?;
    spawned
}
