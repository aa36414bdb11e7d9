//! [`Runtime`]: the handle on all instances of this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use cfc_oci::{ContainerConfig, Descriptor};
use cfc_relay::Relays;
use cfc_sandbox::{Launcher, NetworkHandle, Usage};
use cfc_scheduler::{Action, Capacity, Event, InstanceType, Refusal, Scheduler};
use cfc_store::Store;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::connect::{self, ConnectError};
use crate::directory::Directories;
use crate::ended::{EndedInstance, EndedInstances};
use crate::error::{Result, RuntimeErrorKind, fail_at};
use crate::events::{EventLog, EventReader, InstanceEvent, InstanceEventKind, StartTimings};
use crate::instance::{Application, ExitReport, InstanceSpec, InstanceView, Phase};
use crate::journal::{Intent, Journal};
use crate::launch::{MAX_OPEN_FILES, disk_of};
use crate::logs::LogReader;
use crate::machine::Shares;
use crate::metrics::Metrics;
use crate::prepared::PreparedImages;
use crate::ready::Readiness;
use crate::trial::is_trial;

/// What a runtime stands on.
#[derive(Clone, Debug)]
pub struct RuntimeConfig {
    /// The directory of all instances; nobody else uses it.
    pub instances_dir: PathBuf,
    /// Where the images are.
    pub store: Store,
    /// What makes the processes and keeps them; no other runtime uses it.
    pub launcher: Launcher,
    /// What carries connections that are open.
    pub relays: Relays,
    /// What may be set aside for instances, until [`Runtime::share_machine`] has it measured.
    pub capacity: Capacity,
    /// How long an instance may take to end after SIGTERM. [`STOP_GRACE`](crate::STOP_GRACE) is the usual choice.
    pub stop_grace: Duration,
}

/// All instances of this machine. Cheap to clone; all clones are the same runtime.
#[derive(Clone)]
pub struct Runtime {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub directories: Directories,
    pub store: Store,
    /// The images that were started last.
    pub images: PreparedImages,
    pub launcher: Launcher,
    pub readiness: Readiness,
    pub relays: Relays,
    pub tasks: Handle,
    pub stop_grace: Duration,
    /// When the scheduler wants to be woken.
    pub deadline: watch::Sender<Option<Duration>>,
    pub events: EventLog,
    pub metrics: Metrics,
    /// Whether instances get disks of their own; else they write into directories, without a limit.
    pub has_disks: bool,
    opened: Instant,
    inner: Mutex<Inner>,
}

/// What changes. The scheduler decides; the records hold what it does not need to know. Locked for moments only.
#[derive(Default)]
pub(crate) struct Inner {
    pub scheduler: Scheduler,
    pub records: BTreeMap<String, Record>,
    pub ended: EndedInstances,
    applications: BTreeMap<String, Application>,
    /// How much of the machine instances may have, when it is measured.
    pub shares: Option<Shares>,
    /// How full the disks of instances were when it was last looked at.
    pub disk_used_mb: BTreeMap<String, u64>,
    /// What applications were told that they do not get.
    pub clamps: BTreeMap<String, Vec<String>>,
}

/// What the runtime knows of an instance besides its state.
pub(crate) struct Record {
    pub journal: Journal,
    pub phase: watch::Sender<Phase>,
    pub since: SystemTime,
    pub network: Option<Arc<NetworkHandle>>,
    pub started: Option<SystemTime>,
    /// When its command began to execute, if this runtime was there.
    pub executing: Option<Instant>,
    pub timings: Option<StartTimings>,
    pub ready_after: Option<Duration>,
    /// How its process ended, when that was heard of before its start was.
    pub over: Option<(ExitReport, Usage)>,
    /// The ports that were asked for in vain since its start, of which was told.
    pub unheard: BTreeSet<u16>,
    /// How many of its process's processes the kernel has killed for want of memory, as far as that was told.
    pub oom_kills: u64,
    /// Why its last start was refused; none where it started since.
    pub refused: Option<String>,
    /// The limits that will hold once it listens, while it is boosted.
    pub boosted: Option<InstanceType>,
}

impl Record {
    /// An instance in its first phase.
    pub fn new(journal: Journal, phase: watch::Sender<Phase>) -> Record {
        Record {
            journal,
            phase,
            since: SystemTime::now(),
            network: None,
            started: None,
            executing: None,
            timings: None,
            ready_after: None,
            over: None,
            unheard: BTreeSet::new(),
            oom_kills: 0,
            refused: None,
            boosted: None,
        }
    }

