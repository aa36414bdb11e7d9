//! What the instances of an application wrote: those that live and those that ended lately.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use cfc_control::{ApplicationRecord, LogError, LogRequest};
use cfc_runtime::{LogLine, LogReader, LogStream, Runtime};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt};
use tokio::sync::mpsc;

use crate::server::views::{object_id, timestamp};

/// How often a followed application is looked at for instances that were started or have ended.
const LOOK: Duration = Duration::from_millis(200);
/// Lines that may wait for a slow client.
const WAITING_LINES: usize = 256;
/// How much of a Durable Object's id a line shows.
const SHORT_ID: usize = 12;

/// The lines of one instance or of all, in order of time, each as `instance stream: line`, with the time in front where it is wanted; when following, what is
/// written later comes after, also by instances that are started later, until the client goes away.
pub async fn logs(
    runtime: &Runtime,
    application: &ApplicationRecord,
    request: &LogRequest,
) -> Result<BoxStream<'static, io::Result<Bytes>>, LogError> {
    let which = Which::new(application, request.instance.clone());
    let ended = which.ended(runtime).into_iter().map(|(_, name)| name);
    let names: HashSet<String> = which.live(runtime).into_iter().chain(ended).collect();
    if let (Some(instance), true) = (&request.instance, names.is_empty()) {
        return Err(LogError::NoSuchInstance { application: application.name.clone(), instance: instance.clone() });
    }
    let since = request.since.and_then(beginning);
    let mut sources = Vec::new();
    for name in names {
        let Some(reader) = runtime.logs(&name) else { continue };
        let (head, reader) = match request.tail_lines {
            Some(count) => reader.tail(usize::try_from(count).unwrap_or(usize::MAX)).await,
            None => (Vec::new(), reader),
        };
        sources.push(Source { name, head: head.into(), reader });
    }
    let written = by_time(sources);
    let lines = if request.follow && request.tail_lines.is_none() {
        follow(runtime.clone(), which, written)
    } else if request.follow {
        written.chain(follow_from_now(runtime.clone(), which).await).boxed()
    } else {
        written.boxed()
    };
    let stream = request.stream.clone();
    let wanted = lines.try_filter(move |(_, line)| {
        let is_new = since.as_ref().is_none_or(|since| line.time >= *since);
        let is_of_stream = stream.as_ref().is_none_or(|stream| name_of(line.stream) == stream);
        futures::future::ready(is_new && is_of_stream)
    });
    let mut renderer = Renderer { timestamps: request.timestamps, unfinished: None };
    Ok(wanted.map_ok(move |(name, line)| renderer.render(&name, &line)).boxed())
}

/// The time so long ago, as it compares with those of lines; `None` where that is before all times.
pub fn beginning(within: Duration) -> Option<String> {
    let time = SystemTime::now().checked_sub(within)?;
    // Without the `Z`, it is the beginning of all times within its millisecond, which have more digits.
    Some(timestamp(time).to_string().trim_end_matches('Z').to_string())
}

/// The instances whose lines are wanted.
#[derive(Clone)]
struct Which {
    application: String,
    /// What the names begin with that workerd gives to containers of the application's class.
    prefix: Option<String>,
    instance: Option<String>,
}

impl Which {
    fn new(application: &ApplicationRecord, instance: Option<String>) -> Which {
        let prefix = application.attachment.as_ref().map(|attachment| {
            format!("workerd-{}-", cfc_workers::unique_key(&attachment.worker, &attachment.class_name))
        });
        Which { application: application.name.clone(), prefix, instance }
    }

    fn is_wanted(&self, name: &str) -> bool {
        self.instance.as_ref().is_none_or(|instance| name == instance || object_id(name) == instance)
    }

    fn live(&self, runtime: &Runtime) -> Vec<String> {
        let all = runtime.list().into_iter().filter(|instance| instance.spec.application == self.application);
        all.map(|instance| instance.spec.name).filter(|name| self.is_wanted(name)).collect()
    }

    fn ended(&self, runtime: &Runtime) -> Vec<(SystemTime, String)> {
        let is_ours = |name: &str| {
            self.prefix.as_ref().and_then(|prefix| name.strip_prefix(prefix)).is_some_and(|id| !id.contains('-'))
        };
        let all = runtime.ended().into_iter();
        all.filter(|(_, name)| is_ours(name) && self.is_wanted(name)).collect()
    }
}

/// The log of one instance: lines that were read already, then what the reader has.
struct Source {
    name: String,
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
}

type Line = io::Result<(String, LogLine)>;

/// The lines of all sources, each of which is in order of time, in order of time.
fn by_time(sources: Vec<Source>) -> impl Stream<Item = Line> + Send {
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
        let next = line.take().map(|line| (source.name.clone(), line));
        Ok(next.map(|next| (next, waiting)))
    })
}

/// How many lines of each instance the client has.
type Delivered = Arc<Mutex<HashMap<String, u64>>>;

/// What is `written` now, then what comes.
fn follow(
    runtime: Runtime,
    which: Which,
    written: impl Stream<Item = Line> + Send + 'static,
) -> BoxStream<'static, Line> {
    let delivered = Delivered::default();
    let count = delivered.clone();
    let counted = written.inspect_ok(move |(name, _)| add_one(&count, name));
    // Made when the stream gets there: by then it is known what was delivered.
    let later = futures::stream::once(async move { watch(runtime, which, delivered) }).flatten();
    counted.chain(later).boxed()
}

