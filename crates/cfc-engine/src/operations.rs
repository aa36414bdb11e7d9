//! What Docker's own client asks besides: lists, stops, restarts, processes, use, output, events.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use cfc_runtime::{InstanceView, RuntimeError, RuntimeErrorKind};
use serde::Deserialize;
use serde_json::Value;

use crate::Engine;
use crate::container::{Container, own};
use crate::containers::failure;
use crate::docker::{self, FilterProblem, Filters, empty, error, no_such_container, not_implemented};

const SIGKILL: i32 = 9;
/// Docker's own, where its client gives none.
const STOP_SECONDS: i64 = 10;

#[derive(Deserialize)]
pub(crate) struct ListQuery {
    all: Option<String>,
    limit: Option<i64>,
    size: Option<String>,
    filters: Option<String>,
}

#[derive(Deserialize)]
pub(crate) struct StopQuery {
    t: Option<i64>,
    signal: Option<String>,
}

#[derive(Deserialize)]
pub(crate) struct TopQuery {
    ps_args: Option<String>,
}

/// Whether a client says yes, in one of the ways in which Docker's does.
pub(crate) fn is_set(value: Option<&str>) -> bool {
    matches!(value, Some("1" | "true" | "True" | "TRUE" | "t" | "T"))
}

/// The filters that were asked for, or the answer to those that cannot be.
fn filters(text: Option<&str>) -> Result<Filters, Box<Response>> {
    let text = text.filter(|text| !text.is_empty()).unwrap_or("{}");
    Filters::parse(text).map_err(|problem| {
        Box::new(match problem {
            FilterProblem::Malformed(problem) => error(StatusCode::BAD_REQUEST, problem),
            FilterProblem::NotThere(feature) => not_implemented(&feature),
        })
    })
}

/// The newest first; without `all` and its like those that run.
pub(crate) async fn list(State(engine): State<Engine>, Query(query): Query<ListQuery>) -> Response {
    let filters = match filters(query.filters.as_deref()) {
        Ok(filters) => filters,
        Err(answer) => return *answer,
    };
    let limit = query.limit.and_then(|limit| usize::try_from(limit).ok()).filter(|limit| *limit > 0);
    let is_all = is_set(query.all.as_deref()) || limit.is_some() || filters.are_about_state();
    let all = own(&engine);
    let is_wanted = |view: &&InstanceView| (is_all || view.phase.pid().is_some()) && filters.fit(view, &all);
    let mut wanted: Vec<&InstanceView> = all.iter().filter(is_wanted).collect();
    wanted.sort_by_key(|view| std::cmp::Reverse(view.created));
    wanted.truncate(limit.unwrap_or(usize::MAX));
    let with_size = is_set(query.size.as_deref());
    let mut entries = Vec::new();
    for view in wanted {
        let image = engine.runtime().image_config(&view.spec.image).await;
        let written = if with_size { written_bytes(&engine, &view.spec.name).await } else { None };
        entries.push(docker::entry(view, image.as_ref(), written));
    }
    docker::answer(StatusCode::OK, &Value::Array(entries))
}

async fn written_bytes(engine: &Engine, name: &str) -> Option<u64> {
    let (_, usage) = engine.runtime().usage(|view| view.spec.name == name).await.pop()?;
    usage.disk.map(|disk| disk.used_bytes)
}

pub(crate) async fn stop(
    State(engine): State<Engine>,
    Container { name }: Container,
    Query(query): Query<StopQuery>,
) -> Response {
    let grace = match grace(&query) {
        Ok(grace) => grace,
        Err(answer) => return *answer,
    };
    if let Some(stillborn) = engine.stillborn(&name) {
        stillborn.end();
        return empty(StatusCode::NO_CONTENT);
    }
    let stopped = match query.signal.as_deref().filter(|signal| !signal.is_empty()) {
        None => engine.runtime().stop(&name, grace).await.map(drop),
        Some(signal) => match cfc_oci::parse_signal(signal) {
            Some(signal) => stop_by(&engine, &name, signal, grace).await,
            None => return error(StatusCode::BAD_REQUEST, format!("unknown signal `{signal}`")),
        },
    };
    match stopped {
        Ok(()) => empty(StatusCode::NO_CONTENT),
        Err(RuntimeError { kind: RuntimeErrorKind::NotRunning, .. }) => empty(StatusCode::NOT_MODIFIED),
        Err(problem) => failure(&problem),
    }
}

