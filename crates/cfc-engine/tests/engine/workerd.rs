//! The real workerd and the real `@cloudflare/containers` on the engine.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cfc_engine::WorkerNames;
use cfc_workers::{ContainerBinding, Toolchain, WorkerVersion, Workerd, bundle, unique_key, write_config};

use crate::Test;
use crate::client;
use crate::image;
use crate::platform::{Platform, SIDECAR_IMAGE, block_on};

pub const TESTS: &[Test] = &[("the_container_class_runs_on_the_engine", class)];

pub const CONFIG: &str = r#"{
  "name": "app", "main": "index.js", "compatibility_date": "2025-10-03",
  "containers": [{ "class_name": "MyContainer", "image": "./Dockerfile", "max_instances": 2 }],
  "durable_objects": { "bindings": [{ "class_name": "MyContainer", "name": "MY_CONTAINER" }] },
  "migrations": [{ "new_sqlite_classes": ["MyContainer"], "tag": "v1" }]
}"#;
const WORKER: &str = r#"
import { Container, getContainer } from "@cloudflare/containers";
export class MyContainer extends Container {
  defaultPort = 4000;
  sleepAfter = "2s";
  envVars = { GREETING: "hello" };
}
export default {
  async fetch(request, env) {
    const [, id, ...rest] = new URL(request.url).pathname.split("/");
    const container = getContainer(env.MY_CONTAINER, id);
    if (rest[0] === "destroy") { await container.destroy(); return new Response("destroyed"); }
    return container.fetch(new Request("http://container/" + rest.join("/")));
  },
};
"#;
const SCRIPT: &str = "sleep 0.5; exec httpd -f -p 4000 -h /www";

pub fn toolchain() -> Option<Toolchain> {
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/cfc/tools"));
    let directory = std::env::var_os("CFC_TOOLS_DIR").map(PathBuf::from).or(home)?;
    Toolchain::locate(&directory)
        .inspect_err(|error| eprintln!("skipped: {error} (CFC_TOOLS_DIR names the directory of the tools)"))
        .ok()
}

fn class() {
    let Some(toolchain) = toolchain() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let project = project(directory.path(), CONFIG, WORKER);
    block_on(async {
        let platform = Platform::open(directory.path()).await;
        platform.run_script(SCRIPT);
        let worker = start_workerd(&platform, &toolchain, &project).await;
        check(&platform, &worker.socket).await;
        check_failures(&platform, &worker.socket).await;
        worker.workerd.stop(Duration::from_secs(5)).await;
        platform.close().await;
    });
}

pub struct Worker {
    pub workerd: Workerd,
    pub socket: PathBuf,
}

/// A project below `directory` with this configuration and Worker.
pub fn project(directory: &Path, config: &str, worker: &str) -> PathBuf {
    let project = directory.join("project");
    std::fs::create_dir(&project).expect("makes");
    for (name, text) in [("wrangler.jsonc", config), ("index.js", worker), ("Dockerfile", "FROM scratch\n")] {
        std::fs::write(project.join(name), text).expect("writes");
    }
    project
}

pub async fn start_workerd(platform: &Platform, toolchain: &Toolchain, project: &Path) -> Worker {
    let project = cfc_project::load(&project.join("wrangler.jsonc"), None).expect("the project is valid");
    let bundle = bundle(&project, toolchain).expect("the Worker bundles");
    let container = ContainerBinding { class_name: "MyContainer".to_string(), image: platform.image_name() };
    let version = WorkerVersion::from_project(&project, bundle, vec![container]);
    let dir = platform.directory.join("worker");
    let config = write_config(toolchain, &dir, &version, &platform.socket, SIDECAR_IMAGE).expect("a config");
    platform.engine.set_names(names());
    let socket = platform.directory.join("http.sock");
    let workerd = Workerd::start(toolchain, &dir, &config.path, &socket).await.expect("workerd serves");
    Worker { workerd, socket }
}

pub async fn fetch(socket: &Path, path: &str) -> (u16, String) {
    let (status, body) = client::request(socket, "GET", path, None).await;
    (status, body.as_str().unwrap_or_default().to_string())
}

/// What the Worker's client reads when a container does not come up.
async fn check_failures(platform: &Platform, socket: &Path) {
    let configured = platform.image_name();
    let answer = async |id: &str, script: &str, command: Option<&str>| {
        let broken = image::busybox(&platform.store, script, |config| {
            config.cmd = command.map(|command| vec![command.to_string()]).or(config.cmd.take());
        });
        let images = [(configured.clone(), broken)].into();
        platform.engine.set_names(WorkerNames { images, ..names() });
        fetch(socket, &format!("/{id}/index.html")).await
    };
    let (status, text) = answer("missing", "", Some("/server")).await;
    assert_eq!(status, 500, "{text}");
    assert!(text.contains("command `/server` not found in the image"), "{text}");
    let (status, text) = answer("exits", "exit 3", None).await;
    assert_eq!(status, 500, "{text}");
    assert!(text.contains("Container exited with unexpected exit code: 3"), "{text}");
}

fn names() -> WorkerNames {
    WorkerNames {
        worker: "app".to_string(),
        applications: [(unique_key("app", "MyContainer"), "app".to_string())].into(),
        images: Default::default(),
        sidecar_image: SIDECAR_IMAGE.to_string(),
    }
}

async fn check(platform: &Platform, socket: &Path) {
    let fetch = async |path: &str| fetch(socket, path).await;
    let started = Instant::now();
    let hello = (200, "hello from the container\n".to_string());
    assert_eq!(fetch("/one/index.html").await, hello);
    eprintln!("  cold: {:?}, of which 500 ms are the app's", started.elapsed());
    assert_eq!(fetch("/two/index.html").await, hello);

    let started = Instant::now();
    let (status, text) = fetch("/three/index.html").await;
    assert_eq!(status, 503, "{text}");
    assert!(text.starts_with("There is no Container instance available at this time."), "{text}");
    assert!(started.elapsed() < Duration::from_secs(2), "the refusal took {:?}", started.elapsed());
    assert_eq!(fetch("/one/index.html").await, hello, "the first keeps working");

    assert_eq!(fetch("/one/destroy").await.0, 200);
    assert_eq!(fetch("/three/index.html").await, hello, "there is a place now");

    let is_live = |platform: &Platform| platform.runtime.list().iter().any(|view| view.phase.is_live());
    let deadline = Instant::now() + Duration::from_secs(15);
    while is_live(platform) && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(!is_live(platform), "idle instances sleep after two seconds: {:?}", platform.runtime.list());
    assert_eq!(fetch("/two/index.html").await, hello, "and wake up again");
}
