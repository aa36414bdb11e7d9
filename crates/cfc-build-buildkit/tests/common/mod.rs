//! A Docker engine of our own with the BuildKit in it, and other ways to reach that.

#![allow(dead_code)]

pub mod refusing;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cfc_plan::BuiltImage;
use cfc_store::Store;

/// How long something may take that is not measured.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The engine. Ends when dropped.
pub struct Daemon {
    process: Child,
    directory: tempfile::TempDir,
}

/// Keeps the engine's images in containerd: then the BuildKit in it is a whole one, as in `buildkitd`.
const WHOLE: &str = r#"{"features": {"containerd-snapshotter": true}}"#;

impl Daemon {
    /// One that begins empty; none, with the reason said, where there can be none. `CFC_DOCKERD` is another program than the
    /// system's.
    pub fn start() -> Option<Daemon> {
        let program = std::env::var("CFC_DOCKERD").unwrap_or_else(|_| "dockerd".to_string());
        Daemon::start_as(&program, "{}", None)
    }

    /// The same on a disk of `size` bytes, in a mount namespace of its own.
    pub fn start_on(size: u64) -> Option<Daemon> {
        let program = std::env::var("CFC_DOCKERD").unwrap_or_else(|_| "dockerd".to_string());
        Daemon::start_as(&program, "{}", Some(size))
    }

    /// One with a whole and current BuildKit, `CFC_DOCKERD_CURRENT`.
    pub fn start_current() -> Option<Daemon> {
        Daemon::start_as(&current()?, WHOLE, None)
    }

    /// The same on a disk of `size` bytes, in a mount namespace of its own.
    pub fn start_current_on(size: u64) -> Option<Daemon> {
        Daemon::start_as(&current()?, WHOLE, Some(size))
    }

    fn start_as(program: &str, configuration: &str, size: Option<u64>) -> Option<Daemon> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: dockerd needs root");
            return None;
        }
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        fs::write(path("daemon.json"), configuration).expect("writable");
        fs::create_dir(path("data")).expect("writable");
        let mut command = match size {
            None => Command::new(program),
            Some(size) => {
                let mounted = format!("mount -t tmpfs -o size={size} tmpfs {} && exec \"$@\"", path("data").display());
                let mut command = Command::new("unshare");
                command.args(["-m", "sh", "-c", &mounted, "sh", program]);
                command
            }
        };
        let process = command
            .env("PATH", beside(program))
            .arg("--config-file")
            .arg(path("daemon.json"))
            .arg("--data-root")
            .arg(path("data"))
            .arg("--exec-root")
            .arg(path("exec"))
            .arg("-H")
            .arg(format!("unix://{}", path("socket").display()))
            .arg("--pidfile")
            .arg(path("pid"))
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(path("log")).expect("writable"))
            .spawn();
        let Ok(process) = process else {
            eprintln!("skipped: there is no `{program}` (package docker.io)");
            return None;
        };
        let mut daemon = Daemon { process, directory };
        let start = Instant::now();
        while start.elapsed() < PATIENCE && daemon.process.try_wait().expect("is ours").is_none() {
            if daemon.answers() {
                return Some(daemon);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let log = fs::read_to_string(daemon.directory.path().join("log")).unwrap_or_default();
        eprintln!("skipped: dockerd does not start here: {}", log.lines().last().unwrap_or_default());
        None
    }

    fn answers(&self) -> bool {
        let Ok(mut stream) = UnixStream::connect(self.socket()) else { return false };
        let mut answer = String::new();
        let asked = stream.write_all(b"GET /_ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        asked.is_ok() && stream.read_to_string(&mut answer).is_ok() && answer.contains("200 OK")
    }

    /// What the engine answers to a question.
    pub fn ask(&self, path: &str) -> String {
        let mut stream = UnixStream::connect(self.socket()).expect("it listens");
        let asked = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(asked.as_bytes()).expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        answer
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    pub fn address(&self) -> String {
        format!("docker://{}", self.socket().display())
    }

    /// A place for files beside the engine's.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.process);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.process.wait();
        let mounts = fs::read_dir(self.directory.path().join("exec/netns")).into_iter().flatten().flatten();
        for mount in mounts {
            let _ = rustix::mount::unmount(mount.path(), rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// The program of a current engine.
fn current() -> Option<String> {
    let program = std::env::var("CFC_DOCKERD_CURRENT").ok();
    if program.is_none() {
        eprintln!("skipped: there is no current engine (CFC_DOCKERD_CURRENT, as scripts/test has it)");
    }
    program
}

/// Where programs are looked for: first where the engine is, and what its package depends on.
fn beside(program: &str) -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    match Path::new(program).parent().filter(|directory| directory.is_absolute()) {
        Some(directory) => format!("{0}:{0}/../bin:{path}", directory.display()),
        None => path,
    }
}

/// Whoever connects here reaches the engine: its BuildKit at once, as a `buildkitd` listens, or the engine itself.
pub struct Bridge {
    /// Where it listens.
    pub place: String,
    open: Arc<Mutex<Vec<UnixStream>>>,
    /// How many bytes came from the engine.
    came: Arc<AtomicU64>,
    /// After how many of them all connections are cut.
    limit: Arc<AtomicU64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    BuildKit,
    Engine,
}

impl Bridge {
    pub fn tcp(daemon: &Daemon, speaks: Speaks) -> Bridge {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let bridge = Bridge::at(listener.local_addr().expect("bound").to_string());
        let (socket, open) = (daemon.socket(), bridge.open.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let engine = connect(&socket, speaks, &open);
                let close = |stream: &TcpStream| drop(stream.shutdown(Shutdown::Both));
                carry(stream.try_clone().expect("a clone"), engine.try_clone().expect("a clone"), |_| {});
                carry(engine, stream, move |stream| close(stream));
            }
        });
        bridge
    }

    pub fn unix(daemon: &Daemon, path: &Path) -> Bridge {
        Bridge::unix_as(daemon, path, Speaks::BuildKit)
    }

    pub fn unix_as(daemon: &Daemon, path: &Path, speaks: Speaks) -> Bridge {
        let listener = UnixListener::bind(path).expect("a socket");
        let bridge = Bridge::at(path.display().to_string());
        let (socket, open, came, limit) =
            (daemon.socket(), bridge.open.clone(), bridge.came.clone(), bridge.limit.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let engine = connect(&socket, speaks, &open);
                carry(stream.try_clone().expect("a clone"), engine.try_clone().expect("a clone"), |_| {});
                let stream = Counting { stream, came: came.clone(), limit: limit.clone(), open: open.clone() };
                carry(engine, stream, |counting| drop(counting.stream.shutdown(Shutdown::Both)));
            }
        });
        bridge
    }

    fn at(place: String) -> Bridge {
        Bridge { place, open: Arc::default(), came: Arc::default(), limit: Arc::new(AtomicU64::new(u64::MAX)) }
    }

    /// As to the engine, but the archive of an image never comes: `asked` is told that somebody wants one.
    pub fn without_archives(daemon: &Daemon, asked: std::sync::mpsc::Sender<()>) -> Bridge {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let bridge = Bridge::at(listener.local_addr().expect("bound").to_string());
        let (socket, open) = (daemon.socket(), bridge.open.clone());
        std::thread::spawn(move || {
            let mut held = Vec::new();
            for mut stream in listener.incoming().map_while(Result::ok) {
                let mut first = [0; 4096];
                let length = stream.read(&mut first).expect("a question");
                if first.starts_with(b"GET /images/cfc-build:") {
                    held.push(stream);
                    let _ = asked.send(());
                    continue;
                }
                let mut engine = connect(&socket, Speaks::Engine, &open);
                engine.write_all(&first[..length]).expect("the engine reads");
                carry(stream.try_clone().expect("a clone"), engine.try_clone().expect("a clone"), |_| {});
                carry(engine, stream, |stream| drop(stream.shutdown(Shutdown::Both)));
            }
        });
        bridge
    }

    /// How many bytes came from the engine since this was asked last.
    pub fn came(&self) -> u64 {
        self.came.swap(0, Ordering::SeqCst)
    }

    /// Cuts all connections, as a daemon that dies.
    pub fn cut(&self) {
        cut(&self.open);
    }

    /// Cuts them when `bytes` came from the engine, counted from now on.
    pub fn cut_after(&self, bytes: u64) {
        self.came();
        self.limit.store(bytes, Ordering::SeqCst);
    }
}

