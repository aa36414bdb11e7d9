//! [`EventLoop`]: waits for sockets, and lets tunnels move what has come.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::counts::Group;
use crate::flow::{Progress, Tools};
use crate::message::{self, CHANGES_MAX, Change, MESSAGE_BYTES_MAX, Order, Report};
use crate::tunnel::{Side, Tunnel};

/// How far what is reported lags behind.
const REPORT_INTERVAL: Duration = Duration::from_millis(500);
/// How long an ended instance's last words wait for a reader that takes nothing.
const LAST_WORDS: Duration = Duration::from_secs(10);
const LATE_INTERVAL: Duration = Duration::from_secs(1);
const CONTROL: u64 = u64::MAX;

pub(crate) struct EventLoop {
    epoll: OwnedFd,
    control: OwnedFd,
    buffer: Vec<u8>,
    tools: Tools,
    tunnels: Vec<Option<Box<Tunnel>>>,
    free: Vec<usize>,
    groups: Vec<Option<Counted>>,
    /// Tunnels that wait for nothing but their turn.
    turns: Vec<usize>,
    n_ending: usize,
    /// Something is to be reported; at once when a tunnel has ended.
    is_changed: bool,
    is_urgent: bool,
    reported: Instant,
    looked_for_late: Instant,
}

struct Counted {
    open: usize,
    change: Change,
}

