//! Cloudflare's `Application`, and the bodies that create and modify one.

use cfc_oci::Reference;
use cfc_project::InstanceType;
use serde_json::{Map, Value, json};

use crate::draft::ApplicationDraft;
use crate::error::Code;
use crate::rollout::RolloutRecord;
use crate::{ApplicationRecord, ControlError, InstanceSize, InstanceView};

/// wrangler's default where a config says nothing.
const DEFAULT_MAX_INSTANCES: u32 = 20;

/// Members of an application that cfc makes itself; all others are kept as they come.
const OWN: &[&str] = &[
    "id",
    "created_at",
    "updated_at",
    "account_id",
    "name",
    "version",
    "max_instances",
    "configuration",
    "durable_objects",
    "active_rollout_id",
    "health",
    "class_name",
    "cfc",
];

/// The same for its `configuration`.
const OWN_CONFIGURATION: &[&str] = &["image", "instance_type", "vcpu", "memory_mib", "memory", "disk"];

/// Reads the body of a creation, or a container of cfc's own upload. `location` says where it stands in the request.
pub(crate) fn read_application(body: &Value, location: &str) -> Result<ApplicationDraft, ControlError> {
    let body = object(body, location)?;
    let name = text(body, "name", location)?;
    if name.is_empty() {
        return Err(malformed(location, "name", "expected a name"));
    }
    let configuration =
        body.get("configuration").ok_or_else(|| malformed(location, "configuration", "it is missing"))?;
    let at_configuration = join(location, "configuration");
    let configuration = object(configuration, &at_configuration)?;
    Ok(ApplicationDraft {
        name,
        class_name: body.get("class_name").and_then(Value::as_str).unwrap_or_default().to_string(),
        image: read_image(configuration, &at_configuration)?,
        size: read_size(configuration, None, &at_configuration)?,
        max_instances: read_max_instances(body, location)?.unwrap_or(DEFAULT_MAX_INSTANCES),
        kept: kept(body, OWN),
        kept_configuration: kept(configuration, OWN_CONFIGURATION),
        skip_trial: false,
        location: at_configuration,
    })
}

/// Reads the body of a modification: what it does not say stays as recorded.
pub(crate) fn read_modification(body: &Value, recorded: &ApplicationRecord) -> Result<ApplicationDraft, ControlError> {
    let body = object(body, "")?;
    let mut draft = unchanged(recorded);
    if let Some(configuration) = body.get("configuration") {
        let configuration = object(configuration, "configuration")?;
        if configuration.contains_key("image") {
            draft.image = read_image(configuration, "configuration")?;
        }
        draft.size = read_size(configuration, Some(recorded.size), "configuration")?;
        draft.kept_configuration.extend(kept(configuration, OWN_CONFIGURATION));
    }
    if let Some(max_instances) = read_max_instances(body, "")? {
        draft.max_instances = max_instances;
    }
    draft.kept.extend(kept(body, OWN));
    Ok(draft)
}

/// The draft that changes nothing.
pub(crate) fn unchanged(recorded: &ApplicationRecord) -> ApplicationDraft {
    ApplicationDraft {
        name: recorded.name.clone(),
        class_name: recorded.attachment.as_ref().map(|attachment| attachment.class_name.clone()).unwrap_or_default(),
        image: recorded.image.reference.clone(),
        size: recorded.size,
        max_instances: recorded.max_instances,
        kept: recorded.kept.clone(),
        kept_configuration: recorded.kept_configuration.clone(),
        skip_trial: false,
        location: "configuration".to_string(),
    }
}

/// `durable_objects.namespace_id` of a creation.
pub(crate) fn read_namespace_id(body: &Value) -> Option<&str> {
    body.pointer("/durable_objects/namespace_id").and_then(Value::as_str)
}

fn read_image(configuration: &Map<String, Value>, location: &str) -> Result<Reference, ControlError> {
    let image = text(configuration, "image", location)?;
    Reference::parse(&image).map_err(|error| {
        ControlError::new(Code::InvalidUpload, format!("malformed `{}`", join(location, "image")))
            .at(join(location, "image"))
            .because(error)
    })
}

fn read_size(
    configuration: &Map<String, Value>,
    recorded: Option<InstanceSize>,
    location: &str,
) -> Result<InstanceSize, ControlError> {
    let named = match configuration.get("instance_type").and_then(Value::as_str) {
        Some(name) => Some(InstanceType::named(name).ok_or_else(|| unknown_instance_type(name, location))?),
        None => None,
    };
    let named = named.as_ref().map(InstanceSize::from).or(recorded);
    let base = named.unwrap_or_else(|| InstanceSize::from(&InstanceType::default()));
    let vcpu = configuration.get("vcpu").and_then(Value::as_f64).unwrap_or(base.vcpu);
    if !vcpu.is_finite() || vcpu <= 0.0 {
        return Err(malformed(location, "vcpu", "expected a number above 0"));
    }
    Ok(InstanceSize {
        vcpu,
        memory_mib: configuration.get("memory_mib").and_then(Value::as_u64).unwrap_or(base.memory_mib),
        disk_mb: configuration.get("disk").and_then(|disk| disk.get("size_mb")?.as_u64()).unwrap_or(base.disk_mb),
    })
}

