//! What the tests share: the real `cfc`, a platform in a temporary directory, and projects to deploy to it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::ordinary_user::OrdinaryUser;

/// How long anything that starts may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Says why a test cannot run here; `scripts/test` counts these lines.
#[allow(clippy::print_stdout)]
pub fn skipped(reason: &str) {
    println!("skipped: {reason}");
}

/// Whether sandboxes can be made; says so if not.
pub fn can_sandbox() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        skipped("sandboxes are made as root");
    }
    is_root && busybox().is_some()
}

/// A static busybox, the content of every test image.
pub fn busybox() -> Option<PathBuf> {
    let found = ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from).into_iter().find(|path| path.exists());
    if found.is_none() {
        skipped("busybox-static is not installed");
    }
    found
}

/// Whether the program `name` can be run; says so if not.
pub fn has_program(name: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths).any(|directory| directory.join(name).exists());
    if !found {
        skipped(&format!("{name} is not installed"));
    }
    found
}

/// The pinned workerd and esbuild, where `scripts/test` put them.
pub fn tools() -> Option<PathBuf> {
    let default = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/cfc/tools");
    let directory = std::env::var_os("CFC_TOOLS_DIR").map_or_else(default, PathBuf::from);
    let found = directory.join("node_modules/@cloudflare/containers").exists();
    if !found {
        skipped("workerd is not installed (run scripts/test, or cfc setup and set CFC_TOOLS_DIR)");
    }
    found.then_some(directory)
}

/// Where the repository is.
pub fn repository() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.canonicalize().expect("the repository is there")
}

/// A data directory of its own, and the `cfc` command on it.
pub struct Home {
    directory: tempfile::TempDir,
    runner: Runner,
}

/// Who runs `cfc`.
enum Runner {
    Us,
    /// From a copy, which may be replaced while it runs.
    Installed(PathBuf),
    User(OrdinaryUser),
    /// This command, with `cfc` and its arguments behind its own.
    Through(Vec<String>),
}

impl Home {
    pub fn new() -> Home {
        let directory = tempfile::Builder::new().prefix("cfc-test-").tempdir().expect("a temporary directory");
        Home { directory, runner: Runner::Us }
    }

    /// One in which `cfc` is run by an ordinary user, whose it is.
    pub fn of(user: OrdinaryUser) -> Home {
        let home = Home::new();
        user.move_in(home.directory.path());
        Home { runner: Runner::User(user), ..home }
    }

    /// One in which `cfc` is a copy, `bin/cfc`.
    pub fn installed() -> Home {
        let home = Home::new();
        let program = home.install();
        Home { runner: Runner::Installed(program), ..home }
    }

    /// Puts another copy of `cfc` into the place of `bin/cfc`, as a package manager would.
    pub fn install(&self) -> PathBuf {
        let (program, new) = (self.path("bin/cfc"), self.write("bin/cfc.new", ""));
        std::fs::copy(env!("CARGO_BIN_EXE_cfc"), &new).expect("copied");
        std::fs::rename(&new, &program).expect("renamed");
        program
    }

    /// One in which `cfc` is run by `command`.
    pub fn through(command: &[&str]) -> Home {
        let command = command.iter().map(|word| word.to_string()).collect();
        Home { runner: Runner::Through(command), ..Home::new() }
    }

