//! [`Operations`]: what whoever runs a platform asks about its instances, and of them.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};

use crate::{InstanceSize, InstanceView, MetricFamily, Timestamp};

/// The machine's side of looking after instances. An instance is given as its full name, as the id of its Durable
/// Object, or as the beginning of either, when only one fits.
#[async_trait]
pub trait Operations: Send + Sync + 'static {
    /// Everything that is known of an instance, also of one that ended lately.
    async fn inspect(&self, instance: &str) -> Result<Inspection, InstanceError>;

    /// Asks an instance to end, kills it after `grace` (the platform's own by default), and returns when it has ended.
    async fn stop(&self, instance: &str, grace: Option<Duration>) -> Result<Stopped, InstanceError>;

    /// As [`stop`](Operations::stop), then starts it again on a fresh disk.
    async fn restart(&self, instance: &str, grace: Option<Duration>) -> Result<InstanceView, InstanceError>;

    /// What the live instances use: those of one application or all.
    async fn stats(&self, application: Option<&str>) -> Vec<InstanceStats>;

    /// What happened to instances, oldest first; with `follow` also what will happen.
    async fn events(&self, request: &EventRequest) -> BoxStream<'static, EventView>;

    /// What is counted, for Prometheus.
    async fn metrics(&self) -> Vec<MetricFamily>;
}

/// Everything that is known of an instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Inspection {
    /// As lists show it.
    #[serde(flatten)]
    pub view: InstanceView,
    /// When it was created.
    pub created: Timestamp,
    /// How often it was started.
    pub launches: u64,
    /// How long the phases of its last start took, in milliseconds: `admit`, `disk`, `launch`, `ready`.
    pub timings_ms: BTreeMap<String, f64>,
    /// The limits its process has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<InstanceSize>,
    /// How it is kept apart from the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<IsolationView>,
    /// What follows the image's ENTRYPOINT in place of its CMD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// The names of the variables that it was given. Their values may be secrets and are never told.
    pub env: Vec<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// What it uses, while it lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<InstanceStats>,
}

/// How an instance is kept apart from the machine. What is not known is not there: of containers of an OCI runtime, what only
/// that knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IsolationView {
    /// `cfc`, or the OCI runtime that its container is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// What the operator allows it besides.
    #[serde(default)]
    pub grants: Vec<String>,
    /// Whether it reaches the internet, by its Worker's word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub internet: Option<bool>,
    /// Which users and groups of the machine its own are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_namespace: Option<UserNamespaceView>,
    /// The capabilities that its processes can have, within its user namespace: `CAP_CHOWN`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Vec<String>>,
    /// Whether a filter refuses system calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<bool>,
    /// Whether set-user-id programs give its processes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_new_privileges: Option<bool>,
}

/// The ids of a user namespace, each range as the first inside, the first outside, and how many.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNamespaceView {
    /// Users.
    pub users: Vec<[u32; 3]>,
    /// Groups.
    pub groups: Vec<[u32; 3]>,
}

/// What a live instance uses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceStats {
    /// The instance's full name.
    pub id: String,
    /// The id of its Durable Object.
    pub name: String,
    /// Its application.
    pub application: String,
    /// Time on processors since its start, in microseconds.
    pub cpu_usec: u64,
    /// When that was read, in milliseconds since 1970.
    pub read_at_ms: u64,
    /// Processors it may use.
    pub vcpu: f64,
    /// Memory now, page cache included, in bytes.
    pub memory_bytes: u64,
    /// The most there was.
    pub memory_peak_bytes: u64,
    /// Memory now that no file backs.
    pub memory_anonymous_bytes: u64,
    /// The limit.
    pub memory_limit_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Bytes over its loopback device: all that went in and out, and what it sent to itself.
    pub network_bytes: u64,
    /// Bytes that its connections have carried in, since this `cfc serve` runs. Datagrams are not among them.
    #[serde(default)]
    pub received_bytes: u64,
    /// Bytes that its connections have carried out.
    #[serde(default)]
    pub sent_bytes: u64,
    /// Its connections, to it and by it, that are open.
    #[serde(default)]
    pub tunnels_open: u64,
    /// Bytes on its disk, where that is bounded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// What its disk can hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_limit_bytes: Option<u64>,
}

/// How an instance ended that was asked to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// Its full name.
    pub id: String,
    /// Its exit code, or 128 plus the number of the signal that ended it.
    pub exit_code: i32,
}

/// Which events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventRequest {
    /// Only those not older than this.
    pub since: Option<Duration>,
    /// Go on with what happens later.
    pub follow: bool,
}

/// Something that happened to an instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventView {
    /// Counts the events of one run of the platform. A gap means that there were more than are remembered.
    pub number: u64,
    /// When.
    pub time: Timestamp,
    /// `created`, `starting`, `running`, `ready`, `stopping`, `exited`, `oom_killed`, `refused`, `adopted`, `removed`.
    pub event: String,
    /// The instance's full name.
    pub id: String,
    /// The id of its Durable Object.
    pub name: String,
    /// Its application.
    pub application: String,
    /// What else there is to tell: `pid`, `admit_ms`, `disk_ms`, `launch_ms`, `ready_ms`, `exit_code`, `reason`, `rule`.
    #[serde(flatten)]
    pub details: serde_json::Map<String, serde_json::Value>,
}

/// Why nothing was done with an instance.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InstanceError {
    /// None fits.
    #[error("there is no instance `{given}`")]
    NoSuchInstance {
        /// What was given.
        given: String,
    },
    /// More than one fits.
    #[error("`{given}` is the beginning of {} instances: {}", fitting.len(), fitting.join(", "))]
    Ambiguous {
        /// What was given.
        given: String,
        /// The ids of those that fit.
        fitting: Vec<String>,
    },
    /// Its process does not run.
    #[error("instance `{0}` is not running")]
    NotRunning(String),
    /// It could not be done.
    #[error("{0}")]
    Failed(String),
}
