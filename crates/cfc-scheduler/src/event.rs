//! [`Event`]: what happened; [`Action`]: what must be done; [`Refusal`]: why something may not be.

use std::time::Duration;

use crate::{Application, Capacity, InstanceType, Resource};

/// Something that happened, or that somebody asks for.
///
/// A launch is numbered: reports about an older launch of the same instance change nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The application is there, or has changed. Instances that live keep the size they were started with.
    Configure(Application),
    /// The application is gone, and with it its instances.
    Withdraw(String),
    /// What the machine has for instances was measured anew. Instances that live keep what they have.
    Measured(Capacity),
    /// An instance may be started from now on.
    Create {
        /// Its name, unique on this machine.
        instance: String,
        /// The application it belongs to.
        application: String,
    },
    /// A process from an earlier run of the platform was found alive.
    Adopt {
        /// Its name.
        instance: String,
        /// The application it belongs to, which may not be configured yet.
        application: String,
        /// The size it was started with.
        instance_type: InstanceType,
        /// The number of its launch.
        launch: u64,
    },
    /// Somebody wants the instance's process to run.
    Start(String),
    /// The process of this launch runs.
    Launched(String, u64),
    /// The process of this launch could not be started; nothing of it is left.
    LaunchFailed(String, u64),
    /// SIGTERM now, SIGKILL when `grace` is over. One that is stopping already gets the earlier of the two deadlines.
    Stop {
        /// Whom.
        instance: String,
        /// How long it may take.
        grace: Duration,
    },
    /// The process of this launch has ended, and everything in its sandbox with it.
    Exited(String, u64),
    /// The instance is to be forgotten; its process is killed when it runs.
    Remove(String),
    /// The platform stops: all instances are stopped as by [`Event::Stop`], none may start any more.
    Drain {
        /// How long the instances may take.
        grace: Duration,
    },
    /// Time has passed; due at [`crate::Scheduler::next_deadline`].
    Tick,
}

/// Something that the caller must do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start the process on a fresh disk, then report [`Event::Launched`] or [`Event::LaunchFailed`].
    Launch {
        /// Whose.
        instance: String,
        /// The number of this launch, to be reported with everything about it.
        launch: u64,
        /// The limits it runs under.
        instance_type: InstanceType,
    },
    /// What was asked for is refused.
    Refuse {
        /// To whom.
        instance: String,
        /// Why.
        refusal: Refusal,
    },
    /// Send SIGTERM to the process.
    Terminate(String, u64),
    /// Send SIGKILL to everything in the sandbox.
    Kill(String, u64),
    /// Nothing of the instance lives: remove its directory and records.
    Discard(String),
}

/// Why an instance may not be created or started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// All places of the application are taken.
    #[error("application `{application}` already has {limit} live instances, its `max_instances`")]
    MaxInstances {
        /// Which application.
        application: String,
        /// Its limit.
        limit: u32,
    },
    /// The machine is full.
    #[error("an instance of application `{application}` needs {needed} {resource}, {free} are free on this machine")]
    Capacity {
        /// Which application.
        application: String,
        /// What is short.
        resource: Resource,
        /// What one instance needs.
        needed: u64,
        /// What is there.
        free: u64,
    },
    /// Nobody configured the application.
    #[error("there is no application `{0}`")]
    NoApplication(String),
    /// Nobody created the instance.
    #[error("there is no instance `{0}`")]
    NoInstance(String),
    /// An instance of this name exists.
    #[error("instance `{0}` exists")]
    Exists(String),
    /// Its process starts or runs.
    #[error("instance `{0}` already runs")]
    AlreadyRunning(String),
    /// Its process is on its way out.
    #[error("instance `{0}` is stopping")]
    Stopping(String),
    /// The platform stops.
    #[error("the platform is shutting down")]
    ShuttingDown,
}

impl Refusal {
    /// Whether the same request can succeed later without anybody changing a configuration: a place may get free.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Refusal::MaxInstances { .. } | Refusal::Capacity { .. } | Refusal::ShuttingDown)
    }

    /// Which rule refused, in one word that never changes.
    pub fn rule(&self) -> &'static str {
        match self {
            Refusal::MaxInstances { .. } => "max_instances",
            Refusal::Capacity { .. } => "capacity",
            Refusal::NoApplication(_) => "no_application",
            Refusal::NoInstance(_) => "no_instance",
            Refusal::Exists(_) => "exists",
            Refusal::AlreadyRunning(_) => "already_running",
            Refusal::Stopping(_) => "stopping",
            Refusal::ShuttingDown => "shutting_down",
        }
    }
}
