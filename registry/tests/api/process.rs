//! A registry in a process of its own, to be killed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cfc_registry::{BucketLocation, Options, Registry, Rules, Upstream};

use crate::harness::send;

/// URLs of upstreams.
const UPSTREAMS: &str = "CFC_TEST_KILLED_REGISTRY_UPSTREAMS";
/// What uploads to a bucket may hold, in bytes.
const UPLOAD_MEMORY: &str = "CFC_TEST_KILLED_REGISTRY_UPLOAD_MEMORY";

/// The registry that [`Process`] starts: this binary again, with a directory in its environment.
#[tokio::test]
async fn registry_to_be_killed() {
    let Some(directory) = std::env::var_os("CFC_TEST_KILLED_REGISTRY") else { return };
    let directory = std::path::PathBuf::from(directory);
    // Another test may have installed it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let registry = match std::env::var("CFC_TEST_KILLED_REGISTRY_BUCKET") {
        Ok(place) => {
            let endpoint = crate::store::endpoint().expect("an endpoint");
            let place = crate::store::on(place.parse().expect("a location"), &endpoint);
            Registry::open_bucket(&place, options()).await.expect("opens")
        }
        Err(_) => Registry::open(&directory.join("data"), options()).expect("opens"),
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback port");
    let address = listener.local_addr().expect("bound").to_string();
    std::fs::write(directory.join("address.new"), address).expect("writes");
    std::fs::rename(directory.join("address.new"), directory.join("address")).expect("renames");
    cfc_registry::serve(listener, registry).await.expect("serves");
}

/// Garbage is looked for all the time. Nothing becomes old enough to go while a test runs, however slow its machine is.
fn options() -> Options {
    let long = Duration::from_secs(1800);
    let collection = Rules { grace: long, untagged: Some(long) };
    let upstreams = std::env::var(UPSTREAMS).unwrap_or_default();
    let upstreams = upstreams.split_whitespace().enumerate();
    let upstreams = upstreams.map(|(number, url)| Upstream::new(&format!("up{number}"), url)).collect();
    let options =
        Options { collection, collect_every: Some(Duration::from_millis(20)), upstreams, ..Options::default() };
    match std::env::var(UPLOAD_MEMORY) {
        Ok(bytes) => Options { upload_memory: bytes.parse().expect("a number"), ..options },
        Err(_) => options,
    }
}

/// Killed, not stopped, when it goes out of scope.
pub struct Process {
    child: std::sync::Mutex<std::process::Child>,
    pub address: String,
    client: reqwest::Client,
}

impl Process {
    pub async fn start(directory: &Path) -> Process {
        Process::start_by(std::process::Command::new(program()), directory).await.expect("the registry starts")
    }

    /// On a bucket, beside others.
    pub async fn start_on(place: &BucketLocation, directory: &Path) -> Process {
        Process::start_by(on(place), directory).await.expect("the registry starts")
    }

    /// On a bucket, where uploads together hold so many bytes.
    pub async fn start_with_upload_memory(place: &BucketLocation, bytes: usize, directory: &Path) -> Process {
        let mut command = on(place);
        command.env(UPLOAD_MEMORY, bytes.to_string());
        Process::start_by(command, directory).await.expect("the registry starts")
    }

