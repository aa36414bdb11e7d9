//! The control API (Cloudflare's REST shapes) over records in the bucket: deployments, applications, rollouts.
//!
//! Owns what is deployed and the order in which that changes; leaves the doing (images, workerd, instances) to a
//! [`Platform`]. A [`Control`] is served by `cfc serve`; a [`Client`] is how the other commands talk to it.

mod applications;
mod catalog;
mod control;
mod delete;
mod deploy;
mod modules;
mod records;
mod secrets;

mod application;
mod draft;
mod rollout;
mod timestamp;
mod worker;

mod exec;
mod frames;
mod metric;
mod operations;
mod platform;

mod client;
mod error;
mod host;
mod routes;
mod wire;

pub use application::{ApplicationRecord, Attachment, InstanceSize, PinnedImage, application_id};
pub use client::{
    ApplicationRequest, ApplicationStatus, Client, ClientError, ClientErrorKind, DeployRequest, Deployed,
    ExecConnection, ExecReceiver, ExecSender,
};
pub use control::{Control, ControlOptions, RegistryGrant, RegistryPasswords};
pub use delete::Deleted;
pub use error::{Code, ControlError};
pub use exec::{ExecError, ExecInput, ExecOutput, ExecRequest, ExecSession};
pub use host::worker_url;
pub use metric::{MetricFamily, MetricKind, Sample};
pub use operations::{
    EventRequest, EventView, Inspection, InstanceError, InstanceStats, IsolationView, Operations, Stopped,
    UserNamespaceView,
};
pub use platform::{
    ActivateError, ActivateErrorKind, InstanceState, InstanceView, LogError, LogRequest, Platform, PrepareError,
    PrepareErrorKind, TrialError, TrialErrorKind,
};
pub use rollout::RolloutRecord;
pub use timestamp::{Timestamp, TimestampError};
pub use worker::{ContainerBinding, Deployment, Module, ModuleRecord, WorkerRecord};
