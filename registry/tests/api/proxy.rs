//! Pull-through caching: Debian's docker-registry as the upstream, and upstreams that mean no good.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use cfc_oci::Digest;
use cfc_registry::{Options, Upstream};
use tempfile::TempDir;

use crate::harness::{Server, expect, expect_error, header, image, noise, send};

fn upstream(prefix: &str, url: &str) -> Upstream {
    Upstream {
        prefix: prefix.to_string(),
        url: url.to_string(),
        credentials: None,
        realms: Vec::new(),
        fresh: Duration::ZERO,
    }
}

fn with_password(upstream: Upstream) -> Upstream {
    Upstream { credentials: Some(("ann".to_string(), "secret".to_string())), ..upstream }
}

async fn start(upstreams: Vec<Upstream>) -> Server {
    Server::start_with(Options { upstreams, ..Options::default() }).await
}

/// Debian's docker-registry on loopback.
struct Peer {
    child: Child,
    url: String,
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Peer {
    /// `None` and a note when the machine does not have it. With `auth` lines of configuration.
    async fn start(directory: &Path, auth: &str) -> Option<Peer> {
        let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
        let config = directory.join(format!("{port}.yml"));
        let text = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n{auth}http:\n  addr: 127.0.0.1:{port}\n",
            directory.join(format!("peer-{port}")).display()
        );
        std::fs::write(&config, text).expect("writes");
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).stdout(Stdio::null()).stderr(Stdio::null());
        let Ok(child) = command.spawn() else {
            eprintln!("skipped: docker-registry is not installed");
            return None;
        };
        let peer = Peer { child, url: format!("http://127.0.0.1:{port}") };
        for _ in 0..600 {
            if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return Some(peer);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("docker-registry does not listen");
    }

    async fn put(&self, method: &str, url: &str, media_type: &str, body: Vec<u8>) -> reqwest::Response {
        let client = reqwest::Client::builder().no_proxy().build().expect("client");
        let url = if url.starts_with("http") { url.to_string() } else { format!("{}{url}", self.url) };
        let method = reqwest::Method::from_bytes(method.as_bytes()).expect("a method");
        let request = client.request(method, url).basic_auth("ann", Some("secret"));
        send(request.header("content-type", media_type).body(body)).await
    }

    async fn push_blob(&self, name: &str, content: &[u8]) -> Digest {
        let digest = Digest::of(content);
        let media_type = "application/octet-stream";
        let begun = self.put("POST", &format!("/v2/{name}/blobs/uploads/"), media_type, Vec::new()).await;
        let put = format!("{}&digest={digest}", header(&begun, "location"));
        expect(&self.put("PUT", &put, media_type, content.to_vec()).await, 201);
        digest
    }

    /// Gives the manifest and its layer's digest.
    async fn push_image(&self, name: &str, tag: &str, seed: u64) -> (String, Digest) {
        let config = self.push_blob(name, format!("{{\"seed\":{seed}}}").as_bytes()).await;
        let layer = self.push_blob(name, &noise(100_000, seed)).await;
        let json = image(&config, &[&layer], "");
        let path = format!("/v2/{name}/manifests/{tag}");
        expect(&self.put("PUT", &path, cfc_oci::media_type::MANIFEST, json.clone().into_bytes()).await, 201);
        (json, layer)
    }
}

async fn text(server: &Server, path: &str) -> String {
    let response = server.get(path).await;
    expect(&response, 200);
    response.text().await.expect("text")
}

