//! Measures what an instance costs: time from `start` to the first byte of its answer, and memory.
//!
//! `scripts/bench start` runs it; it needs root and an image of an HTTP server on port 8080 in the store.
//!
//! ```text
//! start_bench STORE REFERENCE DIRECTORY starts COUNT     starts one after another, each removed before the next
//! start_bench STORE REFERENCE DIRECTORY density COUNT    COUNT instances alive at once, started one after another
//! start_bench STORE REFERENCE DIRECTORY spaced COUNT     the same, with a pause before each: shells wait for it
//! start_bench STORE REFERENCE DIRECTORY sleeping COUNT   COUNT instances that are known and do not run
//! start_bench STORE REFERENCE DIRECTORY waiting COUNT    COUNT instances that are connected to and do not listen yet
//! start_bench STORE REFERENCE DIRECTORY listening COUNT  COUNT starts of an app that listens late: from its `listen` to the
//!                                                        connection that waited for it
//! start_bench STORE REFERENCE DIRECTORY crowd COUNT      COUNT instances, which stay when the program ends, for:
//! start_bench STORE REFERENCE DIRECTORY adopt COUNT      taking over what `crowd` left, until each has answered
//! start_bench STORE REFERENCE DIRECTORY flood COUNT      COUNT answers of an instance, alone and beside one that floods its log
//! start_bench STORE REFERENCE DIRECTORY limits SECONDS   the processor that each instance type gets when it takes all it can
//! ```
//!
//! Prints `key value` lines: times in microseconds, memory in bytes.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod life;
mod measure;

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use cfc_oci::Reference;
use cfc_runtime::{Application, Capacity, InstanceSpec, InstanceType, Relays, Runtime, RuntimeConfig};
use cfc_sandbox::{LAUNCHER_ARGV0, Launcher, launcher_main};
use cfc_store::Store;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::measure::{cpu, launcher_pid, memory};

type Outcome<T> = Result<T, Box<dyn Error>>;

const PORT: u16 = 8080;
const HOLD: Duration = Duration::from_secs(30);
/// How many starts the first and the last of a crowd are.
const SAMPLE: usize = 100;
/// Between starts that find a shell made: as long as several take.
const PAUSE: Duration = Duration::from_millis(30);
/// What a waiting crowd's processor time is taken over.
const WATCHED: Duration = Duration::from_secs(5);

fn main() -> Outcome<()> {
    let arguments: Vec<_> = std::env::args_os().collect();
    if arguments[0] == LAUNCHER_ARGV0 {
        launcher_main(arguments);
    }
    if arguments[0] == cfc_relay::RELAY_ARGV0 {
        cfc_relay::relay_main();
    }
    let arguments: Vec<String> = std::env::args().collect();
    let [_, store, reference, directory, mode, count] = arguments.as_slice() else {
        return Err("usage: start_bench STORE REFERENCE DIRECTORY starts|density|spaced|sleeping|waiting|listening|crowd|adopt|flood|limits COUNT".into());
    };
    let directory = Path::new(directory);
    let socket = directory.join("launcher.sock");
    let launcher = Launcher::connect_or_start(&std::env::current_exe()?, &socket)?;
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = tokio.block_on(async {
        let bench = Bench::open(Path::new(store), reference, directory, launcher.clone()).await?;
        let count = count.parse()?;
        match mode.as_str() {
            "starts" => bench.starts(count).await,
            "density" => bench.density(count, Duration::ZERO).await,
            "spaced" => bench.density(count, PAUSE).await,
            "sleeping" => bench.sleeping(count).await,
            "waiting" => bench.waiting(count).await,
            "listening" => bench.listening(count).await,
            "crowd" => bench.crowd(count).await,
            "adopt" => bench.adopt(count).await,
            "flood" => bench.flood(count).await,
            "limits" => bench.limits(count).await,
            other => Err(format!("unknown mode `{other}`").into()),
        }
    });
    if mode != "crowd" {
        launcher.shutdown()?;
    }
    outcome
}

struct Bench {
    /// When the runtime began to open.
    opened: Instant,
    runtime: Runtime,
    image: cfc_oci::Descriptor,
}

