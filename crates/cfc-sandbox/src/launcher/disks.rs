//! What the launcher does about disks: it gives them to starts, has more made, and has those taken down that are over.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll::{self, EventData, EventFlags};

use super::disk_pool::DiskPool;
use super::event_loop::{EventLoop, Source};
use super::succession::{DisksState, Passing, WaitingState, take_all};
use crate::config::{Root, SandboxConfig};
use crate::disk::{self, Disk, DiskKind, DiskUsage, FromMaker, Maker, ToMaker};
use crate::error::{Error, ErrorKind};
use crate::protocol::Reply;

/// The disks of a launcher.
#[derive(Default)]
pub(super) struct Disks {
    pool: DiskPool<Waiting>,
    /// The process that makes them, once one was wanted, and what watches it.
    maker: Option<(u64, Maker)>,
    /// The roots of those that are over and not taken down yet.
    discarded: Vec<OwnedFd>,
    /// What it has not been told yet, for its socket was full.
    outbox: VecDeque<(ToMaker, Option<OwnedFd>)>,
}

/// How many disks that are over wait for a quiet moment at most: each holds memory and space.
const DISCARDED_MAX: usize = 16;

/// Who waits for a disk.
enum Waiting {
    Start { client: u64, config: Box<SandboxConfig>, descriptors: Vec<OwnedFd> },
    Preparation { client: u64, kind: DiskKind },
}

impl Disks {
    /// Whether disks are to be made or taken down in a quiet moment.
    pub(super) fn has_chores(&self) -> bool {
        self.pool.has_sold() || !self.discarded.is_empty()
    }

    /// Whether somebody waits for a disk.
    pub(super) fn are_awaited(&self) -> bool {
        self.pool.waiting().next().is_some()
    }
}

impl EventLoop {
    /// Starts a sandbox, at once unless there is no disk for it yet.
    pub(super) fn start_with_disk(&mut self, client: u64, config: Box<SandboxConfig>, descriptors: Vec<OwnedFd>) {
        let kind = match &config.root {
            Root::Disk { disk, .. } => disk.clone(),
            Root::Overlay { .. } | Root::Directory { .. } => {
                let started = self.start(client, &config, descriptors, None);
                return self.respond_failure(client, &config.id, started);
            }
        };
        if let Err(failure) = self.check_start(&config) {
            return self.respond_failure(client, &config.id, Err(failure));
        }
        match self.disks.pool.take(&kind) {
            Some(disk) => self.start_on(client, &config, descriptors, disk),
            None => self.disks.pool.wait(kind.clone(), Waiting::Start { client, config, descriptors }),
        }
        self.order_urgent_disks(&kind);
    }

    /// For the launcher's next program, which starts a process of its own that makes disks.
    pub(super) fn save_disks(&self, passing: &Passing) -> DisksState {
        let save = |waiting: &Waiting| match waiting {
            Waiting::Start { client, config, descriptors } => WaitingState::Start {
                client: *client,
                config: config.clone(),
                descriptors: passing.pass_all(descriptors),
            },
            Waiting::Preparation { client, .. } => WaitingState::Preparation { client: *client },
        };
        let ready = self.disks.pool.ready();
        DisksState {
            ready: ready
                .map(|(kind, Disk { mount, root })| (kind.clone(), passing.pass(mount), passing.pass(root)))
                .collect(),
            waiting: self.disks.pool.all_waiting().map(|(kind, waiting)| (kind.clone(), save(waiting))).collect(),
            over: passing
                .pass_all(self.disks.outbox.iter().filter_map(|(_, root)| root.as_ref()).chain(&self.disks.discarded)),
        }
    }

    pub(super) fn restore_disks(&mut self, state: DisksState) -> std::io::Result<()> {
        for (kind, mount, root) in state.ready {
            let _ = self.disks.pool.put::<ErrorKind>(&kind, Ok(Disk { mount: mount.take()?, root: root.take()? }));
        }
        self.disks.discarded = take_all(state.over)?;
        for (kind, waiting) in state.waiting {
            let waiting = match waiting {
                WaitingState::Start { client, config, descriptors } => {
                    Waiting::Start { client, config, descriptors: take_all(descriptors)? }
                }
                WaitingState::Preparation { client } => Waiting::Preparation { client, kind: kind.clone() },
            };
            self.disks.pool.wait(kind.clone(), waiting);
            self.order_urgent_disks(&kind);
        }
        Ok(())
    }