#[tokio::test]
async fn images_of_upstreams_are_kept_and_the_rest_is_ones_own() {
    let directory = TempDir::new().expect("temporary directory");
    let Some(open) = Peer::start(directory.path(), "").await else { return };
    let users = directory.path().join("htpasswd");
    std::fs::write(&users, format!("ann:{}\n", bcrypt::hash("secret", 4).expect("hashes"))).expect("writes");
    let auth = format!("auth: {{htpasswd: {{realm: x, path: {}}}}}\n", users.display());
    let closed = Peer::start(directory.path(), &auth).await.expect("installed");
    let (first, layer) = open.push_image("library/app", "v1", 1).await;
    let (secret, secret_layer) = closed.push_image("app", "v1", 2).await;
    let upstreams = vec![
        upstream("hub", &open.url),
        with_password(upstream("hub/closed", &closed.url)),
        upstream("unknown", &closed.url),
    ];
    let server = start(upstreams).await;

    let pulled = server.get("/v2/hub/library/app/manifests/v1").await;
    assert_eq!(header(&pulled, "docker-content-digest"), Digest::of(first.as_bytes()).to_string());
    assert_eq!(header(&pulled, "content-type"), cfc_oci::media_type::MANIFEST);
    assert_eq!(pulled.text().await.expect("text"), first);
    let blob = format!("/v2/hub/library/app/blobs/{layer}");
    assert!(server.get(&blob).await.bytes().await.expect("body") == noise(100_000, 1));
    assert_eq!(header(&server.head(&blob).await, "content-length"), "100000");
    // The longest prefix says where; another's password goes nowhere else.
    assert_eq!(text(&server, "/v2/hub/closed/app/manifests/v1").await, secret);
    expect(&server.get(&format!("/v2/hub/closed/app/blobs/{secret_layer}")).await, 200);
    expect_error(server.get("/v2/unknown/app/manifests/v1").await, 404, "MANIFEST_UNKNOWN").await;
    expect_error(server.get("/v2/hub/library/app/manifests/none").await, 404, "MANIFEST_UNKNOWN").await;
    let none = format!("/v2/hub/library/app/blobs/{}", Digest::of(b"none"));
    expect_error(server.get(&none).await, 404, "BLOB_UNKNOWN").await;

    // A tag that moves is seen to move.
    let (second, _) = open.push_image("library/app", "v1", 3).await;
    assert_eq!(text(&server, "/v2/hub/library/app/manifests/v1").await, second);

    expect_error(send(server.request("POST", "/v2/hub/library/app/blobs/uploads/")).await, 405, "UNSUPPORTED").await;
    expect_error(server.put_manifest("hub/library/app", "v2", &first).await, 405, "UNSUPPORTED").await;
    server.push_image("own/app", "v1", "own").await;

    drop((open, closed));
    assert_eq!(text(&server, "/v2/hub/library/app/manifests/v1").await, second);
    assert_eq!(text(&server, &format!("/v2/hub/library/app/manifests/{}", Digest::of(first.as_bytes()))).await, first);
    expect(&server.get(&blob).await, 200);
    let away = server.get("/v2/hub/library/app/manifests/never-seen").await;
    assert_eq!(header(&away, "retry-after"), "5");
    expect_error(away, 503, "UNKNOWN").await;
    // It stays in the next process.
    let server = server
        .restart_with(Options { upstreams: vec![upstream("hub", "http://127.0.0.1:1")], ..Options::default() })
        .await;
    assert_eq!(text(&server, "/v2/hub/library/app/manifests/v1").await, second);
    let collected = server.registry.collect(cfc_registry::Rules::default(), false).await.expect("collects");
    assert_eq!((collected.blobs, collected.manifests), (0, 0));
}

/// A request that a fake got: its path and what it proved who it is with.
type Asked = Arc<Mutex<Vec<(String, String)>>>;

/// What a fake answers.
struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

fn answer(status: u16, body: impl Into<Vec<u8>>) -> Answer {
    Answer { status, headers: Vec::new(), body: body.into() }
}

impl Answer {
    fn with(mut self, name: &'static str, value: impl Into<String>) -> Answer {
        self.headers.push((name, value.into()));
        self
    }
}

/// A server that answers as the test wants.
async fn fake(respond: impl Fn(&str, &str) -> Answer + Send + Sync + 'static) -> (u16, Asked) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback port");
    let port = listener.local_addr().expect("bound").port();
    let asked = Asked::default();
    let all = asked.clone();
    let respond = Arc::new(respond);
    let router = axum::Router::new().fallback(move |request: Request| {
        let (all, respond) = (all.clone(), respond.clone());
        async move {
            let path = request.uri().path_and_query().expect("a path").to_string();
            let proof = request.headers().get("authorization").map(|value| value.to_str().expect("ASCII").to_string());
            let proof = proof.unwrap_or_default();
            let answer = respond(&path, &proof);
            all.lock().expect("nobody panics").push((path, proof));
            let mut response = Response::builder().status(answer.status);
            for (name, value) in answer.headers {
                response = response.header(name, value);
            }
            response.body(Body::from(answer.body)).expect("a response")
        }
    });
    tokio::spawn(async move { axum::serve(listener, router).await });
    (port, asked)
}

fn asked_for(asked: &Asked, part: &str) -> usize {
    asked.lock().expect("nobody panics").iter().filter(|(path, _)| path.contains(part)).count()
}

