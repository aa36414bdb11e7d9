//! [`Instance`]: one addressable container, and the [`State`] it is in.

use std::time::Duration;

use crate::InstanceType;

/// One instance of an application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// The application it belongs to.
    pub application: String,
    /// What it does now.
    pub state: State,
    /// How often it was launched; the number of the newest launch.
    pub launches: u64,
}

/// What an instance does. Times are on the caller's clock, as given to [`crate::Scheduler::step`].
///
/// ```text
/// Cold → Starting → Running → Stopping → Stopped
///           └──────────┴──────────────────↑  └→ Starting
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Created and never started.
    Cold,
    /// Its process is being made.
    Starting {
        /// Since when.
        since: Duration,
        /// What it will occupy.
        instance_type: InstanceType,
        /// To be stopped, or killed and forgotten, as soon as it is made.
        then: Then,
    },
    /// Its process runs.
    Running {
        /// Since when.
        since: Duration,
        /// What it occupies.
        instance_type: InstanceType,
    },
    /// Its process was told to end.
    Stopping {
        /// Since when.
        since: Duration,
        /// What it occupies.
        instance_type: InstanceType,
        /// When it will be killed; `None` when it was.
        deadline: Option<Duration>,
        /// Whether it is to be forgotten afterwards.
        discard: bool,
    },
    /// Its process ended.
    Stopped {
        /// Since when.
        since: Duration,
    },
}

/// What is to become of an instance whose process is just being made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// It shall run.
    Run,
    /// It shall be stopped, with this much time to do so.
    Stop(Duration),
    /// It shall be killed and forgotten.
    Discard,
}

impl State {
    /// What the instance occupies: something from the decision to launch until the process is gone.
    pub fn occupies(&self) -> Option<&InstanceType> {
        match self {
            State::Starting { instance_type, .. }
            | State::Running { instance_type, .. }
            | State::Stopping { instance_type, .. } => Some(instance_type),
            State::Cold | State::Stopped { .. } => None,
        }
    }

    /// Whether a process exists or may exist.
    pub fn is_live(&self) -> bool {
        self.occupies().is_some()
    }
}
