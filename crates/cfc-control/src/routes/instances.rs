//! `containers/instances…`, `containers/stats` and `containers/events`: cfc's own.

use std::collections::HashMap;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use bytes::Bytes;
use futures::StreamExt;
use http::Response;
use http::header::CONTENT_TYPE;
use serde_json::json;

use super::Answer;
use super::scripts::detached;
use crate::error::Code;
use crate::wire::envelope::{list as list_of, success};
use crate::{Control, ControlError, EventRequest, InstanceError};

type Filters = Query<HashMap<String, String>>;
type Named = Path<(String, String)>;

/// `GET containers/instances/:instance`.
pub(crate) async fn inspect(State(control): State<Control>, Path((_, instance)): Named) -> Answer {
    let inspection = control.inner.platform.inspect(&instance).await.map_err(refused)?;
    Ok(success(json!(inspection)))
}

/// `POST containers/instances/:instance/stop[?grace_ms]`. Answers when it has ended.
pub(crate) async fn stop(
    State(control): State<Control>,
    Path((_, instance)): Named,
    Query(filters): Filters,
) -> Answer {
    let grace = milliseconds(&filters, "grace_ms")?;
    let stopped = detached(async move { control.inner.platform.stop(&instance, grace).await.map_err(refused) });
    Ok(success(json!(stopped.await?)))
}

/// `POST containers/instances/:instance/restart[?grace_ms]`. Answers when it runs again.
pub(crate) async fn restart(
    State(control): State<Control>,
    Path((_, instance)): Named,
    Query(filters): Filters,
) -> Answer {
    let grace = milliseconds(&filters, "grace_ms")?;
    let restarted = detached(async move { control.inner.platform.restart(&instance, grace).await.map_err(refused) });
    Ok(success(json!(restarted.await?)))
}

/// `GET containers/stats[?application]`.
pub(crate) async fn stats(State(control): State<Control>, Query(filters): Filters) -> Answer {
    let application = match filters.get("application") {
        Some(given) => Some(control.inner.catalog.application(given).await?.name),
        None => None,
    };
    let stats = control.inner.platform.stats(application.as_deref()).await;
    Ok(list_of(stats.iter().map(|stats| json!(stats)).collect()))
}

/// `GET containers/events[?since_ms&follow=true]`: a JSON object a line.
pub(crate) async fn events(State(control): State<Control>, Query(filters): Filters) -> Answer {
    let follow = filters.get("follow").is_some_and(|value| value == "true");
    let request = EventRequest { since: milliseconds(&filters, "since_ms")?, follow };
    let events = control.inner.platform.events(&request).await;
    let lines = events.map(|event| Ok::<_, std::io::Error>(Bytes::from(format!("{}\n", json!(event)))));
    let mut response = Response::new(Body::from_stream(lines));
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/jsonl"));
    Ok(response)
}

/// The answer to an operation that was not done.
pub(crate) fn refused(error: InstanceError) -> ControlError {
    let (code, hint) = match &error {
        InstanceError::NoSuchInstance { .. } => {
            (Code::NotFound, "`cfc containers list` shows the applications, `cfc containers instances NAME` what runs")
        }
        InstanceError::Ambiguous { .. } => (Code::Malformed, "write more of the id"),
        InstanceError::NotRunning(_) => (Code::Conflict, "its Durable Object starts it at its next request"),
        InstanceError::Failed(_) => (Code::Activation, "the log of `cfc serve` may say more"),
    };
    ControlError::new(code, error.to_string()).hint(hint)
}

pub(crate) fn milliseconds(filters: &HashMap<String, String>, key: &str) -> Result<Option<Duration>, ControlError> {
    let Some(text) = filters.get(key) else { return Ok(None) };
    text.parse().map(|number| Some(Duration::from_millis(number))).map_err(|_| {
        ControlError::new(Code::Malformed, format!("expected a whole number as `{key}`, found `{text}`")).at(key)
    })
}
