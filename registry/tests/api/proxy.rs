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
use cfc_registry::{Login, Options, QuotaRule, Quotas, Registry, Upstream};
use tempfile::TempDir;

use crate::hand::pass_on;
use crate::harness::{Server, expect, expect_error, header, image, noise, send};
use crate::process::Process;

fn upstream(prefix: &str, url: &str) -> Upstream {
    Upstream { fresh: Duration::ZERO, ..Upstream::new(prefix, url) }
}

fn at(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

fn with_password(upstream: Upstream) -> Upstream {
    Upstream { credentials: Some(Login::new("ann", "secret")), ..upstream }
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
    let refused = expect_error(server.get("/v2/unknown/app/manifests/v1").await, 403, "DENIED").await;
    assert!(refused.contains("the upstream answered 401"), "{refused}");
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

#[tokio::test]
async fn a_client_that_uses_it_as_a_mirror_says_of_which_registry() {
    let directory = TempDir::new().expect("temporary directory");
    let Some(open) = Peer::start(directory.path(), "").await else { return };
    let (image, layer) = open.push_image("library/app", "v1", 1).await;
    let host = open.url.trim_start_matches("http://").to_string();
    let named =
        |namespace: Option<&str>| Upstream { namespace: namespace.map(str::to_string), ..upstream("hub", &open.url) };
    let path = |name: &str, ns: &str| format!("/v2/{name}/manifests/v1?ns={ns}");

    // As containerd asks a mirror: `docker.io` for `registry-1.docker.io`, hosts as they are for others.
    let server = start(vec![named(Some("docker.io"))]).await;
    for name in ["library/app", "hub/library/app"] {
        let pulled = server.get(&path(name, "docker.io")).await;
        assert_eq!(header(&pulled, "oci-namespace"), "docker.io", "{name}");
        assert_eq!(pulled.text().await.expect("text"), image, "{name}");
    }
    let blob = server.get(&format!("/v2/library/app/blobs/{layer}?ns=docker.io")).await;
    assert!(blob.bytes().await.expect("body") == noise(100_000, 1));
    let tags = server.get("/v2/library/app/tags/list?ns=docker.io").await;
    assert_eq!(tags.json::<serde_json::Value>().await.expect("JSON")["tags"], serde_json::json!(["v1"]));
    let of_host = start(vec![named(None)]).await;
    expect(&of_host.get(&path("library/app", &host)).await, 200);

    // A registry that is no upstream chooses nothing, and without one names are this registry's own.
    let (own, _) = server.push_image("library/app", "v1", "own").await;
    for ns in ["elsewhere.example", &host] {
        let pulled = server.get(&path("library/app", ns)).await;
        assert_eq!(header(&pulled, "docker-content-digest"), own.to_string(), "{ns}");
        assert!(pulled.headers().get("oci-namespace").is_none(), "{ns}");
    }
    // Nothing is written to an upstream by that way either.
    let push = format!("/v2/library/app/blobs/uploads/?digest={}&ns=docker.io", Digest::of(b"x"));
    expect(&send(server.request("POST", &push).body("x")).await, 201);
    expect(&server.get(&format!("/v2/library/app/blobs/{}", Digest::of(b"x"))).await, 200);
}

/// In front of a server: the first connection breaks off after so many bytes of what the server says.
async fn breaking(server: String, after: u64) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        let mut limit = after;
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(pass_on(client, server.clone(), std::mem::replace(&mut limit, u64::MAX)));
        }
    });
    port
}

#[tokio::test]
async fn an_upstream_that_breaks_off_gives_the_rest() {
    let directory = TempDir::new().expect("temporary directory");
    let Some(peer) = Peer::start(directory.path(), "").await else { return };
    let content = noise(3_000_000, 1);
    let digest = peer.push_blob("library/app", &content).await;
    let port = breaking(peer.url.trim_start_matches("http://").to_string(), 1_000_000).await;
    let server = start(vec![upstream("hub", &at(port))]).await;
    assert!(bytes(&server, &format!("/v2/hub/library/app/blobs/{digest}")).await == content);
    drop(peer);
    assert!(bytes(&server, &format!("/v2/hub/library/app/blobs/{digest}")).await == content);
}

