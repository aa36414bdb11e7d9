//! A registry that a team shares: users, rules, an encrypted connection, and the operator's own socket.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use cfc_oci::{Digest, media_type};
use cfc_registry::{AccessRules, CollectionRequest, Options, Permission, Rule, Tls, ask_to_collect};
use serde_json::json;
use tempfile::TempDir;

use crate::harness::{Server, expect, expect_error, header, noise, operator, send};

pub fn write_users(directory: &Path, users: &[(&str, &str)]) -> PathBuf {
    let line = |(name, password): &(&str, &str)| format!("{name}:{}\n", bcrypt::hash(password, 4).expect("hashes"));
    let path = directory.join("htpasswd");
    std::fs::write(&path, users.iter().map(line).collect::<String>()).expect("writes");
    path
}

pub fn rules() -> Vec<Rule> {
    let rule = |user: &str, repositories: &str, actions: &[Permission]| Rule {
        users: vec![user.to_string()],
        repositories: vec![repositories.to_string()],
        actions: actions.to_vec(),
    };
    vec![
        rule("anonymous", "public/**", &[Permission::Pull]),
        rule("ann", "**", &[Permission::Pull, Permission::Push, Permission::Delete]),
        rule("bob", "team/*", &[Permission::Pull]),
    ]
}

async fn start(directory: &Path, rules: Vec<Rule>) -> Server {
    let users = write_users(directory, &[("ann", "secret"), ("bob", "guess")]);
    let access = AccessRules::new(&users, rules).expect("opens");
    Server::start_with(Options { authorizer: Some(Arc::new(access)), ..Options::default() }).await
}

async fn status(server: &Server, user: Option<(&str, &str)>, method: &str, path: &str) -> u16 {
    let request = server.request(method, path);
    let request = match user {
        Some((name, password)) => request.basic_auth(name, Some(password)),
        None => request,
    };
    send(request).await.status().as_u16()
}

#[tokio::test]
async fn users_do_what_rules_allow_and_others_are_asked_who_they_are() {
    let directory = TempDir::new().expect("temporary directory");
    let server = start(directory.path(), rules()).await;
    let (ann, bob) = (Some(("ann", "secret")), Some(("bob", "guess")));
    let digest = Digest::of(b"x");
    for name in ["public/a", "team/app", "team/app/sub"] {
        let path = format!("/v2/{name}/blobs/uploads/?digest={digest}");
        expect(&send(server.request("POST", &path).basic_auth("ann", Some("secret")).body("x")).await, 201);
    }
    let blob = |name: &str| format!("/v2/{name}/blobs/{digest}");
    for (user, method, path, expected) in [
        (None, "GET", "/v2/".to_string(), 401),
        (ann, "GET", "/v2/".to_string(), 200),
        (bob, "GET", "/v2/".to_string(), 200),
        (Some(("ann", "guess")), "GET", "/v2/".to_string(), 401),
        (Some(("ann", "")), "GET", "/v2/".to_string(), 401),
        (Some(("eve", "secret")), "GET", "/v2/".to_string(), 401),
        (None, "GET", blob("public/a"), 200),
        (None, "GET", blob("team/app"), 401),
        (bob, "GET", blob("team/app"), 200),
        (bob, "GET", blob("team/app/sub"), 403),
        (bob, "POST", "/v2/team/app/blobs/uploads/".to_string(), 403),
        (bob, "DELETE", blob("team/app"), 403),
        (ann, "GET", "/v2/_catalog".to_string(), 403),
        (ann, "PUT", "/v2/gc/layers".to_string(), 403),
        (None, "PUT", "/v2/gc/layers".to_string(), 401),
        // What he may not read he may not mount either.
        (bob, "POST", format!("/v2/team/app/blobs/uploads/?mount={digest}&from=team/app/sub"), 403),
        (ann, "DELETE", blob("team/app"), 202),
    ] {
        assert_eq!(status(&server, user, method, &path).await, expected, "{user:?} {method} {path}");
    }
    let challenged = server.get("/v2/").await;
    assert_eq!(header(&challenged, "www-authenticate"), "Basic realm=\"cfc registry\"");
    expect_error(challenged, 401, "UNAUTHORIZED").await;
}

