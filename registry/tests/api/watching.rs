//! What the registry tells of itself and of its clients: health, metrics, the audit log, and limits of how often.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cfc_oci::Digest;
use cfc_registry::{
    AccessRules, AuditLog, Options, Permission, QuotaRule, Quotas, RateLimits, Registry, Rule, Upstream, serve,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::access::{rules, write_users};
use crate::harness::{Server, expect, expect_error, header, send};

fn users(directory: &Path, mut rules: Vec<Rule>) -> AccessRules {
    let users = write_users(directory, &[("ann", "secret"), ("bob", "guess"), ("watch", "word")]);
    let watch = Rule { users: vec!["watch".to_string()], repositories: Vec::new(), actions: vec![Permission::Metrics] };
    rules.push(watch);
    AccessRules::new(&users, rules).expect("opens").with_tokens(&directory.join("key")).expect("a key")
}

async fn metrics(server: &Server) -> String {
    server.get("/metrics").await.text().await.expect("text")
}

/// Asks until the answer has what is waited for.
async fn wait_for_metric(server: &Server, line: &str) -> String {
    for _ in 0..1000 {
        let page = metrics(server).await;
        if page.lines().any(|found| found == line) {
            return page;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("no `{line}` in\n{}", metrics(server).await);
}

#[tokio::test]
async fn health_is_told_to_everybody() {
    let directory = TempDir::new().expect("temporary directory");
    let access = Arc::new(users(directory.path(), rules()));
    let server = Server::start_with(Options { authorizer: Some(access), ..Options::default() }).await;
    for path in ["/healthz", "/readyz"] {
        let response = server.get(path).await;
        expect(&response, 200);
        assert_eq!(response.text().await.expect("text"), "ok\n");
    }
    expect(&server.get("/metrics").await, 401);
    for (name, password, status) in [("watch", "word", 200), ("ann", "secret", 403)] {
        expect(&send(server.request("GET", "/metrics").basic_auth(name, Some(password))).await, status);
    }
    let token = server.request("GET", "/token?scope=registry:metrics:*").basic_auth("watch", Some("word"));
    let token: Value = send(token).await.json().await.expect("JSON");
    let bearer = server.request("GET", "/metrics").bearer_auth(token["token"].as_str().expect("a token"));
    expect(&send(bearer).await, 200);
}

#[tokio::test]
async fn what_happens_is_counted_and_what_clients_make_up_is_no_label() {
    let server = Server::start().await;
    server.push_image("team/app", "v1", "one").await;
    let blob = server.push_blob("team/app", &[7; 1000]).await;
    let pulled = server.get(&format!("/v2/team/app/blobs/{blob}")).await;
    assert_eq!(pulled.bytes().await.expect("body").len(), 1000);
    expect(&send(server.request("BREW", "/v2/team/app/manifests/v1")).await, 405);
    for number in 0..20 {
        server.get(&format!("/v2/made/up/{number}/manifests/x{number}")).await;
    }
    expect(&send(server.request("PUT", "/v2/gc/layers")).await, 200);
    let page =
        wait_for_metric(&server, "cfc_registry_requests_total{method=\"PUT\",kind=\"collection\",code=\"200\"} 1")
            .await;
    for line in [
        "cfc_registry_requests_total{method=\"POST\",kind=\"upload\",code=\"201\"} 3",
        "cfc_registry_requests_total{method=\"PUT\",kind=\"manifest\",code=\"201\"} 1",
        "cfc_registry_requests_total{method=\"GET\",kind=\"blob\",code=\"200\"} 1",
        "cfc_registry_requests_total{method=\"GET\",kind=\"manifest\",code=\"404\"} 20",
        "cfc_registry_requests_total{method=\"other\",kind=\"manifest\",code=\"405\"} 1",
        "cfc_registry_request_seconds_count{kind=\"upload\"} 3",
        "cfc_registry_request_seconds_bucket{kind=\"upload\",le=\"+Inf\"} 3",
        "cfc_registry_uploads_in_progress 0",
        "cfc_registry_collections_total{outcome=\"done\"} 1",
    ] {
        assert!(page.lines().any(|found| found == line), "no `{line}` in\n{page}");
    }
    assert!(!page.contains("made") && !page.contains("BREW") && !page.contains("x1"), "{page}");
    let value = |page: &str, name: &str| -> u64 {
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).expect(name);
        line.parse().expect("a number")
    };
    assert!(value(&page, "cfc_registry_receive_bytes_total") >= 1000);
    assert!(value(&page, "cfc_registry_transmit_bytes_total") >= 1000);
    let page = wait_for_metric(&server, "cfc_registry_stored_blobs 3").await;
    assert!(value(&page, "cfc_registry_stored_bytes") > 1000);
    assert_eq!(value(&page, "cfc_registry_repositories"), 1);
    // Every sample belongs to a family that was announced.
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().expect("a name");
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        assert!(page.contains(&format!("# TYPE {family} ")), "{line}");
    }
}

#[tokio::test]
async fn quotas_and_upstreams_are_watched() {
    let answering = axum::Router::new().fallback(|| async { axum::http::StatusCode::NOT_FOUND });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move { axum::serve(listener, answering).await });
    let gone = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
    let rule = |pattern: &str, bytes| QuotaRule { repositories: vec![pattern.to_string()], bytes };
    let rules = vec![rule("team/small", 500), rule("team/*", 10_000), rule("team/*", 1), rule("other/**", 20_000)];
    let quotas = Quotas { total: Some(100_000), rules, ..Quotas::default() };
    let at = |prefix: &str, port| Upstream::new(prefix, &format!("http://127.0.0.1:{port}"));
    let upstreams = vec![at("here", port), at("gone", gone), at("never", port)];
    let server = Server::start_with(Options { quotas, upstreams, ..Options::default() }).await;
    // What is stored is counted for who only watches.
    let page = wait_for_metric(&server, "cfc_registry_quota_used_bytes 0").await;
    assert!(page.contains("cfc_registry_quota_bytes 100000\n"), "{page}");
    assert!(!page.contains("cfc_registry_upstream_up{"), "nobody has been asked: {page}");

    for (name, bytes) in [("team/a", 1000), ("team/b", 3000), ("team/small", 100), ("free", 5)] {
        server.push_blob(name, &vec![7; bytes]).await;
    }
    expect(&server.get("/v2/here/a/manifests/v1").await, 404);
    for _ in 0..2 {
        expect(&server.get("/v2/gone/a/manifests/v1").await, 503);
    }
    let page = server.get("/metrics").await.text().await.expect("text");
    for line in [
        "cfc_registry_quota_used_bytes 4105",
        "cfc_registry_repository_quota_bytes{repositories=\"team/*\"} 10000",
        "cfc_registry_repository_quota_used_bytes{repositories=\"team/*\"} 3000",
        "cfc_registry_repository_quota_used_bytes{repositories=\"team/small\"} 100",
        "cfc_registry_repository_quota_used_bytes{repositories=\"other/**\"} 0",
        "cfc_registry_upstream_up{upstream=\"here\"} 1",
        "cfc_registry_upstream_up{upstream=\"gone\"} 0",
        "cfc_registry_upstream_failures_total{upstream=\"here\",reason=\"away\"} 0",
        "cfc_registry_upstream_failures_total{upstream=\"gone\",reason=\"away\"} 2",
    ] {
        assert_eq!(page.lines().filter(|found| *found == line).count(), 1, "no `{line}` in\n{page}");
    }
    assert_eq!(page.matches("cfc_registry_repository_quota_bytes{repositories=\"team/*\"}").count(), 1, "{page}");
    assert!(page.contains("cfc_registry_upstream_answered_timestamp_seconds{upstream=\"here\"} "), "{page}");
    assert!(
        !page.contains("upstream=\"never\"} 1") && !page.contains("timestamp_seconds{upstream=\"gone\"}"),
        "{page}"
    );
}