/// The steps of one start, each from the beginning, in microseconds.
struct Sample {
    created: u64,
    started: u64,
    connected: u64,
    answered: u64,
}

impl Bench {
    async fn open(store: &Path, reference: &str, directory: &Path, launcher: Launcher) -> Outcome<Bench> {
        let store = Store::open(store)?;
        let image = store.images().resolve(&Reference::parse(reference)?)?.ok_or("no such image")?;
        let instances_dir = directory.join("instances");
        let capacity = Capacity::default();
        let opened = Instant::now();
        let runtime = Runtime::open(RuntimeConfig {
            instances_dir,
            store,
            launcher,
            relays: Relays::start(&std::env::current_exe()?)?,
            capacity,
            stop_grace: Duration::from_secs(10),
        })
        .await?;
        let bench = Bench { opened, runtime, image };
        bench.application("bench", InstanceType::LITE, true);
        Ok(bench)
    }

    fn application(&self, name: &str, instance_type: InstanceType, startup_cpu_boost: bool) {
        self.runtime.set_application(Application {
            name: name.to_string(),
            image: self.image.clone(),
            max_instances: u32::MAX,
            instance_type,
            startup_cpu_boost,
            isolation: Default::default(),
        });
    }

    async fn create(&self, name: &str, command: Option<Vec<String>>) -> Outcome<()> {
        self.create_of("bench", name, command).await
    }

    async fn create_of(&self, application: &str, name: &str, command: Option<Vec<String>>) -> Outcome<()> {
        let (name, application, image) = (name.to_string(), application.to_string(), self.image.clone());
        let spec = InstanceSpec { name, application, image, command, env: Vec::new(), labels: BTreeMap::new() };
        Ok(self.runtime.create(spec).await?)
    }

    async fn start(&self, name: &str) -> Outcome<Sample> {
        let begin = Instant::now();
        let elapsed = || begin.elapsed().as_micros() as u64;
        self.create(name, None).await?;
        let created = elapsed();
        self.runtime.start(name).await?;
        let started = elapsed();
        let stream = self.runtime.connect(name, PORT, HOLD).await?;
        let connected = elapsed();
        ask(stream).await?;
        Ok(Sample { created, started, connected, answered: elapsed() })
    }

    async fn starts(&self, count: usize) -> Outcome<()> {
        let mut samples = Vec::with_capacity(count);
        for i in 0..count {
            let name = format!("bench-{i}");
            samples.push(self.start(&name).await?);
            self.runtime.remove(&name).await;
        }
        report("", &samples);
        println!("slow {}", samples.iter().filter(|sample| sample.answered > 1_000_000).count());
        Ok(())
    }

    async fn density(&self, count: usize, pause: Duration) -> Outcome<()> {
        // Once around first, so that nothing of the first start's own counts as an instance's.
        self.start("warm-up").await?;
        self.runtime.remove("warm-up").await;
        let launcher = launcher_pid();
        let before = memory(launcher);
        let mut samples = Vec::with_capacity(count);
        for i in 0..count {
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            samples.push(self.start(&format!("bench-{i}")).await?);
        }
        let after = memory(launcher);
        let sample = SAMPLE.min(count / 2).max(1);
        report("first_", &samples[..sample]);
        report("last_", &samples[count - sample..]);
        let each = |before: u64, after: u64| after.saturating_sub(before) / count as u64;
        println!("runtime_each {}", each(before.own, after.own));
        println!("launcher_each {}", each(before.launcher, after.launcher));
        println!("init_each {}", after.inits / count as u64);
        println!("app_each {}", after.apps / count as u64);
        println!("kernel_each {}", each(before.kernel, after.kernel));
        let ours = each(before.own, after.own)
            + each(before.launcher, after.launcher)
            + each(before.inits, after.inits)
            + each(before.kernel, after.kernel);
        println!("ours_each {ours}");
        println!("launcher_descriptors {}", fs::read_dir(format!("/proc/{launcher}/fd"))?.count());
        println!("runtime_threads {}", fs::read_dir("/proc/self/task")?.count());
        self.runtime.stop_all(Duration::ZERO).await;
        Ok(())
    }