    /// The process that makes disks, which the next program does not take over.
    pub(super) fn maker_pid(&self) -> Option<i32> {
        self.disks.maker.as_ref().map(|(_, maker)| maker.pid())
    }

    /// Whether a start of this id waits for its disk.
    pub(super) fn waits_for_disk(&self, id: &str) -> bool {
        self.disks.pool.waiting().any(|waiting| matches!(waiting, Waiting::Start { config, .. } if config.id == id))
    }

    /// Forgets what a client waited for that has gone. Nothing lists a start that waits: whoever comes next would not know of
    /// the sandbox, and make another of its id.
    pub(super) fn forget_waiting(&mut self, gone: u64) {
        self.disks.pool.forget(|waiting| match waiting {
            Waiting::Start { client, .. } | Waiting::Preparation { client, .. } => *client == gone,
        });
    }

    fn start_on(&mut self, client: u64, config: &SandboxConfig, descriptors: Vec<OwnedFd>, disk: Disk) {
        let Disk { mount, root } = disk;
        let started = self.start(client, config, descriptors, Some(mount));
        match self.sandboxes.get_mut(&config.id) {
            Some(sandbox) if started.is_ok() => sandbox.disk = Some(root),
            _ => self.discard_disk(Some(root)),
        }
        self.respond_failure(client, &config.id, started);
    }

    /// Of a start that goes on, its report tells.
    fn respond_failure(&mut self, client: u64, id: &str, started: Result<(), ErrorKind>) {
        if let Err(kind) = started {
            self.respond(client, Err(Error::new(format!("start sandbox `{id}`"), kind)), Vec::new());
        }
    }

    pub(super) fn prepare_disk(&mut self, client: u64, kind: DiskKind) {
        if self.disks.pool.has(&kind) {
            self.respond(client, Ok(Reply::Done), Vec::new());
        } else {
            self.disks.pool.wait(kind.clone(), Waiting::Preparation { client, kind: kind.clone() });
            self.order_urgent_disks(&kind);
        }
    }

    pub(super) fn disk_usage(&self) -> BTreeMap<String, DiskUsage> {
        let of = |root: &OwnedFd| disk::usage(root).ok();
        self.sandboxes.iter().filter_map(|(id, s)| Some((id.clone(), of(s.disk.as_ref()?)?))).collect()
    }

    /// Has those made that cannot wait for a quiet moment.
    fn order_urgent_disks(&mut self, kind: &DiskKind) {
        let missing = self.disks.pool.order_urgent(kind);
        if missing > 0 {
            self.order_disks(kind, missing);
        }
    }

    fn order_disks(&mut self, kind: &DiskKind, count: usize) {
        if self.disks.maker.is_none()
            && let Err(failure) = self.start_maker()
        {
            return self.lose_maker(&failure);
        }
        for _ in 0..count {
            self.disks.outbox.push_back((ToMaker::Make(kind.clone()), None));
        }
        self.tell_maker();
    }

    /// Orders the disks that are kept ready, and has those taken down that are over.
    pub(super) fn restock_disks(&mut self) {
        for (kind, missing) in self.disks.pool.order_ready() {
            self.order_disks(&kind, missing);
        }
        self.disks.discarded.extend(self.disks.pool.outdated().into_iter().map(|disk| disk.root));
        self.take_down_discarded();
    }

    /// Has the disk taken down of a sandbox that is gone: that takes longer than the launcher may be away.
    pub(super) fn discard_disk(&mut self, root: Option<OwnedFd>) {
        self.disks.discarded.extend(root);
        if self.disks.discarded.len() > DISCARDED_MAX {
            self.take_down_discarded();
        }
    }

    fn take_down_discarded(&mut self) {
        let roots = std::mem::take(&mut self.disks.discarded);
        self.disks.outbox.extend(roots.into_iter().map(|root| (ToMaker::TakeDown, Some(root))));
        self.tell_maker();
    }

    fn start_maker(&mut self) -> Result<(), ErrorKind> {
        let failed = |error: std::io::Error| {
            ErrorKind::Unavailable(format!("the process that makes disks cannot be started: {error}"))
        };
        let maker = Maker::start().map_err(failed)?;
        let token = self.watch(&maker.socket, Source::Disks).map_err(|errno| failed(errno.into()))?;
        self.disks.maker = Some((token, maker));
        Ok(())
    }