fn unknown_instance_type(name: &str, location: &str) -> ControlError {
    let names: Vec<_> = InstanceType::names().map(|name| format!("`{name}`")).collect();
    ControlError::new(Code::InvalidUpload, format!("unknown instance type `{name}`"))
        .at(join(location, "instance_type"))
        .hint(format!("expected one of {}, or an object with `vcpu`, `memory_mib` and `disk_mb`", names.join(", ")))
}

fn read_max_instances(body: &Map<String, Value>, location: &str) -> Result<Option<u32>, ControlError> {
    let Some(value) = body.get("max_instances") else { return Ok(None) };
    let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
    number.map(Some).ok_or_else(|| malformed(location, "max_instances", "expected a whole number, 0 or more"))
}

fn kept(body: &Map<String, Value>, own: &[&str]) -> Map<String, Value> {
    body.iter()
        .filter(|(key, _)| !own.contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

fn object<'a>(value: &'a Value, location: &str) -> Result<&'a Map<String, Value>, ControlError> {
    value.as_object().ok_or_else(|| {
        ControlError::new(Code::Malformed, format!("expected a JSON object, found {value}")).at(location)
    })
}

fn text(body: &Map<String, Value>, key: &str, location: &str) -> Result<String, ControlError> {
    let value = body.get(key).and_then(Value::as_str);
    value.map(str::to_string).ok_or_else(|| malformed(location, key, "expected a string"))
}

fn malformed(location: &str, key: &str, what: &str) -> ControlError {
    let location = join(location, key);
    ControlError::new(Code::Malformed, format!("`{location}`: {what}")).at(location)
}

fn join(location: &str, key: &str) -> String {
    if location.is_empty() { key.to_string() } else { format!("{location}.{key}") }
}

/// Cloudflare's `Application`. Instance types are always expanded: wrangler infers the name back, and would report a
/// change at every deploy otherwise.
pub(crate) fn application(record: &ApplicationRecord, account_id: &str, instances: &[InstanceView]) -> Value {
    let mut view = json!({
        "id": record.id,
        "created_at": record.created_at,
        "updated_at": record.updated_at,
        "account_id": account_id,
        "name": record.name,
        "version": record.version,
        "scheduling_policy": "default",
        "instances": 0,
        "max_instances": record.max_instances,
        "configuration": configuration(record),
        "health": {"instances": super::dash::health(instances)},
    });
    let view_members = view.as_object_mut().expect("the literal above is an object");
    if let Some(attachment) = &record.attachment {
        view_members.insert("durable_objects".to_string(), json!({"namespace_id": attachment.namespace_id()}));
    }
    view_members.extend(record.kept.clone());
    view_members.insert("cfc".to_string(), json!({"record": record, "instances": instances}));
    view
}

fn configuration(record: &ApplicationRecord) -> Value {
    let InstanceSize { vcpu, memory_mib, disk_mb } = record.size;
    let mut configuration = Map::new();
    configuration.insert("image".to_string(), json!(record.image.reference));
    configuration.insert("vcpu".to_string(), json!(vcpu));
    configuration.insert("memory_mib".to_string(), json!(memory_mib));
    configuration.insert("memory".to_string(), json!(format!("{memory_mib}MiB")));
    configuration.insert("disk".to_string(), json!({"size_mb": disk_mb, "size": format!("{disk_mb}MB")}));
    configuration.extend(record.kept_configuration.clone());
    Value::Object(configuration)
}

/// Cloudflare's `ApplicationRollout`.
pub(crate) fn rollout(record: &RolloutRecord) -> Value {
    let mut view = record.request.clone();
    view.entry("strategy").or_insert_with(|| json!("rolling"));
    view.entry("kind").or_insert_with(|| json!("full_auto"));
    let own = json!({
        "id": record.id,
        "created_at": record.created_at,
        "last_updated_at": record.created_at,
        "started_at": record.created_at,
        "status": "completed",
        "current_version": record.current_version,
        "target_version": record.target_version,
        "health": {"instances": {"healthy": 0, "failed": 0, "starting": 0, "scheduling": 0}},
        "progress": {"total_steps": 1, "current_step": 1, "updated_instances": 0, "total_instances": 0},
    });
    if let Value::Object(own) = own {
        view.extend(own);
    }
    Value::Object(view)
}