#[tokio::test]
async fn an_upload_is_in_progress_while_its_bytes_come() {
    let server = Server::start().await;
    let location = server.begin("a").await;
    let (sender, receiver) = futures::channel::mpsc::unbounded::<Result<&'static [u8], std::io::Error>>();
    sender.unbounded_send(Ok(b"begins")).expect("sends");
    let request = server.request("PATCH", &location).body(reqwest::Body::wrap_stream(receiver));
    let pushing = tokio::spawn(send(request));
    wait_for_metric(&server, "cfc_registry_uploads_in_progress 1").await;
    drop(sender);
    expect(&pushing.await.expect("runs"), 202);
    wait_for_metric(&server, "cfc_registry_uploads_in_progress 0").await;
}

/// The entries of an audit log, when so many are there.
async fn wait_for_lines(path: &Path, count: usize) -> Vec<Value> {
    for _ in 0..1000 {
        let text = std::fs::read_to_string(path).expect("reads");
        if text.lines().count() >= count {
            return text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("there are not {count} lines in\n{}", std::fs::read_to_string(path).expect("reads"));
}

#[tokio::test]
async fn a_name_is_a_users_only_with_proof() {
    let directory = TempDir::new().expect("temporary directory");
    let path = directory.path().join("audit.log");
    let log = AuditLog::to_file(&path, 1 << 20).expect("opens");
    let options = Options {
        authorizer: Some(Arc::new(users(directory.path(), Vec::new()))),
        audit: Some(Arc::new(log)),
        rates: RateLimits { by_address: Some(5), by_user: None },
        ..Options::default()
    };
    let server = Server::start_with(options).await;
    let post = |form: &str| server.request("POST", "/token").body(form.to_string());
    let password = "grant_type=password&username=ann&client_id=x&access_type=offline&password=";
    let good = send(post(&format!("{password}secret"))).await;
    expect(&good, 200);
    let good: Value = good.json().await.expect("JSON");
    expect(&send(post(&format!("{password}wrong"))).await, 401);
    let refresh = good["refresh_token"].as_str().expect("a token");
    expect(&send(post(&format!("grant_type=refresh_token&refresh_token={refresh}"))).await, 200);
    expect(&send(post("grant_type=refresh_token&refresh_token=x")).await, 401);
    let pull = |password: &str| server.request("GET", "/v2/team/app/tags/list").basic_auth("ann", Some(password));
    expect(&send(pull("secret")).await, 403);
    // Turned away before anybody has looked at the password.
    expect(&send(pull("never-checked")).await, 429);
    let lines = wait_for_lines(&path, 6).await;
    let text = |value: &Value| value.as_str().unwrap_or("-").to_string();
    let brief = lines.iter().map(|line| {
        let (user, claimed) = (text(&line["user"]), text(&line["claimed_user"]));
        format!("{} {} {user} {claimed}", text(&line["action"]), line["status"])
    });
    let expected =
        ["token 200 ann -", "token 401 - ann", "token 200 ann -", "token 401 - -", "pull 403 ann -", "pull 429 - ann"];
    assert_eq!(brief.collect::<Vec<_>>(), expected);
    assert!(lines.iter().all(|line| !line.to_string().contains("secret") && !line.to_string().contains(refresh)));
}

#[tokio::test]
async fn it_is_written_down_who_did_what() {
    let directory = TempDir::new().expect("temporary directory");
    let path = directory.path().join("audit.log");
    let log = AuditLog::to_file(&path, 1 << 20).expect("opens");
    let access = users(directory.path(), rules());
    let password = access.minter().expect("tokens").mint("v1", &[Permission::Pull], Duration::from_secs(600));
    let options = Options { authorizer: Some(Arc::new(access)), audit: Some(Arc::new(log)), ..Options::default() };
    let server = Server::start_with(options).await;
    let digest = Digest::of(b"x");
    let push = format!("/v2/team/app/blobs/uploads/?digest={digest}&secret=in-a-query");
    let agent = |request: reqwest::RequestBuilder| request.header("user-agent", "test \"1\"\n".trim());
    expect(&send(agent(server.request("POST", &push)).basic_auth("ann", Some("secret")).body("x")).await, 201);
    expect(&send(agent(server.request("POST", &push)).basic_auth("bob", Some("guess")).body("x")).await, 403);
    expect(&send(server.request("POST", &push).basic_auth("ann", Some("not-it")).body("x")).await, 401);
    let token = server.request("GET", "/token?scope=repository:team/app:pull").basic_auth("bob", Some("guess"));
    let token: Value = send(token).await.json().await.expect("JSON");
    let token = token["token"].as_str().expect("a token");
    let blob = format!("/v2/team/app/blobs/{digest}");
    expect(&send(server.request("GET", &blob).bearer_auth(token)).await, 200);
    expect(&send(server.request("GET", &blob).basic_auth("v1", Some(&password))).await, 200);
    expect(&server.get("/v2/public/x/manifests/v1").await, 404);
    expect(&send(server.request("DELETE", &blob).basic_auth("ann", Some("secret"))).await, 202);
    let lines = wait_for_lines(&path, 8).await;
    let digest = digest.to_string();
    let brief: Vec<_> = lines
        .iter()
        .map(|line| {
            let text = |key: &str| line[key].as_str().unwrap_or("-").to_string();
            let who = if line["user"].is_null() { format!("?{}", text("claimed_user")) } else { text("user") };
            let what = if text("digest") == digest { "blob".to_string() } else { text("reference") };
            format!("{who} {} {} {what} {} {}", text("action"), text("repository"), line["status"], text("outcome"))
        })
        .collect();
    let expected = [
        "ann push team/app blob 201 done",
        "bob push team/app - 403 denied",
        "?ann push team/app - 401 denied",
        "bob token - - 200 done",
        "bob pull team/app blob 200 done",
        "v1 pull team/app blob 200 done",
        "?- pull public/x v1 404 failed",
        "ann delete team/app blob 202 done",
    ];
    assert_eq!(brief, expected);
    assert!(lines.iter().all(|line| line["address"] == "127.0.0.1" && line["time"].as_str().is_some()));
    assert_eq!(lines[0]["user_agent"], "test \"1\"");
    assert_eq!((&lines[0]["bytes_in"], &lines[4]["bytes_out"]), (&1.into(), &1.into()));
    let text = std::fs::read_to_string(&path).expect("reads");
    for secret in ["secret", "guess", "not-it", token, &password, "in-a-query", "Basic", "Bearer"] {
        assert!(!text.contains(secret), "`{secret}` is in the log:\n{text}");
    }
    let mode = std::os::unix::fs::PermissionsExt::mode(&path.metadata().expect("there").permissions());
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn who_asks_too_often_is_told_when_to_come_back() {
    let rates = RateLimits { by_address: Some(5), by_user: None };
    let server = Server::start_with(Options { rates, ..Options::default() }).await;
    for _ in 0..5 {
        expect(&server.get("/v2/").await, 200);
    }
    let refused = server.get("/v2/").await;
    let seconds: u64 = header(&refused, "retry-after").parse().expect("seconds");
    assert!((1..=12).contains(&seconds), "{seconds}");
    expect_error(refused, 429, "TOOMANYREQUESTS").await;
    expect(&server.get("/healthz").await, 200);
}

#[tokio::test]
async fn a_user_is_limited_and_nobody_else_uses_up_what_is_his() {
    let directory = TempDir::new().expect("temporary directory");
    let rates = RateLimits { by_address: None, by_user: Some(4) };
    let access = Arc::new(users(directory.path(), rules()));
    let server = Server::start_with(Options { authorizer: Some(access), rates, ..Options::default() }).await;
    for _ in 0..20 {
        expect(&send(server.request("GET", "/v2/").basic_auth("ann", Some("wrong"))).await, 401);
        expect(&server.get("/v2/public/a/tags/list").await, 404);
    }
    let ping = || send(server.request("GET", "/v2/").basic_auth("ann", Some("secret")));
    for _ in 0..4 {
        expect(&ping().await, 200);
    }
    expect_error(ping().await, 429, "TOOMANYREQUESTS").await;
    expect(&send(server.request("GET", "/v2/").basic_auth("bob", Some("guess"))).await, 200);
}

#[tokio::test]
async fn only_our_own_proxies_say_who_is_behind_them() {
    let directory = TempDir::new().expect("temporary directory");
    let rates = RateLimits { by_address: Some(2), by_user: None };
    let ask = |server: &Server, from: &str| send(server.request("GET", "/v2/").header("x-forwarded-for", from));
    let trusting =
        Options { rates, trusted_proxies: vec!["127.0.0.0/8".parse().expect("a range")], ..Options::default() };
    let server = Server::start_with(trusting).await;
    for number in 0..10 {
        // Whatever a client has put in front does not count.
        expect(&ask(&server, &format!("9.9.9.9, 10.0.0.{number}, 127.0.0.1")).await, 200);
    }
    expect(&ask(&server, "1.1.1.1, 10.0.0.3").await, 200);
    expect(&ask(&server, "2.2.2.2, 10.0.0.3").await, 429);
    let wary = Server::start_with(Options { rates, ..Options::default() }).await;
    expect(&ask(&wary, "10.0.0.1").await, 200);
    expect(&ask(&wary, "10.0.0.2").await, 200);
    expect(&ask(&wary, "10.0.0.3").await, 429);
    drop(directory);
}

#[tokio::test]
async fn a_registry_whose_storage_cannot_be_read_is_not_ready() {
    let directory = TempDir::new().expect("temporary directory");
    let registry = Registry::open(directory.path(), Options::default()).expect("opens");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(serve(listener, registry));
    let client = reqwest::Client::builder().no_proxy().build().expect("client");
    let status = |path: &str| {
        let request = client.get(format!("http://{address}{path}"));
        async move { send(request).await.status().as_u16() }
    };
    assert_eq!((status("/readyz").await, status("/healthz").await), (200, 200));
    // A file where a directory was.
    let blobs = directory.path().join("registry/blobs");
    std::fs::remove_dir_all(&blobs).expect("removes");
    std::fs::write(&blobs, "").expect("writes");
    assert_eq!((status("/readyz").await, status("/healthz").await), (503, 200));
}
