//! [`WorkerRecord`]: one version of a Worker, as it is recorded in the bucket.

use std::collections::BTreeMap;

use bytes::Bytes;
use cfc_oci::Digest;
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
    /// Durable Object bindings.
    pub durable_objects: Vec<DurableObjectBinding>,
    /// Every migration so far, oldest first, in the shape of a wrangler config.
    pub migrations: Vec<Migration>,
    /// The classes that have a container.
    pub containers: Vec<ContainerBinding>,
    /// The application records that this deployment made, so that Worker and applications change with one object.
    pub applications: Vec<ApplicationRecord>,
    /// The upload's metadata as it was sent.
    pub metadata: serde_json::Value,
}

impl WorkerRecord {
    /// The tag of the last migration.
    pub fn migration_tag(&self) -> Option<&str> {
        self.migrations.last().map(|migration| migration.tag.as_str())
    }

    /// Where an application of `class_name` is attached.
    pub fn attachment(&self, class_name: &str) -> Attachment {
        Attachment { worker: self.name.clone(), class_name: class_name.to_string() }
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

/// A name in `env` that is a Durable Object namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DurableObjectBinding {
    /// Name in `env`.
    pub name: String,
    /// The class.
    pub class_name: String,
    /// The Worker that has the class; `None` for this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script_name: Option<String>,
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

/// A Durable Object migration in the shape of a wrangler config.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Migration {
    /// Names the migration.
    #[serde(default)]
    pub tag: String,
    /// Classes with key-value storage.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub new_classes: Vec<String>,
    /// Classes with SQLite storage.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub new_sqlite_classes: Vec<String>,
    /// Classes that go.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deleted_classes: Vec<String>,
    /// `{from, to}` and `{from, from_script, to}` objects, kept as sent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub renamed_classes: Vec<serde_json::Value>,
    /// As above.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub transferred_classes: Vec<serde_json::Value>,
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
