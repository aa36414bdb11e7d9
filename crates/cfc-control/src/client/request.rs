//! [`DeployRequest`]: a Worker with its applications, as the upload that deploys them.

use std::collections::BTreeMap;

use cfc_oci::Reference;
use cfc_project::DurableObjectBinding;
use reqwest::multipart::{Form, Part};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{ApplicationRecord, InstanceSize, Module, WorkerRecord};

/// A Worker with its applications: everything a deployment changes.
#[derive(Clone, Debug)]
pub struct DeployRequest {
    /// The Worker's name.
    pub name: String,
    /// Name of the module whose default export is the Worker.
    pub main_module: String,
    /// All modules, the main one included.
    pub modules: Vec<Module>,
    /// `YYYY-MM-DD`.
    pub compatibility_date: String,
    /// In the order of the config.
    pub compatibility_flags: Vec<String>,
    /// Text and JSON values.
    pub vars: BTreeMap<String, Value>,
    /// Durable Object bindings.
    pub durable_objects: Vec<DurableObjectBinding>,
    /// All migrations of the config.
    pub migrations: Vec<Value>,
    /// All container applications. Those that a former deployment of the Worker had and this one does not are deleted.
    pub containers: Vec<ApplicationRequest>,
    /// Further keys of the wrangler config that workerd translates by itself.
    pub more: BTreeMap<String, Value>,
    /// Whether new images go into service without a trial start.
    pub skip_trial: bool,
}

/// A container application of a deployment.
#[derive(Clone, Debug)]
pub struct ApplicationRequest {
    /// The application's name.
    pub name: String,
    /// The Durable Object class of the Worker that starts its instances.
    pub class_name: String,
    /// The image, in a registry or store that the server can read; best with a digest.
    pub image: Reference,
    /// What an instance may use.
    pub size: InstanceSize,
    /// How many may be live at once.
    pub max_instances: u32,
    /// Further members in Cloudflare's shape, which are kept: `constraints`, `rollout_active_grace_period`…
    pub more: Map<String, Value>,
}

/// What a deployment made.
#[derive(Clone, Debug, Deserialize)]
pub struct Deployed {
    /// Where the Worker answers.
    pub url: String,
    /// The version that serves now.
    pub worker: WorkerRecord,
    /// The applications of its classes.
    pub applications: Vec<ApplicationRecord>,
    /// What is not as it was asked for, in words for a person.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// What keeps the containers of each application apart from the machine, in words for a person.
    #[serde(default)]
    pub isolations: BTreeMap<String, String>,
}

impl DeployRequest {
    /// The upload's parts: `metadata`, then one for each module.
    pub(super) fn form(&self) -> Result<Form, reqwest::Error> {
        let metadata = Part::text(self.metadata().to_string()).mime_str("application/json")?;
        let mut form = Form::new().part("metadata", metadata);
        for module in &self.modules {
            let part = Part::stream(module.bytes.clone()).file_name(module.name.clone());
            form = form.part(module.name.clone(), part.mime_str(&module.content_type)?);
        }
        Ok(form)
    }

    fn metadata(&self) -> Value {
        let vars = self.vars.iter().map(|(name, value)| match value.as_str() {
            Some(text) => json!({"type": "plain_text", "name": name, "text": text}),
            None => json!({"type": "json", "name": name, "json": value}),
        });
        let durable_objects = self.durable_objects.iter().map(|binding| {
            let mut value = json!(binding);
            value["type"] = json!("durable_object_namespace");
            value
        });
        json!({
            "main_module": self.main_module,
            "bindings": vars.chain(durable_objects).collect::<Vec<_>>(),
            "compatibility_date": self.compatibility_date,
            "compatibility_flags": self.compatibility_flags,
            "containers": self.containers.iter().map(ApplicationRequest::value).collect::<Vec<_>>(),
            "cfc": {"migrations": self.migrations, "more": self.more, "skip_trial": self.skip_trial},
        })
    }
}

impl ApplicationRequest {
    fn value(&self) -> Value {
        let InstanceSize { vcpu, memory_mib, disk_mb } = self.size;
        let mut value = self.more.clone();
        let mut configuration = match value.remove("configuration") {
            Some(Value::Object(configuration)) => configuration,
            _ => Map::new(),
        };
        configuration.insert("image".to_string(), json!(self.image));
        configuration.insert("vcpu".to_string(), json!(vcpu));
        configuration.insert("memory_mib".to_string(), json!(memory_mib));
        configuration.insert("disk".to_string(), json!({"size_mb": disk_mb}));
        value.insert("name".to_string(), json!(self.name));
        value.insert("class_name".to_string(), json!(self.class_name));
        value.insert("max_instances".to_string(), json!(self.max_instances));
        value.insert("configuration".to_string(), Value::Object(configuration));
        Value::Object(value)
    }
}
