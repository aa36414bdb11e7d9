//! Random histories of a machine, from a printed seed, against what the scheduler promises.
//!
//! The machine of the simulation starts processes late, loses them at any time, and reports about launches that are
//! long over. `CFC_SEED=… cargo test -p cfc-scheduler` replays a history.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cfc_scheduler::{Action, Application, Capacity, Event, InstanceType, Refusal, Scheduler, State};

const HISTORIES: u64 = 300;
const STEPS: usize = 400;
const NAMES: [&str; 7] = ["a", "b", "c", "d", "e", "f", "g"];
const APPLICATIONS: [&str; 2] = ["small", "large"];
const MEMORY_MIB: u64 = 1_300;

/// xorshift64*: enough randomness for a test, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % bound
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

/// The processes that exist, as the actions made them.
#[derive(Default)]
struct Machine {
    launching: BTreeSet<(String, u64)>,
    running: BTreeSet<(String, u64)>,
    killed: BTreeSet<(String, u64)>,
    memory: BTreeMap<(String, u64), u64>,
    existing: BTreeSet<String>,
    application_of: BTreeMap<String, String>,
}

impl Machine {
    fn carry_out(&mut self, actions: Vec<Action>, limits: &BTreeMap<String, u32>) {
        for action in actions {
            match action {
                Action::Launch { instance, launch, instance_type } => {
                    let twin = self.live().find(|(name, _)| *name == instance);
                    assert_eq!(twin, None, "a second process of `{instance}`");
                    self.memory.insert((instance.clone(), launch), instance_type.memory_mib);
                    self.launching.insert((instance.clone(), launch));
                    self.check_limits(&instance, limits);
                }
                Action::Terminate(instance, launch) => assert!(self.running.contains(&(instance, launch))),
                Action::Kill(instance, launch) => {
                    assert!(self.running.contains(&(instance.clone(), launch)), "kill of a process that is not there");
                    self.killed.insert((instance, launch));
                }
                Action::Discard(instance) => {
                    assert!(self.live().all(|(name, _)| *name != instance), "`{instance}` discarded while it lives");
                    assert!(self.existing.remove(&instance), "`{instance}` discarded twice");
                }
                Action::Refuse { .. } => {}
            }
        }
    }

    fn live(&self) -> impl Iterator<Item = &(String, u64)> {
        self.launching.iter().chain(&self.running)
    }

    fn check_limits(&self, instance: &str, limits: &BTreeMap<String, u32>) {
        let application = &self.application_of[instance];
        let count = self.live().filter(|(name, _)| self.application_of[name] == *application).count();
        assert!(count <= limits[application] as usize, "{count} live instances of `{application}`");
        let memory: u64 = self.live().map(|process| self.memory[process]).sum();
        assert!(memory <= MEMORY_MIB, "{memory} MiB are set aside");
    }
}

fn play(seed: u64) {
    let mut random = Random(seed | 1);
    let capacity = Capacity { memory_mib: Some(MEMORY_MIB), ..Capacity::default() };
    let mut scheduler = Scheduler::new(capacity);
    let mut machine = Machine::default();
    let mut limits = BTreeMap::new();
    let mut now = Duration::ZERO;
    for name in APPLICATIONS {
        configure(&mut scheduler, &mut limits, now, name, 3);
    }
    for _ in 0..STEPS {
        now += Duration::from_millis(random.below(400) as u64);
        let event = match random.below(12) {
            0 | 1 => {
                let (instance, application) = (random.pick(&NAMES).to_string(), random.pick(&APPLICATIONS).to_string());
                if machine.existing.insert(instance.clone()) {
                    machine.application_of.insert(instance.clone(), application.clone());
                }
                Event::Create { instance, application }
            }
            2..=4 => Event::Start(random.pick(&NAMES).to_string()),
            5 | 6 => match machine.launching.pop_first() {
                Some((name, launch)) if random.below(4) == 0 => Event::LaunchFailed(name, launch),
                Some((name, launch)) => {
                    machine.running.insert((name.clone(), launch));
                    Event::Launched(name, launch)
                }
                None => Event::Tick,
            },
            7 => match machine.running.iter().nth(random.below(machine.running.len().max(1))).cloned() {
                Some((name, launch)) => {
                    machine.running.remove(&(name.clone(), launch));
                    machine.killed.remove(&(name.clone(), launch));
                    Event::Exited(name, launch)
                }
                None => Event::Exited(random.pick(&NAMES).to_string(), 1_000_000),
            },
            8 => Event::Stop { instance: random.pick(&NAMES).to_string(), grace: Duration::from_millis(500) },
            9 => Event::Remove(random.pick(&NAMES).to_string()),
            10 => match machine.killed.pop_first() {
                Some((name, launch)) => {
                    machine.running.remove(&(name.clone(), launch));
                    Event::Exited(name, launch)
                }
                None => Event::Tick,
            },
            _ => Event::Tick,
        };
        let actions = scheduler.step(now, event);
        machine.carry_out(actions, &limits);
        check_agreement(&scheduler, &machine);
    }
    finish(scheduler, machine, now, &limits);
}

