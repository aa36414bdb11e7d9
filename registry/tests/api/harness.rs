//! A registry on a loopback port in a directory or a bucket of its own, and short ways to speak to it.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use cfc_oci::{Algorithm, Digest, Hasher, media_type};
use cfc_registry::{BucketLocation, Options, Registry, serve_operator, serve_until};
use reqwest::{Method, Response, StatusCode};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::store;

/// A running registry. Ends with the test.
pub struct Server {
    pub registry: Registry,
    pub address: SocketAddr,
    client: reqwest::Client,
    directory: TempDir,
    place: Option<BucketLocation>,
    _shutdown: oneshot::Sender<()>,
}

impl Server {
    pub async fn start() -> Server {
        Server::start_with(Options::default()).await
    }

    pub async fn start_with(options: Options) -> Server {
        let place = store::endpoint().map(|endpoint| store::place_alone(&endpoint));
        Server::start_in(TempDir::new().expect("temporary directory"), place, options).await
    }

    /// In a bucket, where others may be as well.
    pub async fn start_on(place: &BucketLocation, options: Options) -> Server {
        Server::start_in(TempDir::new().expect("temporary directory"), Some(place.clone()), options).await
    }

    /// The next process in the same directory or bucket. The previous one is gone without a word, as after `kill -9`.
    pub async fn restart(self) -> Server {
        self.restart_with(Options::default()).await
    }

    pub async fn restart_with(self, options: Options) -> Server {
        let Server { directory, place, _shutdown, .. } = self;
        drop(_shutdown);
        Server::start_in(directory, place, options).await
    }

    async fn start_in(directory: TempDir, place: Option<BucketLocation>, options: Options) -> Server {
        // Another test may have installed it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let registry = match &place {
            Some(place) => Registry::open_bucket(place, options).await.expect("registry opens"),
            None => Registry::open(directory.path(), options).expect("registry opens"),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback port");
        let address = listener.local_addr().expect("bound");
        let (shutdown, ended) = oneshot::channel::<()>();
        let running = serve_until(listener, registry.clone(), async {
            let _ = ended.await;
        });
        tokio::spawn(running);
        let client = reqwest::Client::builder().no_proxy().build().expect("client");
        Server { registry, address, client, directory, place, _shutdown: shutdown }
    }

    /// Where it is, if that is a bucket.
    pub fn place(&self) -> Option<&BucketLocation> {
        self.place.as_ref()
    }

    pub fn root(&self) -> &Path {
        self.directory.path()
    }

    /// A request to a path, or to a `Location`.
    pub fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let method = Method::from_bytes(method.as_bytes()).expect("method");
        self.client.request(method, format!("http://{}{path}", self.address))
    }

    pub async fn get(&self, path: &str) -> Response {
        send(self.request("GET", path)).await
    }

    pub async fn head(&self, path: &str) -> Response {
        send(self.request("HEAD", path)).await
    }

    pub async fn delete(&self, path: &str) -> Response {
        send(self.request("DELETE", path)).await
    }

    /// Starts an upload and gives its location.
    pub async fn begin(&self, name: &str) -> String {
        let response = send(self.request("POST", &format!("/v2/{name}/blobs/uploads/"))).await;
        expect(&response, 202);
        location(&response)
    }

    pub async fn push_blob(&self, name: &str, content: &[u8]) -> Digest {
        let digest = Digest::of(content);
        let path = format!("/v2/{name}/blobs/uploads/?digest={digest}");
        expect(&send(self.request("POST", &path).body(content.to_vec())).await, 201);
        digest
    }

    pub async fn put_manifest(&self, name: &str, reference: &str, json: &str) -> Response {
        let is_index = json.contains("\"manifests\"");
        let media_type = if is_index { media_type::INDEX } else { media_type::MANIFEST };
        let request = self.request("PUT", &format!("/v2/{name}/manifests/{reference}"));
        send(request.header("content-type", media_type).body(json.to_string())).await
    }

    /// Pushes a small image whose bytes depend on `seed`; gives the manifest.
    pub async fn push_image(&self, name: &str, tag: &str, seed: &str) -> (Digest, String) {
        let config = self.push_blob(name, format!("{{\"seed\":\"{seed}\"}}").as_bytes()).await;
        let layer = self.push_blob(name, format!("layer of {seed}").as_bytes()).await;
        let json = image(&config, &[&layer], "");
        expect(&self.put_manifest(name, tag, &json).await, 201);
        (Digest::of(json.as_bytes()), json)
    }
}