    /// From now on it does this.
    pub fn set_phase(&mut self, phase: Phase) {
        self.since = SystemTime::now();
        self.phase.send_replace(phase);
    }
}

impl Runtime {
    /// Opens the runtime: takes over the instances that still run and removes what is left of all others.
    /// Must be called within a tokio runtime.
    pub async fn open(config: RuntimeConfig) -> Result<Runtime> {
        let RuntimeConfig { instances_dir, store, launcher, relays, capacity, stop_grace } = config;
        let failed = |kind: RuntimeErrorKind| crate::RuntimeError {
            operation: format!("open the instances in `{}`", instances_dir.display()),
            kind,
        };
        let directories = Directories::open(&instances_dir).map_err(failed)?;
        let probing = (launcher.clone(), directories.root().to_path_buf());
        let has_disks = blocking(move || makes_disks(&probing.0, &probing.1)).await;
        warn_of_missing_limits();
        let ended = EndedInstances::read(&directories.ended_directory());
        let inner = Inner { ended, scheduler: Scheduler::new(capacity), ..Inner::default() };
        let opened = Instant::now();
        let shared = Shared {
            directories,
            store,
            images: PreparedImages::default(),
            launcher,
            relays,
            stop_grace,
            deadline: watch::channel(None).0,
            events: EventLog::new(),
            metrics: Metrics::default(),
            readiness: Readiness::default(),
            opened,
            tasks: Handle::current(),
            has_disks,
            inner: Mutex::new(inner),
        };
        let runtime = Runtime { shared: Arc::new(shared) };
        runtime.watch_deadlines(opened);
        let adopting = runtime.clone();
        blocking(move || adopting.adopt().and_then(|()| adopting.watch_ends())).await.map_err(failed)?;
        Ok(runtime)
    }

    /// Makes an application known, or changes it. Instances that live keep what they were started with.
    pub fn set_application(&self, application: Application) {
        let mut inner = self.lock();
        let Application { name, max_instances, instance_type, .. } = application.clone();
        let event = Event::Configure(cfc_scheduler::Application { name: name.clone(), max_instances, instance_type });
        inner.applications.insert(name.clone(), application);
        inner.scheduler.step(self.now(), event);
        self.warn_of_clamps(&mut inner, &name, &instance_type);
    }

    /// An application, as it was last set.
    pub fn application(&self, name: &str) -> Option<Application> {
        self.lock().applications.get(name).cloned()
    }

    /// The images of all applications and of all instances, each once.
    pub fn images(&self) -> Vec<Descriptor> {
        let inner = self.lock();
        let of_applications = inner.applications.values().map(|application| &application.image);
        let of_instances = inner.records.values().map(|record| &record.journal.spec.image);
        let mut images: Vec<Descriptor> = of_applications.chain(of_instances).cloned().collect();
        images.sort_by(|one, other| one.digest.cmp(&other.digest));
        images.dedup_by(|one, other| one.digest == other.digest);
        images
    }

    /// How containers of an image run that the store has; `None` where it has not.
    pub async fn image_config(&self, image: &Descriptor) -> Option<ContainerConfig> {
        let (store, image) = (self.shared.store.clone(), image.clone());
        blocking(move || store.images().load(&image)).await.ok().map(|image| image.config.config)
    }

    /// Forgets an application and removes its instances. Returns when they are gone.
    pub async fn remove_application(&self, name: &str) {
        let phases = {
            let mut inner = self.lock();
            inner.applications.remove(name);
            inner.clamps.remove(name);
            let phases = inner.phases(|record| record.journal.spec.application == name);
            self.step(&mut inner, Event::Withdraw(name.to_string()));
            phases
        };
        all_removed(phases).await;
        self.shared.metrics.forget(name);
    }

    /// Makes an instance that can be started. Nothing runs yet.
    pub async fn create(&self, spec: InstanceSpec) -> Result<()> {
        let name = spec.name.clone();
        let failed = |kind: RuntimeErrorKind| kind.of("create", &name);
        if !is_valid_name(&spec.name) {
            return Err(failed(RuntimeErrorKind::InvalidName));
        }
        let runtime = self.clone();
        blocking(move || runtime.create_now(spec)).await.map_err(failed)
    }

