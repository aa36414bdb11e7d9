//! `workers/…`: upload, look at and delete Workers.

use std::collections::HashMap;

use axum::extract::{Multipart, Path, Query, State};
use bytes::Bytes;
use serde_json::{Value, json};

use super::Answer;
use super::applications::{log_request, text};
use crate::error::Code;
use crate::host::worker_url;
use crate::wire::envelope::{list as list_of, success};
use crate::wire::{script, script_views};
use crate::{Control, ControlError, Deployment, Module, WorkerRecord};

/// `PUT workers/scripts/:name`: deploys. The deployment goes on when the client leaves.
pub(crate) async fn upload(
    State(control): State<Control>,
    Path((_, name)): Path<(String, String)>,
    parts: Multipart,
) -> Answer {
    check_name(&name)?;
    let (metadata, modules) = read_parts(parts).await?;
    let upload = script::read_upload(name.clone(), metadata, modules)?;
    let url = worker_url(&control.inner.options.gateway_url, &name);
    let inner = control.inner.clone();
    let deployment = detached(async move { inner.deploy(upload).await }).await?;
    let warnings = warnings(&control, &deployment).await;
    let names = deployment.applications.iter().map(|application| application.name.clone());
    let isolations = names.map(|name| (control.inner.platform.isolation(&name), name)).map(|(how, name)| (name, how));
    Ok(success(script_views::uploaded(&deployment, &url, &warnings, &isolations.collect())))
}

/// One for each application whose instances get less than it asks for, and for each setting of an application that is not
/// there: its name may be misspelt, and then what it says holds for none.
async fn warnings(control: &Control, deployment: &Deployment) -> Vec<String> {
    let mut warnings = Vec::new();
    for application in &deployment.applications {
        let clamps = control.inner.platform.clamps(application).await;
        if !clamps.is_empty() {
            let name = &application.name;
            warnings.push(format!(
                "instances of `{name}` get less than it asks for: {}\nhint: this machine has no more; an instance of this \
                 size starts all the same",
                clamps.join("; ")
            ));
        }
    }
    // Deployed it is in any case.
    let unused = control.unused_settings().await;
    warnings.extend(unused.unwrap_or_else(|error| {
        vec![format!("nobody could look whether settings are of no application: {}", error.chain())]
    }));
    warnings
}

/// `DELETE workers/scripts/:name`, and of `workers/services/:name`, which wrangler sends.
pub(crate) async fn delete(State(control): State<Control>, Path((_, name)): Path<(String, String)>) -> Answer {
    let worker = name.clone();
    let deleted = detached(async move { control.inner.delete_worker(&worker).await }).await?;
    Ok(success(json!({"id": name, "cfc": deleted})))
}

/// `GET workers/scripts/:name/references`: what wrangler warns of before it deletes. No Worker here can be bound to
/// another.
pub(crate) async fn references(State(control): State<Control>, Path((_, name)): Path<(String, String)>) -> Answer {
    worker(&control, &name).await?;
    Ok(success(json!({"services": {"incoming": [], "outgoing": []}, "durable_objects": [], "dispatch_outbounds": []})))
}

/// Runs a change to its end, whether or not its client is still there: half of one must not stay.
pub(crate) async fn detached<T: Send + 'static>(
    change: impl Future<Output = Result<T, ControlError>> + Send + 'static,
) -> Result<T, ControlError> {
    let ended = tokio::spawn(change).await;
    ended.unwrap_or_else(|error| Err(ControlError::new(Code::Bucket, "the change broke off").because(error)))
}

/// The name is a label of host names and a part of paths.
fn check_name(name: &str) -> Result<(), ControlError> {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
    let fits = (1..=63).contains(&name.len()) && !name.starts_with('-') && !name.ends_with('-');
    match fits && name.bytes().all(is_word) {
        true => Ok(()),
        false => Err(ControlError::new(Code::InvalidUpload, format!("`{name}` cannot be the name of a Worker"))
            .at("name")
            .hint("use 1 to 63 lower-case letters, digits, `-` and `_`, with no `-` at either end")),
    }
}

async fn read_parts(mut parts: Multipart) -> Result<(Value, Vec<Module>), ControlError> {
    let unreadable = |error: axum::extract::multipart::MultipartError| {
        ControlError::new(Code::Malformed, format!("cannot read the upload: {}", error.body_text()))
    };
    let mut metadata = None;
    let mut modules = Vec::new();
    while let Some(part) = parts.next_field().await.map_err(unreadable)? {
        let name = part.name().or(part.file_name()).unwrap_or_default().to_string();
        let content_type = part.content_type().unwrap_or("application/octet-stream").to_string();
        let bytes: Bytes = part.bytes().await.map_err(unreadable)?;
        match name.as_str() {
            "metadata" => metadata = Some(read_json(&bytes)?),
            _ => modules.push(Module { name, content_type, bytes }),
        }
    }
    let metadata = metadata
        .ok_or_else(|| ControlError::new(Code::Malformed, "the upload has no part `metadata`").at("metadata"))?;
    Ok((metadata, modules))
}