fn cut(open: &Mutex<Vec<UnixStream>>) {
    for stream in open.lock().expect("no panic").drain(..) {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

/// Counts what is written, and lets no more through than it may.
struct Counting {
    stream: UnixStream,
    came: Arc<AtomicU64>,
    limit: Arc<AtomicU64>,
    open: Arc<Mutex<Vec<UnixStream>>>,
}

impl Write for Counting {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let length = self.stream.write(bytes)?;
        let came = self.came.fetch_add(length as u64, Ordering::SeqCst) + length as u64;
        if came >= self.limit.load(Ordering::SeqCst) {
            cut(&self.open);
            return Err(std::io::Error::other("it is cut"));
        }
        Ok(length)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.stream.flush()
    }
}

fn connect(socket: &Path, speaks: Speaks, open: &Mutex<Vec<UnixStream>>) -> UnixStream {
    let mut engine = UnixStream::connect(socket).expect("the engine listens");
    if speaks == Speaks::BuildKit {
        let upgrade = b"POST /grpc HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";
        engine.write_all(upgrade).expect("the engine reads");
        let mut answer = Vec::new();
        let mut byte = [0];
        while !answer.ends_with(b"\r\n\r\n") {
            engine.read_exact(&mut byte).expect("the engine answers");
            answer.push(byte[0]);
        }
    }
    open.lock().expect("no panic").push(engine.try_clone().expect("a clone"));
    engine
}

fn carry<R: Read + Send + 'static, W: Write + Send + 'static>(
    mut from: R,
    mut to: W,
    end: impl FnOnce(&W) + Send + 'static,
) {
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        end(&to);
    });
}

/// The regular files of the layers, upper ones over lower ones; nothing here is removed by a layer.
pub fn files(store: &Store, built: &BuiltImage) -> BTreeMap<PathBuf, Vec<u8>> {
    let image = store.images().load(&built.manifest).expect("loads");
    let mut files = BTreeMap::new();
    for layer in store.unpack_image(&image).expect("unpacks").iter().rev() {
        let mut pending = vec![layer.clone()];
        while let Some(directory) = pending.pop() {
            for entry in fs::read_dir(&directory).expect("lists") {
                let path = entry.expect("an entry").path();
                let kind = path.symlink_metadata().expect("is there").file_type();
                if kind.is_dir() {
                    pending.push(path);
                } else if kind.is_file() {
                    let name = path.strip_prefix(layer).expect("is below").to_path_buf();
                    files.insert(name, fs::read(&path).expect("reads"));
                }
            }
        }
    }
    files
}

/// A static busybox.
pub fn busybox() -> Option<&'static Path> {
    let path = Path::new("/bin/busybox");
    path.exists().then_some(path)
}
