//! [`WorkerRecord`]: one version of a Worker, as it is recorded in the bucket.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use cfc_oci::Digest;
use cfc_project::DurableObjectBinding;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{ApplicationRecord, Attachment, Timestamp};

/// One version of a Worker. Its modules are objects of their own, named by digest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerRecord {
    /// The Worker's name: what its host name begins with.
    pub name: String,
    /// Names this version everywhere.
    pub version_id: Uuid,
    /// When the Worker's first version was deployed.
    pub created_at: Timestamp,
    /// When this version was deployed.
    pub deployed_at: Timestamp,
    /// Name of the module whose default export is the Worker.
    pub main_module: String,
    /// All modules, the main one included, in the order of the upload.
    pub modules: Vec<ModuleRecord>,
    /// `YYYY-MM-DD`.
    pub compatibility_date: String,
    /// Flags in the order given.
    pub compatibility_flags: Vec<String>,
    /// Plain text and JSON bindings.
    pub vars: BTreeMap<String, serde_json::Value>,
    /// Secrets: what the platform calls the value of each, by the binding's name. The values are in no record.
    #[serde(default)]
    pub secrets: BTreeMap<String, Uuid>,
    /// Durable Object bindings.
    pub durable_objects: Vec<DurableObjectBinding>,
    /// Every migration so far, oldest first, in the shape of a wrangler config.
    pub migrations: Vec<serde_json::Value>,
    /// The classes that have a container.
    pub containers: Vec<ContainerBinding>,
    /// Further keys of the wrangler config that workerd translates by itself, as the deployment gave them.
    #[serde(default)]
    pub more: BTreeMap<String, serde_json::Value>,
    /// The application records that this deployment made, so that Worker and applications change with one object.
    pub applications: Vec<ApplicationRecord>,
    /// The upload's metadata as it was sent.
    pub metadata: serde_json::Value,
}

impl WorkerRecord {
    /// The tag of the last migration.
    pub fn migration_tag(&self) -> Option<&str> {
        self.migrations.last()?.get("tag")?.as_str()
    }

    /// The Worker's own Durable Object classes that it names: bound ones, and those with a container.
    pub fn classes(&self) -> Vec<String> {
        let is_own = |binding: &&DurableObjectBinding| {
            binding.script_name.as_ref().is_none_or(|script_name| *script_name == self.name)
        };
        let bound = self.durable_objects.iter().filter(is_own).map(|binding| binding.class_name.clone());
        let contained = self.containers.iter().map(|container| container.class_name.clone());
        let classes: std::collections::BTreeSet<String> = bound.chain(contained).collect();
        classes.into_iter().collect()
    }

    /// The names of its bindings that are no secrets.
    pub fn other_bindings(&self) -> BTreeSet<String> {
        let mut names: BTreeSet<String> = self.vars.keys().cloned().collect();
        names.extend(self.durable_objects.iter().map(|binding| binding.name.clone()));
        self.more.values().for_each(|value| collect_bindings(value, &mut names));
        names
    }

    /// Whether it has a binding of this name.
    pub fn has_binding(&self, name: &str) -> bool {
        self.secrets.contains_key(name) || self.other_bindings().contains(name)
    }

    /// Where an application of `class_name` is attached.
    pub fn attachment(&self, class_name: &str) -> Attachment {
        Attachment { worker: self.name.clone(), class_name: class_name.to_string() }
    }
}

/// The names that a part of a wrangler config binds: whatever it calls `binding`.
fn collect_bindings(value: &serde_json::Value, names: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Array(items) => items.iter().for_each(|item| collect_bindings(item, names)),
        serde_json::Value::Object(members) => {
            names.extend(members.get("binding").and_then(|name| name.as_str()).map(str::to_string));
            members.values().for_each(|member| collect_bindings(member, names));
        }
        _ => {}
    }
}

/// One module of a recorded version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleRecord {
    /// As `import` names it.
    pub name: String,
    /// Its kind, for example `application/javascript+module`.
    pub content_type: String,
    /// Digest of its bytes: the object's key.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
}

/// One module with its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// As `import` names it.
    pub name: String,
    /// Its kind, for example `application/javascript+module`.
    pub content_type: String,
    /// The module itself.
    pub bytes: Bytes,
}

/// A class that has a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerBinding {
    /// The Durable Object class.
    pub class_name: String,
    /// The application's name, where the upload said it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// What a platform is to make serve: a Worker's version, its modules, and its applications.
#[derive(Clone, Debug)]
pub struct Deployment {
    /// The version.
    pub worker: WorkerRecord,
    /// The version's modules with their bytes.
    pub modules: Vec<Module>,
    /// The applications attached to the Worker's classes. A class of `worker.containers` without one (wrangler uploads
    /// the Worker first) has no container yet.
    pub applications: Vec<ApplicationRecord>,
}

impl Deployment {
    /// The application of a class.
    pub fn application_of(&self, class_name: &str) -> Option<&ApplicationRecord> {
        self.applications.iter().find(|application| {
            application.attachment.as_ref().is_some_and(|attachment| attachment.class_name == class_name)
        })
    }
}
