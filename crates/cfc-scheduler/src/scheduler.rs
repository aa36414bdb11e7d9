//! [`Scheduler`]: the states of all instances, and the one function that changes them.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::instance::Then;
use crate::{Action, Application, Capacity, Event, Instance, InstanceType, Refusal, State};

/// All applications and instances of one machine.
///
/// Promises, whatever the order of events: no instance is launched while a process of it may live; no more than
/// `max_instances` of an application, and no more than the capacity of the machine, are launched at the same time
/// (adopted processes count, though they may exceed a limit that was lowered); every instance that was removed is
/// discarded exactly once, after its process is gone.
#[derive(Clone, Debug, Default)]
pub struct Scheduler {
    capacity: Capacity,
    applications: BTreeMap<String, Application>,
    instances: BTreeMap<String, Instance>,
    draining: bool,
}

impl Scheduler {
    /// A scheduler that knows no application yet.
    pub fn new(capacity: Capacity) -> Scheduler {
        Scheduler { capacity, ..Scheduler::default() }
    }

    /// Takes in `event`, which happened at `now`, and tells what must be done about it, in this order.
    ///
    /// `now` is the time since a fixed moment of the caller's choice and never goes back.
    pub fn step(&mut self, now: Duration, event: Event) -> Vec<Action> {
        match event {
            Event::Configure(application) => {
                self.applications.insert(application.name.clone(), application);
                Vec::new()
            }
            Event::Withdraw(application) => self.withdraw(now, &application),
            Event::Measured(capacity) => {
                self.capacity = capacity;
                Vec::new()
            }
            Event::Create { instance, application } => self.create(instance, application),
            Event::Adopt { instance, application, instance_type, launch } => {
                self.adopt(now, instance, application, instance_type, launch)
            }
            Event::Start(instance) => vec![self.start(now, instance)],
            Event::Launched(instance, launch) => self.launched(now, instance, launch),
            Event::LaunchFailed(instance, launch) | Event::Exited(instance, launch) => {
                self.ended(now, instance, launch)
            }
            Event::Stop { instance, grace } => self.stop(now, &instance, grace),
            Event::Remove(instance) => self.remove(now, instance),
            Event::Drain { grace } => self.drain(now, grace),
            Event::Tick => self.tick(now),
        }
    }