    fn create_now(&self, spec: InstanceSpec) -> std::result::Result<(), RuntimeErrorKind> {
        let name = spec.name.clone();
        let event = Event::Create { instance: name.clone(), application: spec.application.clone() };
        let journal = Journal { spec, created: SystemTime::now(), intent: Intent::Rest, isolation: None };
        // The lock is held while the directory is made: whoever removes the name meanwhile finds all of it.
        let mut inner = self.lock();
        if let Some(refusal) = refusal_in(&inner.scheduler.step(self.now(), event)) {
            self.note_refusal(&journal.spec, &refusal);
            return Err(refusal.into());
        }
        let directory = self.shared.directories.of(&name);
        let made = directory
            .create(&self.shared.directories, &name)
            .and_then(|()| fail_at("runtime.create.directory"))
            .and_then(|()| journal.write(&directory))
            .and_then(|()| fail_at("runtime.create.journal"));
        let (phase, _) = watch::channel(Phase::Created);
        self.note(&journal.spec, InstanceEventKind::Created);
        inner.records.insert(name.clone(), Record::new(journal, phase));
        made.inspect_err(|_| self.step(&mut inner, Event::Remove(name)))
    }

    /// Starts the instance's process on a fresh disk. Returns when its command executes.
    pub async fn start(&self, name: &str) -> Result<()> {
        let failed = |kind: RuntimeErrorKind| kind.of("start", name);
        let asked = Instant::now();
        let (launch, instance_type) = self.decide_start(name).map_err(failed)?;
        let admit = asked.elapsed();
        // On a thread of its own: whoever asked may go away, the launch is carried through.
        let (runtime, instance) = (self.clone(), name.to_string());
        blocking(move || runtime.launch(&instance, launch, instance_type, admit)).await.map_err(failed)
    }

    /// The number and the size of the launch that may be, from now on.
    fn decide_start(&self, name: &str) -> std::result::Result<(u64, InstanceType), RuntimeErrorKind> {
        let mut inner = self.lock();
        self.measure(&mut inner);
        let actions = inner.scheduler.step(self.now(), Event::Start(name.to_string()));
        let record = inner.records.get_mut(name);
        match (actions.into_iter().next(), record) {
            (Some(Action::Launch { launch, instance_type, .. }), Some(record)) => {
                if !matches!(*record.phase.borrow(), Phase::Created) {
                    // Whoever waits for the end of the process before must not miss it.
                    record.phase = watch::channel(Phase::Starting).0;
                }
                (record.executing, record.timings, record.ready_after) = (None, None, None);
                record.refused = None;
                record.set_phase(Phase::Starting);
                self.note(&record.journal.spec, InstanceEventKind::Starting);
                Ok((launch, instance_type))
            }
            (Some(Action::Refuse { refusal, .. }), record) => {
                if let Some(record) = record {
                    self.note_refusal(&record.journal.spec, &refusal);
                    if !record.phase.borrow().is_live() {
                        record.refused = Some(refusal.to_string());
                        record.since = SystemTime::now();
                    }
                }
                Err(refusal.into())
            }
            _ => Err(Refusal::NoInstance(name.to_string()).into()),
        }
    }

    /// Whether the instance could be started anew if its process ended now, as far as limits go. A refusal is an event.
    pub fn may_restart(&self, name: &str) -> Result<()> {
        let mut inner = self.lock();
        self.measure(&mut inner);
        inner.scheduler.may_restart(name).map_err(|refusal| {
            if let Some(record) = inner.records.get(name) {
                self.note_refusal(&record.journal.spec, &refusal);
            }
            RuntimeErrorKind::from(refusal).of("restart", name)
        })
    }

    /// How long an instance may take to end after SIGTERM, where nobody says otherwise.
    pub fn stop_grace(&self) -> Duration {
        self.shared.stop_grace
    }

    /// Removes the instance, killing its process when it runs, and returns when nothing of it is left. False when there
    /// was none.
    pub async fn remove(&self, name: &str) -> bool {
        let phases = {
            let mut inner = self.lock();
            let phases: Vec<_> = inner.records.get(name).map(|record| record.phase.subscribe()).into_iter().collect();
            self.step(&mut inner, Event::Remove(name.to_string()));
            phases
        };
        let existed = !phases.is_empty();
        all_removed(phases).await;
        existed
    }

    /// Waits until the instance's process does not run (at once when it does not), and tells how it ended. `None` when
    /// there is no such instance.
    pub async fn wait(&self, name: &str) -> Option<ExitReport> {
        let mut phase = self.phase(name)?;
        let ended = phase.wait_for(|phase| !phase.is_live()).await.map(|phase| phase.exit().cloned());
        Some(ended.ok().flatten().unwrap_or_default())
    }

