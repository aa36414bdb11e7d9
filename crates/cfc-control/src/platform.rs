//! [`Platform`]: what the control API asks of the machine, and the ways it may refuse.
//!
//! The life of one deployment: for every image [`prepare_image`](Platform::prepare_image), then
//! [`try_image`](Platform::try_image), then one [`activate`](Platform::activate) for the Worker and all its
//! applications. Until `activate` has returned `Ok` the previous version serves, and it still does when it returns `Err`.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cfc_oci::{Descriptor, Digest, Reference};
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{ApplicationRecord, Deployment, InstanceSize, Operations, Timestamp};
use crate::{ExecError, ExecRequest, ExecSession};

/// The machine's side of the control API. The command wires the real one.
#[async_trait]
pub trait Platform: Operations {
    /// Brings the image into the local store, unpacked, and says which manifest `reference` names now.
    async fn prepare_image(&self, reference: &Reference) -> Result<Descriptor, PrepareError>;

    /// Starts one instance of a prepared image within `size`, sees that it does not end at once, and removes it.
    async fn try_image(&self, application: &str, image: &Descriptor, size: &InstanceSize) -> Result<(), TrialError>;

    /// Makes the deployment serve: the new Worker is up and healthy, its applications are known to the runtime, and
    /// the gateway points at it. On an error the deployment that served before still does. Activating what already
    /// serves is allowed.
    async fn activate(&self, deployment: &Deployment) -> Result<(), ActivateError>;

    /// What instances of an application that serves get less of than it asks for, in words for a person; for each
    /// limit one text.
    async fn clamps(&self, application: &ApplicationRecord) -> Vec<String>;

    /// What keeps an application's containers apart from the machine, in words for a person.
    fn isolation(&self, application: &str) -> String;

    /// The names for which the operator has settings although none of `applications` has them.
    fn unused_settings(&self, applications: &[String]) -> Vec<String>;

    /// Ends the Worker, its route and its instances. Removing one that is not there is no error.
    async fn remove_worker(&self, name: &str) -> Result<(), ActivateError>;

    /// Ends the Worker and its route, and leaves its instances: to [`erase_worker`](Platform::erase_worker), or to the
    /// Worker itself when it is activated again.
    async fn suspend_worker(&self, name: &str);

    /// Removes what a Worker has left whose deletion is recorded: its state and secrets, and the instances of `applications`, which are
    /// told to end. Says how many of these still use their time for it. Where nothing is left, nothing is done.
    async fn erase_worker(&self, name: &str, applications: &[String]) -> Result<usize, io::Error>;

    /// Keeps the value of a secret, also if the power is cut, and says what it is called from now on.
    async fn keep_secret(&self, worker: &str, value: &str) -> Result<Uuid, io::Error>;

    /// Forgets all values of the Worker's secrets but these.
    async fn retain_secrets(&self, worker: &str, used: &BTreeSet<Uuid>) -> Result<(), io::Error>;

    /// The instances of an application, live ones and those that ended lately.
    async fn instances(&self, application: &ApplicationRecord) -> Vec<InstanceView>;

    /// The lines an instance wrote, as bytes of UTF-8 text.
    async fn logs(
        &self,
        application: &ApplicationRecord,
        request: &LogRequest,
    ) -> Result<BoxStream<'static, io::Result<Bytes>>, LogError>;

    /// The lines that a Worker has printed, as bytes of UTF-8 text. Of the request, `instance` and `stream` do not apply.
    async fn worker_logs(&self, name: &str, request: &LogRequest) -> BoxStream<'static, io::Result<Bytes>>;

    /// Runs a command in the running instance that `instance` means: its id, its Durable Object's, or the beginning of
    /// either where that is only one's.
    async fn exec(&self, instance: &str, request: ExecRequest) -> Result<ExecSession, ExecError>;
}

/// One instance, as lists show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceView {
    /// Unique for this start.
    pub id: String,
    /// The instance's name: the Durable Object's id.
    pub name: String,
    /// The application's name.
    pub application: String,
    /// What it is doing.
    pub state: InstanceState,
    /// Since when it is in that state.
    pub since: Timestamp,
    /// When it was started.
    pub started: Timestamp,
    /// Digest of the manifest it was started from.
    pub image: Digest,
    /// The application's version it was started with, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// The process id of its first process on this machine, while it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// When its process ended, once it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Timestamp>,
    /// The exit code, or 128 plus the number of the signal that ended it, once it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Whether the kernel killed something in it for want of memory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oom_killed: bool,
    /// Whether it is only remembered: nothing of it but its log is left.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub removed: bool,
}