/// A request that a fake got: its method and path, and what it proved who it is with.
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
            let method = request.method().clone();
            let proof = request.headers().get("authorization").map(|value| value.to_str().expect("ASCII").to_string());
            let proof = proof.unwrap_or_default();
            let answer = respond(&path, &proof);
            all.lock().expect("nobody panics").push((format!("{method} {path}"), proof));
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
async fn a_password_that_was_replaced_is_used_and_one_that_is_gone_goes_on() {
    let directory = TempDir::new().expect("temporary directory");
    let file = directory.path().join("password");
    std::fs::write(&file, "old\n").expect("writes");
    let login = Login::from_file("ann", &file).expect("a password");
    let wanted = Arc::new(Mutex::new("old"));
    let (expected, json) = (wanted.clone(), crate::harness::index(&[], ""));
    let (port, _) = fake(move |_, proof| {
        let login = format!("ann:{}", expected.lock().expect("nobody panics"));
        match proof == format!("Basic {}", cfc_oci::base64::encode(login.as_bytes())) {
            true => answer(200, json.clone()).with("content-type", cfc_oci::media_type::INDEX),
            false => answer(401, "").with("www-authenticate", "Basic realm=\"x\""),
        }
    })
    .await;
    let server = start(vec![Upstream { credentials: Some(login), ..upstream("hub", &at(port)) }]).await;
    expect(&server.get("/v2/hub/a/manifests/v1").await, 200);
    *wanted.lock().expect("nobody panics") = "new";
    expect(&server.get("/v2/hub/a/manifests/v2").await, 403);
    std::fs::write(&file, "new\n").expect("writes");
    expect(&server.get("/v2/hub/a/manifests/v3").await, 200);
    std::fs::write(&file, "\n").expect("writes");
    expect(&server.get("/v2/hub/a/manifests/v4").await, 200);
    std::fs::remove_file(&file).expect("removes");
    expect(&server.get("/v2/hub/a/manifests/v5").await, 200);
    assert!(Login::from_file("ann", &file).is_err());
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
        // Of a blob only what the upstream says is told.
        expect(&server.head(path).await, if path.contains("/blobs/") { 200 } else { 502 });
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
async fn tags_are_those_of_the_upstream_and_while_it_is_away_those_that_are_kept() {
    let (index, is_away) = (crate::harness::index(&[], ""), Arc::new(Mutex::new(false)));
    let away = is_away.clone();
    let (port, asked) = fake(move |path, _| match path {
        _ if *away.lock().expect("nobody panics") => answer(503, ""),
        "/v2/a/tags/list" => answer(200, r#"{"name":"a","tags":["v2","v1","../x"]}"#)
            .with("link", "</v2/a/tags/list?next_page=x>; rel=\"next\""),
        "/v2/a/tags/list?next_page=x" => answer(200, r#"{"name":"a","tags":["v10","v2"]}"#),
        "/v2/empty/tags/list" => answer(200, r#"{"name":"empty","tags":null}"#),
        "/v2/odd/tags/list" => answer(200, "<html>"),
        "/v2/closed/tags/list" => answer(403, ""),
        path if path.contains("/manifests/") => {
            answer(200, index.clone()).with("content-type", cfc_oci::media_type::INDEX)
        }
        _ => answer(404, ""),
    })
    .await;
    let server = start(vec![upstream("hub", &at(port))]).await;
    let listed = async |path: &str| {
        let answer = server.get(path).await;
        expect(&answer, 200);
        let link = answer.headers().get("link").map(|link| link.to_str().expect("ASCII").to_string());
        let body: serde_json::Value = answer.json().await.expect("JSON");
        (body["tags"].to_string(), link.unwrap_or_default())
    };
    let all = "/v2/hub/a/tags/list";
    assert_eq!(listed(all).await, (r#"["v1","v10","v2"]"#.to_string(), String::new()));
    let first = listed(&format!("{all}?n=1")).await;
    assert_eq!(first, (r#"["v1"]"#.to_string(), format!("<{all}?n=1&last=v1>; rel=\"next\"")));
    assert_eq!(listed(&format!("{all}?n=5&last=v1")).await.0, r#"["v10","v2"]"#);
    assert_eq!(listed("/v2/hub/empty/tags/list").await.0, "[]");
    expect_error(server.get("/v2/hub/none/tags/list").await, 404, "NAME_UNKNOWN").await;
    expect_error(server.get("/v2/hub/odd/tags/list").await, 502, "UNKNOWN").await;
    expect_error(server.get("/v2/hub/closed/tags/list").await, 403, "DENIED").await;
    // What was pulled is kept, and told while nobody knows better.
    expect(&server.get("/v2/hub/a/manifests/v10").await, 200);
    *is_away.lock().expect("nobody panics") = true;
    assert_eq!(listed(all).await.0, r#"["v10"]"#);
    let before = asked_for(&asked, "/tags/list");
    assert_eq!(listed(all).await.0, r#"["v10"]"#);
    // Of what was never pulled nobody knows whether it is there.
    for path in ["/v2/hub/new/tags/list", "/v2/hub/a/b/tags/list?n=1"] {
        let away = server.get(path).await;
        assert_eq!(header(&away, "retry-after"), "5");
        expect_error(away, 503, "UNKNOWN").await;
    }
    assert_eq!(asked_for(&asked, "/tags/list"), before, "it is left alone for a while");
}

/// A proxy of the environment would resolve names for us, and not as we do.
#[tokio::test]
async fn upstreams_are_reached_directly_whatever_the_environment_says() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback port");
    let proxy = format!("http://{}", listener.local_addr().expect("bound"));
    let index = crate::harness::index(&[], "");
    let sent = index.clone();
    let (port, asked) =
        fake(move |_, _| answer(200, sent.clone()).with("content-type", cfc_oci::media_type::INDEX)).await;
    let directory = TempDir::new().expect("temporary directory");
    // The second one does not speak TLS; what counts is who is asked.
    let upstreams = [&*format!("http://127.0.0.1:{port}"), &*format!("https://127.0.0.1:{port}")];
    let registry = Process::start_with_proxy(&proxy, &upstreams, directory.path()).await;
    let pulled = registry.send("GET", "/v2/up0/a/manifests/v1", &[], b"").await;
    expect(&pulled, 200);
    assert_eq!(pulled.text().await.expect("text"), index);
    assert_eq!(asked_for(&asked, "/v2/a/manifests/v1"), 1);
    expect(&registry.send("GET", "/v2/up1/a/manifests/v1", &[], b"").await, 503);
    let proxied = tokio::time::timeout(Duration::from_millis(100), listener.accept()).await;
    assert!(proxied.is_err(), "the proxy was asked");
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

/// An upstream that takes its time: how many ask it at once, and at most so far.
#[derive(Clone, Default)]
struct Gauge(Arc<Mutex<(usize, usize)>>);

impl Gauge {
    fn enter(&self) {
        let mut counts = self.0.lock().expect("nobody panics");
        counts.0 += 1;
        counts.1 = counts.1.max(counts.0);
    }

    fn leave(&self) {
        self.0.lock().expect("nobody panics").0 -= 1;
    }

    fn most(&self) -> usize {
        self.0.lock().expect("nobody panics").1
    }
}

/// Serves `router` on a port of loopback.
async fn serve(router: axum::Router) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move { axum::serve(listener, router).await });
    port
}

async fn bytes(server: &Server, path: &str) -> Vec<u8> {
    let response = server.get(path).await;
    expect(&response, 200);
    response.bytes().await.expect("body").to_vec()
}

/// Whether nothing of an upstream is kept.
async fn keeps_nothing(server: &Server) -> bool {
    let usage = server.registry.usage().await.expect("adds up");
    usage.values().all(|usage| usage.bytes == 0 && usage.manifests == 0)
}

#[tokio::test]
async fn who_only_looks_for_a_blob_has_nothing_fetched() {
    let content = noise(50_000, 1);
    let digest = Digest::of(&content);
    let known = format!("/v2/a/blobs/{digest}");
    let (port, asked) = fake(move |path, _| match path == known {
        true => answer(200, noise(50_000, 1)),
        false => answer(404, ""),
    })
    .await;
    let server = start(vec![upstream("hub", &at(port))]).await;
    let blob = format!("/v2/hub/a/blobs/{digest}");
    let looked = server.head(&blob).await;
    expect(&looked, 200);
    assert_eq!(header(&looked, "content-length"), "50000");
    assert_eq!(header(&looked, "docker-content-digest"), digest.to_string());
    expect(&server.head(&format!("/v2/hub/a/blobs/{}", Digest::of(b"none"))).await, 404);
    assert_eq!(asked_for(&asked, "GET "), 0, "{asked:?}");
    assert!(keeps_nothing(&server).await);
    assert!(bytes(&server, &blob).await == content);
    let before = asked_for(&asked, "");
    assert_eq!(header(&server.head(&blob).await, "content-length"), "50000");
    assert_eq!(asked_for(&asked, ""), before, "what is kept is told from here");

    // An upstream that does not say how large it is has to give it.
    let gets = axum::Router::new().fallback(|request: Request| async move {
        match request.method().as_str() {
            "GET" => (http::StatusCode::OK, noise(50_000, 1)),
            _ => (http::StatusCode::METHOD_NOT_ALLOWED, Vec::new()),
        }
    });
    let server = start(vec![upstream("hub", &at(serve(gets).await))]).await;
    assert_eq!(header(&server.head(&blob).await, "content-length"), "50000");
}

#[tokio::test]
async fn so_many_blobs_are_fetched_at_once_and_no_more() {
    let (gauge, inside) = (Gauge::default(), Gauge::default());
    let shared = inside.clone();
    let slow = axum::Router::new().fallback(move |request: Request| {
        let inside = shared.clone();
        async move {
            inside.enter();
            tokio::time::sleep(Duration::from_millis(100)).await;
            inside.leave();
            let path = request.uri().path();
            let seed = (0..12).find(|seed| path.ends_with(&Digest::of(&noise(1000, *seed)).to_string()));
            seed.map_or((http::StatusCode::NOT_FOUND, Vec::new()), |seed| (http::StatusCode::OK, noise(1000, seed)))
        }
    });
    let port = serve(slow).await;
    let server = start(vec![Upstream { fetches: 3, ..upstream("hub", &at(port)) }]).await;
    let pulls = (0..12).map(|seed| {
        let (server, gauge) = (&server, gauge.clone());
        async move {
            gauge.enter();
            let path = format!("/v2/hub/a/blobs/{}", Digest::of(&noise(1000, seed)));
            assert!(bytes(server, &path).await == noise(1000, seed));
            gauge.leave();
        }
    });
    futures::future::join_all(pulls).await;
    assert_eq!((gauge.most(), inside.most()), (12, 3));
}

#[tokio::test]
async fn an_upstream_that_never_ends_is_given_up() {
    let content = noise(1000, 1);
    let digest = Digest::of(&content);
    let is_slow = Arc::new(Mutex::new(true));
    let slow = is_slow.clone();
    let router = axum::Router::new().fallback(move |request: Request| {
        let is_slow = *slow.lock().expect("nobody panics");
        let is_tag = request.uri().path().ends_with("/never");
        async move {
            let drip = |number: u64| async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Some((Ok::<_, std::io::Error>("x"), number + 1))
            };
            match is_slow || is_tag {
                true => Body::from_stream(futures::stream::unfold(0, drip)),
                false => Body::from(noise(1000, 1)),
            }
        }
    });
    let port = serve(router).await;
    let server =
        start(vec![Upstream { timeout: Duration::from_millis(500), fetches: 1, ..upstream("hub", &at(port)) }]).await;
    let blob = format!("/v2/hub/a/blobs/{digest}");
    for path in [&blob, &"/v2/hub/a/manifests/never".to_string()] {
        let late = expect_error(server.get(path).await, 503, "UNKNOWN").await;
        assert!(late.contains("longer than `timeout` allows"), "{late}");
    }
    // Its turn is free again, and nothing of it stays in the way.
    *is_slow.lock().expect("nobody panics") = false;
    assert!(bytes(&server, &blob).await == content);
}

#[tokio::test]
async fn what_there_is_no_room_for_is_passed_on() {
    let (large, small) = (noise(100_000, 1), noise(100, 2));
    let manifest = image(&Digest::of(&small), &[&Digest::of(&large)], "");
    let served = manifest.clone();
    let respond = move |path: &str, _: &str| match path {
        path if path.ends_with(&Digest::of(&noise(100_000, 1)).to_string()) => answer(200, noise(100_000, 1)),
        path if path.ends_with(&Digest::of(&noise(100, 2)).to_string()) => answer(200, noise(100, 2)),
        // Another one than is asked for.
        path if path.contains("/blobs/") => answer(200, noise(100_000, 3)),
        path if path.ends_with("/v1") => {
            answer(200, served.clone()).with("content-type", cfc_oci::media_type::MANIFEST)
        }
        _ => answer(404, ""),
    };
    let (port, asked) = fake(respond).await;
    // The length of a body that is sent in chunks is not known before its end.
    let chunks = axum::Router::new().fallback(|| async {
        let pieces: Vec<Result<Vec<u8>, std::io::Error>> =
            noise(100_000, 1).chunks(999).map(|p| Ok(p.to_vec())).collect();
        Body::from_stream(futures::stream::iter(pieces))
    });
    let chunked = serve(chunks).await;
    let blob = |prefix: &str, content: &[u8]| format!("/v2/{prefix}/a/blobs/{}", Digest::of(content));
    let quotas = [
        Quotas { total: Some(1000), ..Quotas::default() },
        Quotas { blob: Some(1000), ..Quotas::default() },
        Quotas { rules: vec![QuotaRule { repositories: vec!["**".to_string()], bytes: 1000 }], ..Quotas::default() },
    ];
    for quotas in quotas {
        let upstreams = vec![upstream("hub", &at(port)), upstream("chunked", &at(chunked))];
        let server = Server::start_with(Options { upstreams, quotas, ..Options::default() }).await;
        let before = asked_for(&asked, "GET ");
        for _ in 0..2 {
            let passed = server.get(&blob("hub", &large)).await;
            expect(&passed, 200);
            assert_eq!(header(&passed, "content-length"), "100000");
            assert_eq!(header(&passed, "docker-content-digest"), Digest::of(&large).to_string());
            assert!(passed.bytes().await.expect("body") == large);
            assert!(bytes(&server, &blob("chunked", &large)).await == large);
        }
        assert!(keeps_nothing(&server).await);
        assert_eq!(asked_for(&asked, "GET ") - before, 4, "once to see that there is no room, once to pass it on");
        // What is not what it should be has no end.
        let wrong = async { server.request("GET", &blob("hub", b"something else")).send().await?.bytes().await };
        assert!(wrong.await.is_err());
        // What there is room for is kept.
        assert!(bytes(&server, &blob("hub", &small)).await == small);
        assert!(!keeps_nothing(&server).await);
        let before = asked_for(&asked, "");
        assert!(bytes(&server, &blob("hub", &small)).await == small);
        assert_eq!(asked_for(&asked, ""), before);
        // One's own pushes are told of the quota.
        let own = server.request("POST", &format!("/v2/own/blobs/uploads/?digest={}", Digest::of(&large)));
        let refused = send(own.body(large.clone())).await.status().as_u16();
        assert!([403, 413].contains(&refused), "{refused}");
    }
    let quotas = Quotas { total: Some(1), ..Quotas::default() };
    let upstreams = vec![upstream("hub", &at(port))];
    let server = Server::start_with(Options { upstreams, quotas, ..Options::default() }).await;
    assert_eq!(text(&server, "/v2/hub/a/manifests/v1").await, manifest);
    let looked = server.head("/v2/hub/a/manifests/v1").await;
    assert_eq!(header(&looked, "content-length"), manifest.len().to_string());
    assert_eq!(header(&looked, "docker-content-digest"), Digest::of(manifest.as_bytes()).to_string());
    assert!(keeps_nothing(&server).await);
}

#[tokio::test]
async fn an_upstream_that_cannot_be_asked_safely_is_refused_at_the_start() {
    let directory = TempDir::new().expect("temporary directory");
    for url in ["nonsense", "ftp://r.example", "https://ann:secret@r.example", "https://r.example/?x=y", "https://"] {
        let options = Options { upstreams: vec![Upstream::new("hub", url)], ..Options::default() };
        let refused = Registry::open(directory.path(), options).err().expect(url).to_string();
        assert!(refused.starts_with("cannot use the upstream `") && refused.ends_with("`"), "{refused}");
    }
}

#[tokio::test]
async fn servers_that_the_operator_has_named_are_gone_to_wherever_they_are() {
    let content = noise(1000, 1);
    let path = format!("/v2/hub/a/blobs/{}", Digest::of(&content));
    let (store, at_store) = fake(|_, _| answer(200, noise(1000, 1))).await;
    let (service, at_service) = fake(|_, proof| match proof {
        "Basic YW5uOnNlY3JldA==" => answer(200, r#"{"token":"good"}"#),
        _ => answer(401, ""),
    })
    .await;
    let (port, _) = fake(move |_, proof| match proof {
        "Bearer good" => answer(307, "").with("location", format!("{}/blob", at(store))),
        _ => answer(401, "").with("www-authenticate", format!("Bearer realm=\"{}/token\",service=\"s\"", at(service))),
    })
    .await;
    let named = |realm: u16, redirect: u16| Upstream {
        realms: vec![format!("127.0.0.1:{realm}")],
        redirects: vec![format!("127.0.0.1:{redirect}")],
        ..with_password(upstream("hub", &at(port)))
    };
    assert!(bytes(&start(vec![named(service, store)]).await, &path).await == content);
    let proofs: Vec<String> = at_store.lock().expect("nobody panics").iter().map(|(_, proof)| proof.clone()).collect();
    assert_eq!(proofs, [""], "where it redirects to learns nothing");
    // Neither name is good for the other thing, nor for another port.
    let asked = (asked_for(&at_service, ""), asked_for(&at_store, ""));
    for wrong in [named(service, service), named(store, store), named(service + 1, store), named(service, store + 1)] {
        expect_error(start(vec![wrong]).await.get(&path).await, 502, "UNKNOWN").await;
    }
    assert_eq!(asked_for(&at_store, ""), asked.1);
    assert_eq!(asked_for(&at_service, ""), asked.0 + 2);
}

#[tokio::test]
async fn that_an_upstream_refuses_us_is_said() {
    for status in [401, 403] {
        let (port, _) = fake(move |_, _| answer(status, "")).await;
        let server = start(vec![upstream("hub", &at(port))]).await;
        let blob = format!("/v2/hub/a/blobs/{}", Digest::of(b"x"));
        for path in [&blob, &"/v2/hub/a/manifests/v1".to_string()] {
            let refused = expect_error(server.get(path).await, 403, "DENIED").await;
            assert!(refused.contains(&format!("the upstream answered {status}")), "{refused}");
            let looked = server.head(path).await;
            expect(&looked, 403);
            assert!(looked.headers().get("www-authenticate").is_none());
        }
    }
}

#[tokio::test]
async fn a_tag_is_renewed_by_whoever_asks_for_it_and_fetched_when_it_moved() {
    let index = |name: &str| crate::harness::index(&[], &format!(r#","annotations":{{"name":"{name}"}}"#));
    let current = Arc::new(Mutex::new(None::<String>));
    let served = current.clone();
    let (port, asked) = fake(move |_, _| match served.lock().expect("nobody panics").clone() {
        Some(json) => {
            let digest = Digest::of(json.as_bytes()).to_string();
            answer(200, json).with("content-type", cfc_oci::media_type::INDEX).with("docker-content-digest", digest)
        }
        None => answer(503, ""),
    })
    .await;
    let server = start(vec![upstream("hub", &at(port))]).await;
    let is = |json: Option<String>| *current.lock().expect("nobody panics") = json;
    for method in ["GET", "HEAD"] {
        let path = format!("/v2/hub/{}/manifests/v1", method.to_lowercase());
        let ask = || async {
            let response = send(server.request(method, &path)).await;
            expect(&response, 200);
            header(&response, "docker-content-digest")
        };
        let digest = |name: &str| Digest::of(index(name).as_bytes()).to_string();
        is(Some(index("first")));
        assert_eq!(ask().await, digest("first"));
        let fetched = asked_for(&asked, "GET ");
        assert_eq!(ask().await, digest("first"));
        assert_eq!(asked_for(&asked, "GET "), fetched, "{method}: it is asked for, not fetched again");
        is(Some(index("second")));
        assert_eq!(ask().await, digest("second"), "{method}: it moved");
        is(None);
        assert_eq!(ask().await, digest("second"), "{method}: it is served while the upstream is away");
        is(Some(index("third")));
        let found = async {
            while ask().await != digest("third") {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), found).await.expect("it is found to have moved afterwards");
    }
}

#[tokio::test]
async fn what_refers_to_an_image_of_an_upstream_is_listed() {
    let subject = Digest::of(b"subject");
    let descriptor = |text: &str, kind: &str| {
        let digest = Digest::of(text.as_bytes());
        let media_type = cfc_oci::media_type::MANIFEST;
        format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":1,"artifactType":"{kind}"}}"#)
    };
    let list = |entries: &[String]| {
        let media_type = cfc_oci::media_type::INDEX;
        format!(r#"{{"schemaVersion":2,"mediaType":"{media_type}","manifests":[{}]}}"#, entries.join(","))
    };
    let pages = [list(&[descriptor("a", "sbom")]), list(&[descriptor("b", "signature"), descriptor("c", "sbom")])];
    let by_tag = list(&[descriptor("d", "signature")]);
    let is_away = Arc::new(Mutex::new(false));
    let (away, of, tag) = (is_away.clone(), subject.to_string(), subject.to_string().replace(':', "-"));
    let (port, _) = fake(move |path, _| match path {
        _ if *away.lock().expect("nobody panics") => answer(500, ""),
        path if path == format!("/v2/api/referrers/{of}") => {
            answer(200, pages[0].clone()).with("link", format!("</v2/api/referrers/{of}?last=x>; rel=\"next\""))
        }
        path if path == format!("/v2/api/referrers/{of}?last=x") => answer(200, pages[1].clone()),
        path if path == format!("/v2/tag/manifests/{tag}") => answer(200, by_tag.clone()),
        "/v2/tag/manifests/by-hand" => answer(200, list(&[])).with("content-type", cfc_oci::media_type::INDEX),
        path if path.starts_with("/v2/odd/") => answer(200, "<html>"),
        _ => answer(404, "404 page not found"),
    })
    .await;
    let server = start(vec![upstream("hub", &at(port))]).await;
    let listed = |name: &str, query: &str| {
        let (server, path) = (&server, format!("/v2/hub/{name}/referrers/{subject}{query}"));
        async move {
            let response = server.get(&path).await;
            expect(&response, 200);
            let index: serde_json::Value = response.json().await.expect("JSON");
            let mut digests: Vec<String> = index["manifests"]
                .as_array()
                .expect("a list")
                .iter()
                .map(|entry| entry["digest"].as_str().expect("text").to_string())
                .collect();
            digests.sort();
            digests
        }
    };
    let digests = |texts: &[&str]| {
        let mut digests: Vec<String> = texts.iter().map(|text| Digest::of(text.as_bytes()).to_string()).collect();
        digests.sort();
        digests
    };
    assert_eq!(listed("api", "").await, digests(&["a", "b", "c"]));
    assert_eq!(listed("api", "?artifactType=sbom").await, digests(&["a", "c"]));
    assert_eq!(listed("tag", "").await, digests(&["d"]));
    assert_eq!(listed("none", "").await, digests(&[]));
    expect_error(server.get(&format!("/v2/hub/odd/referrers/{subject}")).await, 502, "UNKNOWN").await;
    expect(&server.get("/v2/hub/tag/manifests/by-hand").await, 200);
    *is_away.lock().expect("nobody panics") = true;
    assert_eq!(listed("tag", "").await, digests(&[]), "what is kept here, which is nothing");
    // Of what was never pulled nobody knows whether something refers to it.
    let away = expect_error(server.get(&format!("/v2/hub/api/referrers/{subject}")).await, 503, "UNKNOWN").await;
    assert!(away.contains("it answered 500") || away.contains("it was away"), "{away}");
}

/// An upstream that answers until it is silenced, and whether it is and how often it was asked.
async fn moody(json: String) -> (u16, Arc<Mutex<(bool, usize)>>) {
    let state = Arc::new(Mutex::new((false, 0)));
    let shared = state.clone();
    let router = axum::Router::new().fallback(move || {
        let (state, json) = (shared.clone(), json.clone());
        async move {
            let is_silent = {
                let mut state = state.lock().expect("nobody panics");
                state.1 += 1;
                state.0
            };
            if is_silent {
                std::future::pending::<()>().await;
            }
            ([("content-type", cfc_oci::media_type::INDEX)], json)
        }
    });
    (serve(router).await, state)
}

#[tokio::test]
async fn what_is_kept_is_served_while_the_upstream_hangs() {
    let (port, state) = moody(crate::harness::index(&[], "")).await;
    let hanging = Upstream { fetches: 2, timeout: Duration::from_secs(2), ..upstream("hub", &at(port)) };
    let server = start(vec![hanging]).await;
    let paths: Vec<String> = (0..40).map(|number| format!("/v2/hub/a/manifests/v{number}")).collect();
    for path in &paths {
        expect(&server.get(path).await, 200);
    }
    *state.lock().expect("nobody panics") = (true, 0);
    let pull_all =
        || futures::future::join_all(paths.iter().map(|path| async { expect(&server.get(path).await, 200) }));
    tokio::time::timeout(Duration::from_secs(60), pull_all()).await.expect("nobody waits for others' questions");
    assert!(state.lock().expect("nobody panics").1 <= 4, "it is not asked for every tag");
    // Who asks for one tag at once asks once.
    tokio::time::sleep(Duration::from_secs(6)).await;
    state.lock().expect("nobody panics").1 = 0;
    futures::future::join_all((0..40).map(|_| async { expect(&server.get(&paths[0]).await, 200) })).await;
    assert_eq!(state.lock().expect("nobody panics").1, 1);
    let referrers = format!("/v2/hub/a/referrers/{}", Digest::of(b"x"));
    expect(&server.get(&referrers).await, 200);
    assert_eq!(state.lock().expect("nobody panics").1, 1, "it was away a moment ago");
}

#[tokio::test]
async fn a_blob_is_looked_for_where_only_fetching_is_signed() {
    let content = noise(5000, 1);
    let path = format!("/v2/hub/a/blobs/{}", Digest::of(&content));
    let store = axum::Router::new().fallback(|request: Request| async move {
        match request.method().as_str() {
            "GET" => (http::StatusCode::OK, noise(5000, 1)),
            _ => (http::StatusCode::FORBIDDEN, Vec::new()),
        }
    });
    let store = serve(store).await;
    let (port, _) = fake(move |_, _| answer(307, "").with("location", format!("{}/blob", at(store)))).await;
    let redirected = Upstream { redirects: vec![format!("127.0.0.1:{store}")], ..upstream("hub", &at(port)) };
    let looked = start(vec![redirected]).await.head(&path).await;
    expect(&looked, 200);
    assert_eq!(header(&looked, "content-length"), "5000");
    // One that says of every blob that it is nothing.
    let nothing = axum::Router::new().fallback(|request: Request| async move {
        let body = if request.method() == "GET" { noise(5000, 1) } else { Vec::new() };
        ([("content-length", body.len().to_string())], body)
    });
    let server = start(vec![upstream("hub", &at(serve(nothing).await))]).await;
    assert_eq!(header(&server.head(&path).await, "content-length"), "5000");
}

#[tokio::test]
async fn who_takes_long_to_take_a_blob_keeps_nobody_from_another() {
    let large = noise(20_000_000, 1);
    let (large_digest, small_digest) = (Digest::of(&large), Digest::of(&noise(100, 2)));
    let small = format!("/blobs/{small_digest}");
    let large = Arc::new(large);
    let router = axum::Router::new().fallback(move |request: Request| {
        let body = if request.uri().path().ends_with(&small) { noise(100, 2) } else { large.to_vec() };
        async move { body }
    });
    let port = serve(router).await;
    let quotas = Quotas { blob: Some(1000), ..Quotas::default() };
    let upstreams = vec![Upstream { fetches: 1, ..upstream("hub", &at(port)) }];
    let server = Server::start_with(Options { upstreams, quotas, ..Options::default() }).await;
    let stopped = server.get(&format!("/v2/hub/a/blobs/{large_digest}")).await;
    expect(&stopped, 200);
    // It has the head, and does not read on.
    let other = async { bytes(&server, &format!("/v2/hub/a/blobs/{small_digest}")).await };
    let other = tokio::time::timeout(Duration::from_secs(30), other).await.expect("another blob is fetched meanwhile");
    assert!(other == noise(100, 2));
    drop(stopped);
}

#[tokio::test]
async fn an_upstream_that_has_enough_is_not_asked_for_more() {
    let json = crate::harness::index(&[], "");
    let has_enough = Arc::new(Mutex::new(false));
    let enough = has_enough.clone();
    let (port, asked) = fake(move |_, _| match *enough.lock().expect("nobody panics") {
        true => answer(429, ""),
        false => answer(200, json.clone()).with("content-type", cfc_oci::media_type::INDEX),
    })
    .await;
    let server = start(vec![upstream("hub", &at(port))]).await;
    expect(&server.get("/v2/hub/a/manifests/v1").await, 200);
    *has_enough.lock().expect("nobody panics") = true;
    let before = asked_for(&asked, "");
    expect(&server.get("/v2/hub/a/manifests/v1").await, 200);
    assert_eq!(asked_for(&asked, "") - before, 1);
}