/// Serves the operator's socket until what is returned is aborted.
pub async fn operator(registry: &Registry, socket: &Path) -> JoinHandle<std::io::Result<()>> {
    let (path, registry) = (socket.to_path_buf(), registry.clone());
    let serving = tokio::spawn(async move { serve_operator(&path, registry).await });
    let is_there = async {
        while !socket.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), is_there).await.expect("it listens");
    serving
}

/// The JSON of an image manifest; `extra` is put in front of the last brace.
pub fn image(config: &Digest, layers: &[&Digest], extra: &str) -> String {
    let layer = |digest: &&Digest| format!(r#"{{"mediaType":"{}","digest":"{digest}","size":1}}"#, media_type::LAYER);
    let layers: Vec<String> = layers.iter().map(layer).collect();
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","config":{{"mediaType":"{}","digest":"{config}","size":2}},"layers":[{}]{extra}}}"#,
        media_type::MANIFEST,
        media_type::CONFIG,
        layers.join(","),
    )
}

/// The JSON of an index.
pub fn index(manifests: &[&Digest], extra: &str) -> String {
    let entry =
        |digest: &&Digest| format!(r#"{{"mediaType":"{}","digest":"{digest}","size":1}}"#, media_type::MANIFEST);
    let entries: Vec<String> = manifests.iter().map(entry).collect();
    let media_type = media_type::INDEX;
    format!(r#"{{"schemaVersion":2,"mediaType":"{media_type}","manifests":[{}]{extra}}}"#, entries.join(","))
}

pub fn sha512(content: &[u8]) -> Digest {
    let mut hasher = Hasher::new(Algorithm::Sha512);
    hasher.update(content);
    hasher.finish()
}

/// What a random test goes by, which is printed; `CFC_TEST_SEED=<seed>` has it do the same again, as far as the scheduler
/// does.
pub fn seed() -> u64 {
    let seed = match std::env::var("CFC_TEST_SEED") {
        Ok(seed) => seed.parse().expect("CFC_TEST_SEED to be a number"),
        Err(_) => u64::from(std::process::id()),
    };
    eprintln!("CFC_TEST_SEED={seed}");
    seed
}

/// Bytes that do not repeat, the same on every run.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

pub async fn send(request: reqwest::RequestBuilder) -> Response {
    request.send().await.expect("an answer")
}

#[track_caller]
pub fn expect(response: &Response, status: u16) {
    assert_eq!(response.status(), StatusCode::from_u16(status).expect("status"), "{}", response.url());
}

/// The status and the first error code.
#[track_caller]
pub fn expect_error(response: Response, status: u16, code: &str) -> impl Future<Output = String> {
    expect(&response, status);
    let code = code.to_string();
    async move {
        assert_eq!(header(&response, "content-type"), "application/json");
        let body: serde_json::Value = response.json().await.expect("errors are JSON");
        assert_eq!(body["errors"][0]["code"], code, "{body}");
        body["errors"].to_string()
    }
}

#[track_caller]
pub fn header(response: &Response, name: &str) -> String {
    let value = response.headers().get(name).unwrap_or_else(|| panic!("no `{name}` in {:?}", response.headers()));
    value.to_str().expect("ASCII").to_string()
}

#[track_caller]
pub fn location(response: &Response) -> String {
    header(response, "location")
}
