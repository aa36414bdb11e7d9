//! A Docker engine, with the BuildKit that is in it, for one test: what we build is held against what it builds.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::{PATIENCE, skipped};

/// A Docker engine of our own. Its containers have this machine's network or none. Ends when dropped.
pub struct Engine {
    process: Child,
    directory: PathBuf,
}

impl Engine {
    /// One that begins empty.
    pub fn start(directory: PathBuf) -> Option<Engine> {
        let data = directory.join("data");
        Engine::start_with(directory, &data)
    }

    /// One whose images are in `data`, which no other uses at the time.
    pub fn start_with(directory: PathBuf, data: &Path) -> Option<Engine> {
        // Another engine than the system's, with the programs beside it that it needs.
        let program = std::env::var("CFC_DOCKERD").unwrap_or_else(|_| "dockerd".to_string());
        Engine::start_as(directory, data, &program, r#"{"storage-driver": "overlay2"}"#)
    }

    /// One with a whole and current BuildKit, that of `CFC_DOCKERD_CURRENT`: it keeps its images in containerd.
    pub fn start_current(directory: PathBuf) -> Option<Engine> {
        let Ok(program) = std::env::var("CFC_DOCKERD_CURRENT") else {
            skipped("there is no current engine (CFC_DOCKERD_CURRENT, as scripts/test has it)");
            return None;
        };
        let data = directory.join("data");
        Engine::start_as(directory, &data, &program, r#"{"features": {"containerd-snapshotter": true}}"#)
    }

    fn start_as(directory: PathBuf, data: &Path, program: &str, configuration: &str) -> Option<Engine> {
        fs::create_dir_all(&directory).expect("writable");
        let log = fs::File::create(directory.join("log")).expect("writable");
        fs::write(directory.join("daemon.json"), configuration).expect("writable");
        let beside = Path::new(program).parent().map(|parent| parent.display().to_string()).unwrap_or_default();
        let path = std::env::var("PATH").unwrap_or_default();
        let process = Command::new(program)
            .env("PATH", if beside.is_empty() { path } else { format!("{beside}:{beside}/../bin:{path}") })
            .arg("--config-file")
            .arg(directory.join("daemon.json"))
            .arg("--data-root")
            .arg(data)
            .arg("--exec-root")
            .arg(directory.join("exec"))
            .arg("-H")
            .arg(format!("unix://{}", directory.join("socket").display()))
            .arg("--pidfile")
            .arg(directory.join("pid"))
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("dockerd starts");
        let mut engine = Engine { process, directory };
        let start = std::time::Instant::now();
        while start.elapsed() < PATIENCE {
            if engine.process.try_wait().expect("is ours").is_some() {
                break;
            }
            if engine.docker().arg("version").output().is_ok_and(|output| output.status.success()) {
                return Some(engine);
            }
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
        let log = fs::read_to_string(engine.directory.join("log")).unwrap_or_default();
        skipped(&format!("dockerd does not start here: {}", log.lines().last().unwrap_or_default()));
        None
    }

    /// Where the BuildKit in it is, for `cfc build --buildkit-addr`.
    pub fn buildkit_address(&self) -> String {
        format!("docker://{}", self.directory.join("socket").display())
    }

    /// Whether the BuildKit in it is older than merged filesystems (23.0).
    pub fn is_old(&self) -> bool {
        let output = self.docker().args(["version", "--format", "{{.Server.Version}}"]).output();
        let version = String::from_utf8(output.expect("docker runs").stdout).expect("text");
        version.split('.').next().and_then(|major| major.parse::<u32>().ok()).is_some_and(|major| major < 23)
    }

    /// What it has of the images called `name`, a line each.
    pub fn images(&self, name: &str) -> String {
        let output = self.docker().args(["image", "ls", "--format", "{{.Repository}}:{{.Tag}}", name]).output();
        String::from_utf8(output.expect("docker runs").stdout).expect("text")
    }

    /// Its client.
    pub fn docker(&self) -> Command {
        // Others may have put something of theirs before it.
        let program = ["/usr/bin/docker", "docker"].into_iter().find(|program| Path::new(program).exists());
        let mut command = Command::new(program.unwrap_or("docker"));
        command.arg("-H").arg(format!("unix://{}", self.directory.join("socket").display()));
        command.env("DOCKER_BUILDKIT", "1").env("HOME", &self.directory);
        command
    }

    /// The image called `name`, as an OCI layout below `directory`.
    pub fn save(&self, name: &str, directory: &Path) -> PathBuf {
        fs::create_dir_all(directory).expect("writable");
        self.copy("--src-daemon-host", &format!("docker-daemon:{name}"), &format!("dir:{}", directory.display()));
        as_layout(directory)
    }

    /// Takes in the image of the OCI layout `layout`, unless it is there.
    pub fn load(&self, layout: &Path, name: &str) {
        let inspected = self.docker().args(["image", "inspect", "--format", "{{.Id}}", name]).output();
        let id = inspected.expect("docker runs").stdout;
        if String::from_utf8_lossy(&id).trim_end() == config_digest(layout) {
            return;
        }
        self.copy("--dest-daemon-host", &format!("oci:{}", layout.display()), &format!("docker-daemon:{name}"));
    }

    /// Copies an image between the engine and an OCI layout, by skopeo.
    fn copy(&self, option: &str, from: &str, to: &str) {
        let socket = format!("unix://{}", self.directory.join("socket").display());
        let output = Command::new("skopeo").args(["copy", "--insecure-policy", option, &socket, from, to]).output();
        let output = output.expect("skopeo runs");
        assert!(output.status.success(), "{from} to {to}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Its containerd is its child, and ends with it.
        let pid = rustix::process::Pid::from_child(&self.process);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.process.wait();
    }
}

/// The digest of the config of the only image of a layout, which engines take for the image's.
fn config_digest(layout: &Path) -> String {
    let json = |path: PathBuf| -> serde_json::Value {
        serde_json::from_slice(&fs::read(path).expect("readable")).expect("JSON")
    };
    let digest = |value: &serde_json::Value| value["digest"].as_str().expect("a digest").to_string();
    let manifest = digest(&json(layout.join("index.json"))["manifests"][0]);
    let manifest = json(layout.join("blobs").join(manifest.replace(':', "/")));
    digest(&manifest["config"])
}

/// An image as skopeo's `dir:` has it, made into an OCI layout. Skopeo's own way there drops what only Docker's configs
/// have: `Shell`, `Healthcheck`, `OnBuild`.
fn as_layout(saved: &Path) -> PathBuf {
    let layout = saved.join("layout");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("writable");
    for entry in fs::read_dir(saved).expect("lists") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().to_string();
        if name.len() == 64 {
            fs::copy(&path, blobs.join(name)).expect("copied");
        }
    }
    let manifest = fs::read(saved.join("manifest.json")).expect("there is one");
    let digest = cfc_oci::Digest::of(&manifest);
    fs::write(blobs.join(digest.hex()), &manifest).expect("writable");
    let media_type = "application/vnd.docker.distribution.manifest.v2+json";
    let index = serde_json::json!({
        "schemaVersion": 2,
        "manifests": [{"mediaType": media_type, "digest": digest.to_string(), "size": manifest.len()}],
    });
    fs::write(layout.join("index.json"), index.to_string()).expect("writable");
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("writable");
    layout
}