#[tokio::test]
async fn the_catalog_has_the_repositories_of_the_rules_that_allow_it() {
    let directory = TempDir::new().expect("temporary directory");
    let rule = |users: &[&str], repositories: &[&str], actions: &[Permission]| {
        let owned = |texts: &[&str]| texts.iter().map(|text| text.to_string()).collect();
        Rule { users: owned(users), repositories: owned(repositories), actions: actions.to_vec() }
    };
    let rules = vec![
        rule(&["ann"], &["**"], &[Permission::Push, Permission::Pull]),
        rule(&["ann"], &[], &[Permission::Catalog]),
        rule(&["*"], &["team/*"], &[Permission::Pull, Permission::Catalog]),
        rule(&["anonymous"], &["public/**"], &[Permission::Catalog]),
    ];
    let server = start(directory.path(), rules).await;
    let digest = Digest::of(b"{}");
    let ann = |method: &str, path: &str| server.request(method, path).basic_auth("ann", Some("secret"));
    for name in ["a", "public/x", "secret/z", "team/a", "team/b", "team/b/c"] {
        let path = format!("/v2/{name}/blobs/uploads/?digest={digest}");
        expect(&send(ann("POST", &path).body("{}")).await, 201);
        let image = crate::harness::image(&digest, &[], "");
        let put = ann("PUT", &format!("/v2/{name}/manifests/v1")).header("content-type", media_type::MANIFEST);
        expect(&send(put.body(image)).await, 201);
    }
    let list = |user: Option<(&'static str, &'static str)>, query: &str| {
        let request = server.request("GET", &format!("/v2/_catalog{query}"));
        let request = match user {
            Some((name, password)) => request.basic_auth(name, Some(password)),
            None => request,
        };
        async move {
            let response = send(request).await;
            let link = response.headers().get("link").map(|link| link.to_str().expect("ASCII").to_string());
            (response.json::<serde_json::Value>().await.expect("JSON")["repositories"].clone(), link)
        }
    };
    let bob = Some(("bob", "guess"));
    let all = json!(["a", "public/x", "secret/z", "team/a", "team/b", "team/b/c"]);
    assert_eq!(list(Some(("ann", "secret")), "").await, (all, None));
    assert_eq!(list(bob, "").await, (json!(["public/x", "team/a", "team/b"]), None));
    assert_eq!(list(None, "").await, (json!(["public/x"]), None));
    let (first, link) = list(bob, "?n=2").await;
    assert_eq!(first, json!(["public/x", "team/a"]));
    assert!(link.is_some_and(|link| link.contains("last=team%2Fa") || link.contains("last=team/a")));
    // No page says that there is more where that is for others.
    assert_eq!(list(bob, "?n=2&last=team/a").await, (json!(["team/b"]), None));
    assert_eq!(list(bob, "?tags=true&last=team/a").await.0, json!({ "team/b": ["v1"] }));
}

#[tokio::test]
async fn who_is_taken_out_of_the_file_is_out_at_once() {
    let directory = TempDir::new().expect("temporary directory");
    let server = start(directory.path(), Vec::new()).await;
    let (ann, bob) = (Some(("ann", "secret")), Some(("bob", "guess")));
    assert_eq!(status(&server, ann, "GET", "/v2/_catalog").await, 200);
    assert_eq!(status(&server, bob, "GET", "/v2/_catalog").await, 200);
    let users = write_users(directory.path(), &[("bob", "other")]);
    assert_eq!(status(&server, ann, "GET", "/v2/_catalog").await, 401);
    assert_eq!(status(&server, bob, "GET", "/v2/_catalog").await, 401);
    assert_eq!(status(&server, Some(("bob", "other")), "GET", "/v2/_catalog").await, 200);
    // A line that cannot be understood lets nobody in, and shuts nobody else out.
    let lines = std::fs::read_to_string(&users).expect("reads");
    std::fs::write(&users, format!("ann:$apr1$weak\n{lines}")).expect("writes");
    assert_eq!(status(&server, ann, "GET", "/v2/_catalog").await, 401);
    assert_eq!(status(&server, Some(("bob", "other")), "GET", "/v2/_catalog").await, 200);
    std::fs::write(&users, "bob:$apr1$weak\n").expect("writes");
    assert_eq!(status(&server, Some(("bob", "other")), "GET", "/v2/_catalog").await, 401);
    let refused = AccessRules::new(&users, Vec::new()).err().expect("refused");
    let cause = std::error::Error::source(&refused).expect("a cause").to_string();
    assert_eq!(cause, "line 1: expected `name:` and a bcrypt hash, as `htpasswd -B` writes it");
}

