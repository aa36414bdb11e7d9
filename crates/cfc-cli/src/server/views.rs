//! The runtime's instances and logs in the control API's words.

use std::collections::VecDeque;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use cfc_control::{ApplicationRecord, InstanceState, InstanceView, LogError, LogRequest, Timestamp};
use cfc_runtime::{LogLine, LogReader, Phase, Runtime};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt};

/// The instances of an application.
pub fn instances(runtime: &Runtime, application: &ApplicationRecord) -> Vec<InstanceView> {
    let all = runtime.list().into_iter().filter(|instance| instance.spec.application == application.name);
    all.map(|instance| view(application, &instance)).collect()
}

fn view(application: &ApplicationRecord, instance: &cfc_runtime::InstanceView) -> InstanceView {
    let started = timestamp(instance.started.unwrap_or(instance.created));
    let is_current = instance.spec.image.digest == application.image.manifest.digest;
    InstanceView {
        id: instance.spec.name.clone(),
        name: object_id(&instance.spec.name).to_string(),
        application: application.name.clone(),
        state: state(&instance.phase),
        since: started,
        started,
        image: instance.spec.image.digest.clone(),
        version: is_current.then_some(application.version),
        pid: match instance.phase {
            Phase::Running { pid } => Some(pid),
            _ => None,
        },
    }
}

fn state(phase: &Phase) -> InstanceState {
    match phase {
        Phase::Created | Phase::Starting => InstanceState::Starting,
        Phase::Running { .. } => InstanceState::Running,
        Phase::Stopped(report) | Phase::Removed(report) => match &report.error {
            Some(reason) => InstanceState::Failed { reason: reason.clone() },
            None if report.oom_killed => InstanceState::Failed { reason: "out of memory".to_string() },
            None => InstanceState::Stopped { exit_code: Some(report.code) },
        },
    }
}

/// The Durable Object's id: the last part of the name that workerd gives a container, `workerd-<key>-<id>`.
fn object_id(name: &str) -> &str {
    name.rsplit_once('-').map_or(name, |(_, id)| id)
}

fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_milliseconds(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The lines of one instance or of all, each as `time instance stream: line`.
pub async fn logs(
    runtime: &Runtime,
    application: &ApplicationRecord,
    request: &LogRequest,
) -> Result<BoxStream<'static, io::Result<Bytes>>, LogError> {
    let mut names: Vec<String> = instances(runtime, application).into_iter().map(|instance| instance.id).collect();
    if let Some(wanted) = &request.instance {
        names.retain(|name| name == wanted || object_id(name) == wanted);
        if names.is_empty() && runtime.logs(wanted).is_some() {
            names.push(wanted.clone());
        }
        if names.is_empty() {
            return Err(LogError::NoSuchInstance { application: application.name.clone(), instance: wanted.clone() });
        }
    }
    let since = request.since.map(|within| timestamp(SystemTime::now() - within).to_string());
    let mut sources = Vec::new();
    for name in names {
        let reader = if request.follow { runtime.follow_logs(&name) } else { runtime.logs(&name) };
        let Some(reader) = reader else { continue };
        let (head, reader) = match request.tail_lines {
            Some(count) => reader.tail(usize::try_from(count).unwrap_or(usize::MAX)).await,
            None => (Vec::new(), reader),
        };
        sources.push(Source { instance: object_id(&name).chars().take(12).collect(), head: head.into(), reader });
    }
    let lines = if request.follow {
        futures::stream::select_all(sources.into_iter().map(|source| source.lines().boxed())).boxed()
    } else {
        by_time(sources).boxed()
    };
    let wanted = lines
        .try_filter(move |(_, line)| futures::future::ready(since.as_ref().is_none_or(|since| line.time >= *since)));
    Ok(wanted.map_ok(|(instance, line)| render(&instance, &line)).boxed())
}

/// The log of one instance: lines that were read already, then what the reader has.
struct Source {
    /// The start of the Durable Object's id.
    instance: String,
    head: VecDeque<LogLine>,
    reader: LogReader,
}

impl Source {
    async fn next(&mut self) -> io::Result<Option<LogLine>> {
        match self.head.pop_front() {
            Some(line) => Ok(Some(line)),
            None => self.reader.next().await,
        }
    }

    fn lines(self) -> impl Stream<Item = io::Result<(String, LogLine)>> + Send {
        futures::stream::try_unfold(self, |mut source| async move {
            Ok(source.next().await?.map(|line| ((source.instance.clone(), line), source)))
        })
    }
}

/// The lines of all sources, each of which is in order of time, in order of time.
fn by_time(sources: Vec<Source>) -> impl Stream<Item = io::Result<(String, LogLine)>> + Send {
    let waiting: Vec<(Source, Option<LogLine>)> = sources.into_iter().map(|source| (source, None)).collect();
    futures::stream::try_unfold(waiting, |mut waiting| async move {
        let mut index = 0;
        while index < waiting.len() {
            if waiting[index].1.is_none() {
                waiting[index].1 = waiting[index].0.next().await?;
            }
            // A source without a next line has ended.
            if waiting[index].1.is_some() {
                index += 1;
            } else {
                waiting.swap_remove(index);
            }
        }
        let earliest = waiting
            .iter_mut()
            .min_by(|a, b| a.1.as_ref().map(|line| &line.time).cmp(&b.1.as_ref().map(|line| &line.time)));
        let Some((source, line)) = earliest else { return Ok(None) };
        let next = line.take().map(|line| (source.instance.clone(), line));
        Ok(next.map(|next| (next, waiting)))
    })
}

fn render(instance: &str, line: &LogLine) -> Bytes {
    let stream = match line.stream {
        cfc_runtime::LogStream::Stdout => "stdout",
        cfc_runtime::LogStream::Stderr => "stderr",
        cfc_runtime::LogStream::System => "system",
    };
    Bytes::from(format!("{} {instance} {stream}: {}\n", line.time, line.line))
}
