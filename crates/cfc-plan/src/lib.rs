//! A Dockerfile lowered to a content-addressed graph of operations with cache keys; defines the `Builder` seam.
//!
//! Owns BuildKit's meaning of each instruction: which filesystem it works on, what it writes into the image's config
//! and history, what a word expands to. Leaves reading text to `cfc-dockerfile` and doing the work to a [`Builder`].
//! Never does I/O: images come through [`BaseImages`], files of the context are not looked at.

mod plan;

mod lower;

mod stages;

mod stage;

mod stage_lint;

mod copy;

mod run;

mod mounts;

mod metadata;

mod onbuild;

mod arguments;
mod builder;
mod chmod;
#[cfg(feature = "contract")]
pub mod contract;
mod environment;
mod error;
mod graph;
mod history;
mod lint;
mod named_context;
mod outline;
pub mod path;
mod ports;
mod run_settings;
mod source;

pub use builder::{
    BuildError, BuildProgress, Builder, BuiltImage, Context, DownloadError, Downloads, FailedInstruction, Ignore,
    NamedFiles, NodeOutcome, OutputStream, SecretSource, Silent,
};
pub use chmod::ModeChange;
pub use error::PlanError;
pub use lint::{LintWarning, Rule};
pub use lower::{Checked, check, lower};
pub use named_context::{ContextFiles, ContextName, NamedContext};
pub use outline::{Outline, OutlineArgument, OutlineMount, outline};
pub use plan::{
    BaseImage, BaseImageError, BaseImages, BuildRequest, Copy, CopySource, Entitlement, FileOwner, Mount, MountKind,
    Node, NodeId, Op, Parents, Plan, Run, RunNetwork, SecretVariable, Source,
};
pub use run_settings::{ExtraHost, RunSettings, Ulimit};
pub use source::{GitSource, UrlSource, is_url};
