//! The folders of `golden.rs`, built by the BuildKit in Docker's engine: its images must be the expected ones too.
//!
//! A folder's `engine` says why it is not asked, `config: reason` that only the files are compared.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

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
    let failures: Vec<String> =
        Case::all().iter().filter_map(|case| compare(&home, &engine, case, &base).err()).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

fn compare(home: &Home, engine: &Engine, case: &Case, base: &Flattened) -> Result<(), String> {
    let reason = case.lines("engine", Path::new("")).join(" ");
    let files_only = reason.starts_with("config: ");
    let arguments = case.lines("arguments", Path::new(""));
    let asks_only = arguments.iter().any(|line| line == "--check" || line.starts_with("--call"));
    if (!reason.is_empty() && !files_only) || asks_only {
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
    let layout = copy.join("engine-layout");
    engine.copy(
        "--src-daemon-host",
        &format!("docker-daemon:golden-{name}:latest"),
        &format!("oci:{}", layout.display()),
    );
    let image = flatten(&layout);
    let expected = |file: &str| fs::read_to_string(case.folder.join(file)).unwrap_or_default();
    let mut differences = difference(&expected("files"), &files_text(&image, base));
    if !files_only {
        differences += &difference(&expected("config"), &config_text(&image));
    }
    if differences.is_empty() {
        Ok(())
    } else {
        Err(format!("{} (- expected, + BuildKit's):\n{differences}", case.name))
    }
}
