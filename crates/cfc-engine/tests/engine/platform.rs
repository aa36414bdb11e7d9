//! A platform in a temporary directory: store, launcher, runtime and engine.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cfc_engine::{EgressPolicy, Engine, WorkerNames};
use cfc_oci::{ContainerConfig, Descriptor};
use cfc_runtime::{Application, Capacity, InstanceType, Isolation, Relays, Runtime, RuntimeConfig, STOP_GRACE};
use cfc_sandbox::{Launcher, OciRuntime};
use cfc_store::Store;
use serde_json::{Value, json};
use tokio::net::UnixListener;

use crate::client;
use crate::image;

pub const SIDECAR_IMAGE: &str = "cfc/egress:1";
const KEY: &str = "app-MyContainer";
/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What this machine lacks for these tests.
pub fn lacking() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("the engine's tests make sandboxes as root");
    }
    let is_static = Command::new("ldd").arg(image::BUSYBOX).output().is_ok_and(|output| !output.status.success());
    (!Path::new(image::BUSYBOX).exists() || !is_static)
        .then_some("the engine's tests need a static busybox (Debian's busybox-static)")
}

pub struct Platform {
    pub directory: PathBuf,
    pub store: Store,
    pub launcher: Launcher,
    pub relays: Relays,
    pub runtime: Runtime,
    pub engine: Engine,
    pub socket: PathBuf,
}

impl Platform {
    /// Opens the platform in `directory`, with the application `app` of two places.
    pub async fn open(directory: &Path) -> Platform {
        Platform::open_with(directory, EgressPolicy::default()).await
    }

    /// As [`Platform::open`], with a policy for what containers may reach.
    pub async fn open_with(directory: &Path, egress: EgressPolicy) -> Platform {
        Platform::open_with_grace(directory, egress, STOP_GRACE).await
    }