    /// When [`Event::Tick`] is due: the earliest moment at which a stopping instance is killed.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.instances.values().filter_map(|instance| deadline(&instance.state)).min()
    }

    /// One instance.
    pub fn instance(&self, name: &str) -> Option<&Instance> {
        self.instances.get(name)
    }

    /// All instances by name.
    pub fn instances(&self) -> impl Iterator<Item = (&str, &Instance)> {
        self.instances.iter().map(|(name, instance)| (name.as_str(), instance))
    }

    /// What the machine has for instances.
    pub fn capacity(&self) -> &Capacity {
        &self.capacity
    }

    /// One application.
    pub fn application(&self, name: &str) -> Option<&Application> {
        self.applications.get(name)
    }

    /// How many instances of the application live.
    pub fn live_instances(&self, application: &str) -> usize {
        self.instances.values().filter(|other| other.application == application && other.state.is_live()).count()
    }

    /// Whether the instance might be started if its process, which may run, had ended now.
    pub fn may_restart(&self, instance: &str) -> Result<(), Refusal> {
        self.admit_beside(instance, |name| name != instance).map(drop)
    }

    fn create(&mut self, instance: String, application: String) -> Vec<Action> {
        if self.instances.contains_key(&instance) {
            return vec![refuse(&instance, Refusal::Exists(instance.clone()))];
        }
        if !self.applications.contains_key(&application) {
            return vec![refuse(&instance, Refusal::NoApplication(application))];
        }
        self.instances.insert(instance, Instance { application, state: State::Cold, launches: 0 });
        Vec::new()
    }

    fn adopt(
        &mut self,
        now: Duration,
        instance: String,
        application: String,
        instance_type: InstanceType,
        launch: u64,
    ) -> Vec<Action> {
        if self.instances.contains_key(&instance) {
            return vec![refuse(&instance, Refusal::Exists(instance.clone()))];
        }
        let state = State::Running { since: now, instance_type };
        self.instances.insert(instance, Instance { application, state, launches: launch });
        Vec::new()
    }

    fn start(&mut self, now: Duration, instance: String) -> Action {
        match self.admit(&instance) {
            Err(refusal) => refuse(&instance, refusal),
            Ok(instance_type) => {
                let record = self.instances.get_mut(&instance).expect("`admit` found it");
                record.launches += 1;
                record.state = State::Starting { since: now, instance_type, then: Then::Run };
                Action::Launch { launch: record.launches, instance, instance_type }
            }
        }
    }

    /// The size with which the instance may start now.
    fn admit(&self, instance: &str) -> Result<InstanceType, Refusal> {
        let record = self.instances.get(instance).ok_or_else(|| Refusal::NoInstance(instance.to_string()))?;
        match record.state {
            State::Starting { then: Then::Run, .. } | State::Running { .. } => {
                return Err(Refusal::AlreadyRunning(instance.to_string()));
            }
            State::Starting { .. } | State::Stopping { .. } => return Err(Refusal::Stopping(instance.to_string())),
            State::Cold | State::Stopped { .. } => {}
        }
        self.admit_beside(instance, |_| true)
    }

    /// The size with which the instance may start beside those whose names `counts`, whatever it does itself.
    fn admit_beside(&self, instance: &str, counts: impl Fn(&str) -> bool) -> Result<InstanceType, Refusal> {
        let record = self.instances.get(instance).ok_or_else(|| Refusal::NoInstance(instance.to_string()))?;
        let others = || self.instances.iter().filter(|(name, _)| counts(name)).map(|(_, other)| other);
        if self.draining {
            return Err(Refusal::ShuttingDown);
        }
        let application = self
            .applications
            .get(&record.application)
            .ok_or_else(|| Refusal::NoApplication(record.application.clone()))?;
        let live = others().filter(|other| other.application == application.name && other.state.is_live()).count();
        if live >= application.max_instances as usize {
            let (application, limit) = (application.name.clone(), application.max_instances);
            return Err(Refusal::MaxInstances { application, limit });
        }
        let occupied = others().filter_map(|other| other.state.occupies());
        let wanted = self.capacity.clamp(&application.instance_type);
        match self.capacity.shortage(&wanted, occupied) {
            Some((resource, free)) => {
                let needed = resource.needed_by(&wanted);
                Err(Refusal::Capacity { application: application.name.clone(), resource, needed, free })
            }
            None => Ok(wanted),
        }
    }

    fn launched(&mut self, now: Duration, instance: String, launch: u64) -> Vec<Action> {
        let Some(record) = self.current(&instance, launch) else { return Vec::new() };
        let State::Starting { since, instance_type, then } = record.state else { return Vec::new() };
        match then {
            Then::Run => {
                record.state = State::Running { since: now, instance_type };
                Vec::new()
            }
            Then::Stop(grace) => {
                let deadline = Some(now.saturating_add(grace));
                record.state = State::Stopping { since, instance_type, deadline, discard: false };
                vec![Action::Terminate(instance, launch)]
            }
            Then::Discard => {
                record.state = State::Stopping { since, instance_type, deadline: None, discard: true };
                vec![Action::Kill(instance, launch)]
            }
        }
    }

    fn ended(&mut self, now: Duration, instance: String, launch: u64) -> Vec<Action> {
        let Some(record) = self.current(&instance, launch) else { return Vec::new() };
        let is_doomed =
            matches!(record.state, State::Starting { then: Then::Discard, .. } | State::Stopping { discard: true, .. });
        if is_doomed {
            self.instances.remove(&instance);
            return vec![Action::Discard(instance)];
        }
        if record.state.is_live() {
            record.state = State::Stopped { since: now };
        }
        Vec::new()
    }

    fn stop(&mut self, now: Duration, instance: &str, grace: Duration) -> Vec<Action> {
        let Some(record) = self.instances.get_mut(instance) else { return Vec::new() };
        match &mut record.state {
            State::Starting { then: then @ Then::Run, .. } => {
                *then = Then::Stop(grace);
                Vec::new()
            }
            State::Running { instance_type, .. } => {
                let deadline = Some(now.saturating_add(grace));
                record.state = State::Stopping { since: now, instance_type: *instance_type, deadline, discard: false };
                vec![Action::Terminate(instance.to_string(), record.launches)]
            }
            State::Starting { then: Then::Stop(earlier), .. } => {
                *earlier = grace.min(*earlier);
                Vec::new()
            }
            State::Stopping { deadline: Some(deadline), .. } => {
                *deadline = now.saturating_add(grace).min(*deadline);
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn remove(&mut self, now: Duration, instance: String) -> Vec<Action> {
        let Some(record) = self.instances.get_mut(&instance) else { return Vec::new() };
        match &mut record.state {
            State::Cold | State::Stopped { .. } => {
                self.instances.remove(&instance);
                vec![Action::Discard(instance)]
            }
            State::Starting { then, .. } => {
                *then = Then::Discard;
                Vec::new()
            }
            State::Running { instance_type, .. } => {
                record.state =
                    State::Stopping { since: now, instance_type: *instance_type, deadline: None, discard: true };
                vec![Action::Kill(instance, record.launches)]
            }
            State::Stopping { deadline, discard, .. } => {
                *discard = true;
                *deadline = None;
                vec![Action::Kill(instance, record.launches)]
            }
        }
    }

    fn withdraw(&mut self, now: Duration, application: &str) -> Vec<Action> {
        self.applications.remove(application);
        let names: Vec<String> = self
            .instances
            .iter()
            .filter(|(_, instance)| instance.application == application)
            .map(|(name, _)| name.clone())
            .collect();
        names.into_iter().flat_map(|name| self.remove(now, name)).collect()
    }

    fn drain(&mut self, now: Duration, grace: Duration) -> Vec<Action> {
        self.draining = true;
        let names: Vec<String> = self.instances.keys().cloned().collect();
        names.iter().flat_map(|name| self.stop(now, name, grace)).collect()
    }

    fn tick(&mut self, now: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        for (name, instance) in &mut self.instances {
            if let State::Stopping { deadline, .. } = &mut instance.state
                && deadline.is_some_and(|deadline| deadline <= now)
            {
                *deadline = None;
                actions.push(Action::Kill(name.clone(), instance.launches));
            }
        }
        actions
    }

    /// The instance, if `launch` is its newest one.
    fn current(&mut self, instance: &str, launch: u64) -> Option<&mut Instance> {
        self.instances.get_mut(instance).filter(|record| record.launches == launch)
    }
}

fn deadline(state: &State) -> Option<Duration> {
    match state {
        State::Stopping { deadline, .. } => *deadline,
        _ => None,
    }
}

fn refuse(instance: &str, refusal: Refusal) -> Action {
    Action::Refuse { instance: instance.to_string(), refusal }
}
