//! Random histories of a machine, from a printed seed, against what the scheduler promises.
//!
//! The machine of the simulation starts processes late, loses them at any time, and reports about launches that are
//! long over. `CFC_SEED=… cargo test -p cfc-scheduler` replays a history.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cfc_scheduler::{Action, Application, Capacity, Event, InstanceType, Refusal, Resource, Scheduler, State};

const HISTORIES: u64 = 300;
const STEPS: usize = 600;
const NAMES: [&str; 7] = ["a", "b", "c", "d", "e", "f", "g"];
const APPLICATIONS: [&str; 2] = ["small", "large"];
/// What the machine of the simulation has at most: about five instances, by whichever of them is short.
const CAPACITY: Capacity =
    Capacity { micro_cpus: Some(400_000), memory_mib: Some(1_300), disk_mb: Some(9_000), largest: None };
const RESOURCES: [Resource; 3] = [Resource::Cpu, Resource::Memory, Resource::Disk];

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

/// The machine: the processes that exist, as the actions made them, and the limits that somebody set.
#[derive(Default)]
struct Machine {
    now: Duration,
    scheduler: Scheduler,
    launching: BTreeSet<Process>,
    running: BTreeSet<Process>,
    killed: BTreeSet<Process>,
    sizes: BTreeMap<Process, InstanceType>,
    existing: BTreeSet<String>,
    application_of: BTreeMap<String, String>,
    configured: BTreeMap<String, Application>,
    draining: bool,
}

/// An instance and the number of its launch.
type Process = (String, u64);

impl Machine {
    fn new() -> Machine {
        let mut machine = Machine { scheduler: Scheduler::new(CAPACITY), ..Machine::default() };
        for name in APPLICATIONS {
            machine.configure(name, 3, 1);
        }
        machine
    }

    /// Tells the scheduler of `event`, does what it decides, and checks every promise.
    fn step(&mut self, event: Event) {
        for action in self.scheduler.step(self.now, event.clone()) {
            self.carry_out(action, &event);
        }
        self.check_agreement();
        if event == Event::Tick {
            assert!(self.scheduler.next_deadline().is_none_or(|deadline| deadline > self.now), "a deadline was missed");
        }
    }

