//! S3 servers to test against, and which store the tests of this process use.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use cfc_registry::{BucketKeys, BucketLocation};
use uuid::Uuid;

/// The endpoint of the S3 server that these tests run against, `http://host:port`; unset for a directory. The tests of
/// [`crate::bucket`] start this binary again with it.
pub const ENDPOINT: &str = "CFC_TEST_S3";

/// The bucket that each server has for tests.
pub const BUCKET: &str = "cfc-test";

/// Whether the tests of this process run against S3, and where that is.
pub fn endpoint() -> Option<String> {
    std::env::var(ENDPOINT).ok().filter(|endpoint| !endpoint.is_empty())
}

/// For what only a directory has.
pub fn skips(what: &str) -> bool {
    let skips = endpoint().is_some();
    if skips {
        eprintln!("not on a bucket: {what}");
    }
    skips
}

/// A place of one's own in the bucket, for one process at a time: nobody need find out whether the store is fit for more.
pub fn place_alone(endpoint: &str) -> BucketLocation {
    BucketLocation { single_replica: true, ..place(endpoint) }
}

/// A place of one's own in the bucket.
pub fn place(endpoint: &str) -> BucketLocation {
    let location: BucketLocation = format!("s3://{BUCKET}/{}", Uuid::new_v4()).parse().expect("a location");
    on(location, endpoint)
}

/// With the endpoint and the keys that every store for tests has.
pub fn on(location: BucketLocation, endpoint: &str) -> BucketLocation {
    let keys = BucketKeys { id: "cfc-test-key".to_string(), secret: "cfc-test-secret".to_string() };
    BucketLocation { endpoint: Some(endpoint.to_string()), keys: Some(keys), ..location }
}

/// moto, with a bucket. Ends with the process.
pub struct Moto {
    child: Child,
    pub address: String,
}

impl Moto {
    /// `None` and a note where it is not installed.
    pub async fn start() -> Option<Moto> {
        let Some(program) = python_with_moto() else {
            eprintln!("skipped: moto is not installed (scripts/test does, with Python)");
            return None;
        };
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = format!("127.0.0.1:{}", port.expect("loopback port").port());
        let port = address.rsplit(':').next().expect("host:port");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/lib/s3_server.py");
        let mut command = Command::new(program);
        command.args([script, port]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let moto = Moto { child: command.spawn().expect("moto starts"), address };
        moto.make_bucket().await;
        Some(moto)
    }

    async fn make_bucket(&self) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().build().expect("client");
        for _ in 0..600 {
            let made = client.put(format!("http://{}/{BUCKET}", self.address)).send().await;
            if made.is_ok_and(|made| made.status().is_success()) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        panic!("moto did not start");
    }

    /// Has it answer nobody, as a machine that hangs.
    pub fn pause(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    pub fn resume(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).expect("it runs");
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn python_with_moto() -> Option<PathBuf> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || {
        let cache = std::env::var_os("CFC_CACHE").map(PathBuf::from).or_else(|| {
            let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
            Some(base.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?.join("cfc"))
        });
        cache.map(|cache| cache.join("moto")).filter(|moto| moto.join("bin/moto_server").exists())
    };
    FOUND.get_or_init(find).as_ref().map(|moto| moto.join("bin/python"))
}
