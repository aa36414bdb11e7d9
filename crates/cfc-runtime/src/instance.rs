//! What the runtime is told about applications and instances, and what it tells about them.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use cfc_oci::Descriptor;
use cfc_sandbox::{Exit, Grant, OciRuntime};
use cfc_scheduler::InstanceType;
use serde::{Deserialize, Serialize};

use crate::events::StartTimings;

/// What all instances of one container class share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Application {
    /// Unique on this machine.
    pub name: String,
    /// The image that a new instance gets when nobody names another.
    pub image: Descriptor,
    /// How many of its instances may live at the same time.
    pub max_instances: u32,
    /// How large each instance is.
    pub instance_type: InstanceType,
    /// Whether an instance may use the whole processor until it listens, rather than its share.
    pub startup_cpu_boost: bool,
    /// How its instances are kept apart from the machine.
    #[serde(default)]
    pub isolation: Isolation,
}

/// How instances are kept apart from the machine. The default is cfc's own sandbox, with nothing granted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Isolation {
    /// What runs them in place of cfc's own sandbox.
    pub runtime: Option<OciRuntime>,
    /// What the operator allows them besides.
    pub grants: Vec<Grant>,
}

/// One instance, as whoever wants it describes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceSpec {
    /// Unique on this machine: 1 to 200 of `A-Z a-z 0-9 _ . -`, not starting with a dot.
    pub name: String,
    /// The application whose limits hold for it.
    pub application: String,
    /// The manifest of its image, which the store has.
    pub image: Descriptor,
    /// What follows the image's ENTRYPOINT, in place of its CMD.
    pub command: Option<Vec<String>>,
    /// `KEY=value`, added to the image's environment; the last of a key wins.
    pub env: Vec<String>,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
}

/// How a process ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitReport {
    /// Its exit code, or 128 plus the number of the signal that ended it.
    pub code: i32,
    /// Whether it ended because the kernel killed it at its memory limit.
    pub oom_killed: bool,
    /// What else there is to say: why it could not be started, or was lost.
    pub error: Option<String>,
}

impl From<Exit> for ExitReport {
    fn from(exit: Exit) -> ExitReport {
        ExitReport { code: exit.status.shell_code(), oom_killed: exit.oom_killed, error: None }
    }
}

/// What an instance does now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Created and never started.
    Created,
    /// Its process is being made.
    Starting,
    /// Its process runs, and was not seen to listen yet.
    Running {
        /// Its process 1, as the machine numbers it.
        pid: i32,
    },
    /// Its process runs and listens on a port.
    Ready {
        /// Its process 1, as the machine numbers it.
        pid: i32,
    },
    /// Its process was told to end and still runs.
    Stopping {
        /// Its process 1, as the machine numbers it.
        pid: i32,
    },
    /// Its process ended.
    Stopped(ExitReport),
    /// It was removed; only whoever still waits for it sees this.
    Removed(ExitReport),
}

impl Phase {
    /// Whether a process exists or is being made.
    pub fn is_live(&self) -> bool {
        matches!(self, Phase::Starting | Phase::Running { .. } | Phase::Ready { .. } | Phase::Stopping { .. })
    }

    /// Its process 1, as the machine numbers it, while it has one.
    pub fn pid(&self) -> Option<i32> {
        match self {
            Phase::Running { pid } | Phase::Ready { pid } | Phase::Stopping { pid } => Some(*pid),
            _ => None,
        }
    }

    /// How the process ended, once it has.
    pub fn exit(&self) -> Option<&ExitReport> {
        match self {
            Phase::Stopped(report) | Phase::Removed(report) => Some(report),
            _ => None,
        }
    }
}

/// One instance, as it is now.
#[derive(Clone, Debug)]
pub struct InstanceView {
    /// What it was created from.
    pub spec: InstanceSpec,
    /// What it does.
    pub phase: Phase,
    /// Since when it does that.
    pub since: SystemTime,
    /// When it was created.
    pub created: SystemTime,
    /// When it was last started.
    pub started: Option<SystemTime>,
    /// How long the parts of its start took; `None` when this runtime did not start it.
    pub timings: Option<StartTimings>,
    /// How long after its command began to execute it listened; `None` when that was not seen.
    pub ready_after: Option<Duration>,
    /// Why its last start was refused, as long as it was not started since.
    pub refused: Option<String>,
    /// How its process is kept apart from the machine, or was last; `None` when it never ran, or an earlier version of cfc
    /// started it.
    pub isolation: Option<Isolation>,
    /// The limits that its process has or had last.
    pub instance_type: Option<InstanceType>,
    /// How often it was started.
    pub launches: u64,
}