    /// Waits until the instance is removed. `None` when there is none.
    pub async fn wait_removed(&self, name: &str) -> Option<ExitReport> {
        let mut phase = self.phase(name)?;
        loop {
            if let Ok(phase) = phase.wait_for(|phase| matches!(phase, Phase::Removed(_))).await {
                return Some(phase.exit().cloned().unwrap_or_default());
            }
            // It was started again, and what is told about it is told elsewhere now.
            match self.phase(name) {
                Some(newer) => phase = newer,
                None => return Some(ExitReport::default()),
            }
        }
    }

    /// The instance's phase, and how it changes until its process has ended. After its removal it stays
    /// [`Phase::Removed`]; what follows another start is told to those who ask after it.
    pub fn phase(&self, name: &str) -> Option<watch::Receiver<Phase>> {
        self.lock().records.get(name).map(|record| record.phase.subscribe())
    }

    /// One instance.
    pub fn inspect(&self, name: &str) -> Option<InstanceView> {
        let inner = self.lock();
        inner.records.get(name).map(|record| inner.view(name, record))
    }

    /// All instances, by name.
    pub fn list(&self) -> Vec<InstanceView> {
        let inner = self.lock();
        inner.records.iter().map(|(name, record)| inner.view(name, record)).collect()
    }

    /// What the instance has put out, also after it was removed (until many others were). `None` when nothing is known
    /// of it.
    pub fn logs(&self, name: &str) -> Option<LogReader> {
        if !is_valid_name(name) {
            return None;
        }
        let directories = &self.shared.directories;
        if self.lock().records.contains_key(name) {
            return Some(LogReader::new(directories.of(name).log()));
        }
        let ended = directories.ended_log(name);
        ended.is_file().then(|| LogReader::new(ended))
    }

    /// As [`Runtime::logs`], going on until the instance's process has ended.
    pub fn follow_logs(&self, name: &str) -> Option<LogReader> {
        let reader = self.logs(name)?;
        Some(match self.phase(name) {
            Some(phase) => reader.following(phase),
            None => reader,
        })
    }

    /// The names of removed instances whose logs are still there, with the time of the last line, oldest first.
    pub fn ended(&self) -> Vec<(SystemTime, String)> {
        self.shared.directories.ended()
    }

    /// Connects to a port of the instance from inside it. While nothing listens there, waits up to `hold`, and tells the
    /// instance's user if that was in vain ([`InstanceEventKind::NotListening`]).
    pub async fn connect(&self, name: &str, port: u16, hold: Duration) -> std::result::Result<TcpStream, ConnectError> {
        let mut phase = self.phase(name).ok_or_else(|| ConnectError::NoInstance(name.to_string()))?;
        // One that is just being made will have a network in a moment.
        let waited = phase.wait_for(|phase| !matches!(phase, Phase::Starting));
        let now = tokio::time::timeout(hold, waited).await.map_err(|_| ConnectError::NotListening { port })?;
        let exit = now.ok().and_then(|phase| phase.exit().cloned());
        let network = self.lock().records.get(name).and_then(|record| record.network.clone());
        let network = network.ok_or(ConnectError::NotRunning(exit))?;
        let stream = match connect::connect(network, &self.shared.readiness, phase, port, hold).await {
            Ok(stream) => stream,
            Err(error) => {
                if let ConnectError::NotListening { port } = error {
                    self.note_unheard(name, port).await;
                }
                return Err(error);
            }
        };
        self.note_ready(name);
        self.end_boost(name);
        Ok(stream)
    }

    /// What happened to the instances, from the oldest event that is remembered.
    pub fn event_reader(&self) -> EventReader {
        self.shared.events.reader()
    }

    /// The events that `reader` has not seen, oldest first.
    pub fn read_events(&self, reader: &mut EventReader) -> Vec<Arc<InstanceEvent>> {
        reader.read(&self.shared.events)
    }

    /// Remembers what happened to an instance. What happens to trials is nobody's business.
    pub(crate) fn note(&self, spec: &InstanceSpec, kind: InstanceEventKind) {
        self.note_again(spec, kind, false);
    }

    /// As [`Runtime::note`]; `is_again` says that the instance had run before.
    pub(crate) fn note_again(&self, spec: &InstanceSpec, kind: InstanceEventKind, is_again: bool) {
        if !is_trial(&spec.name) {
            self.shared.metrics.count(&spec.application, &kind, is_again);
            self.shared.events.push(&spec.name, &spec.application, kind);
        }
    }

