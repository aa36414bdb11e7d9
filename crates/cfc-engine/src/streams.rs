//! Answers that go on: a container's output, what it uses, what happens to all of them.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::{Duration, SystemTime};

use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use cfc_runtime::{LogLine, LogReader, LogStream, rfc3339};
use futures::Stream;
use futures::stream::unfold;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Engine;
use crate::container::{Container, own};
use crate::docker::{self, Sample, error, no_such_container};
use crate::exec_stream::{Framing, STDERR, STDOUT, frame};
use crate::operations::{is_set, moment};

/// Between two looks at what a container uses: Docker's.
const INTERVAL: Duration = Duration::from_secs(1);

#[derive(Deserialize)]
pub(crate) struct LogsQuery {
    follow: Option<String>,
    stdout: Option<String>,
    stderr: Option<String>,
    timestamps: Option<String>,
    since: Option<String>,
    until: Option<String>,
    tail: Option<String>,
}

/// Which lines are wanted, and how.
#[derive(Debug)]
struct Wanted {
    stdout: bool,
    stderr: bool,
    timestamps: bool,
    since: Option<String>,
    until: Option<String>,
    tail: Option<usize>,
}

pub(crate) async fn logs(
    State(engine): State<Engine>,
    Container { name }: Container,
    Query(query): Query<LogsQuery>,
) -> Response {
    let follows = is_set(query.follow.as_deref());
    let wanted = match Wanted::read(&query) {
        Ok(wanted) => wanted,
        Err(problem) => return error(StatusCode::BAD_REQUEST, problem),
    };
    let runtime = engine.runtime();
    if runtime.inspect(&name).is_none() {
        return no_such_container(&name);
    }
    let reader = if follows { runtime.follow_logs(&name) } else { runtime.logs(&name) };
    let Some(reader) = reader else { return no_such_container(&name) };
    let (head, reader) = wanted.tail(reader).await;
    streamed(Framing::Multiplexed.content_type(), lines(head, reader, wanted))
}

impl Wanted {
    fn read(query: &LogsQuery) -> Result<Wanted, String> {
        // Zero, which Docker's client may send, is the beginning of time.
        let time = |key: &str, text: &Option<String>| match text.as_deref() {
            None | Some("" | "0") => Ok(None),
            Some(text) => {
                let time =
                    moment(text).ok_or_else(|| format!("expected seconds since 1970 as `{key}`, found `{text}`"));
                time.map(|time| Some(rfc3339(time)))
            }
        };
        let tail = match query.tail.as_deref() {
            None | Some("" | "all") => None,
            Some(text) => match text.parse::<i64>() {
                Ok(count) => usize::try_from(count).ok(),
                Err(_) => return Err(format!("expected a number of lines as `tail`, found `{text}`")),
            },
        };
        let wanted = Wanted {
            stdout: is_set(query.stdout.as_deref()),
            stderr: is_set(query.stderr.as_deref()),
            timestamps: is_set(query.timestamps.as_deref()),
            since: time("since", &query.since)?,
            until: time("until", &query.until)?,
            tail,
        };
        match wanted.stdout || wanted.stderr {
            true => Ok(wanted),
            false => Err("you must choose at least one stream (`stdout`, `stderr`)".to_string()),
        }
    }

    fn is_met_by(&self, line: &LogLine) -> bool {
        let is_of_stream = match line.stream {
            LogStream::Stdout => self.stdout,
            // What is said about the container is no less worth knowing than its complaints.
            LogStream::Stderr | LogStream::System => self.stderr,
        };
        let is_late = self.since.as_ref().is_none_or(|since| line.time >= *since);
        is_of_stream && is_late && !self.is_over(line)
    }

    fn is_over(&self, line: &LogLine) -> bool {
        self.until.as_ref().is_some_and(|until| line.time > *until)
    }

    /// The last of the lines that are there and wanted, where so many were asked for, and the reader behind them.
    async fn tail(&self, mut reader: LogReader) -> (Vec<LogLine>, LogReader) {
        let Some(count) = self.tail else { return (Vec::new(), reader) };
        let (lines, behind) = reader.tail(usize::MAX).await;
        reader = behind;
        let mut lines: Vec<LogLine> = lines.into_iter().filter(|line| self.is_met_by(line)).collect();
        (lines.split_off(lines.len().saturating_sub(count)), reader)
    }

    fn frame(&self, line: &LogLine) -> Bytes {
        let stream = if line.stream == LogStream::Stdout { STDOUT } else { STDERR };
        let time = if self.timestamps { format!("{} ", line.time) } else { String::new() };
        let end = if line.partial { "" } else { "\n" };
        frame(stream, format!("{time}{}{end}", line.line).as_bytes())
    }
}

fn lines(head: Vec<LogLine>, reader: LogReader, wanted: Wanted) -> impl Stream<Item = Result<Bytes, Infallible>> {
    unfold((head.into_iter(), reader, wanted), |(mut head, mut reader, wanted)| async move {
        loop {
            let line = match head.next() {
                Some(line) => line,
                None => reader.next().await.ok().flatten()?,
            };
            if wanted.is_over(&line) {
                return None;
            }
            if wanted.is_met_by(&line) {
                return Some((Ok(wanted.frame(&line)), (head, reader, wanted)));
            }
        }
    })
}

#[derive(Deserialize)]
pub(crate) struct StatsQuery {
    stream: Option<String>,
    #[serde(rename = "one-shot")]
    one_shot: Option<String>,
}

