//! The metadata of a script upload, into an [`Upload`].
//!
//! cfc's own additions to Cloudflare's shape: an element of `containers` may carry the whole application (it does when
//! it has a `configuration`), and a member `cfc` holds `{"migrations": […all of the config's…], "more": {…}, "skip_trial": false}`.
//! An upload with the member `cfc` says everything about the Worker's applications.

use std::collections::BTreeMap;

use cfc_project::DurableObjectBinding;
use serde::Deserialize;
use serde_json::{Value, json};

use super::application::read_application;
use crate::draft::{ApplicationDraft, MigrationsDraft, Upload};
use crate::error::Code;
use crate::secrets::redact;
use crate::{ContainerBinding, ControlError, Module};

#[derive(Deserialize)]
struct Metadata {
    main_module: Option<String>,
    body_part: Option<String>,
    #[serde(default)]
    bindings: Vec<Value>,
    #[serde(default)]
    containers: Vec<Value>,
    compatibility_date: Option<String>,
    #[serde(default)]
    compatibility_flags: Vec<String>,
    migrations: Option<UploadedMigrations>,
    assets: Option<Value>,
    cfc: Option<Extension>,
}

/// What wrangler sends: those migrations that are not recorded yet, without their tags.
#[derive(Deserialize)]
struct UploadedMigrations {
    new_tag: Option<String>,
    #[serde(default)]
    steps: Vec<Value>,
}

#[derive(Default, Deserialize)]
struct Extension {
    migrations: Option<Vec<Value>>,
    #[serde(default)]
    more: BTreeMap<String, Value>,
    #[serde(default)]
    skip_trial: bool,
}

/// Reads the metadata part of an upload.
pub(crate) fn read_upload(name: String, mut metadata: Value, modules: Vec<Module>) -> Result<Upload, ControlError> {
    let read: Metadata = serde_json::from_value(metadata.clone()).map_err(|error| {
        ControlError::new(Code::Malformed, "malformed part `metadata` of the upload").at("metadata").because(error)
    })?;
    let main_module = main_module(&read, &modules)?;
    if read.assets.is_some() {
        return Err(unsupported("static assets", "metadata.assets"));
    }
    let bindings = read_bindings(&read.bindings)?;
    let compatibility_date = read.compatibility_date.ok_or_else(|| {
        ControlError::new(Code::InvalidUpload, format!("Worker `{name}` has no compatibility date"))
            .at("metadata.compatibility_date")
            .hint("add `compatibility_date` to the wrangler config")
    })?;
    let is_complete = read.cfc.is_some();
    let extension = read.cfc.unwrap_or_default();
    let mut containers = Vec::new();
    let mut applications = Vec::new();
    for (index, container) in read.containers.iter().enumerate() {
        let location = format!("metadata.containers[{index}]");
        containers.push(read_container(container, &location)?);
        if container.get("configuration").is_some() {
            let draft = read_application(container, &location)?;
            applications.push(ApplicationDraft { skip_trial: extension.skip_trial, ..draft });
        }
    }
    let says_applications = is_complete || !applications.is_empty();
    redact(&mut metadata);
    Ok(Upload {
        name,
        main_module,
        modules,
        compatibility_date,
        compatibility_flags: read.compatibility_flags,
        vars: bindings.vars,
        secrets: bindings.secrets,
        inherited: bindings.inherited,
        durable_objects: bindings.durable_objects,
        migrations: migrations(extension.migrations, read.migrations),
        containers,
        applications: says_applications.then_some(applications),
        more: extension.more,
        metadata,
    })
}

fn main_module(read: &Metadata, modules: &[Module]) -> Result<String, ControlError> {
    let invalid = |message: String| ControlError::new(Code::InvalidUpload, message).at("metadata.main_module");
    let Some(main_module) = &read.main_module else {
        let message = match &read.body_part {
            Some(_) => "this is a Worker in the service worker format, which cannot have Durable Objects or containers",
            None => "the upload names no main module",
        };
        return Err(invalid(message.to_string()).hint("write the Worker as an ES module with a default export"));
    };
    if modules.iter().any(|module| module.name == *main_module) {
        return Ok(main_module.clone());
    }
    let names: Vec<_> = modules.iter().map(|module| format!("`{}`", module.name)).collect();
    Err(invalid(format!("the main module `{main_module}` is not among the uploaded modules {}", names.join(", "))))
}

fn read_container(container: &Value, location: &str) -> Result<ContainerBinding, ControlError> {
    serde_json::from_value(container.clone()).map_err(|error| {
        ControlError::new(Code::Malformed, "malformed container of the upload").at(location).because(error)
    })
}

#[derive(Default)]
struct Bindings {
    vars: BTreeMap<String, Value>,
    secrets: BTreeMap<String, String>,
    inherited: Vec<String>,
    durable_objects: Vec<DurableObjectBinding>,
}

fn read_bindings(bindings: &[Value]) -> Result<Bindings, ControlError> {
    let mut read = Bindings::default();
    for (index, binding) in bindings.iter().enumerate() {
        let location = format!("metadata.bindings[{index}]");
        let text = |key: &str| binding.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
        let name = text("name");
        match text("type").as_str() {
            "plain_text" => drop(read.vars.insert(name, json!(text("text")))),
            "secret_text" if binding.get("text").is_some() => drop(read.secrets.insert(name, text("text"))),
            // Without a text, and without a value at all: as it is.
            "secret_text" | "inherit" => read.inherited.push(name),
            "json" => drop(read.vars.insert(name, binding.get("json").cloned().unwrap_or(Value::Null))),
            "durable_object_namespace" => read.durable_objects.push(DurableObjectBinding {
                name,
                class_name: text("class_name"),
                script_name: binding.get("script_name").and_then(Value::as_str).map(str::to_string),
            }),
            kind => return Err(unsupported(&format!("binding `{name}` of type `{kind}`"), &location)),
        }
    }
    Ok(read)
}

fn unsupported(what: &str, location: &str) -> ControlError {
    ControlError::new(Code::Unsupported, format!("cfc does not support {what} yet")).at(location)
}

/// A step of wrangler's becomes a migration of its own. Only the last one has a tag that is known; the others get
/// tags that no config has.
fn migrations(all: Option<Vec<Value>>, uploaded: Option<UploadedMigrations>) -> MigrationsDraft {
    match (all, uploaded) {
        (Some(all), _) => MigrationsDraft::All(all),
        (None, None) => MigrationsDraft::Unchanged,
        (None, Some(uploaded)) => {
            let new_tag = uploaded.new_tag.unwrap_or_else(|| "untagged".to_string());
            let count = uploaded.steps.len();
            let tag = |index: usize| if index + 1 == count { new_tag.clone() } else { format!("{new_tag}#{index}") };
            let tagged = uploaded.steps.into_iter().enumerate().map(|(index, mut step)| {
                if let Some(step) = step.as_object_mut() {
                    step.insert("tag".to_string(), json!(tag(index)));
                }
                step
            });
            MigrationsDraft::Append(tagged.collect())
        }
    }
}