/// What an instance is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "lowercase")]
pub enum InstanceState {
    /// Asked for; its process does not exist yet.
    Starting,
    /// Its process exists; it was not seen to listen yet.
    Running,
    /// It listens on a port.
    Ready,
    /// Was asked to end.
    Stopping,
    /// Ended by itself or when asked to.
    Stopped {
        /// The exit status, where it ended by itself.
        exit_code: Option<i32>,
    },
    /// Could not start, or was killed.
    Failed {
        /// In one sentence.
        reason: String,
    },
}

/// Which log, and how much of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogRequest {
    /// Id or name of one instance; `None` for all of the application.
    pub instance: Option<String>,
    /// Only so many of the last lines.
    pub tail_lines: Option<u64>,
    /// Only lines written within this time.
    pub since: Option<Duration>,
    /// Only lines of `stdout` or of `stderr`.
    pub stream: Option<String>,
    /// Begin each line with the time at which it was written.
    pub timestamps: bool,
    /// Keep the stream open for what is written later.
    pub follow: bool,
}

/// An image that cannot be made ready to start.
#[derive(Debug, thiserror::Error)]
#[error("cannot prepare image `{reference}`: {kind}")]
pub struct PrepareError {
    /// The image.
    pub reference: Reference,
    /// What is wrong.
    pub kind: PrepareErrorKind,
    /// What to do about it.
    pub hint: Option<String>,
}

/// What can be wrong with an image before it is tried.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrepareErrorKind {
    /// Neither the store nor the registry has it.
    #[error("there is no such image")]
    NotFound,
    /// The registry refused.
    #[error("the registry refused the credentials")]
    Unauthorized,
    /// It is not for this machine.
    #[error("the image is for {found}, this machine runs {expected}")]
    WrongPlatform {
        /// This machine's platform.
        expected: String,
        /// The image's platform.
        found: String,
    },
    /// It does not fit the disk.
    #[error("{0}")]
    Other(String),
}

/// An image whose trial start failed.
#[derive(Debug, thiserror::Error)]
#[error("a trial start of the image failed: {kind}{}", last_output(output))]
pub struct TrialError {
    /// What happened.
    pub kind: TrialErrorKind,
    /// The last lines that it wrote.
    pub output: String,
    /// What to do about it.
    pub hint: Option<String>,
}

fn last_output(output: &str) -> String {
    match output.trim_end() {
        "" => String::new(),
        output => format!(", after it wrote:\n{output}"),
    }
}

/// How a trial start can fail.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrialErrorKind {
    /// The process ended at once.
    #[error("it ended after {after:?} with status {status}")]
    Exited {
        /// `exit code 1`, `signal 9 (out of memory)`.
        status: String,
        /// How long it ran.
        after: Duration,
    },
    /// The process runs and does not listen on any port that the image exposes.
    #[error("it does not listen on {}, {waited:?} after its start, {}", list_ports(ports), instead(listens_on))]
    NotListening {
        /// The ports that the image exposes.
        ports: Vec<u16>,
        /// The TCP ports that it listens on.
        listens_on: Vec<u16>,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The image needs more disk, memory or processors than the instance type has.
    #[error("{0}")]
    DoesNotFit(String),
    /// The process could not be started.
    #[error("{0}")]
    NotStarted(String),
}

fn list_ports(ports: &[u16]) -> String {
    let all = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    if ports.len() == 1 { format!("port {all}") } else { format!("any of the ports {all}") }
}

fn instead(ports: &[u16]) -> String {
    match ports {
        [] => "nor on any other".to_string(),
        [only] => format!("but on port {only}"),
        ports => format!("but on the ports {}", ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")),
    }
}

/// A Worker that could not be put in service, or taken out of it.
#[derive(Debug, thiserror::Error)]
#[error("cannot put Worker `{worker}` into service: {kind}")]
pub struct ActivateError {
    /// The Worker.
    pub worker: String,
    /// What happened.
    pub kind: ActivateErrorKind,
    /// What to do about it.
    pub hint: Option<String>,
}

/// How an activation can fail.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ActivateErrorKind {
    /// workerd refused the modules or the configuration.
    #[error("workerd does not accept it: {0}")]
    Rejected(String),
    /// workerd started but did not begin to listen.
    #[error("it was not ready within {0:?}")]
    NotReady(Duration),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl InstanceState {
    /// Whether a process exists or is being made.
    pub fn is_live(&self) -> bool {
        !matches!(self, InstanceState::Stopped { .. } | InstanceState::Failed { .. })
    }

    /// Whether a process exists that was not asked to end.
    pub fn is_running(&self) -> bool {
        matches!(self, InstanceState::Running | InstanceState::Ready)
    }
}

/// A log that cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// No instance of that id or name.
    #[error("application `{application}` has no instance `{instance}`")]
    NoSuchInstance {
        /// The application.
        application: String,
        /// What was asked for.
        instance: String,
    },
    /// The log is there but cannot be read.
    #[error("cannot read the log of application `{application}`")]
    Unreadable {
        /// The application.
        application: String,
        /// Why.
        source: io::Error,
    },
}