    fn carry_out(&mut self, action: Action, event: &Event) {
        match action {
            Action::Launch { instance, launch, instance_type } => {
                assert_eq!(*event, Event::Start(instance.clone()), "a launch that nobody asked for");
                let twin = self.live().find(|(name, _)| *name == instance);
                assert_eq!(twin, None, "a second process of `{instance}`");
                assert!(!self.draining, "`{instance}` launched while the platform stops");
                self.sizes.insert((instance.clone(), launch), instance_type);
                self.launching.insert((instance.clone(), launch));
                self.check_launch(&instance, &instance_type);
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
            Action::Refuse { instance, refusal } => self.check_refusal(&instance, &refusal),
        }
    }

    fn live(&self) -> impl Iterator<Item = &Process> {
        self.launching.iter().chain(&self.running)
    }

    fn live_of(&self, application: &str) -> usize {
        self.live().filter(|(name, _)| self.application_of[name] == application).count()
    }

    fn used(&self, resource: Resource) -> u64 {
        self.live().map(|process| resource.needed_by(&self.sizes[process])).sum()
    }

    /// A launch fits below every limit that holds now, whatever held before.
    fn check_launch(&self, instance: &str, size: &InstanceType) {
        let application = &self.configured[&self.application_of[instance]];
        let count = self.live_of(&application.name);
        assert!(count <= application.max_instances as usize, "{count} live instances of `{}`", application.name);
        let capacity = self.scheduler.capacity();
        assert_eq!(*size, capacity.clamp(&application.instance_type));
        for resource in RESOURCES {
            let (used, total) = (self.used(resource), total(capacity, resource));
            assert!(used <= total, "{used} of {total} {resource} are set aside");
        }
    }

    /// A refusal for want of room says the truth: nothing is refused that would fit.
    fn check_refusal(&self, instance: &str, refusal: &Refusal) {
        match refusal {
            Refusal::MaxInstances { application, limit } => {
                assert_eq!(*application, self.application_of[instance]);
                assert_eq!(*limit, self.configured[application].max_instances);
                assert!(self.live_of(application) >= *limit as usize, "there are places left");
            }
            Refusal::Capacity { resource, needed, free, .. } => {
                assert!(needed > free, "{refusal}");
                let total = total(self.scheduler.capacity(), *resource);
                assert_eq!(*free, total.saturating_sub(self.used(*resource)), "{refusal}");
            }
            Refusal::NoApplication(application) => assert!(!self.configured.contains_key(application)),
            Refusal::ShuttingDown => assert!(self.draining),
            Refusal::NoInstance(name) => assert!(!self.existing.contains(name)),
            Refusal::Exists(name) => assert!(self.existing.contains(name)),
            Refusal::AlreadyRunning(name) | Refusal::Stopping(name) => {
                assert!(self.live().any(|(other, _)| other == name));
            }
        }
    }

    /// The scheduler's picture and the machine's are the same.
    fn check_agreement(&self) {
        let instances = || self.scheduler.instances();
        let thought: BTreeMap<Process, InstanceType> = instances()
            .filter_map(|(name, instance)| Some(((name.to_string(), instance.launches), *instance.state.occupies()?)))
            .collect();
        let real = self.live().map(|process| (process.clone(), self.sizes[process])).collect();
        assert_eq!(thought, real);
        let known: BTreeSet<String> = instances().map(|(name, _)| name.to_string()).collect();
        assert_eq!(known, self.existing);
        for application in APPLICATIONS {
            assert_eq!(self.scheduler.live_instances(application), self.live_of(application));
        }
    }

    /// Lowering a limit ends nothing that lives, and holds for the next start.
    fn configure(&mut self, name: &str, max_instances: u32, factor: u64) {
        let memory_mib = factor * if name == "large" { 400 } else { 256 };
        let instance_type = InstanceType { memory_mib, ..InstanceType::LITE };
        let application = Application { name: name.to_string(), max_instances, instance_type };
        self.configured.insert(name.to_string(), application.clone());
        let before = self.live().count();
        self.step(Event::Configure(application));
        assert_eq!(self.live().count(), before);
    }

    fn withdraw(&mut self, name: &str) {
        self.configured.remove(name);
        self.step(Event::Withdraw(name.to_string()));
    }

    fn adopt(&mut self, random: &mut Random) {
        let (instance, application) = (random.pick(&NAMES).to_string(), random.pick(&APPLICATIONS).to_string());
        let (launch, instance_type) = (1 + random.below(5) as u64, InstanceType::LITE);
        if self.existing.insert(instance.clone()) {
            self.application_of.insert(instance.clone(), application.clone());
            self.running.insert((instance.clone(), launch));
            self.sizes.insert((instance.clone(), launch), instance_type);
        }
        self.step(Event::Adopt { instance, application, instance_type, launch });
    }

    fn create(&mut self, random: &mut Random) {
        let (instance, application) = (random.pick(&NAMES).to_string(), random.pick(&APPLICATIONS).to_string());
        if self.configured.contains_key(&application) && self.existing.insert(instance.clone()) {
            self.application_of.insert(instance.clone(), application.clone());
        }
        self.step(Event::Create { instance, application });
    }

    fn report_launch(&mut self, random: &mut Random) {
        let Some((name, launch)) = self.launching.pop_first() else { return };
        if random.below(4) == 0 {
            return self.step(Event::LaunchFailed(name, launch));
        }
        self.running.insert((name.clone(), launch));
        self.step(Event::Launched(name, launch));
    }

    fn exit(&mut self, process: Option<Process>) {
        let Some((name, launch)) = process else { return };
        self.running.remove(&(name.clone(), launch));
        self.killed.remove(&(name.clone(), launch));
        self.step(Event::Exited(name, launch));
    }

    fn measure(&mut self, random: &mut Random) {
        let percent =
            |total: Option<u64>, random: &mut Random| total.map(|total| total * random.below(101) as u64 / 100);
        let largest = InstanceType { memory_mib: 200 + random.below(400) as u64, ..InstanceType::LITE };
        self.step(Event::Measured(Capacity {
            micro_cpus: percent(CAPACITY.micro_cpus, random),
            memory_mib: percent(CAPACITY.memory_mib, random),
            disk_mb: percent(CAPACITY.disk_mb, random),
            largest: (random.below(2) == 0).then_some(largest),
        }));
    }

    /// However it went, a drain and a killing tick end everything, and withdrawing discards it.
    fn finish(mut self) {
        let grace = Duration::from_secs(1);
        self.draining = true;
        self.step(Event::Drain { grace });
        for name in NAMES {
            self.step(Event::Start(name.to_string()));
        }
        while let Some((name, launch)) = self.launching.pop_first() {
            self.running.insert((name.clone(), launch));
            self.step(Event::Launched(name, launch));
        }
        self.now += grace;
        self.step(Event::Tick);
        assert_eq!(self.killed, self.running, "a process outlived its deadline");
        assert_eq!(self.scheduler.next_deadline(), None);
        while let Some(process) = self.running.first().cloned() {
            self.exit(Some(process));
        }
        for name in APPLICATIONS {
            self.withdraw(name);
        }
        assert_eq!(self.scheduler.instances().count(), 0);
        assert!(self.existing.is_empty());
    }
}

fn total(capacity: &Capacity, resource: Resource) -> u64 {
    let total = match resource {
        Resource::Cpu => capacity.micro_cpus,
        Resource::Memory => capacity.memory_mib,
        Resource::Disk => capacity.disk_mb,
    };
    total.unwrap_or(u64::MAX)
}

fn play(seed: u64) {
    let mut random = Random(2 * seed + 1);
    let mut machine = Machine::new();
    for _ in 0..STEPS {
        machine.now += Duration::from_millis(random.below(400) as u64);
        let name = random.pick(&NAMES).to_string();
        match random.below(18) {
            0..=2 => machine.create(&mut random),
            3..=6 => machine.step(Event::Start(name)),
            7..=9 => machine.report_launch(&mut random),
            10 => {
                let nth = random.below(machine.running.len().max(1));
                let process = machine.running.iter().nth(nth).cloned();
                machine.exit(process);
            }
            11 => machine.step(Event::Exited(name, 1_000_000)),
            12 => machine.step(Event::Stop { instance: name, grace: Duration::from_millis(500) }),
            13 => machine.step(Event::Remove(name)),
            14 => {
                let process = machine.killed.first().cloned();
                machine.exit(process);
            }
            15 => match random.below(5) {
                0 => machine.withdraw(random.pick(&APPLICATIONS)),
                1 => machine.adopt(&mut random),
                2 => machine.measure(&mut random),
                _ => {
                    let (maximum, factor) = (random.below(5) as u32, 1 + random.below(2) as u64);
                    machine.configure(random.pick(&APPLICATIONS), maximum, factor);
                }
            },
            _ => machine.step(Event::Tick),
        }
    }
    machine.finish();
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

#[test]
fn a_lowered_limit_ends_nothing_and_holds_for_the_next_start() {
    let mut scheduler = lite(3);
    for name in &NAMES[..3] {
        start(&mut scheduler, name);
    }
    let application = Application { name: "app".into(), max_instances: 1, instance_type: InstanceType::LITE };
    assert_eq!(scheduler.step(Duration::ZERO, Event::Configure(application)), []);
    scheduler.step(Duration::ZERO, Event::LaunchFailed("a".into(), 1));
    scheduler.step(Duration::ZERO, Event::LaunchFailed("b".into(), 1));
    let refusal = Refusal::MaxInstances { application: "app".into(), limit: 1 };
    assert_eq!(start(&mut scheduler, "a"), Action::Refuse { instance: "a".into(), refusal });
}

#[test]
fn a_full_machine_says_what_is_short_and_how_much_is_free() {
    let mut scheduler = lite(5);
    let capacity = Capacity { memory_mib: Some(1_024), disk_mb: Some(5_000), ..Capacity::default() };
    scheduler.step(Duration::ZERO, Event::Measured(capacity));
    start(&mut scheduler, "a");
    start(&mut scheduler, "b");
    let Action::Refuse { refusal, .. } = start(&mut scheduler, "c") else { panic!("there is no disk left") };
    let text = "an instance of application `app` needs 2000 MB of disk, 1000 are free on this machine";
    assert_eq!(refusal.to_string(), text);
    assert!(refusal.is_temporary());
}

#[test]
fn what_one_instance_cannot_have_at_all_is_cut_down_to_what_there_is() {
    let mut scheduler = lite(2);
    let largest = InstanceType { memory_mib: 100, ..InstanceType::LITE };
    let capacity = Capacity { memory_mib: Some(100), largest: Some(largest), ..Capacity::default() };
    scheduler.step(Duration::ZERO, Event::Measured(capacity));
    assert!(matches!(start(&mut scheduler, "a"), Action::Launch { instance_type, .. } if instance_type == largest));
    assert!(matches!(start(&mut scheduler, "b"), Action::Refuse { .. }), "the machine is full all the same");
}
