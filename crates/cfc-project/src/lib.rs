//! A wrangler config file into a typed, validated project: Worker, containers, bindings, migrations.
//!
//! Owns which file is found ([`find_config`]), the three syntaxes, wrangler's rules for `--env`, and every check that
//! needs no network. Reads files, never writes one. The commands of `cfc-cli` call it; `cfc-workers` and `cfc-control`
//! take what it returns.

mod project;

mod classes;
mod container;
mod environment;
mod error;
mod find;
mod image;
mod instance_type;
mod keys;
mod load;
mod rollout;
mod table;

pub use container::{Constraints, Container};
pub use error::{Problem, ProjectError, ProjectErrorKind};
pub use find::find_config;
pub use image::ImageSource;
pub use instance_type::InstanceType;
pub use load::load;
pub use project::{DurableObjectBinding, Project};
pub use rollout::{Rollout, RolloutKind};
