//! What the launcher does when something happens to a sandbox.

use std::time::Instant;

use rustix::event::epoll::{self, EventData, EventFlags};

use super::event_loop::{EventLoop, Source};
use super::log_file::Stream;
use super::sandbox::{Output, Phase};
use crate::child::Report;
use crate::error::{Error, ErrorKind};
use crate::fail::fail_point;
use crate::protocol::Reply;
use crate::step::Step;

impl EventLoop {
    /// Whether there was something to read, the end included.
    pub(super) fn on_report(&mut self, token: u64, id: &str) -> bool {
        let Some(sandbox) = self.sandboxes.get_mut(id) else { return false };
        let Phase::Starting { client, control, receiver, outcome } = &mut sandbox.phase else { return false };
        let client = *client;
        match receiver.receive(&*control) {
            Ok(true) => {
                while let Ok(Some((report, descriptors))) = receiver.next::<Report>() {
                    match report {
                        Report::Outbound(redirected) => sandbox.outbound = Some(redirected.map(|()| descriptors)),
                        Report::Ready(stubs) => (sandbox.stubs, *outcome) = (stubs, Some(Ok(()))),
                        Report::Failed(failure) => *outcome = Some(Err(failure)),
                    }
                }
                return true;
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return false,
            Ok(false) | Err(_) => {}
        }
        let died = || ErrorKind::Unavailable("the process died while it was set up (out of memory?)".into());
        let outcome = outcome.take().unwrap_or_else(|| Err(died()));
        if let Phase::Starting { control, .. } = std::mem::replace(&mut sandbox.phase, Phase::Running) {
            self.unwatch(token, control);
        }
        self.last_start = Instant::now();
        let outcome = outcome.and_then(|()| fail_point("launcher.start.reported").step(|| "have its report".into()));
        match outcome {
            Ok(()) => {
                let Some(started) = self.sandboxes.get(id).map(|sandbox| sandbox.started) else { return true };
                self.respond(client, Ok(Reply::Started(started)), Vec::new());
                self.watch_memory(id);
            }
            Err(kind) => {
                self.forget_failed(id);
                self.respond(client, Err(Error::new(format!("start sandbox `{id}`"), kind)), Vec::new());
            }
        }
        true
    }

    /// Takes down a sandbox whose command never executed.
    fn forget_failed(&mut self, id: &str) {
        if let Some(mut sandbox) = self.sandboxes.remove(id) {
            sandbox.kill_all();
            let exit = sandbox.finish();
            self.discard_disk(sandbox.disk.take());
            self.starter.ranges.give_back(sandbox.range.take());
            self.sources.retain(|_, source| !source.belongs_to(id));
            for client in std::mem::take(&mut sandbox.waiting) {
                self.respond(client, Ok(Reply::Exited(exit)), Vec::new());
            }
        }
    }

    pub(super) fn on_output(&mut self, token: u64, id: &str, stream: Stream) {
        let Some(sandbox) = self.sandboxes.get_mut(id) else { return };
        match sandbox.copy_output(stream) {
            Output::End => {
                let index = sandbox.outputs.iter().position(|(known, _)| *known == stream);
                if let Some((_, pipe)) = index.map(|index| sandbox.outputs.remove(index)) {
                    self.unwatch(token, pipe);
                }
            }
            Output::More if sandbox.rate.is_exceeded() => self.pause_output(token, id.to_owned(), stream),
            Output::More | Output::Empty => {}
        }
    }

    /// Leaves an output alone until its next window. Its pipe fills up, and the flood waits, nobody else.
    fn pause_output(&mut self, token: u64, id: String, stream: Stream) {
        let Some(sandbox) = self.sandboxes.get(&id) else { return };
        if let Some(pipe) = sandbox.output(stream) {
            let _ = epoll::delete(&self.epoll, pipe);
            self.sources.remove(&token);
            self.paused.push((sandbox.rate.window_end(), id, stream));
        }
    }

    /// Looks at those outputs again whose window has come.
    pub(super) fn resume_outputs(&mut self) {
        let now = Instant::now();
        for (due, id, stream) in std::mem::take(&mut self.paused) {
            if due > now {
                self.paused.push((due, id, stream));
                continue;
            }
            let Some(pipe) = self.sandboxes.get(&id).and_then(|sandbox| sandbox.output(stream)) else { continue };
            let token = self.next_token;
            self.next_token += 1;
            if epoll::add(&self.epoll, pipe, EventData::new_u64(token), EventFlags::IN).is_ok() {
                self.sources.insert(token, Source::Output(id, stream));
            }
        }
    }

    pub(super) fn on_exit(&mut self, token: u64, id: &str) {
        // A command that ends at once may be seen before its start: that comes first.
        while let Some(report) = self.report_token(id) {
            if !self.on_report(report, id) {
                break;
            }
        }
        let Some(sandbox) = self.sandboxes.get_mut(id) else { return };
        if let Some(watch) = sandbox.oom_watch.take() {
            let _ = epoll::delete(&self.epoll, &watch);
        }
        let exit = sandbox.finish();
        let waiting = std::mem::take(&mut sandbox.waiting);
        let disk = sandbox.disk.take();
        let _ = epoll::delete(&self.epoll, &sandbox.pidfd);
        self.sources.remove(&token);
        self.sources.retain(|_, source| !source.belongs_to(id));
        self.discard_disk(disk);
        for client in waiting {
            self.respond(client, Ok(Reply::Exited(exit)), Vec::new());
        }
        for watcher in self.watchers.clone() {
            self.respond(watcher, Ok(Reply::Ended { id: id.to_owned(), exit }), Vec::new());
        }
    }

    /// The token of a starting sandbox's report. The process is over, so reading it cannot wait.
    fn report_token(&self, id: &str) -> Option<u64> {
        let is_starting = matches!(self.sandboxes.get(id)?.phase, Phase::Starting { .. });
        let find =
            |(token, source): (&u64, &Source)| matches!(source, Source::Report(known) if known == id).then_some(*token);
        if is_starting { self.sources.iter().find_map(find) } else { None }
    }
}