    /// A path in the directory, beside the data directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn data(&self) -> PathBuf {
        self.path("data")
    }

    /// `cfc` with an environment that nothing of the machine leaks into.
    pub fn cfc(&self) -> Command {
        let mut command = match &self.runner {
            Runner::Us => Command::new(env!("CARGO_BIN_EXE_cfc")),
            Runner::Installed(program) => Command::new(program),
            Runner::User(user) => user.command(self.directory.path()),
            Runner::Through(wrapper) => {
                let mut command = Command::new(&wrapper[0]);
                command.args(&wrapper[1..]).arg(env!("CARGO_BIN_EXE_cfc"));
                command
            }
        };
        for variable in ["CFC_LOG", "CLOUDFLARE_ENV", "SOURCE_DATE_EPOCH", "XDG_DATA_HOME", "XDG_CONFIG_HOME"] {
            command.env_remove(variable);
        }
        command.env("CFC_DATA", self.data()).env("CFC_CONFIG", self.path("config.toml")).env("NO_COLOR", "1");
        if let Some(tools) = std::env::var_os("CFC_TOOLS_DIR").map(PathBuf::from).or_else(default_tools) {
            command.env("CFC_TOOLS_DIR", tools);
        }
        if let Runner::User(user) = &self.runner {
            user.set_environment(&mut command, self.directory.path());
        }
        command.current_dir(self.directory.path()).stdin(Stdio::null());
        command
    }

    /// cfc with these arguments in a terminal of its own, used by a Python program that finds the command in `sys.argv[1:]`.
    pub fn at_terminal(&self, person: &str, arguments: &[&str]) -> Command {
        let cfc = self.cfc();
        let mut command = Command::new("python3");
        command.args(["-c", person]).arg(cfc.get_program()).args(arguments);
        for (key, value) in cfc.get_envs() {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        command
    }

    /// The launchers that `cfc serve` has started here and that still run.
    pub fn launchers(&self) -> Vec<u32> {
        let data = format!("CFC_DATA={}", self.data().display());
        let is_ours = |pid: &u32| {
            let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            read("cmdline").starts_with(b"cfc-launcher\0")
                && read("environ").split(|byte| *byte == 0).any(|variable| variable == data.as_bytes())
        };
        let entries = std::fs::read_dir("/proc").expect("readable").flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_ours).collect()
    }

    /// Remembers them for [`Home::noted_launchers`].
    fn note_launchers(&self) {
        let noted: Vec<String> =
            self.noted_launchers().into_iter().chain(self.launchers()).map(|pid| pid.to_string()).collect();
        std::fs::write(self.path("launchers"), noted.join("\n")).expect("writable");
    }

    /// The launchers that ran whenever a platform was ended.
    pub fn noted_launchers(&self) -> Vec<u32> {
        let noted = std::fs::read_to_string(self.path("launchers")).unwrap_or_default();
        noted.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Another program, run by the ordinary user whose home this is.
    pub fn as_user(&self, program: &str) -> Command {
        let mut command = self.cfc();
        command.env("PROGRAM_OF_TEST", program);
        command
    }

    /// Runs `cfc` with `arguments` to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.cfc().args(arguments).output().expect("cfc runs")
    }

    /// Runs `cfc` with `arguments`, which must succeed, and returns what it printed to stdout.
    pub fn must(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "cfc {arguments:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8").trim_end().to_string()
    }

    /// Runs `cfc` with `arguments`, which must fail with exit code 1, and returns what it said, without what differs
    /// from run to run.
    pub fn must_fail(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let said = String::from_utf8_lossy(&output.stderr).to_string();
        assert_eq!(output.status.code(), Some(1), "cfc {arguments:?} did not fail with 1:\n{said}");
        self.redact(&said)
    }

    /// `text` with the temporary directory called `[HOME]`, and without the times of a build's steps.
    pub fn redact(&self, text: &str) -> String {
        let text = text.replace(&self.directory.path().display().to_string(), "[HOME]");
        let line = |line: &str| {
            let words: Vec<&str> = line.splitn(3, ' ').collect();
            match words[..] {
                [step, time, output] if step.starts_with('#') && time.parse::<f64>().is_ok() => {
                    format!("{step} [TIME] {output}")
                }
                [step, "DONE", _] if step.starts_with('#') => format!("{step} DONE [TIME]"),
                _ => line.to_string(),
            }
        };
        text.lines().map(line).collect::<Vec<_>>().join("\n") + if text.ends_with('\n') { "\n" } else { "" }
    }

    /// The directories of instances, without the logs that outlive them.
    pub fn instance_directories(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.data().join("instances")).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.path());
        names.filter(|path| path.file_name().is_some_and(|name| !name.as_encoded_bytes().starts_with(b"."))).collect()
    }

    /// Writes a file below the directory, with its parents.
    pub fn write(&self, name: &str, contents: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("a file has a parent")).expect("writable");
        std::fs::write(&path, contents).expect("writable");
        path
    }

    /// A copy of a project from `testdata/projects`, prepared.
    pub fn project(&self, name: &str) -> PathBuf {
        let target = self.path(name);
        copy_tree(&repository().join("testdata/projects").join(name), &target);
        let prepare = target.join("prepare");
        if prepare.exists() {
            let status = Command::new(&prepare).status().expect("prepare runs");
            assert!(status.success(), "{} failed", prepare.display());
        }
        target
    }
}

impl Home {
    /// As [`Home::project`], with busybox in the image as `/bin/busybox` and `/bin/sh`, and further instructions.
    pub fn project_with_shell(&self, name: &str, busybox: &Path, instructions: &str) -> PathBuf {
        let project = self.project(name);
        std::fs::copy(busybox, project.join("bin/busybox")).expect("copies");
        let append = |file: &str, text: &str| {
            let path = project.join(file);
            let before = std::fs::read_to_string(&path).expect("readable");
            std::fs::write(path, before + text).expect("writable");
        };
        append(".dockerignore", "\n!bin/busybox\n");
        append("Dockerfile", "\nCOPY bin/busybox /bin/sh\nCOPY bin/busybox /bin/busybox\n");
        append("Dockerfile", instructions);
        project
    }
}

fn default_tools() -> Option<PathBuf> {
    let directory = PathBuf::from(std::env::var_os("HOME")?).join(".cache/cfc/tools");
    directory.exists().then_some(directory)
}

pub fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("writable");
    for entry in std::fs::read_dir(from).unwrap_or_else(|error| panic!("{}: {error}", from.display())) {
        let entry = entry.expect("readable");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("readable").is_dir() {
            if entry.file_name() != "node_modules" {
                copy_tree(&entry.path(), &target);
            }
        } else {
            std::fs::copy(entry.path(), &target).expect("copied");
        }
    }
}

/// A running `cfc serve`. Ends when dropped.
pub struct Platform<'a> {
    pub home: &'a Home,
    child: Child,
    addresses: serde_json::Value,
}