#[tokio::test]
async fn skopeo_pushes_with_a_password_and_pulls_public_images_without() {
    let directory = TempDir::new().expect("temporary directory");
    let server = start(directory.path(), rules()).await;
    let layout = crate::clients::write_layout(directory.path()).0;
    let (source, target) =
        (format!("oci:{}:latest", layout.display()), format!("docker://{}/public/app:1", server.address));
    let push = ["--insecure-policy", "copy", "--dest-tls-verify=false", &source, &target];
    let Some(refused) = crate::clients::run(directory.path(), "skopeo", &push).await else { return };
    assert!(!refused.status.success(), "pushed without a password");
    let with_password = [&push[..2], &["--dest-creds", "ann:secret"], &push[2..]].concat();
    let pushed = crate::clients::run(directory.path(), "skopeo", &with_password).await.expect("installed");
    assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
    let copy = format!("dir:{}", directory.path().join("copy").display());
    let pull = ["--insecure-policy", "copy", "--src-tls-verify=false", &target, &copy];
    let pulled = crate::clients::run(directory.path(), "skopeo", &pull).await.expect("installed");
    assert!(pulled.status.success(), "{}", String::from_utf8_lossy(&pulled.stderr));
}

#[tokio::test]
async fn the_operator_needs_no_password_on_his_own_socket() {
    let directory = TempDir::new().expect("temporary directory");
    let server = start(directory.path(), rules()).await;
    let socket = directory.path().join("operator");
    let serving = operator(&server.registry, &socket).await;
    ask_to_collect(&socket, CollectionRequest::default()).await.expect("collects");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&socket).expect("there").permissions());
    assert_eq!(mode & 0o777, 0o600);
    serving.abort();
    let _ = serving.await;
    assert!(ask_to_collect(&socket, CollectionRequest::default()).await.is_err());
}

/// Runs in a process of its own, in which files may run out.
#[tokio::test]
async fn operator_without_descriptors() {
    let Some(directory) = std::env::var_os("CFC_TEST_NO_DESCRIPTORS").map(PathBuf::from) else { return };
    let registry = cfc_registry::Registry::open(&directory, Options::default()).expect("opens");
    let socket = directory.join("operator");
    let serving = operator(&registry, &socket).await;
    let mut all: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
    all.pop();
    let client = std::os::unix::net::UnixStream::connect(&socket).expect("takes the last one");
    std::fs::File::open("/dev/null").expect_err("no descriptor is left");
    // Accepting fails at least once.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!serving.is_finished(), "the operator's socket is closed");
    drop((all, client));
    ask_to_collect(&socket, CollectionRequest::default()).await.expect("collects");
    eprintln!("went on");
}

#[tokio::test]
async fn the_operators_socket_outlives_a_lack_of_descriptors() {
    let directory = TempDir::new().expect("temporary directory");
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 100 && exec \"$0\" \"$@\""]).arg(std::env::current_exe().expect("this test"));
    command.args(["--exact", "access::operator_without_descriptors", "--nocapture"]);
    let output = command.env("CFC_TEST_NO_DESCRIPTORS", directory.path()).output().expect("sh runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.contains("went on"), "{told}");
}

#[tokio::test]
async fn more_passwords_than_can_be_checked_soon_are_refused() {
    let directory = TempDir::new().expect("temporary directory");
    let server = start(directory.path(), rules()).await;
    // Slower than requests come in.
    let hash = bcrypt::hash("secret", 6).expect("hashes");
    std::fs::write(directory.path().join("htpasswd"), format!("ann:{hash}\n")).expect("writes");
    let guess = |number: u32| send(server.request("GET", "/v2/").basic_auth("ann", Some(number.to_string())));
    let answers = futures::future::join_all((0..200).map(guess)).await;
    let mut refused: Vec<_> = answers.into_iter().filter(|answer| answer.status() != 401).collect();
    let refusal = refused.pop().expect("some are refused");
    assert_eq!(header(&refusal, "retry-after"), "1");
    expect_error(refusal, 429, "TOOMANYREQUESTS").await;
    refused.iter().for_each(|answer| expect(answer, 429));
    assert_eq!(status(&server, Some(("ann", "secret")), "GET", "/v2/").await, 200);
}

