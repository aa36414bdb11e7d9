//! Instances: carries out the scheduler's decisions with store and sandbox; lifecycle, logs, ingress.
//!
//! Owns the instances of one machine: their directories, their processes (through the launcher, which keeps them alive
//! when everything else ends), their output, the way into their ports and the way out. [`Runtime`] is the handle. Who may start is
//! decided by [`cfc_scheduler`]; the crate speaks no protocol of anybody else's, the engine does that.

mod adopt;
mod boost;
mod confinement;
mod connect;
mod directory;
mod ended;
mod ends;
mod error;
mod events;
mod exec;
mod foreground;
mod instance;
mod journal;
mod launch;
mod lifecycle;
mod logs;
mod machine;
mod metrics;
mod outbound;
mod ownerless;
mod prepared;
mod processes;
mod ready;
mod runtime;
mod stop;
mod trial;
mod tunnels;
mod unheard;
mod usage;

pub use cfc_relay::{Counts, Kind, Relays, unpaced};
pub use cfc_sandbox::WindowSize;
pub use cfc_sandbox::fail_point;
/// Whether a connection over the loopback comes from a process of our own user.
pub use cfc_sandbox::is_from_own_user;
pub use cfc_sandbox::rfc3339;
pub use cfc_scheduler::{Capacity, InstanceType, Refusal};
pub use confinement::{Confinement, IdRange};
pub use connect::ConnectError;
pub use ended::EndedInstance;
pub use error::{Result, RuntimeError, RuntimeErrorKind};
pub use events::{EventReader, InstanceEvent, InstanceEventKind, StartTimings};
pub use exec::{Exec, ExecControl, ExecInput, ExecOutput, ExecSpec};
pub use foreground::{ForegroundPlace, check_disks, foreground_sandbox};
pub use instance::{Application, ExitReport, InstanceSpec, InstanceView, Isolation, Phase};
pub use logs::{LogLine, LogReader, LogStream};
pub use machine::Shares;
pub use metrics::{ApplicationMetrics, BUCKETS, Histogram};
pub use outbound::Outbound;
pub use processes::Process;
pub use runtime::{Runtime, RuntimeConfig};
pub use stop::STOP_GRACE;
pub use trial::Trial;
pub use tunnels::Traffic;
pub use unheard::Unheard;
pub use usage::InstanceUsage;