fn configure(scheduler: &mut Scheduler, limits: &mut BTreeMap<String, u32>, now: Duration, name: &str, maximum: u32) {
    let memory_mib = if name == "large" { 400 } else { 256 };
    let instance_type = InstanceType { memory_mib, ..InstanceType::LITE };
    limits.insert(name.to_string(), maximum);
    scheduler
        .step(now, Event::Configure(Application { name: name.to_string(), max_instances: maximum, instance_type }));
}

/// The scheduler's picture and the machine's are the same.
fn check_agreement(scheduler: &Scheduler, machine: &Machine) {
    let thought: BTreeSet<(String, u64)> = scheduler
        .instances()
        .filter(|(_, instance)| instance.state.is_live())
        .map(|(name, instance)| (name.to_string(), instance.launches))
        .collect();
    let real: BTreeSet<(String, u64)> = machine.live().cloned().collect();
    assert_eq!(thought, real);
    let known: BTreeSet<String> = scheduler.instances().map(|(name, _)| name.to_string()).collect();
    assert_eq!(known, machine.existing);
}

/// However it went, a drain and a killing tick end everything, and withdrawing discards it.
fn finish(mut scheduler: Scheduler, mut machine: Machine, now: Duration, limits: &BTreeMap<String, u32>) {
    let grace = Duration::from_secs(1);
    machine.carry_out(scheduler.step(now, Event::Drain { grace }), limits);
    while let Some((name, launch)) = machine.launching.pop_first() {
        machine.running.insert((name.clone(), launch));
        machine.carry_out(scheduler.step(now, Event::Launched(name, launch)), limits);
    }
    machine.carry_out(scheduler.step(now + grace, Event::Tick), limits);
    assert_eq!(machine.killed, machine.running, "a process outlived its deadline");
    assert_eq!(scheduler.next_deadline(), None);
    while let Some((name, launch)) = machine.running.pop_first() {
        machine.carry_out(scheduler.step(now + grace, Event::Exited(name, launch)), limits);
    }
    for name in APPLICATIONS {
        machine.carry_out(scheduler.step(now + grace, Event::Withdraw(name.to_string())), limits);
    }
    assert_eq!(scheduler.instances().count(), 0);
    assert!(machine.existing.is_empty());
}

#[test]
fn every_promise_holds_in_random_histories() {
    let given: Option<u64> = std::env::var("CFC_SEED").ok().and_then(|text| text.parse().ok());
    let first = given.unwrap_or_else(|| std::process::id().into());
    let count = if given.is_some() { 1 } else { HISTORIES };
    for seed in (0..count).map(|offset| first + offset) {
        eprintln!("CFC_SEED={seed}");
        play(seed);
    }
}

fn lite(max_instances: u32) -> Scheduler {
    let mut scheduler = Scheduler::new(Capacity::default());
    let application = Application { name: "app".into(), max_instances, instance_type: InstanceType::LITE };
    scheduler.step(Duration::ZERO, Event::Configure(application));
    for name in NAMES {
        let (instance, application) = (name.to_string(), "app".to_string());
        assert_eq!(scheduler.step(Duration::ZERO, Event::Create { instance, application }), []);
    }
    scheduler
}

