//! `containers/applications…` and `containers/dash…`.

use std::collections::HashMap;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use bytes::Bytes;
use futures::stream::BoxStream;
use http::Response;
use http::header::CONTENT_TYPE;
use serde_json::{Map, Value, json};

use super::Answer;
use super::instances::milliseconds;
use super::scripts::detached;
use crate::error::Code;
use crate::wire::envelope::{list as list_of, success};
use crate::wire::{application as shape, dash as dash_shape};
use crate::{ApplicationRecord, Control, ControlError, LogError, LogRequest};

type Filters = Query<HashMap<String, String>>;

/// `GET containers/applications[?name&image]`.
pub(crate) async fn list(State(control): State<Control>, Query(filters): Filters) -> Answer {
    let mut views = Vec::new();
    for record in control.inner.catalog.applications().await? {
        let name_fits = filters.get("name").is_none_or(|name| *name == record.name);
        let image_fits = filters.get("image").is_none_or(|image| *image == record.image.reference.to_string());
        if name_fits && image_fits {
            views.push(view(&control, &record).await);
        }
    }
    Ok(list_of(views))
}

/// `POST containers/applications`.
pub(crate) async fn create(State(control): State<Control>, body: Bytes) -> Answer {
    let body = read_json(&body)?;
    let draft = shape::read_application(&body, "")?;
    let namespace_id = shape::read_namespace_id(&body).map(str::to_string);
    let inner = control.inner.clone();
    let record = detached(async move { inner.create_application(draft, namespace_id.as_deref()).await }).await?;
    Ok(success(view(&control, &record).await))
}

/// `GET containers/applications/:id`; the name does as well.
pub(crate) async fn show(State(control): State<Control>, Path((_, id)): Path<(String, String)>) -> Answer {
    let record = control.inner.catalog.application(&id).await?;
    Ok(success(view(&control, &record).await))
}

/// `PATCH containers/applications/:id`.
pub(crate) async fn modify(
    State(control): State<Control>,
    Path((_, id)): Path<(String, String)>,
    body: Bytes,
) -> Answer {
    let body = read_json(&body)?;
    let inner = control.inner.clone();
    let draft = move |recorded: &ApplicationRecord| shape::read_modification(&body, recorded);
    let record = detached(async move { inner.change_application(&id, draft).await }).await?;
    Ok(success(view(&control, &record).await))
}

/// `DELETE containers/applications/:id`.
pub(crate) async fn delete(State(control): State<Control>, Path((_, id)): Path<(String, String)>) -> Answer {
    detached(async move { control.inner.delete_application(&id).await }).await?;
    Ok(success(json!({})))
}

/// `POST containers/applications/:id/rollouts`.
pub(crate) async fn roll_out(
    State(control): State<Control>,
    Path((_, id)): Path<(String, String)>,
    body: Bytes,
) -> Answer {
    let Value::Object(body) = read_json(&body)? else {
        return Err(ControlError::new(Code::Malformed, "expected a rollout as a JSON object"));
    };
    check_rollout(&body)?;
    let modification = json!({"configuration": body.get("target_configuration").cloned().unwrap_or_else(|| json!({}))});
    let draft = move |recorded: &ApplicationRecord| shape::read_modification(&modification, recorded);
    let record = detached(async move { control.inner.roll_out(&id, body, draft).await }).await?;
    Ok(success(shape::rollout(&record)))
}

fn check_rollout(body: &Map<String, Value>) -> Result<(), ControlError> {
    let member = |key: &str| body.get(key).and_then(Value::as_str);
    match (member("strategy"), member("kind")) {
        (Some(strategy), _) if strategy != "rolling" => {
            Err(ControlError::new(Code::Unsupported, format!("cfc has no rollout strategy `{strategy}`"))
                .at("strategy"))
        }
        (_, Some("full_manual")) => {
            Err(ControlError::new(Code::Unsupported, "cfc does not support manual rollouts yet")
                .at("kind")
                .hint("set `rollout_kind` to `full_auto` or `none` in the wrangler config"))
        }
        _ => Ok(()),
    }
}