/// Only what comes.
async fn follow_from_now(runtime: Runtime, which: Which) -> BoxStream<'static, Line> {
    let delivered = Delivered::default();
    for name in which.live(&runtime) {
        let Some(mut reader) = runtime.logs(&name) else { continue };
        while let Ok(Some(_)) = reader.next().await {
            add_one(&delivered, &name);
        }
    }
    watch(runtime, which, delivered)
}

fn add_one(delivered: &Delivered, name: &str) {
    *delivered.lock().unwrap_or_else(PoisonError::into_inner).entry(name.to_string()).or_default() += 1;
}

/// The lines that were not delivered yet, of instances that live now or will, in the order they are read.
fn watch(runtime: Runtime, which: Which, delivered: Delivered) -> BoxStream<'static, Line> {
    let (sender, receiver) = mpsc::channel(WAITING_LINES);
    tokio::spawn(async move {
        let following: Arc<Mutex<HashSet<String>>> = Arc::default();
        let mut ended_seen: HashSet<(SystemTime, String)> = which.ended(&runtime).into_iter().collect();
        loop {
            // One that came and went between two looks is among those that ended.
            let ended = which.ended(&runtime).into_iter().filter(|ended| ended_seen.insert(ended.clone()));
            let names: Vec<String> = which.live(&runtime).into_iter().chain(ended.map(|(_, name)| name)).collect();
            for name in names {
                if !following.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone()) {
                    continue;
                }
                let (runtime, delivered, sender, following) =
                    (runtime.clone(), delivered.clone(), sender.clone(), following.clone());
                tokio::spawn(async move {
                    forward(&runtime, &name, &delivered, &sender).await;
                    following.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
                });
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = sender.closed() => return,
            }
        }
    });
    futures::stream::unfold(receiver, |mut receiver| async move {
        let line = receiver.recv().await?;
        Some((line, receiver))
    })
    .boxed()
}

/// Sends the lines of one instance that the client does not have, until its process has ended.
async fn forward(runtime: &Runtime, name: &str, delivered: &Delivered, sender: &mpsc::Sender<Line>) {
    let Some(mut reader) = runtime.follow_logs(name) else { return };
    let mut to_skip = delivered.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied().unwrap_or(0);
    loop {
        let next = tokio::select! {
            next = reader.next() => next,
            () = sender.closed() => return,
        };
        let line = match next {
            Ok(Some(_)) if to_skip > 0 => {
                to_skip -= 1;
                continue;
            }
            Ok(Some(line)) => Ok((name.to_string(), line)),
            Ok(None) => return,
            Err(error) => Err(error),
        };
        add_one(delivered, name);
        if sender.send(line).await.is_err() {
            return;
        }
    }
}

fn name_of(stream: LogStream) -> &'static str {
    match stream {
        LogStream::Stdout => "stdout",
        LogStream::Stderr => "stderr",
        LogStream::System => "system",
    }
}

/// Makes text of lines, and puts the pieces of a long one together again where nothing came between.
struct Renderer {
    timestamps: bool,
    /// Whose line goes on.
    unfinished: Option<(String, LogStream)>,
}

impl Renderer {
    fn render(&mut self, name: &str, line: &LogLine) -> Bytes {
        let whose = (name.to_string(), line.stream);
        let mut text = String::new();
        if self.unfinished.as_ref() != Some(&whose) {
            if self.unfinished.is_some() {
                text.push('\n');
            }
            if self.timestamps {
                text.push_str(&format!("{} ", line.time));
            }
            let instance: String = object_id(name).chars().take(SHORT_ID).collect();
            text.push_str(&format!("{instance} {}: ", name_of(line.stream)));
        }
        text.push_str(&line.line);
        if !line.partial {
            text.push('\n');
        }
        self.unfinished = line.partial.then_some(whose);
        Bytes::from(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_a_long_line_are_put_together_unless_another_comes_between() {
        let mut renderer = Renderer { timestamps: false, unfinished: None };
        let mut render = |name: &str, text: &str, partial: bool| {
            let (time, line) = ("t".to_string(), text.to_string());
            let line = LogLine { time, stream: LogStream::Stdout, line, partial };
            String::from_utf8(renderer.render(name, &line).to_vec()).expect("text")
        };
        assert_eq!(render("a", "one ", true), "a stdout: one ");
        assert_eq!(render("a", "line", false), "line\n");
        assert_eq!(render("a", "cut ", true), "a stdout: cut ");
        assert_eq!(render("b", "other", false), "\nb stdout: other\n");
        assert_eq!(render("a", "short", false), "a stdout: short\n");
    }

    #[test]
    fn however_long_ago_is_a_time_or_all_times() {
        let line = "1999-12-31T23:59:59.000000000Z";
        let is_since = |within: Duration| beginning(within).is_none_or(|since| line >= since.as_str());
        let years = |count: u64| Duration::from_secs(count * 365 * 86_400);
        assert!(!is_since(Duration::ZERO) && !is_since(years(1)));
        for within in [years(100), years(3_000), years(200_000_000_000), Duration::from_secs(u64::MAX), Duration::MAX] {
            assert!(is_since(within), "{within:?}");
        }
    }

    #[test]
    fn times_stand_in_front_where_they_are_wanted() {
        let mut renderer = Renderer { timestamps: true, unfinished: None };
        let (time, line) = ("2026-01-01T00:00:00Z".to_string(), "x".to_string());
        let line = LogLine { time, stream: LogStream::Stderr, line, partial: false };
        assert_eq!(
            renderer.render("workerd-app-C-0123456789abcdef", &line),
            "2026-01-01T00:00:00Z 0123456789ab stderr: x\n"
        );
    }
}
