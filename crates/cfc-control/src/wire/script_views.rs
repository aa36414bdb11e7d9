//! What Cloudflare's API says about scripts: [`WorkerRecord`]s in its shapes.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{Deployment, WorkerRecord};

/// The answer to an upload. wrangler needs `deployment_id` to be 32 hexadecimal digits.
pub(crate) fn uploaded(
    deployment: &Deployment,
    url: &str,
    warnings: &[String],
    isolations: &BTreeMap<String, String>,
) -> Value {
    let worker = &deployment.worker;
    let mut view = script(worker);
    view["deployment_id"] = json!(worker.version_id.simple().to_string());
    view["startup_time_ms"] = json!(0);
    view["entry_point"] = json!(worker.main_module);
    view["pipeline_hash"] = json!(null);
    view["mutable_pipeline_id"] = json!(null);
    let applications = &deployment.applications;
    view["cfc"] = json!({
        "url": url,
        "worker": worker,
        "applications": applications,
        "warnings": warnings,
        "isolations": isolations,
    });
    view
}

/// One element of `workers/scripts`.
pub(crate) fn script(worker: &WorkerRecord) -> Value {
    json!({
        "id": worker.name,
        "tag": namespace(worker, "script"),
        "etag": worker.version_id.simple().to_string(),
        "created_on": worker.created_at,
        "modified_on": worker.deployed_at,
        "compatibility_date": worker.compatibility_date,
        "compatibility_flags": worker.compatibility_flags,
        "migration_tag": worker.migration_tag(),
        "handlers": ["fetch"],
        "usage_model": "standard",
        "last_deployed_from": "wrangler",
    })
}

/// `workers/services/:name`.
pub(crate) fn service(worker: &WorkerRecord) -> Value {
    let environment = json!({
        "environment": "production",
        "created_on": worker.created_at,
        "modified_on": worker.deployed_at,
        "script": script(worker),
    });
    json!({
        "id": worker.name,
        "created_on": worker.created_at,
        "modified_on": worker.deployed_at,
        "default_environment": environment,
        "environments": [environment],
    })
}

/// `workers/scripts/:name/deployments`: the one that serves.
pub(crate) fn deployments(worker: &WorkerRecord) -> Value {
    json!({"deployments": [{
        "id": worker.version_id,
        "source": "wrangler",
        "strategy": "percentage",
        "author_email": "",
        "created_on": worker.deployed_at,
        "versions": [{"version_id": worker.version_id, "percentage": 100}],
    }]})
}

/// `workers/scripts/:name/settings`.
pub(crate) fn settings(worker: &WorkerRecord) -> Value {
    json!({
        "bindings": bindings(worker),
        "compatibility_date": worker.compatibility_date,
        "compatibility_flags": worker.compatibility_flags,
        "migration_tag": worker.migration_tag(),
        "usage_model": "standard",
        "tags": [],
        "tail_consumers": [],
    })
}

/// `workers/scripts/:name/versions/:id`.
pub(crate) fn version(worker: &WorkerRecord) -> Value {
    json!({
        "id": worker.version_id,
        "number": 1,
        "metadata": {"created_on": worker.deployed_at, "modified_on": worker.deployed_at, "source": "wrangler"},
        "resources": {
            "bindings": bindings(worker),
            "script": {"etag": worker.version_id.simple().to_string(), "handlers": ["fetch"], "last_deployed_from": "wrangler"},
            "script_runtime": {
                "compatibility_date": worker.compatibility_date,
                "compatibility_flags": worker.compatibility_flags,
                "migration_tag": worker.migration_tag(),
                "usage_model": "standard",
            },
        },
    })
}

/// `workers/durable_objects/namespaces`, the part of one Worker.
pub(crate) fn namespaces(worker: &WorkerRecord) -> Vec<Value> {
    let uses_sqlite = |class: &str| {
        let classes = worker.migrations.iter().filter_map(|migration| migration.get("new_sqlite_classes")?.as_array());
        classes.flatten().any(|name| name.as_str() == Some(class))
    };
    let view = |class: String| {
        json!({
            "id": namespace(worker, &class),
            "name": format!("{}_{class}", worker.name),
            "class": class,
            "script": worker.name,
            "use_sqlite": uses_sqlite(&class),
        })
    };
    worker.classes().into_iter().map(view).collect()
}

fn bindings(worker: &WorkerRecord) -> Vec<Value> {
    let vars = worker.vars.iter().map(|(name, value)| match value.as_str() {
        Some(text) => json!({"type": "plain_text", "name": name, "text": text}),
        None => json!({"type": "json", "name": name, "json": value}),
    });
    let durable_objects = worker.durable_objects.iter().map(|binding| {
        let mut view = json!({
            "type": "durable_object_namespace",
            "name": binding.name,
            "class_name": binding.class_name,
            "namespace_id": namespace(worker, &binding.class_name),
        });
        if let Some(script_name) = &binding.script_name {
            view["script_name"] = json!(script_name);
        }
        view
    });
    let secrets = worker.secrets.keys().map(|name| json!({"type": "secret_text", "name": name}));
    vars.chain(durable_objects).chain(secrets).collect()
}

fn namespace(worker: &WorkerRecord, class_name: &str) -> String {
    worker.attachment(class_name).namespace_id()
}
