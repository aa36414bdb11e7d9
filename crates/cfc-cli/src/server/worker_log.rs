//! What a Worker has printed, and what it prints, as its client wants it.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use cfc_control::LogRequest;
use cfc_workers::{LogLine, LogReader};
use futures::StreamExt;
use futures::stream::BoxStream;

use crate::server::logs::beginning;

/// How often a log that is followed is looked at for more.
const POLL: Duration = Duration::from_millis(100);
/// How much is sent at once.
const BATCH_BYTES: usize = 64 << 10;

/// The lines of the Worker whose directory this is. A stream that follows ends with the directory, or with its reader.
pub fn read(directory: PathBuf, request: &LogRequest) -> BoxStream<'static, io::Result<Bytes>> {
    let reading = Reading {
        reader: LogReader::open(&directory),
        directory,
        since: request.since.and_then(beginning).unwrap_or_default(),
        timestamps: request.timestamps,
        follow: request.follow,
        tail_lines: request.tail_lines.map(|lines| usize::try_from(lines).unwrap_or(usize::MAX)),
    };
    futures::stream::try_unfold(reading, |mut reading| async move {
        loop {
            let batch = reading.batch()?;
            if !batch.is_empty() {
                return Ok(Some((Bytes::from(batch), reading)));
            }
            if !reading.follow || !reading.directory.exists() {
                return Ok(None);
            }
            tokio::time::sleep(POLL).await;
        }
    })
    .boxed()
}

struct Reading {
    reader: LogReader,
    directory: PathBuf,
    /// Compares with the times of lines; empty for all of them.
    since: String,
    timestamps: bool,
    follow: bool,
    /// Of what there is at the beginning, only so many lines; `None` once that was read.
    tail_lines: Option<usize>,
}

impl Reading {
    /// Lines of those that are there now; nothing at the end.
    fn batch(&mut self) -> io::Result<String> {
        let mut batch = String::new();
        if let Some(count) = self.tail_lines.take() {
            self.tail(count)?.iter().for_each(|line| self.render(line, &mut batch));
        }
        while batch.len() < BATCH_BYTES {
            let Some(line) = self.next()? else { break };
            self.render(&line, &mut batch);
        }
        Ok(batch)
    }

    fn tail(&mut self, count: usize) -> io::Result<VecDeque<LogLine>> {
        let mut lines = VecDeque::new();
        while let Some(line) = self.next()? {
            lines.push_back(line);
            if lines.len() > count {
                lines.pop_front();
            }
        }
        Ok(lines)
    }

    /// The next line that is new enough.
    fn next(&mut self) -> io::Result<Option<LogLine>> {
        loop {
            match self.reader.next_line()? {
                Some(line) if line.time < self.since => {}
                line => return Ok(line),
            }
        }
    }

    fn render(&self, line: &LogLine, text: &mut String) {
        if self.timestamps {
            text.push_str(if line.time.is_empty() { "-" } else { &line.time });
            text.push(' ');
        }
        text.push_str(&line.text);
        text.push('\n');
    }
}
