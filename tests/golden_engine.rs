//! The folders of `golden.rs`, built by the BuildKit in Docker's engine: its images must be the expected ones too.
//!
//! The engine at hand is often an old one. A folder's `engine` says, a line each:
//!
//! ```text
//! needs REASON         the engine is not asked
//! config REASON        only the files are compared
//! left PATH            a mount point that it leaves in the image; newer ones remove it
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use crate::flatten::{Flattened, flatten};
use crate::golden::{Case, build_base, config_text, difference, files_text};
use crate::support::{Home, PATIENCE, can_sandbox, has_program, skipped};

/// A Docker engine of our own, without a network. Ends when dropped.
struct Engine {
    process: Child,
    directory: PathBuf,
}

impl Engine {
    fn start(directory: PathBuf) -> Option<Engine> {
        fs::create_dir_all(&directory).expect("writable");
        let log = fs::File::create(directory.join("log")).expect("writable");
        let process = Command::new("dockerd")
            .arg("--data-root")
            .arg(directory.join("data"))
            .arg("--exec-root")
            .arg(directory.join("exec"))
            .arg("-H")
            .arg(format!("unix://{}", directory.join("socket").display()))
            .arg("--pidfile")
            .arg(directory.join("pid"))
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=overlay2"])
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

    fn docker(&self) -> Command {
        // Others may have put something of theirs before it.
        let program = ["/usr/bin/docker", "docker"].into_iter().find(|program| Path::new(program).exists());
        let mut command = Command::new(program.unwrap_or("docker"));
        command.arg("-H").arg(format!("unix://{}", self.directory.join("socket").display()));
        command.env("DOCKER_BUILDKIT", "1").env("HOME", &self.directory);
        command
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

#[test]
fn buildkit_makes_the_same_of_every_folder() {
    if !can_sandbox() || !has_program("dockerd") || !has_program("skopeo") {
        return;
    }
    let home = Home::new();
    let layout = build_base(&home);
    let base = flatten(&layout);
    let Some(engine) = Engine::start(home.path("engine")) else { return };
    engine.copy("--dest-daemon-host", &format!("oci:{}", layout.display()), "docker-daemon:busybox:latest");
    let failures = Mutex::new(Vec::new());
    let cases = Mutex::new(Case::all().into_iter());
    let work = || {
        while let Some(case) = { cases.lock().expect("no panic").next() } {
            if let Err(failure) = compare(&home, &engine, &case, &base) {
                failures.lock().expect("no panic").push(failure);
            }
        }
    };
    std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(work))));
    let failures = failures.into_inner().expect("no panic");
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

fn compare(home: &Home, engine: &Engine, case: &Case, base: &Flattened) -> Result<(), String> {
    let notes = case.lines("engine", Path::new(""));
    let has_note = |word: &str| notes.iter().any(|note| note.starts_with(word));
    let unknown = notes.iter().find(|note| !["needs ", "config ", "left "].iter().any(|word| note.starts_with(word)));
    assert!(unknown.is_none(), "{}: engine: {unknown:?}", case.name);
    let arguments = case.lines("arguments", Path::new(""));
    let asks_only = arguments.iter().any(|line| line == "--check" || line.starts_with("--call"));
    if has_note("needs ") || asks_only {
        return Ok(());
    }
    if case.lines("needs", Path::new("")).iter().any(|program| !has_program(program)) {
        return Ok(());
    }
    let name = case.name.replace('/', "-");
    let copy = home.path(&format!("engine-golden/{name}"));
    case.copy_to(&copy);
    let mut command = engine.docker();
    command.args(["build", "--network=none", "--progress=plain", "-t", &format!("golden-{name}")]);
    command.arg("-f").arg(copy.join("Dockerfile")).args(case.lines("arguments", &copy)).arg(copy.join("context"));
    for line in case.lines("environment", &copy) {
        let (key, value) = line.split_once('=').expect("KEY=VALUE");
        command.env(key, value);
    }
    let output = command.output().expect("docker runs");
    let said = String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default().to_string();
    let expects_image = case.folder.join("config").exists();
    match (output.status.success(), expects_image) {
        (false, false) => return Ok(()),
        (true, false) => return Err(format!("{}: BuildKit builds it", case.name)),
        (false, true) => return Err(format!("{}: BuildKit does not build it: {said}", case.name)),
        (true, true) => {}
    }
    let saved = copy.join("engine-image");
    let to = format!("dir:{}", saved.display());
    engine.copy("--src-daemon-host", &format!("docker-daemon:golden-{name}:latest"), &to);
    let mut image = flatten(&as_layout(&saved));
    for left in notes.iter().filter_map(|note| note.strip_prefix("left /")) {
        image.files.remove(Path::new(left));
    }
    let expected = |file: &str| fs::read_to_string(case.folder.join(file)).unwrap_or_default();
    let mut differences = difference(&expected("files"), &files_text(&image, base));
    if !has_note("config ") {
        differences += &difference(&expected("config"), &config_text(&image));
    }
    if differences.is_empty() {
        Ok(())
    } else {
        Err(format!("{} (- expected, + BuildKit's):\n{differences}", case.name))
    }
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