#[tokio::test]
async fn a_password_goes_to_the_upstream_and_no_other_token_service() {
    let (thief, stolen) = fake(|_, _| answer(200, r#"{"token":"x"}"#)).await;
    for realm in [
        format!("http://127.0.0.1:{thief}/token"),
        // A name that means this machine.
        format!("http://localhost:{thief}/token"),
        format!("http://[::ffff:127.0.0.1]:{thief}/token"),
        format!("http://ann:secret@127.0.0.1:{thief}/token"),
        "https://169.254.169.254/token".to_string(),
        "file:///etc/passwd".to_string(),
        "nonsense".to_string(),
    ] {
        let challenge = format!("Bearer realm=\"{realm}\",service=\"x\"");
        let (port, asked) = fake(move |_, _| answer(401, "").with("www-authenticate", challenge.clone())).await;
        let url = format!("http://127.0.0.1:{port}");
        let server = start(vec![with_password(upstream("with", &url)), upstream("without", &url)]).await;
        for prefix in ["with", "without"] {
            let response = server.get(&format!("/v2/{prefix}/app/manifests/v1")).await;
            assert!([502, 503].contains(&response.status().as_u16()), "{realm}: {}", response.status());
        }
        assert_eq!(asked.lock().expect("nobody panics").len(), 2, "{realm}: nobody tries again and again");
        assert!(asked.lock().expect("nobody panics").iter().all(|(_, proof)| proof.is_empty()), "{realm}");
    }
    assert_eq!(stolen.lock().expect("nobody panics").len(), 0);
}

#[tokio::test]
async fn a_token_of_the_upstreams_own_service_is_used_again() {
    let content = noise(1000, 1);
    let digest = Digest::of(&content);
    let port = Arc::new(Mutex::new(0_u16));
    let own = port.clone();
    let (bound, asked) = fake(move |path, proof| match (path, proof) {
        (path, "Basic YW5uOnNlY3JldA==") if path.starts_with("/token?") => answer(200, r#"{"access_token":"good"}"#),
        (path, _) if path.starts_with("/token?") => answer(401, ""),
        (_, "Bearer good") => answer(200, noise(1000, 1)),
        _ => {
            let realm = format!("http://127.0.0.1:{}/token", own.lock().expect("nobody panics"));
            answer(401, "").with("www-authenticate", format!("Bearer realm=\"{realm}\",service=\"s\""))
        }
    })
    .await;
    *port.lock().expect("nobody panics") = bound;
    let server = start(vec![with_password(upstream("hub", &format!("http://127.0.0.1:{bound}")))]).await;
    assert!(server.get(&format!("/v2/hub/a/b/blobs/{digest}")).await.bytes().await.expect("body") == content);
    assert_eq!(asked_for(&asked, "/token?scope=repository%3Aa%2Fb%3Apull&service=s"), 1, "{asked:?}");
    expect(&server.get(&format!("/v2/hub/a/b/blobs/{}", Digest::of(b"x"))).await, 502);
    assert_eq!(asked_for(&asked, "/token"), 1);
}

#[tokio::test]
async fn nobody_is_led_to_what_only_this_machine_reaches() {
    let content = noise(1000, 1);
    let digest = Digest::of(&content);
    let (inner, reached) = fake(move |_, _| answer(200, noise(1000, 1))).await;
    for target in [
        format!("http://127.0.0.1:{inner}/blob"),
        format!("http://localhost:{inner}/blob"),
        format!("http://[::1]:{inner}/blob"),
        format!("//127.0.0.1:{inner}/blob"),
        "http://169.254.169.254/latest/meta-data".to_string(),
        "http://metadata.invalid/".to_string(),
        "gopher://127.0.0.1/".to_string(),
    ] {
        let location = target.clone();
        let (port, _) = fake(move |_, _| answer(307, "").with("location", location.clone())).await;
        let server = start(vec![upstream("hub", &format!("http://127.0.0.1:{port}"))]).await;
        let response = server.get(&format!("/v2/hub/a/blobs/{digest}")).await;
        assert!([502, 503].contains(&response.status().as_u16()), "{target}: {}", response.status());
    }
    assert_eq!(reached.lock().expect("nobody panics").len(), 0);

    // Within the upstream's own server it goes on, though not without end, and what is an address there is one.
    let (port, asked) = fake(move |path, _| match path {
        "/elsewhere" => answer(200, noise(1000, 1)),
        path if path.contains("/loop/") => answer(302, "").with("location", path),
        _ => answer(302, "").with("location", "/elsewhere"),
    })
    .await;
    let server = start(vec![upstream("hub", &format!("http://127.0.0.1:{port}"))]).await;
    assert!(server.get(&format!("/v2/hub/a/blobs/{digest}")).await.bytes().await.expect("body") == content);
    expect(&server.get(&format!("/v2/hub/loop/blobs/{digest}")).await, 502);
    assert!(asked_for(&asked, "/loop/") < 10);
}

#[tokio::test]
async fn what_is_not_what_it_should_be_is_neither_served_nor_kept() {
    let (content, is_honest) = (noise(5000, 1), Arc::new(Mutex::new(false)));
    let (digest, honest) = (Digest::of(&content), is_honest.clone());
    let config = Digest::of(b"{}");
    let manifest = image(&config, &[&digest], "");
    let manifest_digest = Digest::of(manifest.as_bytes());
    let sent = manifest.clone();
    let (port, asked) = fake(move |path, _| {
        let is_honest = *honest.lock().expect("nobody panics");
        let media_type = cfc_oci::media_type::MANIFEST;
        match path {
            path if path.contains("/blobs/") && is_honest => answer(200, noise(5000, 1)),
            path if path.contains("/blobs/") => answer(200, noise(5000, 2)),
            path if path.ends_with("/huge") => answer(200, vec![b' '; 5_000_000]).with("content-type", media_type),
            path if path.ends_with("/garbage") => answer(200, "<html>").with("content-type", "text/html"),
            _ if is_honest => answer(200, sent.clone()).with("content-type", media_type),
            _ => answer(200, sent.replace("2}", "2 }")).with("content-type", media_type),
        }
    })
    .await;
    let server = start(vec![upstream("hub", &format!("http://127.0.0.1:{port}"))]).await;
    let blob = format!("/v2/hub/a/blobs/{digest}");
    let by_digest = format!("/v2/hub/a/manifests/{manifest_digest}");
    for path in [&blob, &by_digest, &"/v2/hub/a/manifests/huge".to_string(), &"/v2/hub/a/manifests/garbage".to_string()]
    {
        expect_error(server.get(path).await, 502, "UNKNOWN").await;
        expect(&server.head(path).await, 502);
    }
    let usage = server.registry.usage().await.expect("adds up");
    assert!(usage.values().all(|usage| usage.bytes == 0 && usage.manifests == 0), "{usage:?}");
    *is_honest.lock().expect("nobody panics") = true;
    assert!(server.get(&blob).await.bytes().await.expect("body") == content);
    assert_eq!(text(&server, &by_digest).await, manifest);
    let before = asked.lock().expect("nobody panics").len();
    expect(&server.get(&blob).await, 200);
    assert_eq!(asked.lock().expect("nobody panics").len(), before, "it is kept now");
}

#[tokio::test]
async fn many_who_want_the_same_have_it_fetched_once() {
    let content = noise(300_000, 1);
    let digest = Digest::of(&content);
    let (port, asked) = fake(move |_, _| {
        std::thread::sleep(Duration::from_millis(50));
        answer(200, noise(300_000, 1))
    })
    .await;
    let server = start(vec![upstream("hub", &format!("http://127.0.0.1:{port}"))]).await;
    let path = format!("/v2/hub/a/blobs/{digest}");
    let pulls = (0..30).map(|_| async { server.get(&path).await.bytes().await.expect("body") });
    let pulled = futures::future::join_all(pulls).await;
    assert!(pulled.iter().all(|body| *body == content));
    assert_eq!(asked.lock().expect("nobody panics").len(), 1);
}

#[tokio::test]
async fn what_is_not_there_is_asked_for_again_only_after_a_while() {
    let there = Arc::new(Mutex::new(BTreeMap::new()));
    let served = there.clone();
    let (port, asked) = fake(move |path, _| match served.lock().expect("nobody panics").get(path) {
        Some(text) => answer(200, String::clone(text)).with("content-type", cfc_oci::media_type::INDEX),
        None => answer(404, ""),
    })
    .await;
    let server = start(vec![upstream("hub", &format!("http://127.0.0.1:{port}"))]).await;
    for _ in 0..5 {
        expect(&server.get("/v2/hub/a/manifests/v1").await, 404);
    }
    assert!(asked_for(&asked, "/v2/a/manifests/v1") <= 2);
    let index = crate::harness::index(&[], "");
    there.lock().expect("nobody panics").insert("/v2/a/manifests/v1".to_string(), index.clone());
    for _ in 0..600 {
        if server.get("/v2/hub/a/manifests/v1").await.status() == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(text(&server, "/v2/hub/a/manifests/v1").await, index);
}

#[tokio::test]
async fn what_layers_say_of_other_places_is_not_followed() {
    let (elsewhere, reached) = fake(|_, _| answer(200, "x")).await;
    let (config, layer) = (Digest::of(b"{}"), Digest::of(b"x"));
    let json = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":2}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.nondistributable.v1.tar","digest":"{layer}","size":1,"urls":["http://127.0.0.1:{elsewhere}/layer"]}}]}}"#
    );
    let (port, _) = fake(move |path, _| match path.contains("/manifests/") {
        true => answer(200, json.clone()).with("content-type", cfc_oci::media_type::MANIFEST),
        false => answer(404, ""),
    })
    .await;
    let server = start(vec![upstream("hub", &format!("http://127.0.0.1:{port}"))]).await;
    expect(&server.get("/v2/hub/a/manifests/v1").await, 200);
    expect(&server.get(&format!("/v2/hub/a/blobs/{layer}")).await, 404);
    assert_eq!(reached.lock().expect("nobody panics").len(), 0);
}
