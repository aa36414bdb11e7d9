//! [`OomWatch`]: how the launcher hears of processes that the kernel kills at a sandbox's memory limit, and what it does
//! then.
//!
//! The kernel kills one process, which need not be process 1: the application may go on. So a kill is told when it happens,
//! in the sandbox's log and to the clients that watch; the end of the sandbox is another matter.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rustix::event::EventfdFlags;
use rustix::event::epoll::{self, EventData, EventFlags};

use super::event_loop::{EventLoop, Source};
use crate::cgroup::Cgroup;
use crate::protocol::Reply;

/// When the count is looked at once more: cgroup v1 tells of it before the kernel has killed anything.
const SECOND_LOOK: Duration = Duration::from_millis(50);

/// Becomes ready when the kernel may have killed something.
pub(crate) enum OomWatch {
    /// An eventfd, to which the kernel writes.
    V1(OwnedFd),
    /// `memory.events`, which is ready when it was not read since it changed.
    V2(File),
}

impl OomWatch {
    /// `None` where the kernel has no such thing: kills are then told with the end of the sandbox.
    fn new(cgroup: &Cgroup) -> Option<OomWatch> {
        let (memory, is_v2) = cgroup.memory()?;
        let watch = if is_v2 {
            OomWatch::V2(File::open(memory.join("memory.events")).ok()?)
        } else {
            let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok()?;
            let file = File::open(memory.join("memory.oom_control")).ok()?;
            let line = format!("{} {}", event.as_raw_fd(), file.as_raw_fd());
            std::fs::OpenOptions::new()
                .write(true)
                .open(memory.join("cgroup.event_control"))
                .and_then(|mut control| std::io::Write::write_all(&mut control, line.as_bytes()))
                .ok()?;
            OomWatch::V1(event)
        };
        watch.clear();
        Some(watch)
    }

    /// What makes it ready.
    fn interest(&self) -> EventFlags {
        match self {
            OomWatch::V1(_) => EventFlags::IN,
            OomWatch::V2(_) => EventFlags::PRI,
        }
    }

    /// It is ready no more, until the next time.
    fn clear(&self) {
        let mut bytes = [0; 512];
        match self {
            OomWatch::V1(event) => drop(rustix::io::read(event, &mut bytes[..8])),
            OomWatch::V2(file) => drop(file.read_at(&mut bytes, 0)),
        }
    }
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            OomWatch::V1(event) => event.as_fd(),
            OomWatch::V2(file) => file.as_fd(),
        }
    }
}

impl EventLoop {
    /// Watches a running sandbox for kills, and tells of those that were not heard of yet. One that cannot be watched runs
    /// all the same: its kills are told with its end.
    pub(super) fn watch_memory(&mut self, id: &str) {
        let Some(sandbox) = self.sandboxes.get_mut(id).filter(|sandbox| !sandbox.is_over()) else { return };
        let Some(watch) = OomWatch::new(&sandbox.cgroup) else { return };
        let token = self.next_token;
        if epoll::add(&self.epoll, &watch, EventData::new_u64(token), watch.interest()).is_ok() {
            self.next_token += 1;
            self.sources.insert(token, Source::OutOfMemory(id.to_owned()));
            sandbox.oom_watch = Some(watch);
        }
        self.tell_oom_kills(id);
    }

    pub(super) fn on_out_of_memory(&mut self, id: &str) {
        let Some(sandbox) = self.sandboxes.get(id) else { return };
        if let Some(watch) = &sandbox.oom_watch {
            watch.clear();
        }
        self.tell_oom_kills(id);
        self.oom_looks.push((Instant::now() + SECOND_LOOK, id.to_owned()));
    }

    /// Looks at those once more whose time has come.
    pub(super) fn look_for_oom_kills(&mut self) {
        let now = Instant::now();
        let (due, later) = std::mem::take(&mut self.oom_looks).into_iter().partition(|(due, _)| *due <= now);
        self.oom_looks = later;
        let due: Vec<(Instant, String)> = due;
        for (_, id) in due {
            self.tell_oom_kills(&id);
        }
    }

    fn tell_oom_kills(&mut self, id: &str) {
        let Some(sandbox) = self.sandboxes.get_mut(id).filter(|sandbox| !sandbox.is_over()) else { return };
        let kills = sandbox.cgroup.oom_kills();
        if sandbox.note_oom_kills(kills) {
            let limit_bytes = sandbox.cgroup.memory_limit();
            for watcher in self.oom_watchers.clone() {
                self.respond(watcher, Ok(Reply::OutOfMemory { id: id.to_owned(), kills, limit_bytes }), Vec::new());
            }
        }
    }
}
