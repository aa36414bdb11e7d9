//! A machine in a temporary directory: store, launcher and runtime, and one application.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cfc_oci::Descriptor;
use cfc_runtime::{
    Application, Capacity, ExitReport, InstanceSpec, InstanceType, Relays, Result, Runtime, RuntimeConfig,
};
use cfc_sandbox::Launcher;
use cfc_store::Store;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::image;

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The variable by which a test finds its instances' processes among all of this machine.
pub const MARK: &str = "CFC_TEST_INSTANCE";
pub const APPLICATION: &str = "app";

/// What this machine lacks for these tests.
pub fn lacking() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("the runtime's tests make sandboxes as root");
    }
    let is_static = Command::new("ldd").arg(image::BUSYBOX).output().is_ok_and(|output| !output.status.success());
    (!Path::new(image::BUSYBOX).exists() || !is_static)
        .then_some("the runtime's tests need a static busybox (Debian's busybox-static)")
}

/// A directory for a machine. Its path is in the command line of the launcher and in the marks of the instances.
pub fn directory() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("cfc-runtime-").tempdir().expect("a directory")
}

pub struct Machine {
    pub directory: PathBuf,
    pub launcher: Launcher,
    pub relays: Relays,
    pub runtime: Runtime,
    pub image: Descriptor,
}

impl Machine {
    /// Opens what is in `directory`. The application runs `script`, in up to `max_instances` instances.
    pub async fn open(directory: &Path, script: &str, max_instances: u32) -> Machine {
        Machine::try_open(directory, script, max_instances)
            .await
            .unwrap_or_else(|error| panic!("{error}: {:?}", error.kind))
    }

    /// As [`Machine::open`], where the runtime may refuse.
    pub async fn try_open(directory: &Path, script: &str, max_instances: u32) -> Result<Machine> {
        let store = Store::open(&store_directory()).expect("a store");
        let program = std::env::current_exe().expect("this test has a path");
        // As `cfc serve` does.
        cfc_sandbox::sweep(&socket(directory)).expect("what is left can be swept");
        let launcher = Launcher::connect_or_start(&program, &socket(directory)).expect("a launcher");
        note_launcher(directory);
        let image = image::busybox(&store, script, |_| {});
        let relays = Relays::start(&program).expect("a relay");
        let config = RuntimeConfig {
            instances_dir: directory.join("data/instances"),
            store,
            launcher: launcher.clone(),
            relays: relays.clone(),
            capacity: Capacity::default(),
            stop_grace: cfc_runtime::STOP_GRACE,
        };
        std::fs::create_dir_all(directory.join("data")).expect("a directory");
        let runtime = Runtime::open(config).await?;
        let machine = Machine { directory: directory.to_path_buf(), launcher, relays, runtime, image };
        machine.set_application(max_instances);
        Ok(machine)
    }

    pub fn set_application(&self, max_instances: u32) {
        self.runtime.set_application(Application {
            name: APPLICATION.to_string(),
            image: self.image.clone(),
            max_instances,
            instance_type: InstanceType::custom(1.0, 64, 100),
            startup_cpu_boost: true,
            isolation: cfc_runtime::Isolation::default(),
        });
    }

    pub fn spec(&self, name: &str) -> InstanceSpec {
        InstanceSpec {
            name: name.to_string(),
            application: APPLICATION.to_string(),
            image: self.image.clone(),
            command: None,
            env: vec![format!("{MARK}={}", mark(&self.directory, name))],
            labels: Default::default(),
        }
    }

    pub async fn create(&self, name: &str) -> Result<()> {
        self.runtime.create(self.spec(name)).await
    }

    /// Creates and starts an instance.
    pub async fn run(&self, name: &str) -> Result<()> {
        self.create(name).await?;
        self.runtime.start(name).await
    }

    pub async fn wait(&self, name: &str) -> ExitReport {
        let ended = tokio::time::timeout(PATIENCE, self.runtime.wait(name)).await;
        ended.unwrap_or_else(|_| panic!("{name} does not end")).unwrap_or_else(|| panic!("there is no {name}"))
    }

    /// What the instance has put out.
    pub async fn output(&self, name: &str) -> String {
        let reader = self.runtime.logs(name).unwrap_or_else(|| panic!("{name} has no log"));
        let (lines, _) = reader.tail(10_000).await;
        lines.into_iter().map(|line| line.line + "\n").collect()
    }

    pub async fn until_said(&self, name: &str, text: &str) {
        let started = Instant::now();
        while !self.output(name).await.contains(text) {
            assert!(started.elapsed() < PATIENCE, "{name} never said {text:?}, only {:?}", self.output(name).await);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Ends everything.
    pub async fn close(self) {
        let closed = tokio::time::timeout(PATIENCE, self.runtime.stop_all(Duration::ZERO)).await;
        closed.expect("all instances end");
        assert_eq!(self.launcher.list().expect("the launcher answers"), []);
        self.launcher.shutdown().expect("the launcher ends");
    }
}

impl Drop for Machine {
    /// A test that failed leaves no processes behind either.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.launcher.shutdown();
        }
    }
}

pub fn socket(directory: &Path) -> PathBuf {
    directory.join("launcher.sock")
}

/// The variable that lets the victims of a test share its store.
pub const STORE: &str = "CFC_TEST_STORE";

/// One store for all machines: unpacking the image is not what these tests are about.
pub fn store_directory() -> PathBuf {
    let given = std::env::var_os(STORE).map(PathBuf::from);
    given.unwrap_or_else(|| std::env::temp_dir().join(format!("cfc-runtime-store-{}", std::process::id())))
}

/// The launcher that listens for the machine in `directory`.
pub fn launcher_pid(directory: &Path) -> Option<i32> {
    let stream = std::os::unix::net::UnixStream::connect(socket(directory)).ok()?;
    Some(rustix::net::sockopt::socket_peercred(&stream).ok()?.pid.as_raw_nonzero().get())
}

/// Notes its launcher with the machine, so that what it leaves can be found when it is gone.
pub fn note_launcher(directory: &Path) {
    use std::io::Write;
    let mut file =
        std::fs::File::options().create(true).append(true).open(directory.join("launchers")).expect("writable");
    if let Some(pid) = launcher_pid(directory) {
        writeln!(file, "{pid}").expect("writable");
    }
}

/// All launchers that were noted.
pub fn noted_launchers(directory: &Path) -> Vec<i32> {
    let text = std::fs::read_to_string(directory.join("launchers")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// What marks the processes of the instance `name` of the machine in `directory`.
pub fn mark(directory: &Path, name: &str) -> String {
    format!("{}:{name}", directory.display())
}

pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build();
    runtime.expect("a tokio runtime").block_on(work)
}

/// What the instance's web server on port 4000 answers.
pub async fn get(machine: &Machine, name: &str) -> String {
    let mut stream = machine.runtime.connect(name, 4000, PATIENCE).await.expect("it listens");
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("it answers");
    answer
}

pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "{what}: it did not happen in time");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Numbers that look random and are not: the same seed gives the same.
pub struct Random(u64);

impl Random {
    /// With the seed of the environment, or a new one, which is printed.
    pub fn new() -> Random {
        let given = std::env::var("CFC_SEED").ok().and_then(|text| text.parse().ok());
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let seed = given.unwrap_or(since_epoch.as_nanos() as u64);
        eprintln!("  CFC_SEED={seed}");
        Random(seed)
    }

    /// Another stream of numbers.
    pub fn from(seed: u64) -> Random {
        Random(seed)
    }

    /// SplitMix64.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}