    /// With upstreams `up0`, `up1` and so on, in an environment that names a proxy for everything.
    pub async fn start_with_proxy(proxy: &str, upstreams: &[&str], directory: &Path) -> Process {
        let mut command = std::process::Command::new(program());
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
            command.env(name, proxy).env(name.to_ascii_lowercase(), proxy);
        }
        command.env_remove("NO_PROXY").env_remove("no_proxy");
        command.env(UPSTREAMS, upstreams.join(" "));
        Process::start_by(command, directory).await.expect("the registry starts")
    }

    /// With upstreams `up0`, `up1` and so on.
    pub async fn start_with_upstreams(upstreams: &[&str], directory: &Path) -> Process {
        let mut command = std::process::Command::new(program());
        command.env(UPSTREAMS, upstreams.join(" "));
        Process::start_by(command, directory).await.expect("the registry starts")
    }

    /// On a disk of 16 MiB, in a mount namespace of its own, with upstreams `up0`, `up1` and so on; `None` and a note where
    /// that cannot be had.
    pub async fn start_with_little_disk(directory: &Path, upstreams: &[&str]) -> Option<Process> {
        Process::start_with_mount("mount -t tmpfs -o size=16m tmpfs", directory, upstreams).await
    }

    /// As [`start_with_little_disk`](Self::start_with_little_disk), of ext4.
    pub async fn start_with_little_ext4(directory: &Path) -> Option<Process> {
        let image = directory.join("image");
        let image = image.display();
        let mount = format!("truncate -s 20M '{image}' && mkfs.ext4 -q -m 0 '{image}' && mount -o loop '{image}'");
        Process::start_with_mount(&mount, directory, &[]).await
    }

    /// On the filesystem that a copy of another registry's disk holds.
    pub async fn start_with_copy(image: &Path, directory: &Path) -> Option<Process> {
        Process::start_with_mount(&format!("mount -o loop '{}'", image.display()), directory, &[]).await
    }

    /// On an ext4 of 120 MiB that lies on a disk of 40 MiB: what it takes in may not fit there, which the kernel finds out
    /// when it writes it down. With the path of that disk.
    pub async fn start_with_thin_ext4(directory: &Path) -> Option<(Process, PathBuf)> {
        let disk = directory.join("disk");
        std::fs::create_dir(&disk).expect("creates");
        let (image, disk) = (disk.join("image"), disk.display());
        let image = image.display();
        let mount = format!(
            "mount -t tmpfs -o size=40m tmpfs '{disk}' && truncate -s 120M '{image}' && \
             mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 -J size=8 '{image}' && mount -o loop '{image}'"
        );
        let process = Process::start_with_mount(&mount, directory, &[]).await?;
        let disk = process.inside(&directory.join("disk"));
        Some((process, disk))
    }

    /// The path by which this process sees what the registry sees at `path`.
    fn inside(&self, path: &Path) -> PathBuf {
        let pid = self.child.lock().expect("no panic").id();
        let path = path.strip_prefix("/").expect("an absolute path");
        Path::new("/proc").join(pid.to_string()).join("root").join(path)
    }

    /// Makes everything that the registry has as old as if nobody had asked for it for a day.
    pub fn make_old(&self, directory: &Path) {
        let mut command = std::process::Command::new("find");
        command.arg(self.inside(&directory.join("data"))).args([
            "-type",
            "f",
            "-exec",
            "touch",
            "-d",
            "1 day ago",
            "{}",
            "+",
        ]);
        assert!(command.status().expect("find runs").success());
    }

    /// Has the kernel treat the filesystem of the registry's data as one with errors, which nobody may write to any more.
    pub fn stop_writing(&self, directory: &Path) {
        let pid = self.child.lock().expect("no panic").id().to_string();
        let mut command = std::process::Command::new("nsenter");
        command.args(["--target", &pid, "--mount", "mount", "-o", "remount,abort"]).arg(directory.join("data"));
        assert!(command.status().expect("nsenter runs").success());
    }

    async fn start_with_mount(mount: &str, directory: &Path, upstreams: &[&str]) -> Option<Process> {
        let data = directory.join("data");
        std::fs::create_dir(&data).expect("creates");
        let script = format!("{mount} '{}' && exec \"$0\" \"$@\"", data.display());
        let mut command = std::process::Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", &script]).arg(program());
        command.env(UPSTREAMS, upstreams.join(" "));
        let process = Process::start_by(command, directory).await;
        if process.is_none() {
            eprintln!("skipped: no small disk can be mounted here");
        }
        process
    }

    /// `None` when the command ends instead.
    async fn start_by(mut command: std::process::Command, directory: &Path) -> Option<Process> {
        let address = directory.join("address");
        let _ = std::fs::remove_file(&address);
        command.args(["--exact", "process::registry_to_be_killed", "--nocapture"]);
        command.env("CFC_TEST_KILLED_REGISTRY", directory).stdout(std::process::Stdio::null());
        let mut child = command.spawn().ok()?;
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().build().expect("client");
        for _ in 0..3000 {
            if let Ok(address) = std::fs::read_to_string(&address) {
                return Some(Process { child: child.into(), address, client });
            }
            if child.try_wait().expect("a child").is_some() {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the registry did not start");
    }

    pub fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method.parse().expect("method"), format!("http://{}{path}", self.address))
    }

    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> reqwest::Response {
        let mut request = self.request(method, path).body(body.to_vec());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        send(request).await
    }

    /// What it has had of memory at most, in bytes.
    pub fn peak_memory(&self) -> usize {
        let pid = self.child.lock().expect("child").id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        peak.expect("a peak").trim().parse::<usize>().expect("a number") * 1024
    }

    pub fn kill(&self) {
        let mut child = self.child.lock().expect("child");
        let _ = child.kill();
        child.wait().expect("is gone");
    }
}

fn on(place: &BucketLocation) -> std::process::Command {
    let mut command = std::process::Command::new(program());
    command.env("CFC_TEST_KILLED_REGISTRY_BUCKET", place.to_string());
    command.env(crate::store::ENDPOINT, place.endpoint.as_deref().expect("an endpoint"));
    command
}

fn program() -> std::path::PathBuf {
    std::env::current_exe().expect("this test")
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
