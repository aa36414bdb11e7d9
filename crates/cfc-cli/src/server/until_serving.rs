//! [`UntilServing`]: sees to it that a server which does not come up leaves no launcher behind.

use cfc_sandbox::Launcher;

/// The launcher of a server that is coming up. Dropping it ends the launcher, unless containers run under it.
pub struct UntilServing {
    launcher: Option<Launcher>,
}

impl UntilServing {
    /// Of a server that has just found its launcher, or started it.
    pub fn new(launcher: &Launcher) -> UntilServing {
        UntilServing { launcher: Some(launcher.clone()) }
    }

    /// The server serves: the launcher outlives it from now on.
    pub fn serves(mut self) {
        self.launcher = None;
    }
}

impl Drop for UntilServing {
    fn drop(&mut self) {
        let Some(launcher) = self.launcher.take() else { return };
        // The next server takes over containers that run.
        let is_unused = launcher.list().is_ok_and(|sandboxes| sandboxes.is_empty());
        if is_unused && let Err(error) = launcher.shutdown() {
            tracing::warn!(%error, "a launcher that nobody uses is left");
        }
    }
}
