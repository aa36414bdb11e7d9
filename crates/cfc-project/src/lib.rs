//! A wrangler config file into a typed, validated project: Worker, containers, bindings, migrations.
//!
//! Owns which file is found ([`find_config`]), the three syntaxes, wrangler's rules for `--env`, and every check that
//! needs no network. Reads files, never writes one. The commands of `cfc-cli` call it; `cfc-workers` and `cfc-control`
//! take what it returns.

mod container;
mod error;
mod find;
mod instance_type;
mod load;
mod project;

pub use container::{Constraints, Container, ImageSource, Rollout, RolloutKind};
pub use error::{Problem, ProjectError, ProjectErrorKind};
pub use find::find_config;
pub use instance_type::InstanceType;
pub use load::load;
pub use project::{DurableObjectBinding, Project};