    /// As [`Platform::open_with`], with the time that containers have to end.
    pub async fn open_with_grace(directory: &Path, egress: EgressPolicy, stop_grace: Duration) -> Platform {
        let store = Store::open(&directory.join("store")).expect("a store");
        let program = std::env::current_exe().expect("this test has a path");
        let launcher = Launcher::connect_or_start(&program, &directory.join("launcher.sock")).expect("a launcher");
        let relays = Relays::start(&program).expect("a relay");
        let config = RuntimeConfig {
            instances_dir: directory.join("instances"),
            store: store.clone(),
            launcher: launcher.clone(),
            relays: relays.clone(),
            capacity: Capacity::default(),
            stop_grace,
        };
        let runtime = Runtime::open(config).await.expect("a runtime");
        let names = WorkerNames {
            worker: "app".to_string(),
            applications: [(KEY.to_string(), "app".to_string())].into(),
            images: Default::default(),
            sidecar_image: SIDECAR_IMAGE.to_string(),
        };
        let engine = Engine::new(runtime.clone(), names, egress);
        let socket = directory.join("engine.sock");
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).expect("binds");
        let serving = engine.clone();
        tokio::spawn(async move { serving.serve(listener, std::future::pending()).await });
        Platform { directory: directory.to_path_buf(), store, launcher, relays, runtime, engine, socket }
    }

    /// Sets the application's image to one that runs `script`.
    pub fn run_script(&self, script: &str) {
        self.run_script_in(script, 2);
    }

    /// As [`Platform::run_script`], with so many places.
    pub fn run_script_in(&self, script: &str, max_instances: u32) {
        self.run_image(image::busybox(&self.store, script, |_| {}), max_instances);
    }

    pub fn run_script_with(&self, script: &str, change: impl FnOnce(&mut ContainerConfig)) {
        self.run_image(image::busybox(&self.store, script, change), 2);
    }

    fn run_image(&self, image: Descriptor, max_instances: u32) {
        let instance_type = InstanceType::custom(1.0, 64, 100);
        self.runtime.set_application(Application {
            name: "app".to_string(),
            image,
            max_instances,
            instance_type,
            startup_cpu_boost: true,
            isolation: Isolation::default(),
        });
    }

    /// Has the application's further containers run by `runtime`, with memory enough for that.
    pub fn run_by(&self, runtime: OciRuntime) {
        let application = self.runtime.application("app").expect("was set");
        self.runtime.set_application(Application {
            instance_type: InstanceType::custom(1.0, 512, 100),
            isolation: Isolation { runtime: Some(runtime), grants: Vec::new() },
            ..application
        });
    }

    /// The image name as a Worker's configuration would have it.
    pub fn image_name(&self) -> String {
        let application = self.runtime.application("app").expect("was set");
        format!("registry.invalid/app@{}", application.image.digest)
    }

    pub async fn request(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        client::request(&self.socket, method, path, body).await
    }

    /// Makes and starts the sidecar of a container; returns its port.
    pub async fn sidecar(&self, name: &str) -> u16 {
        let body = json!({ "Image": SIDECAR_IMAGE, "Cmd": ["--http-egress-port", "1"] });
        let path = format!("/containers/create?name={name}-proxy");
        assert_eq!(self.request("POST", &path, Some(body)).await.0, 201);
        assert_eq!(self.request("POST", &format!("/containers/{name}-proxy/start"), None).await.0, 204);
        self.sidecar_port(name).await
    }

    /// The port of a sidecar that runs.
    pub async fn sidecar_port(&self, name: &str) -> u16 {
        let (status, sidecar) = self.request("GET", &format!("/containers/{name}-proxy/json"), None).await;
        assert_eq!((status, &sidecar["State"]["Status"]), (200, &json!("running")));
        let port = sidecar["NetworkSettings"]["Ports"]["39001/tcp"][0]["HostPort"].as_str();
        port.and_then(|port| port.parse().ok()).unwrap_or_else(|| panic!("no port: {sidecar}"))
    }

    pub async fn create(&self, name: &str) -> (u16, Value) {
        let body = json!({
            "Image": self.image_name(),
            "Env": ["GREETING=hello", "CLOUDFLARE_LOCATION=loc01"],
            "Tty": false,
            "StopTimeout": 10,
            "HostConfig": { "NetworkMode": format!("container:{name}-proxy"), "PidMode": "host", "Memory": 0 },
        });
        self.request("POST", &format!("/containers/create?name={name}"), Some(body)).await
    }

    pub async fn start(&self, name: &str) -> u16 {
        self.request("POST", &format!("/containers/{name}/start"), None).await.0
    }

    /// Creates and starts a container.
    pub async fn run(&self, name: &str) {
        assert_eq!(self.create(name).await.0, 201);
        assert_eq!(self.start(name).await, 204);
    }

    pub async fn status(&self, name: &str) -> String {
        let (status, body) = self.request("GET", &format!("/containers/{name}/json"), None).await;
        match status {
            404 => "none".to_string(),
            _ => body["State"]["Status"].as_str().unwrap_or_default().to_string(),
        }
    }

    /// Waits for the end of a container; its exit code.
    pub async fn wait(&self, name: &str) -> i64 {
        let (status, body) = self.request("POST", &format!("/containers/{name}/wait"), None).await;
        assert_eq!(status, 200, "{body}");
        body["StatusCode"].as_i64().unwrap_or_else(|| panic!("no code: {body}"))
    }

    pub async fn kill(&self, name: &str, signal: &str) -> u16 {
        self.request("POST", &format!("/containers/{name}/kill?signal={signal}"), None).await.0
    }

    pub async fn remove(&self, name: &str) -> u16 {
        self.request("DELETE", &format!("/containers/{name}?force=true"), None).await.0
    }

    /// What the container has put out so far.
    pub async fn output(&self, name: &str) -> String {
        let reader = self.runtime.logs(name).unwrap_or_else(|| panic!("{name} has no log"));
        let (lines, _) = reader.tail(1_000).await;
        lines.into_iter().map(|line| line.line + "\n").collect()
    }

    /// Waits until the container has put out `text`.
    pub async fn until_said(&self, name: &str, text: &str) {
        let started = Instant::now();
        while !self.output(name).await.contains(text) {
            assert!(started.elapsed() < PATIENCE, "{name} never said {text:?}, only {:?}", self.output(name).await);
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    /// Ends everything and checks that nothing is left.
    pub async fn close(self) {
        self.runtime.stop_all(Duration::ZERO).await;
        assert_eq!(self.launcher.list().expect("the launcher answers"), []);
        assert_eq!(self.left_over(), Vec::<String>::new());
        self.launcher.shutdown().expect("the launcher ends");
    }

    /// The directories of instances.
    pub fn left_over(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.directory.join("instances")).expect("is there");
        let names = entries.map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned());
        names.filter(|name| !name.starts_with('.')).collect()
    }
}

impl Drop for Platform {
    /// A test that failed leaves no processes behind either.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.launcher.shutdown();
        }
    }
}

/// The name of a container of the test application.
pub fn container(id: &str) -> String {
    format!("workerd-{KEY}-{id}")
}

/// Runs a test on a platform of its own.
pub fn on_platform<F: Future<Output = ()>>(test: impl FnOnce(Platform) -> F) {
    let directory = tempfile::tempdir().expect("a directory");
    block_on(async { test(Platform::open(directory.path()).await).await });
}

pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build();
    runtime.expect("a tokio runtime").block_on(work)
}
