//! [`WorkerVersion`]: everything that workerd must know of one version of a Worker.

use std::collections::BTreeMap;

use cfc_project::{DurableObjectBinding, Project};
use serde_json::Value;

use crate::Bundle;

/// Everything that workerd must know of one version of a Worker.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerVersion {
    /// The Worker's name.
    pub name: String,
    /// Its modules.
    pub bundle: Bundle,
    /// `YYYY-MM-DD`.
    pub compatibility_date: String,
    /// workerd's flags, in order.
    pub compatibility_flags: Vec<String>,
    /// Variables: strings and JSON values.
    pub vars: BTreeMap<String, Value>,
    /// Durable Object bindings.
    pub durable_objects: Vec<DurableObjectBinding>,
    /// All migrations since the Worker's first version, in order, in the shape of the wrangler config.
    pub migrations: Vec<Value>,
    /// The classes that have containers.
    pub containers: Vec<ContainerBinding>,
    /// Further keys of the wrangler config that workerd translates by itself: those of
    /// [`Project::TRANSLATED_KEYS`](cfc_project::Project::TRANSLATED_KEYS).
    pub more: BTreeMap<String, Value>,
}

/// A Durable Object class that has a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerBinding {
    /// The class.
    pub class_name: String,
    /// What workerd will name as `Image` when it asks the engine for a container of this class.
    pub image: String,
}

impl WorkerVersion {
    /// The version that a project describes, with the image of each container class.
    pub fn from_project(project: &Project, bundle: Bundle, containers: Vec<ContainerBinding>) -> WorkerVersion {
        let translated = |key: &&str| Some((key.to_string(), project.raw.get(*key)?.clone()));
        WorkerVersion {
            name: project.name.clone(),
            bundle,
            compatibility_date: project.compatibility_date.clone(),
            compatibility_flags: project.compatibility_flags.clone(),
            vars: project.vars.clone(),
            durable_objects: project.durable_objects.clone(),
            migrations: project.migrations.clone(),
            containers,
            more: Project::TRANSLATED_KEYS.iter().filter_map(translated).collect(),
        }
    }
}