/// The JSON of the one part that matters.
pub(crate) async fn read_part(mut parts: Multipart, name: &str) -> Result<Value, ControlError> {
    let malformed = |what: String| ControlError::new(Code::Malformed, what).at(name);
    let unreadable = |error: axum::extract::multipart::MultipartError| malformed(error.body_text());
    while let Some(part) = parts.next_field().await.map_err(unreadable)? {
        if part.name() == Some(name) {
            let bytes = part.bytes().await.map_err(unreadable)?;
            return serde_json::from_slice(&bytes).map_err(|_| malformed(format!("part `{name}` is not JSON")));
        }
    }
    Err(malformed(format!("there is no part `{name}`")))
}

fn read_json(bytes: &[u8]) -> Result<Value, ControlError> {
    serde_json::from_slice(bytes).map_err(|error| {
        ControlError::new(Code::Malformed, "part `metadata` of the upload is not JSON").at("metadata").because(error)
    })
}

pub(crate) async fn worker(control: &Control, name: &str) -> Result<WorkerRecord, ControlError> {
    let revision = control.inner.catalog.existing_worker(name).await?;
    revision.value.ok_or_else(|| crate::catalog::no_such_worker(name))
}

/// `GET workers/services/:name`.
pub(crate) async fn service(State(control): State<Control>, Path((_, name)): Path<(String, String)>) -> Answer {
    Ok(success(script_views::service(&worker(&control, &name).await?)))
}

/// `GET workers/scripts`.
pub(crate) async fn list(State(control): State<Control>) -> Answer {
    let workers = control.inner.catalog.workers().await?;
    let url = |worker: &WorkerRecord| worker_url(&control.inner.options.gateway_url, &worker.name);
    let view = |worker: &WorkerRecord| {
        let mut view = script_views::script(worker);
        view["cfc"] = json!({"url": url(worker)});
        view
    };
    Ok(list_of(workers.iter().map(view).collect()))
}

/// `GET workers/scripts/:name/deployments`.
pub(crate) async fn deployments(State(control): State<Control>, Path((_, name)): Path<(String, String)>) -> Answer {
    Ok(match control.inner.catalog.worker(&name).await?.value {
        Some(worker) => success(script_views::deployments(&worker)),
        None => success(json!({"deployments": []})),
    })
}

/// `GET workers/scripts/:name/logs?tail=&since_ms=&timestamps=&follow=true`: cfc's own, what the Worker has printed.
pub(crate) async fn logs(
    State(control): State<Control>,
    Path((_, name)): Path<(String, String)>,
    Query(filters): Query<HashMap<String, String>>,
) -> Answer {
    worker(&control, &name).await?;
    let request = log_request(&filters)?;
    Ok(text(control.inner.platform.worker_logs(&name, &request).await))
}

/// `POST workers/scripts/:name/tails`: `wrangler tail` wants each request with what was printed during it, which workerd
/// tells nobody.
pub(crate) async fn tails(Path((_, name)): Path<(String, String)>) -> Answer {
    Err(ControlError::new(Code::Unsupported, format!("cfc cannot tell what happens to requests of Worker `{name}`"))
        .hint(format!("`cfc logs {name} -f` shows what it prints")))
}

/// `GET workers/scripts/:name/settings`.
pub(crate) async fn settings(State(control): State<Control>, Path((_, name)): Path<(String, String)>) -> Answer {
    Ok(success(script_views::settings(&worker(&control, &name).await?)))
}

/// `GET workers/scripts/:name/versions`: the one that serves.
pub(crate) async fn versions(State(control): State<Control>, Path((_, name)): Path<(String, String)>) -> Answer {
    let worker = worker(&control, &name).await?;
    Ok(success(json!({"items": [script_views::version(&worker)]})))
}

/// `GET workers/scripts/:name/versions/:version`.
pub(crate) async fn version(
    State(control): State<Control>,
    Path((_, name, version)): Path<(String, String, String)>,
) -> Answer {
    let worker = worker(&control, &name).await?;
    match version.parse() == Ok(worker.version_id) {
        true => Ok(success(script_views::version(&worker))),
        false => {
            Err(ControlError::new(Code::NoSuchVersion, format!("version {version} of Worker `{name}` does not serve"))
                .hint(format!("version {} does", worker.version_id)))
        }
    }
}

/// `GET` and `POST workers/scripts/:name/subdomain`: every Worker has one.
pub(crate) async fn subdomain(State(control): State<Control>, Path((_, name)): Path<(String, String)>) -> Answer {
    worker(&control, &name).await?;
    Ok(success(json!({"enabled": true, "previews_enabled": false})))
}

/// `GET workers/durable_objects/namespaces`.
pub(crate) async fn namespaces(State(control): State<Control>) -> Answer {
    let workers = control.inner.catalog.workers().await?;
    Ok(list_of(workers.iter().flat_map(script_views::namespaces).collect()))
}