    async fn sleeping(&self, count: usize) -> Outcome<()> {
        // Ones that ran first and some time are known, and one that ran and sleeps is no larger than one that never did.
        for i in 0..SAMPLE {
            self.start(&format!("warm-{i}")).await?;
            self.runtime.kill(&format!("warm-{i}"), 9).await?;
            self.runtime.wait(&format!("warm-{i}")).await;
        }
        let launcher = launcher_pid();
        let before = memory(launcher);
        for i in 0..count {
            self.create(&format!("bench-{i}"), None).await?;
        }
        let after = memory(launcher);
        let total = after.own.saturating_sub(before.own) + after.launcher.saturating_sub(before.launcher);
        println!("sleeping_each {}", total / count as u64);
        self.runtime.stop_all(Duration::ZERO).await;
        Ok(())
    }

    /// How long after an app listens the connection is made that has waited for it, in microseconds.
    async fn listening(&self, count: usize) -> Outcome<()> {
        let mut delays = Vec::with_capacity(count);
        for i in 0..count {
            let name = format!("bench-{i}");
            self.create(&name, Some(vec!["late".to_string()])).await?;
            self.runtime.start(&name).await?;
            let mut stream = self.runtime.connect(&name, PORT, HOLD).await?;
            let connected = monotonic_ns();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n").await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            let since =
                answer.lines().find_map(|line| line.strip_prefix("Listening-Since: ")).ok_or("no such field")?;
            delays.push(connected.saturating_sub(since.parse()?) / 1_000);
            self.runtime.remove(&name).await;
        }
        delays.sort_unstable();
        for (name, share) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
            println!("listening_{name} {}", at(&delays, share));
        }
        Ok(())
    }

    /// What waiting for apps that do not listen costs.
    async fn waiting(&self, count: usize) -> Outcome<()> {
        for i in 0..count {
            let name = format!("bench-{i}");
            self.create(&name, Some(vec!["never".to_string()])).await?;
            self.runtime.start(&name).await?;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let at_rest = cpu_over_watched().await?;
        let waiting: Vec<_> = (0..count)
            .map(|i| {
                let runtime = self.runtime.clone();
                tokio::spawn(async move { runtime.connect(&format!("bench-{i}"), PORT, WATCHED * 2).await.is_ok() })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(500)).await;
        let while_waiting = cpu_over_watched().await?;
        waiting.into_iter().for_each(|task| task.abort());
        println!(
            "waiting_cpu_permille {}",
            (while_waiting.saturating_sub(at_rest)).as_millis() / WATCHED.as_secs() as u128
        );
        self.runtime.stop_all(Duration::ZERO).await;
        Ok(())
    }
}

fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Sends a request and waits for the first byte of the answer.
async fn ask(mut stream: TcpStream) -> Outcome<()> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n").await?;
    stream.read_exact(&mut [0; 1]).await?;
    Ok(())
}

async fn cpu_over_watched() -> Outcome<Duration> {
    let before = cpu(None)?;
    tokio::time::sleep(WATCHED).await;
    Ok(cpu(None)?.saturating_sub(before))
}

/// The value below which `share` of the sorted values are.
fn at(values: &[u64], share: f64) -> u64 {
    values[((values.len() - 1) as f64 * share).round() as usize]
}

fn report(prefix: &str, samples: &[Sample]) {
    let sorted = |pick: fn(&Sample) -> u64| -> Vec<u64> {
        let mut values: Vec<u64> = samples.iter().map(pick).collect();
        values.sort_unstable();
        values
    };
    type Pick = fn(&Sample) -> u64;
    let steps: [(&str, Pick); 3] =
        [("created", |s| s.created), ("started", |s| s.started), ("connected", |s| s.connected)];
    for (name, pick) in steps {
        println!("{prefix}{name}_p50 {}", at(&sorted(pick), 0.5));
    }
    let answered = sorted(|s| s.answered);
    for (name, share) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0)] {
        println!("{prefix}{name} {}", at(&answered, share));
    }
}