    fn tell_maker(&mut self) {
        let Some((token, maker)) = &self.disks.maker else { return self.disks.outbox.clear() };
        while let Some((message, root)) = self.disks.outbox.pop_front() {
            let descriptors: Vec<_> = root.iter().map(|root| root.as_fd()).collect();
            // An error means that it has ended, which reading from it will show.
            if let Ok(false) = maker.send(&message, &descriptors) {
                self.disks.outbox.push_front((message, root));
                break;
            }
        }
        let more = if self.disks.outbox.is_empty() { EventFlags::empty() } else { EventFlags::OUT };
        let _ = epoll::modify(&self.epoll, &maker.socket, EventData::new_u64(*token), EventFlags::IN | more);
    }

    pub(super) fn on_disks(&mut self) {
        self.tell_maker();
        while let Some((_, maker)) = &self.disks.maker {
            match maker.receive() {
                Ok(Some((answer, descriptors))) => self.on_disk(answer, descriptors),
                Ok(None) => return,
                Err(_) => {
                    let failure = ErrorKind::Unavailable("the process that makes disks has ended".into());
                    return self.lose_maker(&failure);
                }
            }
        }
    }

    fn on_disk(&mut self, answer: FromMaker, mut descriptors: Vec<OwnedFd>) {
        let FromMaker { kind, result } = answer;
        let root = descriptors.pop();
        let made = match (result, descriptors.pop(), root) {
            (Ok(()), Some(mount), Some(root)) => Ok(Disk { mount, root }),
            // The kernel hands over as many as there is room for.
            (Ok(()), ..) => Err(ErrorKind::Step { step: "take a disk".into(), errno: libc::EMFILE }),
            (Err(failure), ..) => Err(failure),
        };
        match self.disks.pool.arrive(&kind, made) {
            Some((waiting, Ok(disk))) => self.go_on(waiting, disk),
            Some((waiting, Err(failure))) => self.refuse(waiting, failure),
            None => {}
        }
    }

    fn go_on(&mut self, waiting: Waiting, disk: Disk) {
        match waiting {
            Waiting::Start { client, config, descriptors } => self.start_on(client, &config, descriptors, disk),
            Waiting::Preparation { client, kind } => {
                if let Some((next, Ok(disk))) = self.disks.pool.put::<ErrorKind>(&kind, Ok(disk)) {
                    self.go_on(next, disk);
                }
                self.respond(client, Ok(Reply::Done), Vec::new());
            }
        }
    }

    fn refuse(&mut self, waiting: Waiting, failure: ErrorKind) {
        match waiting {
            Waiting::Start { client, config, .. } => self.respond_failure(client, &config.id, Err(failure)),
            Waiting::Preparation { client, kind } => {
                self.respond(client, Err(Error::new(format!("make {kind}"), failure)), Vec::new());
            }
        }
    }

    /// The next that wants a disk starts another maker.
    fn lose_maker(&mut self, failure: &ErrorKind) {
        if let Some((token, maker)) = self.disks.maker.take() {
            self.unwatch(token, &maker.socket);
            maker.end();
        }
        self.disks.outbox.clear();
        for waiting in self.disks.pool.lose_orders() {
            self.refuse(waiting, failure.clone());
        }
    }

    /// Returns when no disk is left.
    pub(super) fn end_disks(&mut self) {
        for sandbox in self.sandboxes.values_mut() {
            self.disks.outbox.extend(sandbox.disk.take().map(|root| (ToMaker::TakeDown, Some(root))));
        }
        self.take_down_discarded();
        let ready = self.disks.pool.drain();
        self.disks.outbox.extend(ready.into_iter().map(|disk| (ToMaker::TakeDown, Some(disk.root))));
        if let Some((_, maker)) = self.disks.maker.take() {
            let _ = rustix::io::ioctl_fionbio(&maker.socket, false);
            for (message, root) in self.disks.outbox.drain(..) {
                let descriptors: Vec<_> = root.iter().map(|root| root.as_fd()).collect();
                if maker.send(&message, &descriptors).is_err() {
                    break;
                }
            }
            maker.end();
        }
    }
}