impl<'a> Platform<'a> {
    /// Starts `cfc serve --port 0` and waits until it listens.
    pub fn start(home: &'a Home) -> Platform<'a> {
        Platform::start_with(home, &[])
    }

    /// The same, with these variables in its environment.
    pub fn start_with(home: &'a Home, variables: &[(&str, &str)]) -> Platform<'a> {
        let file = home.data().join("serve.json");
        let _ = std::fs::remove_file(&file);
        let log = std::fs::File::options().create(true).append(true).open(home.path("serve.log")).expect("writable");
        let child = home
            .cfc()
            .args(["serve", "--port", "0"])
            .envs(variables.iter().copied())
            .stdout(log.try_clone().expect("a file"))
            .stderr(log)
            .spawn()
            .expect("cfc runs");
        let mut platform = Platform { home, child, addresses: serde_json::Value::Null };
        let addresses = wait_for("cfc serve to write its addresses", || {
            if let Some(status) = platform.child.try_wait().expect("a child") {
                panic!("cfc serve ended with {status}:\n{}", platform.log());
            }
            serde_json::from_slice(&std::fs::read(&file).ok()?).ok()
        });
        platform.addresses = addresses;
        platform
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.home.path("serve.log")).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How often `cfc upgrade` has replaced its program.
    pub fn generation(&self) -> u64 {
        let text = std::fs::read(self.home.data().join("serve.json")).expect("it runs");
        let addresses: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        assert_eq!(addresses["pid"], self.pid());
        addresses["generation"].as_u64().expect("a number")
    }

    /// `host:port` of `gateway`, `control` or `registry`.
    pub fn address(&self, of: &str) -> String {
        self.addresses[of].as_str().expect("an address").to_string()
    }

    /// Sends `{"session-id": session}` to `worker` and returns status and body.
    pub fn ask(&self, worker: &str, session: &str) -> (u16, String) {
        let body = format!("{{\"session-id\": \"{session}\"}}");
        let request = format!(
            "POST / HTTP/1.1\r\nHost: {worker}.localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        http(&self.address("gateway"), &request)
    }

    /// Ends the platform as its user would (SIGTERM) and waits for it.
    pub fn stop(mut self) {
        self.home.note_launchers();
        self.signal(rustix::process::Signal::TERM);
        let started = Instant::now();
        while self.child.try_wait().expect("a child").is_none() {
            assert!(started.elapsed() < PATIENCE, "cfc serve did not end after SIGTERM:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills the platform as a crash would.
    pub fn kill(mut self) {
        self.home.note_launchers();
        self.child.kill().expect("it runs");
        self.child.wait().expect("a child");
    }

    /// Waits until it has ended by itself.
    pub fn wait(mut self) {
        wait_for("cfc serve to end", || self.child.try_wait().expect("a child"));
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, signal);
    }
}

impl Drop for Platform<'_> {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        self.signal(rustix::process::Signal::TERM);
        let started = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if started.elapsed() > Duration::from_secs(20) {
                let _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        if std::thread::panicking() {
            eprintln!("cfc serve said:\n{}", self.log());
        }
    }
}

/// Sends one HTTP/1.1 request with `Connection: close` and returns status and body.
pub fn http(address: &str, request: &str) -> (u16, String) {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).unwrap_or_else(|error| panic!("{address}: {error}"));
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("answered");
    let answer = String::from_utf8_lossy(&answer).to_string();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP answer: {answer}"));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("{head}"));
    let is_chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    (status, if is_chunked { dechunk(body) } else { body.to_string() })
}

fn dechunk(mut body: &str) -> String {
    let mut text = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.split(';').next().unwrap_or("0").trim(), 16).unwrap_or(0);
        if size == 0 {
            break;
        }
        text.push_str(&rest[..size]);
        body = &rest[size + 2..];
    }
    text
}

/// Asks again and again until there is an answer.
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(started.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A port that nothing listens on at the moment.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound").port()
}

/// A process of ours that ends when this is dropped.
pub struct Ended(pub Child);

impl Ended {
    pub fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.end();
    }
}

/// The steps of a build that were carried out, by what its plain progress calls them: `[one 2/3] RUN …`. Where a stage
/// starts from is no work.
pub fn steps_done(said: &str) -> Vec<&str> {
    let lines = || said.lines().filter_map(|line| line.strip_prefix('#')?.split_once(' '));
    let is_done = |number: &str| lines().any(|(other, rest)| other == number && rest.starts_with("DONE "));
    let mut names: Vec<&str> = Vec::new();
    for (number, name) in lines().filter(|(_, rest)| rest.starts_with('[')) {
        if is_done(number) && !name.contains("] FROM ") && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// The lines that the programs of a build's steps wrote, as its plain progress shows them.
pub fn step_output(said: &str) -> Vec<&str> {
    let rests = said.lines().filter_map(|line| Some(line.strip_prefix('#')?.split_once(' ')?.1));
    let timed = rests.filter_map(|rest| rest.split_once(' '));
    timed.filter(|(time, _)| time.parse::<f64>().is_ok()).map(|(_, text)| text).collect()
}
