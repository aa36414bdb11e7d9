//! [`Upload`] and [`ApplicationDraft`]: what a client wants, understood and not yet checked against what is recorded.

use std::collections::BTreeMap;

use cfc_oci::Reference;
use cfc_project::DurableObjectBinding;
use serde_json::{Map, Value};

use crate::{ContainerBinding, InstanceSize, Module};

/// A Worker as it was uploaded. Not to be printed: it has secrets.
pub(crate) struct Upload {
    pub name: String,
    pub main_module: String,
    pub modules: Vec<Module>,
    pub compatibility_date: String,
    pub compatibility_flags: Vec<String>,
    pub vars: BTreeMap<String, Value>,
    /// The values of secrets that it sets.
    pub secrets: BTreeMap<String, String>,
    /// Bindings that are to be as they are in the version before.
    pub inherited: Vec<String>,
    pub durable_objects: Vec<DurableObjectBinding>,
    pub migrations: MigrationsDraft,
    pub containers: Vec<ContainerBinding>,
    /// `Some` when the upload says everything about the Worker's applications: those it does not name are deleted.
    pub applications: Option<Vec<ApplicationDraft>>,
    pub more: BTreeMap<String, Value>,
    pub metadata: Value,
}

/// What an upload says about migrations.
#[derive(Debug)]
pub(crate) enum MigrationsDraft {
    /// Nothing: those that are recorded stay.
    Unchanged,
    /// These come after those that are recorded (wrangler).
    Append(Vec<Value>),
    /// These are all there are (cfc).
    All(Vec<Value>),
}

impl MigrationsDraft {
    /// All migrations, given those that are recorded.
    pub fn after(self, recorded: Vec<Value>) -> Vec<Value> {
        match self {
            MigrationsDraft::Unchanged => recorded,
            MigrationsDraft::Append(new) => recorded.into_iter().chain(new).collect(),
            MigrationsDraft::All(all) => all,
        }
    }
}

/// An application as it was asked for.
#[derive(Clone, Debug)]
pub(crate) struct ApplicationDraft {
    pub name: String,
    /// The class of the uploaded Worker it belongs to.
    pub class_name: String,
    pub image: Reference,
    pub size: InstanceSize,
    pub max_instances: u32,
    pub kept: Map<String, Value>,
    pub kept_configuration: Map<String, Value>,
    /// Whether a new image goes into service without a trial start.
    pub skip_trial: bool,
    /// Where in the request it stands, for errors.
    pub location: String,
}