fn start(scheduler: &mut Scheduler, name: &str) -> Action {
    scheduler.step(Duration::ZERO, Event::Start(name.into())).remove(0)
}

#[test]
fn the_sixth_of_five_is_refused_until_one_has_ended() {
    let mut scheduler = lite(5);
    for name in &NAMES[..5] {
        assert!(matches!(start(&mut scheduler, name), Action::Launch { launch: 1, .. }));
    }
    let refusal = Refusal::MaxInstances { application: "app".into(), limit: 5 };
    assert_eq!(start(&mut scheduler, "f"), Action::Refuse { instance: "f".into(), refusal: refusal.clone() });
    assert!(refusal.is_temporary());
    assert_eq!(refusal.to_string(), "application `app` already has 5 live instances, its `max_instances`");
    scheduler.step(Duration::ZERO, Event::Launched("a".into(), 1));
    scheduler.step(Duration::ZERO, Event::Exited("a".into(), 1));
    assert!(matches!(start(&mut scheduler, "f"), Action::Launch { .. }));
}

#[test]
fn an_instance_removed_while_it_starts_is_killed_when_it_is_there() {
    let mut scheduler = lite(1);
    start(&mut scheduler, "a");
    assert_eq!(scheduler.step(Duration::ZERO, Event::Remove("a".into())), []);
    assert_eq!(scheduler.step(Duration::ZERO, Event::Launched("a".into(), 1)), [Action::Kill("a".into(), 1)]);
    assert_eq!(scheduler.step(Duration::ZERO, Event::Exited("a".into(), 1)), [Action::Discard("a".into())]);
    assert_eq!(scheduler.instance("a"), None);
}

#[test]
fn a_report_about_an_earlier_launch_changes_nothing() {
    let mut scheduler = lite(1);
    start(&mut scheduler, "a");
    scheduler.step(Duration::ZERO, Event::Exited("a".into(), 1));
    start(&mut scheduler, "a");
    scheduler.step(Duration::ZERO, Event::Launched("a".into(), 2));
    assert_eq!(scheduler.step(Duration::ZERO, Event::Exited("a".into(), 1)), []);
    assert!(matches!(scheduler.instance("a").map(|instance| &instance.state), Some(State::Running { .. })));
}

#[test]
fn an_adopted_process_takes_a_place() {
    let mut scheduler = lite(1);
    let instance_type = InstanceType::LITE;
    let adopt = Event::Adopt { instance: "old".into(), application: "app".into(), instance_type, launch: 7 };
    scheduler.step(Duration::ZERO, adopt);
    assert!(matches!(start(&mut scheduler, "a"), Action::Refuse { .. }));
    scheduler.step(Duration::ZERO, Event::Exited("old".into(), 7));
    assert!(matches!(start(&mut scheduler, "a"), Action::Launch { .. }));
}

#[test]
fn a_second_stop_can_only_bring_the_end_nearer() {
    let mut scheduler = lite(1);
    start(&mut scheduler, "a");
    scheduler.step(Duration::ZERO, Event::Launched("a".into(), 1));
    let stop = |seconds| Event::Stop { instance: "a".into(), grace: Duration::from_secs(seconds) };
    assert_eq!(scheduler.step(Duration::ZERO, stop(900)), [Action::Terminate("a".into(), 1)]);
    assert_eq!(scheduler.step(Duration::from_secs(1), Event::Drain { grace: Duration::from_secs(5) }), []);
    assert_eq!(scheduler.next_deadline(), Some(Duration::from_secs(6)));
    assert_eq!(scheduler.step(Duration::from_secs(2), stop(900)), []);
    assert_eq!(scheduler.next_deadline(), Some(Duration::from_secs(6)));
    assert_eq!(scheduler.step(Duration::from_secs(6), Event::Tick), [Action::Kill("a".into(), 1)]);
}