impl EventLoop {
    pub fn new(control: OwnedFd, tools: Tools) -> io::Result<EventLoop> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &control, EventData::new_u64(CONTROL), EventFlags::IN)?;
        let now = Instant::now();
        Ok(EventLoop {
            epoll,
            control,
            buffer: vec![0; MESSAGE_BYTES_MAX],
            tools,
            tunnels: Vec::new(),
            free: Vec::new(),
            groups: Vec::new(),
            turns: Vec::new(),
            n_ending: 0,
            is_changed: false,
            is_urgent: false,
            reported: now,
            looked_for_late: now,
        })
    }

    /// Returns when the other side of the control socket is gone.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(256);
        loop {
            events.clear();
            let timeout = self.timeout();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            let mut has_orders = false;
            for event in &events {
                match event.data.u64() {
                    CONTROL => has_orders = true,
                    data => self.react(data, event.flags),
                }
            }
            for index in std::mem::take(&mut self.turns) {
                self.with_tunnel(index, |tunnel, tools| tunnel.go_on(tools));
            }
            // Last: an event of this round must not meet a new tunnel in an old one's place.
            if has_orders && !self.obey()? {
                return Ok(());
            }
            self.drop_late();
            self.report();
        }
    }

    fn timeout(&self) -> Option<Timespec> {
        if !self.turns.is_empty() {
            return Some(Timespec { tv_sec: 0, tv_nsec: 0 });
        }
        let report = self.is_changed.then(|| REPORT_INTERVAL.saturating_sub(self.reported.elapsed()));
        let late = (self.n_ending > 0).then_some(LATE_INTERVAL);
        let wait = report.into_iter().chain(late).min()?;
        Some(Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) })
    }

    fn react(&mut self, data: u64, flags: EventFlags) {
        let side = if data & 1 == 0 { Side::Outer } else { Side::Inner };
        self.with_tunnel((data >> 1) as usize, |tunnel, tools| tunnel.react(side, flags, tools));
    }

    fn with_tunnel(&mut self, index: usize, work: impl FnOnce(&mut Tunnel, &mut Tools) -> Progress) {
        let Some(tunnel) = self.tunnels.get_mut(index).and_then(Option::as_mut) else { return };
        let progress = work(tunnel, &mut self.tools);
        let (bytes_in, bytes_out) = tunnel.take_carried();
        if bytes_in + bytes_out > 0
            && let Some(counted) = &mut self.groups[tunnel.group]
        {
            counted.change.bytes_in += bytes_in;
            counted.change.bytes_out += bytes_out;
            self.is_changed = true;
        }
        match progress {
            Progress::Waits => {}
            Progress::Again => self.turns.push(index),
            Progress::Over => self.drop_tunnel(index),
        }
    }

    fn drop_tunnel(&mut self, index: usize) {
        let Some(mut tunnel) = self.tunnels[index].take() else { return };
        tunnel.abandon(&mut self.tools);
        self.free.push(index);
        self.n_ending -= usize::from(tunnel.is_ending());
        if let Some(counted) = &mut self.groups[tunnel.group] {
            counted.open -= 1;
            counted.change.ended += 1;
        }
        self.is_changed = true;
        self.is_urgent = true;
    }

    /// False at the control socket's end.
    fn obey(&mut self) -> io::Result<bool> {
        loop {
            match message::receive::<Order>(&self.control, &mut self.buffer, RecvFlags::DONTWAIT) {
                Ok(None) => return Ok(false),
                Ok(Some((Order::Carry(group), sockets))) => self.carry(group, sockets),
                Ok(Some((Order::End { instance }, _))) => self.end(&instance),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            }
        }
    }

    fn carry(&mut self, group: Group, sockets: Vec<OwnedFd>) {
        let group = self.group(group);
        let Ok([outer, inner]) = <[OwnedFd; 2]>::try_from(sockets) else {
            // Out of descriptors: whoever has the other ends sees theirs closed.
            return self.count_end(group);
        };
        let index = self.free.pop().unwrap_or_else(|| {
            self.tunnels.push(None);
            self.tunnels.len() - 1
        });
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let watch = |socket: &OwnedFd, side: u64| {
            rustix::io::ioctl_fionbio(socket, true)?;
            epoll::add(&self.epoll, socket, EventData::new_u64((index as u64) << 1 | side), flags)
        };
        if watch(&outer, 0).and_then(|()| watch(&inner, 1)).is_err() {
            self.free.push(index);
            return self.count_end(group);
        }
        self.tunnels[index] = Some(Box::new(Tunnel::new(group, outer, inner)));
    }

    /// Counts one more tunnel of `group`, and gives the group's index.
    fn group(&mut self, group: Group) -> usize {
        let known = self.groups.iter().position(|known| known.as_ref().is_some_and(|k| k.change.group == group));
        let index = known.unwrap_or_else(|| {
            let counted = Counted { open: 0, change: Change { group, ended: 0, bytes_in: 0, bytes_out: 0 } };
            match self.groups.iter().position(Option::is_none) {
                Some(free) => {
                    self.groups[free] = Some(counted);
                    free
                }
                None => {
                    self.groups.push(Some(counted));
                    self.groups.len() - 1
                }
            }
        });
        if let Some(counted) = &mut self.groups[index] {
            counted.open += 1;
        }
        index
    }

    fn count_end(&mut self, group: usize) {
        if let Some(counted) = &mut self.groups[group] {
            counted.open -= 1;
            counted.change.ended += 1;
        }
        self.is_changed = true;
        self.is_urgent = true;
    }

    fn end(&mut self, instance: &str) {
        let deadline = Instant::now() + LAST_WORDS;
        for index in 0..self.tunnels.len() {
            let Some(tunnel) = &mut self.tunnels[index] else { continue };
            let is_its =
                self.groups[tunnel.group].as_ref().is_some_and(|group| group.change.group.instance == instance);
            if is_its && !tunnel.is_ending() {
                tunnel.end_by(deadline);
                self.n_ending += 1;
                self.with_tunnel(index, |tunnel, tools| tunnel.go_on(tools));
            }
        }
    }

    fn drop_late(&mut self) {
        let now = Instant::now();
        if self.n_ending == 0 || now < self.looked_for_late + LATE_INTERVAL {
            return;
        }
        self.looked_for_late = now;
        for index in 0..self.tunnels.len() {
            if let Some(tunnel) = &self.tunnels[index]
                && tunnel.is_late(now)
            {
                tunnel.reset();
                self.drop_tunnel(index);
            }
        }
    }

    fn report(&mut self) {
        let is_due = self.is_urgent || self.reported.elapsed() >= REPORT_INTERVAL;
        if !self.is_changed || !is_due {
            return;
        }
        self.reported = Instant::now();
        self.is_urgent = false;
        self.is_changed = false;
        let mut indices: Vec<usize> = (0..self.groups.len()).filter(|index| self.has_change(*index)).collect();
        while !indices.is_empty() {
            let some: Vec<usize> = indices.split_off(indices.len().saturating_sub(CHANGES_MAX));
            let changes = some.iter().filter_map(|index| self.take_change(*index)).collect();
            let report = Report { changes };
            if message::send(&self.control, &report, &[], SendFlags::DONTWAIT).is_err() {
                // It reads nothing at the moment: said again together with what comes.
                self.put_back(&some, report);
                return;
            }
            self.forget(&some);
        }
    }

    /// What changed, which then has not any more.
    fn take_change(&mut self, index: usize) -> Option<Change> {
        let counted = self.groups[index].as_mut()?;
        let empty = Change { group: counted.change.group.clone(), ended: 0, bytes_in: 0, bytes_out: 0 };
        Some(std::mem::replace(&mut counted.change, empty))
    }

    fn has_change(&self, index: usize) -> bool {
        self.groups[index].as_ref().is_some_and(|counted| {
            let Change { ended, bytes_in, bytes_out, .. } = counted.change;
            ended + bytes_in + bytes_out > 0
        })
    }

    fn put_back(&mut self, indices: &[usize], report: Report) {
        self.is_changed = true;
        for (index, change) in indices.iter().zip(report.changes) {
            if let Some(counted) = &mut self.groups[*index] {
                counted.change.ended += change.ended;
                counted.change.bytes_in += change.bytes_in;
                counted.change.bytes_out += change.bytes_out;
            }
        }
    }

    fn forget(&mut self, indices: &[usize]) {
        for index in indices {
            if self.groups[*index].as_ref().is_some_and(|counted| counted.open == 0) {
                self.groups[*index] = None;
            }
        }
    }
}