pub(crate) async fn stats(
    State(engine): State<Engine>,
    Container { name }: Container,
    Query(query): Query<StatsQuery>,
) -> Response {
    let Some(view) = engine.runtime().inspect(&name) else { return no_such_container(&name) };
    let is_stream = query.stream.is_none() || is_set(query.stream.as_deref());
    let first = sample(&engine, &name).await;
    if is_stream {
        return streamed("application/json", looks(engine, name));
    }
    // Nothing is used by one that does not run, which is what Docker says of it too.
    let Some(first) = first else { return docker::answer(StatusCode::OK, &docker::no_stats(&view)) };
    if is_set(query.one_shot.as_deref()) {
        return docker::answer(StatusCode::OK, &docker::stats(&view, &first, None));
    }
    tokio::time::sleep(INTERVAL).await;
    let second = sample(&engine, &name).await.unwrap_or_else(|| first.clone());
    docker::answer(StatusCode::OK, &docker::stats(&view, &second, Some(&first)))
}

/// A look each second, until the container is removed.
fn looks(engine: Engine, name: String) -> impl Stream<Item = Result<Bytes, Infallible>> {
    unfold((engine, name, None, true), |(engine, name, before, is_first)| async move {
        if !is_first {
            tokio::time::sleep(INTERVAL).await;
        }
        let view = engine.runtime().inspect(&name)?;
        let now = sample(&engine, &name).await;
        let body = match &now {
            Some(now) => docker::stats(&view, now, before.as_ref()),
            None => docker::no_stats(&view),
        };
        Some((Ok(Bytes::from(format!("{body}\n"))), (engine, name, now, false)))
    })
}

async fn sample(engine: &Engine, name: &str) -> Option<Sample> {
    let (_, usage) = engine.runtime().usage(|view| view.spec.name == name).await.pop()?;
    let stat = tokio::fs::read_to_string("/proc/stat").await.unwrap_or_default();
    Some(Sample {
        time: SystemTime::now(),
        usage,
        machine_cpu: machine_cpu(&stat),
        processors: std::thread::available_parallelism().map_or(1, usize::from),
    })
}

/// The sum of what the processors have done, which `/proc/stat` tells in hundredths of a second. Its last two numbers are
/// contained in others.
fn machine_cpu(stat: &str) -> Duration {
    let line = stat.lines().next().unwrap_or_default();
    let numbers = line.split_whitespace().skip(1).take(8).filter_map(|number| number.parse::<u64>().ok());
    Duration::from_millis(numbers.sum::<u64>().saturating_mul(10))
}

#[derive(Deserialize)]
pub(crate) struct EventsQuery {
    since: Option<String>,
    until: Option<String>,
    filters: Option<String>,
}

/// What happens from now on, or from `since` on, as far as it is remembered; until `until`, or for ever.
pub(crate) async fn events(State(engine): State<Engine>, Query(query): Query<EventsQuery>) -> Response {
    let [since, until] = [&query.since, &query.until].map(|text| text.as_deref().map(moment));
    if since == Some(None) || until == Some(None) {
        return error(StatusCode::BAD_REQUEST, "expected seconds since 1970 as `since` and `until`".to_string());
    }
    if query.filters.as_deref().is_some_and(|text| !asks_for_containers(text)) {
        return docker::not_implemented("filters of events other than `type=container`");
    }
    let since = since.flatten().unwrap_or_else(SystemTime::now);
    let until = until.flatten();
    streamed("application/json", happenings(engine, since, until))
}

/// Whether the filters let containers' events pass, and all of them: Docker's client asks so, and there are no others.
fn asks_for_containers(filters: &str) -> bool {
    let filters = serde_json::from_str::<BTreeMap<String, Value>>(if filters.is_empty() { "{}" } else { filters });
    let is_containers = |(key, values): (&String, &Value)| {
        key == "type" && (*values == json!(["container"]) || *values == json!({ "container": true }))
    };
    filters.is_ok_and(|filters| filters.iter().all(is_containers))
}

fn happenings(
    engine: Engine,
    since: SystemTime,
    until: Option<SystemTime>,
) -> impl Stream<Item = Result<Bytes, Infallible>> {
    let reader = engine.runtime().event_reader();
    unfold((engine, reader, false), move |(engine, mut reader, is_later)| async move {
        if is_later {
            let left = until.map(|until| until.duration_since(SystemTime::now()).unwrap_or_default());
            let came = match left {
                None => reader.wait().await,
                Some(left) => tokio::time::timeout(left, reader.wait()).await.unwrap_or(false),
            };
            if !came {
                return None;
            }
        }
        let names = engine.names();
        let mut text = String::new();
        for event in engine.runtime().read_events(&mut reader) {
            let is_in_time = event.time >= since && until.is_none_or(|until| event.time <= until);
            if is_in_time && names.application_of(&event.instance).is_some() {
                let event = docker::event(&event);
                text.extend(event.map(|event| format!("{event}\n")));
            }
        }
        Some((Ok(Bytes::from(text)), (engine, reader, true)))
    })
}

fn streamed(
    content_type: &'static str,
    stream: impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static,
) -> Response {
    let mut response = Response::new(Body::from_stream(stream));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// How many of the Worker's containers run.
pub(crate) fn running(engine: &Engine) -> usize {
    own(engine).iter().filter(|view| view.phase.pid().is_some()).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processors_work_is_summed_without_what_is_counted_twice() {
        let stat = "cpu  1 2 3 4 5 6 7 8 100 100\ncpu0 9 9 9 9\n";
        assert_eq!(machine_cpu(stat), Duration::from_millis(360));
        assert_eq!(machine_cpu(""), Duration::ZERO);
    }
}