    /// The instances that were removed lately and had run, in the order of their ends.
    pub fn ended_instances(&self) -> Vec<EndedInstance> {
        self.lock().ended.all()
    }

    fn note_refusal(&self, spec: &InstanceSpec, refusal: &Refusal) {
        self.note(spec, InstanceEventKind::Refused { rule: refusal.rule(), reason: refusal.to_string() });
    }

    /// Ends all instances, for good: SIGTERM, SIGKILL after `grace`, and removes them. None can be started any more.
    pub async fn stop_all(&self, grace: Duration) {
        let phases = {
            let mut inner = self.lock();
            self.step(&mut inner, Event::Drain { grace });
            inner.phases(|_| true)
        };
        for mut phase in phases {
            // An error says that the record is gone, and the instance with it.
            let _ = phase.wait_for(|phase| !phase.is_live()).await;
        }
        let names: Vec<String> = self.lock().records.keys().cloned().collect();
        for name in names {
            self.remove(&name).await;
        }
    }

    /// Waits, for `patience` at most, until no process is being made. Whoever opens the instances next finds them as they
    /// are.
    pub async fn settle(&self, patience: Duration) {
        let phases = self.lock().phases(|_| true);
        let settled = async {
            for mut phase in phases {
                let _ = phase.wait_for(|phase| !matches!(phase, Phase::Starting)).await;
            }
        };
        let _ = tokio::time::timeout(patience, settled).await;
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics halfway through a change; what a poisoned lock guards is whole.
        self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn now(&self) -> Duration {
        self.shared.opened.elapsed()
    }
}

impl Inner {
    fn view(&self, name: &str, record: &Record) -> InstanceView {
        InstanceView {
            spec: record.journal.spec.clone(),
            phase: record.phase.borrow().clone(),
            since: record.since,
            created: record.journal.created,
            started: record.started,
            timings: record.timings,
            ready_after: record.ready_after,
            refused: record.refused.clone(),
            isolation: record.journal.isolation.clone(),
            instance_type: self.scheduler.instance(name).and_then(|instance| instance.state.occupies().copied()),
            launches: self.scheduler.instance(name).map_or(0, |instance| instance.launches),
        }
    }

    fn phases(&self, is_wanted: impl Fn(&Record) -> bool) -> Vec<watch::Receiver<Phase>> {
        self.records.values().filter(|record| is_wanted(record)).map(|record| record.phase.subscribe()).collect()
    }
}

async fn all_removed(phases: Vec<watch::Receiver<Phase>>) {
    for mut phase in phases {
        // An error says that the record is gone, and the instance with it.
        let _ = phase.wait_for(|phase| matches!(phase, Phase::Removed(_))).await;
    }
}

/// Says what no instance can be limited in on this machine.
fn warn_of_missing_limits() {
    let missing = cfc_sandbox::missing_controllers();
    // An ordinary user was told already, with what to do about it.
    if !missing.is_empty() && cfc_sandbox::missing_limits().is_none() {
        let missing = missing.join(", ");
        tracing::warn!(missing, "instances run without these limits: no cgroup hierarchy has the controllers");
    }
    let open_files = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
    if open_files < MAX_OPEN_FILES {
        tracing::info!(
            open_files,
            "instances may have this many files open, not {MAX_OPEN_FILES}: the hard limit here"
        );
    }
}

/// Whether the launcher can make disks. Says why not.
fn makes_disks(launcher: &Launcher, directory: &std::path::Path) -> bool {
    let probe = disk_of(&InstanceType::LITE, directory);
    match launcher.prepare_disk(&probe) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(%error, "instances' disks have no limit of their own; `cfc doctor` says what is missing");
            false
        }
    }
}

/// Runs what blocks where it may. It is carried through when the caller goes away.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The whole tokio runtime ends, and with it whoever waits here.
            Err(_) => std::future::pending().await,
        },
    }
}

fn refusal_in(actions: &[Action]) -> Option<Refusal> {
    actions.iter().find_map(|action| match action {
        Action::Refuse { refusal, .. } => Some(refusal.clone()),
        _ => None,
    })
}

pub(crate) fn is_valid_name(name: &str) -> bool {
    const MAX_LENGTH: usize = 200;
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    !name.is_empty() && name.len() <= MAX_LENGTH && !name.starts_with('.') && name.bytes().all(is_allowed)
}