/// Ends it by another signal than its own.
async fn stop_by(engine: &Engine, name: &str, signal: i32, grace: Duration) -> cfc_runtime::Result<()> {
    let runtime = engine.runtime();
    runtime.kill(name, signal).await?;
    if tokio::time::timeout(grace, runtime.wait(name)).await.is_err() {
        runtime.kill(name, SIGKILL).await?;
        runtime.wait(name).await;
    }
    Ok(())
}

pub(crate) async fn restart(
    State(engine): State<Engine>,
    Container { name }: Container,
    Query(query): Query<StopQuery>,
) -> Response {
    let grace = match grace(&query) {
        Ok(grace) => grace,
        Err(answer) => return *answer,
    };
    if query.signal.is_some_and(|signal| !signal.is_empty()) {
        return not_implemented("a restart by another signal than the image's (`signal`)");
    }
    match engine.restart(&name, grace).await {
        Ok(()) => empty(StatusCode::NO_CONTENT),
        Err(problem) => failure(&problem),
    }
}

/// How long it may take; below zero means for ever, which here is as long as the platform gives anybody.
fn grace(query: &StopQuery) -> Result<Duration, Box<Response>> {
    match query.t.unwrap_or(STOP_SECONDS) {
        ..0 => Ok(cfc_runtime::STOP_GRACE),
        seconds if seconds as u64 > cfc_runtime::STOP_GRACE.as_secs() => {
            let most = cfc_runtime::STOP_GRACE.as_secs();
            let problem = format!("a container has {most} seconds at most to end, not {seconds} (`t`)");
            Err(Box::new(error(StatusCode::BAD_REQUEST, problem)))
        }
        seconds => Ok(Duration::from_secs(seconds as u64)),
    }
}

pub(crate) async fn top(
    State(engine): State<Engine>,
    Container { name }: Container,
    Query(query): Query<TopQuery>,
) -> Response {
    if !matches!(query.ps_args.as_deref(), None | Some("" | "-ef")) {
        return not_implemented("other columns of processes than those of `ps -ef` (`ps_args`)");
    }
    if engine.runtime().inspect(&name).is_none() {
        return no_such_container(&name);
    }
    match engine.runtime().processes(&name).await {
        Ok(processes) => docker::answer(StatusCode::OK, &docker::top(&processes)),
        Err(_) => error(StatusCode::CONFLICT, format!("container {name} is not running")),
    }
}

/// A moment as Docker's client writes it: seconds since 1970, with a fraction or without.
pub(crate) fn moment(text: &str) -> Option<SystemTime> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = fraction.get(..9).unwrap_or(fraction);
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let nanos: u32 = is_number.then(|| format!("{digits:0<9}").parse().ok()).flatten()?;
    UNIX_EPOCH.checked_add(Duration::new(seconds.parse().ok()?, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_with_and_without_a_fraction() {
        let at = |seconds, nanos| Some(UNIX_EPOCH + Duration::new(seconds, nanos));
        assert_eq!(moment("12"), at(12, 0));
        assert_eq!(moment("12.5"), at(12, 500_000_000));
        assert_eq!(moment("12.000000001"), at(12, 1));
        for malformed in ["", "x", "-1", "1.x", "1.", "99999999999999999999"] {
            assert_eq!(moment(malformed), None, "{malformed}");
        }
    }
}
