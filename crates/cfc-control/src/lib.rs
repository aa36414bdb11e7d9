//! The control API (Cloudflare's REST shapes) over records in the bucket: deployments, applications, rollouts.

mod application;
mod control;
mod platform;
mod timestamp;
mod worker;

pub use application::{ApplicationRecord, Attachment, InstanceSize, PinnedImage, application_id};
pub use control::{Control, ControlOptions, OpenError};
pub use platform::{
    ActivateError, ActivateErrorKind, InstanceState, InstanceView, LogError, LogRequest, Platform, PrepareError,
    PrepareErrorKind, TrialError, TrialErrorKind,
};
pub use timestamp::{Timestamp, TimestampError};
pub use worker::{ContainerBinding, Deployment, DurableObjectBinding, Migration, Module, ModuleRecord, WorkerRecord};