/// A certificate for the loopback address, and its key; nothing where openssl is not installed.
fn certificate(directory: &Path) -> Option<(PathBuf, PathBuf)> {
    let (certificate, key) = (directory.join("certificate.pem"), directory.join("key.pem"));
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]);
    command.args(["-addext", "subjectAltName=IP:127.0.0.1"]);
    command
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate);
    match command.output() {
        Ok(output) if output.status.success() => Some((certificate, key)),
        other => {
            eprintln!("skipped: openssl made no certificate: {other:?}");
            None
        }
    }
}

#[tokio::test]
async fn a_certificate_that_was_replaced_is_shown_and_connections_stay() {
    let directory = TempDir::new().expect("temporary directory");
    let place = |name: &str| directory.path().join(name);
    for name in ["old", "new", "shown"] {
        std::fs::create_dir(place(name)).expect("creates");
    }
    let (Some(old), Some(new)) = (certificate(&place("old")), certificate(&place("new"))) else { return };
    let (path, key) = (place("shown/certificate.pem"), place("shown/key.pem"));
    let copy = |from: &Path, to: &Path| {
        std::fs::copy(from, to).expect("copies");
    };
    copy(&old.0, &path);
    copy(&old.1, &key);
    let tls = Tls::open(&path, &key).expect("a certificate");
    let server = Server::start_with(Options { tls: Some(tls), ..Options::default() }).await;
    let url = format!("https://{}/v2/", server.address);
    let trusting = |path: &Path| {
        let trusted = reqwest::Certificate::from_pem(&std::fs::read(path).expect("reads")).expect("a certificate");
        reqwest::Client::builder().no_proxy().tls_certs_only([trusted]).build().expect("client")
    };
    // Reads the answer to its end, so that the connection is used again.
    let ping = async |client: &reqwest::Client| match client.get(&url).send().await {
        Ok(answer) => answer.bytes().await.is_ok(),
        Err(_) => false,
    };
    let connected = trusting(&old.0);
    assert!(ping(&connected).await);
    assert!(!ping(&trusting(&new.0)).await);

    // Halfway, and with files that are none, the old one is shown.
    for (certificate, key_of) in [(&new.0, &old.1), (&new.1, &new.0)] {
        copy(certificate, &path);
        copy(key_of, &key);
        server.registry.reload();
        assert!(ping(&trusting(&old.0)).await);
    }
    std::fs::remove_file(&key).expect("removes");
    server.registry.reload();
    assert!(ping(&trusting(&old.0)).await);

    copy(&new.0, &path);
    copy(&new.1, &key);
    let is_shown = async {
        while !ping(&trusting(&new.0)).await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), is_shown).await.expect("it is shown by itself");
    assert!(!ping(&trusting(&old.0)).await);
    assert!(ping(&connected).await, "who is connected stays so");
}

#[tokio::test]
async fn an_encrypted_registry_serves_blobs_of_any_size() {
    let directory = TempDir::new().expect("temporary directory");
    let Some((path, key)) = certificate(directory.path()) else { return };
    let tls = Tls::open(&path, &key).expect("a certificate");
    let server = Server::start_with(Options { tls: Some(tls), ..Options::default() }).await;
    let trusted = reqwest::Certificate::from_pem(&std::fs::read(&path).expect("reads")).expect("a certificate");
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([trusted]).build().expect("client");
    let base = format!("https://{}/v2/a/blobs", server.address);
    for length in [10, 100_000, 3_000_001] {
        let content = noise(length, 1);
        let digest = Digest::of(&content);
        let push = client.post(format!("{base}/uploads/?digest={digest}")).body(content.clone());
        expect(&send(push).await, 201);
        let pulled = send(client.get(format!("{base}/{digest}"))).await;
        assert!(pulled.bytes().await.expect("body") == content, "{length} bytes come back otherwise");
    }
    let refused = Tls::open(&key, &path).err().expect("the wrong way round").to_string();
    assert!(refused.starts_with("cannot "), "{refused}");
    // Who speaks HTTP is told what to speak, and others do not wait for who says nothing.
    let _silent = tokio::net::TcpStream::connect(server.address).await.expect("connects");
    let told = send(client.get(format!("http://{}/v2/", server.address))).await;
    assert_eq!(told.status(), 400);
    assert_eq!(told.text().await.expect("text"), "Client sent an HTTP request to an HTTPS server.\n");
    expect(&send(client.get(format!("https://{}/v2/", server.address))).await, 200);
}
