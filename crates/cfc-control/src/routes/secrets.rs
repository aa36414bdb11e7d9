//! `workers/scripts/:name/secrets…`, and the settings by which wrangler sets many at once.

use std::collections::BTreeSet;

use axum::extract::{Multipart, Path, State};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Answer;
use super::scripts::{detached, read_part, worker};
use crate::error::Code;
use crate::secrets::SecretChanges;
use crate::wire::envelope::{list as list_of, success};
use crate::wire::script_views;
use crate::{Control, ControlError, WorkerRecord};

/// What wrangler puts. The text is told to nobody again.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Secret {
    name: String,
    text: String,
    #[serde(rename = "type")]
    kind: Option<String>,
}

/// `GET workers/scripts/:name/secrets`: the names.
pub(crate) async fn list(State(control): State<Control>, Path((_, name)): Path<(String, String)>) -> Answer {
    let worker = worker(&control, &name).await?;
    Ok(list_of(worker.secrets.keys().map(|secret| view(secret)).collect()))
}

/// `PUT workers/scripts/:name/secrets`.
pub(crate) async fn put(
    State(control): State<Control>,
    Path((_, name)): Path<(String, String)>,
    body: Bytes,
) -> Answer {
    // An error of serde's may quote what it has read.
    let secret: Secret = serde_json::from_slice(&body).map_err(|_| {
        ControlError::new(Code::Malformed, "expected a secret as a JSON object with `name`, `text` and `type`")
    })?;
    if let Some(kind) = secret.kind.filter(|kind| kind != "secret_text") {
        return Err(ControlError::new(Code::Unsupported, format!("cfc has no secrets of type `{kind}`")).at("type"));
    }
    let answer = view(&secret.name);
    change(control, name, SecretChanges::from([(secret.name, Some(secret.text))])).await?;
    Ok(success(answer))
}

/// `PATCH workers/scripts/:name/secrets`: cfc's own, `{"NAME": "value", "OTHER": null}` in one new version.
pub(crate) async fn patch(
    State(control): State<Control>,
    Path((_, name)): Path<(String, String)>,
    body: Bytes,
) -> Answer {
    let changes: SecretChanges = serde_json::from_slice(&body).map_err(|_| {
        ControlError::new(Code::Malformed, "expected secrets as a JSON object of texts, or null for those that go")
    })?;
    let worker = change(control, name, changes).await?;
    Ok(success(json!({"version_id": worker.version_id})))
}

/// `DELETE workers/scripts/:name/secrets/:secret`.
pub(crate) async fn delete(
    State(control): State<Control>,
    Path((_, name, secret)): Path<(String, String, String)>,
) -> Answer {
    change(control, name, SecretChanges::from([(secret, None)])).await?;
    Ok(success(Value::Null))
}

/// `PATCH workers/scripts/:name/settings`, as `wrangler secret bulk` sends it: all bindings, of which secrets with a text are
/// set, secrets that are left out go, and everything else stays as it is.
pub(crate) async fn settings(
    State(control): State<Control>,
    Path((_, name)): Path<(String, String)>,
    parts: Multipart,
) -> Answer {
    let settings = read_part(parts, "settings").await?;
    let changes = settings_changes(&worker(&control, &name).await?, &settings)?;
    let worker = change(control, name, changes).await?;
    Ok(success(script_views::settings(&worker)))
}

async fn change(control: Control, name: String, changes: SecretChanges) -> Result<WorkerRecord, ControlError> {
    detached(async move { control.inner.change_secrets(&name, changes).await }).await
}

fn view(name: &str) -> Value {
    json!({"name": name, "type": "secret_text"})
}

fn settings_changes(worker: &WorkerRecord, settings: &Value) -> Result<SecretChanges, ControlError> {
    let unsupported = |what: String| {
        ControlError::new(Code::Unsupported, what)
            .at("settings")
            .hint("deploy the Worker to change anything but secrets")
    };
    let members = settings.as_object().map(|settings| settings.keys().filter(|key| *key != "bindings"));
    if let Some(member) = members.into_iter().flatten().next() {
        return Err(unsupported(format!("cfc does not change `{member}` of a Worker's settings")));
    }
    let bindings = settings.get("bindings").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let mut changes = SecretChanges::new();
    let mut left_out: BTreeSet<&str> = worker.secrets.keys().map(String::as_str).collect();
    let mut others = worker.other_bindings();
    for binding in bindings {
        let member = |key: &str| binding.get(key).and_then(Value::as_str).unwrap_or_default();
        let name = member("name");
        left_out.remove(name);
        others.remove(name);
        let is_inherited = binding.as_object().is_some_and(|members| members.len() == 2);
        match (member("type"), binding.get("text").and_then(Value::as_str)) {
            ("secret_text", Some(text)) => drop(changes.insert(name.to_string(), Some(text.to_string()))),
            _ if is_inherited && worker.has_binding(name) => {}
            (kind, _) => {
                return Err(unsupported(format!(
                    "cfc does not set binding `{name}` of type `{kind}` by a Worker's settings"
                )));
            }
        }
    }
    if let Some(other) = others.into_iter().next() {
        return Err(unsupported(format!("binding `{other}` is left out, which would remove it")));
    }
    changes.extend(left_out.into_iter().map(|name| (name.to_string(), None)));
    Ok(changes)
}