/// `GET containers/applications/:id/rollouts`.
pub(crate) async fn rollouts(State(control): State<Control>, Path((_, id)): Path<(String, String)>) -> Answer {
    let application = control.inner.catalog.application(&id).await?;
    let rollouts = control.inner.catalog.rollouts_of(application.id).await?;
    Ok(list_of(rollouts.iter().map(shape::rollout).collect()))
}

/// `GET containers/applications/:id/rollouts/:rollout`.
pub(crate) async fn rollout(
    State(control): State<Control>,
    Path((_, id, rollout)): Path<(String, String, String)>,
) -> Answer {
    let application = control.inner.catalog.application(&id).await?;
    let found = match rollout.parse() {
        Ok(rollout) => control.inner.catalog.rollout(rollout).await?,
        Err(_) => None,
    };
    match found.filter(|found| found.application_id == application.id) {
        Some(found) => Ok(success(shape::rollout(&found))),
        None => Err(ControlError::new(Code::NotFound, format!("application `{id}` has no rollout `{rollout}`"))),
    }
}

/// `GET containers/applications/:id/logs?instance=&tail=&since_ms=&stream=&timestamps=&follow=true`: cfc's own. The answer is text and, with
/// `follow`, does not end by itself.
pub(crate) async fn logs(
    State(control): State<Control>,
    Path((_, id)): Path<(String, String)>,
    Query(filters): Filters,
) -> Answer {
    let request = log_request(&filters)?;
    let application = control.inner.catalog.application(&id).await?;
    let lines = control.inner.platform.logs(&application, &request).await.map_err(|error| {
        let code = match error {
            LogError::NoSuchInstance { .. } => Code::NotFound,
            LogError::Unreadable { .. } => Code::Bucket,
        };
        let what = format!("no log of container application `{}`", application.name);
        ControlError::new(code, what)
            .because(error)
            .hint(format!("`cfc containers instances {}` lists them", application.name))
    })?;
    Ok(text(lines))
}

/// Which lines of a log a query asks for.
pub(crate) fn log_request(filters: &HashMap<String, String>) -> Result<LogRequest, ControlError> {
    Ok(LogRequest {
        instance: filters.get("instance").cloned(),
        tail_lines: number(filters, "tail")?,
        since: milliseconds(filters, "since_ms")?,
        stream: filters.get("stream").cloned(),
        timestamps: filters.get("timestamps").is_some_and(|value| value == "true"),
        follow: filters.get("follow").is_some_and(|value| value == "true"),
    })
}

/// Lines as they come.
pub(crate) fn text(lines: BoxStream<'static, std::io::Result<Bytes>>) -> Response<Body> {
    let mut response = Response::new(Body::from_stream(lines));
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn number(filters: &HashMap<String, String>, key: &str) -> Result<Option<u64>, ControlError> {
    let Some(text) = filters.get(key) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| {
        ControlError::new(Code::Malformed, format!("expected a whole number as `{key}`, found `{text}`")).at(key)
    })
}

/// `GET containers/dash/applications`.
pub(crate) async fn dash(State(control): State<Control>) -> Answer {
    let mut views = Vec::new();
    for record in control.inner.catalog.applications().await? {
        let instances = control.inner.platform.instances(&record).await;
        let isolation = control.inner.platform.isolation(&record.name);
        views.push(dash_shape::application(&record, &instances, &isolation));
    }
    Ok(list_of(views))
}

/// `GET containers/dash/applications/:id/instances`.
pub(crate) async fn instances(State(control): State<Control>, Path((_, id)): Path<(String, String)>) -> Answer {
    let record = control.inner.catalog.application(&id).await?;
    let instances = control.inner.platform.instances(&record).await;
    Ok(success(dash_shape::instances(&record, &instances)))
}

async fn view(control: &Control, record: &ApplicationRecord) -> Value {
    let instances = control.inner.platform.instances(record).await;
    shape::application(record, &control.inner.options.account_id, &instances)
}

fn read_json(bytes: &[u8]) -> Result<Value, ControlError> {
    serde_json::from_slice(bytes)
        .map_err(|error| ControlError::new(Code::Malformed, "the request's body is not JSON").because(error))
}
