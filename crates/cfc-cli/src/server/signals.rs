//! The signals that a server heeds.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// SIGTERM or SIGINT.
    ToEnd,
    /// SIGUSR2: let a new program take this one's place. Not SIGHUP, which also comes when a terminal is closed.
    ToUpgrade,
}

/// The signals as they come.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    upgrade: Signal,
}

impl Signals {
    /// Catches them from now on. Must be called within a tokio runtime.
    pub fn catch() -> Signals {
        Signals {
            terminate: signal(SignalKind::terminate()).expect("SIGTERM can be caught"),
            interrupt: signal(SignalKind::interrupt()).expect("SIGINT can be caught"),
            upgrade: signal(SignalKind::user_defined2()).expect("SIGUSR2 can be caught"),
        }
    }

    /// The next one.
    pub async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::ToEnd,
            _ = self.interrupt.recv() => Asked::ToEnd,
            _ = self.upgrade.recv() => Asked::ToUpgrade,
        }
    }

    /// Returns when SIGTERM or SIGINT arrives.
    pub async fn asked_to_end(&mut self) {
        while self.next().await != Asked::ToEnd {}
    }
}

/// SIGHUP from now on, by which a registry is asked to look at its files again. It also comes when a terminal is closed, which
/// ends no server. Must be called within a tokio runtime.
pub fn hangups() -> Signal {
    signal(SignalKind::hangup()).expect("SIGHUP can be caught")
}
