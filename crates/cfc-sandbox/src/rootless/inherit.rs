//! Executes programs that keep this process's capabilities, which only root's programs get by themselves.

use std::convert::Infallible;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use rustix::thread::{CapabilitySet, CapabilitySets};

/// Spawns `command` with the capabilities of this thread. Other programs that this process starts have none.
pub fn spawn_with_capabilities(command: &mut Command) -> std::io::Result<Child> {
    // A new process has the capabilities of the thread that made it.
    keep_capabilities(|| command.spawn())?
}

/// `<process id>:<user id>`. The process id tells it from one that somebody's environment happens to hold.
const VARIABLE: &str = "CFC_ENTERED";

/// Executes `command` in this process's place, where [`enter_rootless`](super::enter_rootless) then finds the namespaces and
/// capabilities that it would make, and [`user_id`](super::user_id) is the same. Returns only when that is not possible.
pub fn execute_with_capabilities(command: &mut Command) -> io::Error {
    command.env(VARIABLE, format!("{}:{}", std::process::id(), super::user_id()));
    let executed = keep_capabilities(|| Err::<Infallible, _>(command.exec()));
    executed.and_then(|never| never).map(|never| match never {}).unwrap_err()
}

/// The user whose namespaces this process's earlier program had entered, if there was one.
pub(super) fn inherited_user() -> Option<u32> {
    user_of(std::env::var(VARIABLE).ok().as_deref(), std::process::id())
}

fn user_of(text: Option<&str>, process: u32) -> Option<u32> {
    let (pid, user) = text?.split_once(':')?;
    user.parse().ok().filter(|_| pid.parse() == Ok(process))
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

#[cfg(test)]
mod tests {
    use super::user_of;

    #[test]
    fn only_what_was_left_for_this_process_is_taken() {
        assert_eq!(user_of(Some("7:1000"), 7), Some(1000));
        for (text, process) in [(Some("7:1000"), 8), (Some("7"), 7), (Some("7:x"), 7), (None, 7)] {
            assert_eq!(user_of(text, process), None, "{text:?}");
        }
    }
}
