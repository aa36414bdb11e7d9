//! The token flow: who gets a token for what, what it opens, and how long.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cfc_oci::Digest;
use cfc_registry::{
    AccessRules, AuditLog, Grant, Loan, LoanRequest, Minter, Options, Permission, Rule, ask_for_loan, ask_for_loans,
    ask_to_revoke,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::access::{rules, write_users};
use crate::harness::{Server, expect, expect_error, header, send};

/// A registry of ann, bob and everybody, and what makes passwords for it.
async fn start(directory: &Path, rules: Vec<Rule>) -> (Server, Minter) {
    let users = write_users(directory, &[("ann", "secret"), ("bob", "guess")]);
    let access = AccessRules::new(&users, rules).expect("opens").with_tokens(&directory.join("key")).expect("a key");
    let minter = access.minter().expect("there are tokens");
    (Server::start_with(Options { authorizer: Some(Arc::new(access)), ..Options::default() }).await, minter)
}

/// What the token endpoint gives.
async fn ask(server: &Server, user: Option<(&str, &str)>, query: &str) -> Value {
    let request = server.request("GET", &format!("/token?{query}"));
    let request = match user {
        Some((name, password)) => request.basic_auth(name, Some(password)),
        None => request,
    };
    let response = send(request).await;
    expect(&response, 200);
    assert_eq!(header(&response, "cache-control"), "no-store");
    response.json().await.expect("JSON")
}

async fn token(server: &Server, user: Option<(&str, &str)>, scope: &str) -> String {
    let answer = ask(server, user, &format!("service=cfc-registry&scope={scope}")).await;
    assert_eq!(answer["token"], answer["access_token"]);
    answer["token"].as_str().expect("a token").to_string()
}

async fn status(server: &Server, token: &str, method: &str, path: &str) -> u16 {
    send(server.request(method, path).bearer_auth(token)).await.status().as_u16()
}

const ANN: Option<(&str, &str)> = Some(("ann", "secret"));
const BOB: Option<(&str, &str)> = Some(("bob", "guess"));

#[tokio::test]
async fn a_challenge_names_the_token_endpoint_under_the_name_the_client_has_for_it() {
    let directory = TempDir::new().expect("temporary directory");
    let (server, _) = start(directory.path(), rules()).await;
    let base = format!("Bearer realm=\"http://{}/token\",service=\"cfc-registry\"", server.address);
    let ping = server.get("/v2/").await;
    assert_eq!(header(&ping, "www-authenticate"), base);
    expect_error(ping, 401, "UNAUTHORIZED").await;
    let push = send(server.request("POST", "/v2/team/app/blobs/uploads/")).await;
    assert_eq!(header(&push, "www-authenticate"), format!("{base},scope=\"repository:team/app:pull,push\""));
    let named = send(server.request("GET", "/v2/").header("host", "r.example:5000")).await;
    assert!(header(&named, "www-authenticate").contains("realm=\"http://r.example:5000/token\""));
    // What is no host name does not get into the header.
    let odd = send(server.request("GET", "/v2/").header("host", "x\",realm=\"y")).await;
    let odd = odd.headers().get("www-authenticate").map(|value| value.to_str().expect("ASCII").to_string());
    assert!(odd.is_none_or(|odd| odd.contains("realm=\"http://localhost/token\"")));
}

#[tokio::test]
async fn a_proxy_of_ours_says_what_was_asked_of_it() {
    let directory = TempDir::new().expect("temporary directory");
    let users = write_users(directory.path(), &[("ann", "secret")]);
    let access = || {
        let access = AccessRules::new(&users, Vec::new()).expect("opens");
        Some(Arc::new(access.with_tokens(&directory.path().join("key")).expect("a key")) as _)
    };
    let realm = |server: &Server, proto: &str, host: &str| {
        let request = server.request("GET", "/v2/").header("host", "inner:5000");
        let request = request.header("x-forwarded-proto", proto).header("x-forwarded-host", host);
        async move {
            let challenge = header(&send(request).await, "www-authenticate");
            challenge.split('"').nth(1).expect("a realm").to_string()
        }
    };
    let trusted_proxies = vec!["127.0.0.0/8".parse().expect("a range")];
    let server = Server::start_with(Options { authorizer: access(), trusted_proxies, ..Options::default() }).await;
    assert_eq!(realm(&server, "https", "r.example").await, "https://r.example/token");
    assert_eq!(realm(&server, "https", "r.example:8443, inner").await, "https://r.example:8443/token");
    assert_eq!(realm(&server, "gopher", "x\",realm=\"y").await, "http://inner:5000/token");
    let plain = send(server.request("GET", "/v2/").header("x-forwarded-proto", "https")).await;
    assert!(header(&plain, "www-authenticate").contains(&format!("realm=\"https://{}/token\"", server.address)));
    // Anybody else can say what he wants.
    let server = Server::start_with(Options { authorizer: access(), ..Options::default() }).await;
    assert_eq!(realm(&server, "https", "r.example").await, "http://inner:5000/token");
    // What the operator says counts more.
    let trusted_proxies = vec!["127.0.0.0/8".parse().expect("a range")];
    let url = Some("https://said.example".to_string());
    let server = Server::start_with(Options { authorizer: access(), trusted_proxies, url, ..Options::default() }).await;
    assert_eq!(realm(&server, "http", "r.example").await, "https://said.example/token");
}

#[tokio::test]
async fn who_may_only_push_learns_what_need_not_be_pushed() {
    let directory = TempDir::new().expect("temporary directory");
    let pusher = Rule {
        users: vec!["bob".to_string()],
        repositories: vec!["team/*".to_string()],
        actions: vec![Permission::Push],
    };
    let (server, minter) = start(directory.path(), vec![pusher]).await;
    let minted = minter.mint("v1", &[Permission::Push], Duration::from_secs(600));
    let digest = Digest::of(b"{}");
    let json = crate::harness::image(&digest, &[], "");
    let token = token(&server, BOB, "repository:team/app:pull,push").await;
    for (number, (name, password)) in [("bob", "guess"), ("v1", &minted)].into_iter().enumerate() {
        let with = |method: &str, path: &str| server.request(method, path).basic_auth(name, Some(password));
        let blob = format!("/v2/team/app{number}/blobs/{digest}");
        let tag = format!("/v2/team/app{number}/manifests/v1");
        expect(&send(with("HEAD", &blob)).await, 404);
        expect(&send(with("HEAD", &tag)).await, 404);
        let push = format!("/v2/team/app{number}/blobs/uploads/?digest={digest}");
        expect(&send(with("POST", &push).body("{}")).await, 201);
        let put = with("PUT", &tag).header("content-type", cfc_oci::media_type::MANIFEST).body(json.clone());
        expect(&send(put).await, 201);
        expect(&send(with("HEAD", &blob)).await, 200);
        expect(&send(with("HEAD", &tag)).await, 200);
        // Looking is not reading.
        for path in [&blob, &tag, &format!("/v2/team/app{number}/tags/list")] {
            expect(&send(with("GET", path)).await, 403);
        }
    }
    expect(&send(server.request("HEAD", "/v2/other/app/manifests/v1").basic_auth("bob", Some("guess"))).await, 403);
    assert_eq!(status(&server, &token, "HEAD", &format!("/v2/team/app/blobs/{digest}")).await, 404);
    assert_eq!(status(&server, &token, "GET", &format!("/v2/team/app/blobs/{digest}")).await, 403);
    assert_eq!(status(&server, &token, "HEAD", &format!("/v2/team/app1/blobs/{digest}")).await, 401);
}

#[tokio::test]
async fn more_scopes_than_a_token_is_for_are_an_error() {
    let directory = TempDir::new().expect("temporary directory");
    let (server, _) = start(directory.path(), Vec::new()).await;
    let scopes = |count: usize| (0..count).map(|number| format!("repository:a{number}:pull")).collect::<Vec<_>>();
    let answer = ask(&server, ANN, &format!("scope={}", scopes(50).join("&scope="))).await;
    assert_eq!(answer["scope"], scopes(50).join(" "));
    for query in [scopes(51).join("&scope="), scopes(51).join("%20")] {
        let request = server.request("GET", &format!("/token?scope={query}")).basic_auth("ann", Some("secret"));
        let refused = expect_error(send(request).await, 400, "UNSUPPORTED").await;
        assert!(refused.contains("at most 50 scopes"), "{refused}");
    }
}

#[tokio::test]
async fn a_token_opens_what_was_asked_for_and_the_rules_allow() {
    let directory = TempDir::new().expect("temporary directory");
    let (server, _) = start(directory.path(), rules()).await;
    let digest = Digest::of(b"x");
    let push = |name: &str| format!("/v2/{name}/blobs/uploads/?digest={digest}");
    let full = token(&server, ANN, "repository:team/app:pull,push&scope=repository:public/a:push").await;
    for name in ["team/app", "public/a"] {
        expect(&send(server.request("POST", &push(name)).bearer_auth(&full).body("x")).await, 201);
    }
    let blob = |name: &str| format!("/v2/{name}/blobs/{digest}");
    let reader = token(&server, ANN, "repository:team/app:pull").await;
    let bobs = token(&server, BOB, "repository:team/app:pull,push,delete repository:public/a:*").await;
    let nobodys = token(&server, None, "repository:public/a:pull,push repository:team/app:pull").await;
    for (token, method, path, expected) in [
        (&full, "GET", "/v2/".to_string(), 200),
        (&full, "GET", blob("team/app"), 200),
        // Allowed, but not what the token is for.
        (&full, "GET", blob("public/a"), 401),
        (&full, "DELETE", blob("team/app"), 401),
        (&full, "GET", blob("team/app/sub"), 401),
        (&full, "GET", blob("team/ap"), 401),
        (&full, "GET", blob("team"), 401),
        (&reader, "POST", push("team/app"), 401),
        (&reader, "GET", blob("team/app"), 200),
        // Asked for, but not allowed: the token was given, for less.
        (&bobs, "GET", blob("team/app"), 200),
        (&bobs, "POST", push("team/app"), 403),
        (&bobs, "DELETE", blob("team/app"), 403),
        (&nobodys, "GET", blob("public/a"), 200),
        (&nobodys, "POST", push("public/a"), 401),
        (&nobodys, "GET", blob("team/app"), 401),
    ] {
        assert_eq!(status(&server, token, method, &path).await, expected, "{method} {path}");
    }
    let refused = send(server.request("GET", &blob("public/a")).bearer_auth(&full)).await;
    let challenge = header(&refused, "www-authenticate");
    assert!(challenge.ends_with(",scope=\"repository:public/a:pull\",error=\"insufficient_scope\""), "{challenge}");
    let forged = send(server.request("GET", &blob("public/a")).bearer_auth(format!("{full}x"))).await;
    assert!(header(&forged, "www-authenticate").ends_with(",error=\"invalid_token\""));
}

#[tokio::test]
async fn a_mount_reads_where_it_takes_from() {
    let directory = TempDir::new().expect("temporary directory");
    let mut rules = rules();
    let pusher = |user: &str| Rule {
        users: vec![user.to_string()],
        repositories: vec!["team/app".to_string()],
        actions: vec![Permission::Push],
    };
    rules.extend([pusher("bob"), pusher("anonymous")]);
    let (server, _) = start(directory.path(), rules).await;
    let digest = Digest::of(b"x");
    let push = format!("/v2/team/app/sub/blobs/uploads/?digest={digest}");
    expect(&send(server.request("POST", &push).basic_auth("ann", Some("secret")).body("x")).await, 201);
    let mount = format!("/v2/team/app/blobs/uploads/?mount={digest}&from=team/app/sub");
    let both = "scope=\"repository:team/app:pull,push repository:team/app/sub:pull\"";

    // As distribution: whoever has no token, or one for less than it could be, is told of both.
    let anonymous = send(server.request("POST", &mount).basic_auth("bob", Some("wrong"))).await;
    assert!(header(&anonymous, "www-authenticate").ends_with(both), "{anonymous:?}");
    let narrow = token(&server, ANN, "repository:team/app:pull,push").await;
    let refused = send(server.request("POST", &mount).bearer_auth(&narrow)).await;
    let challenge = header(&refused, "www-authenticate");
    assert!(challenge.ends_with(&format!("{both},error=\"insufficient_scope\"")), "{challenge}");
    expect_error(refused, 401, "UNAUTHORIZED").await;
    let wide = token(&server, ANN, "repository:team/app:pull,push&scope=repository:team/app/sub:pull").await;
    assert_eq!(status(&server, &wide, "POST", &mount).await, 201);

    // Who may not take it from there pushes it, and is not asked for what he cannot get.
    let bobs = token(&server, BOB, "repository:team/app:pull,push&scope=repository:team/app/sub:pull").await;
    let nobodys = token(&server, None, "repository:team/app:pull,push&scope=repository:team/app/sub:pull").await;
    for token in [&bobs, &nobodys] {
        assert_eq!(status(&server, token, "POST", &mount).await, 202);
    }
    expect(&send(server.request("POST", &mount)).await, 202);
    expect(&send(server.request("POST", &mount).basic_auth("bob", Some("guess"))).await, 202);
    expect(&send(server.request("POST", &mount).basic_auth("ann", Some("secret"))).await, 201);
    // What is named by nobody is not asked for.
    let other = Digest::of(b"y");
    let push = format!("/v2/team/app/sub/blobs/uploads/?digest={other}");
    expect(&send(server.request("POST", &push).basic_auth("ann", Some("secret")).body("y")).await, 201);
    let unnamed = format!("/v2/team/app/blobs/uploads/?mount={other}");
    assert_eq!(status(&server, &narrow, "POST", &unnamed).await, 202);
}

#[tokio::test]
async fn passwords_go_on_being_good_by_themselves() {
    let directory = TempDir::new().expect("temporary directory");
    let (server, _) = start(directory.path(), Vec::new()).await;
    expect(&send(server.request("GET", "/v2/_catalog").basic_auth("ann", Some("secret"))).await, 200);
    expect(&send(server.request("GET", "/v2/_catalog").basic_auth("ann", Some("wrong"))).await, 401);
    let catalog = token(&server, ANN, "registry:catalog:*").await;
    assert_eq!(status(&server, &catalog, "GET", "/v2/_catalog").await, 200);
    assert_eq!(status(&server, &catalog, "PUT", "/v2/gc/layers").await, 401);
}

#[tokio::test]
async fn wrong_requests_for_tokens_are_refused() {
    let directory = TempDir::new().expect("temporary directory");
    let (server, _) = start(directory.path(), rules()).await;
    let wrong = send(server.request("GET", "/token?service=cfc-registry").basic_auth("ann", Some("x"))).await;
    assert!(header(&wrong, "www-authenticate").starts_with("Basic "));
    expect_error(wrong, 401, "UNAUTHORIZED").await;
    expect_error(server.get("/token?service=other").await, 400, "UNSUPPORTED").await;
    expect_error(server.delete("/token").await, 405, "UNSUPPORTED").await;
    let post = |form: &str| server.request("POST", "/token").body(form.to_string());
    for form in ["", "grant_type=magic", "grant_type=password&username=ann", "grant_type=refresh_token"] {
        expect_error(send(post(form)).await, 400, "UNSUPPORTED").await;
    }
    expect_error(send(post(&"x".repeat(100_000))).await, 400, "UNSUPPORTED").await;
    expect(&send(post("grant_type=password&username=ann&password=x")).await, 401);
    expect(&send(post("grant_type=refresh_token&refresh_token=x")).await, 401);
    // A token is no password, and none for another token.
    let own = token(&server, ANN, "repository:a:pull").await;
    expect(&send(server.request("GET", "/token").bearer_auth(&own)).await, 401);
    expect(&send(server.request("GET", "/v2/").basic_auth("ann", Some(&own))).await, 401);
    expect(&send(post(&format!("grant_type=refresh_token&refresh_token={own}"))).await, 401);
    // A registry without tokens has no such place.
    let plain = Server::start().await;
    expect_error(plain.get("/token").await, 404, "UNSUPPORTED").await;
}

#[tokio::test]
async fn a_refresh_token_is_as_good_as_the_password_until_that_changes() {
    let directory = TempDir::new().expect("temporary directory");
    let (server, _) = start(directory.path(), Vec::new()).await;
    let form = "grant_type=password&username=ann&password=secret&client_id=x&access_type=offline&service=cfc-registry";
    let scope = "&scope=repository:a/b:pull,push,shout";
    let first = send(server.request("POST", "/token").body(format!("{form}{scope}"))).await;
    expect(&first, 200);
    let first: Value = first.json().await.expect("JSON");
    assert_eq!(first["scope"], "repository:a/b:pull,push");
    let refresh = first["refresh_token"].as_str().expect("a refresh token");
    assert_eq!(status(&server, refresh, "GET", "/v2/").await, 401, "a refresh token opens nothing by itself");
    let form = format!("grant_type=refresh_token&refresh_token={refresh}{scope}");
    let again = send(server.request("POST", "/token").body(form.clone())).await;
    expect(&again, 200);
    let again: Value = again.json().await.expect("JSON");
    let own = again["access_token"].as_str().expect("a token").to_string();
    assert_eq!(status(&server, &own, "POST", "/v2/a/b/blobs/uploads/").await, 202);
    assert!(ask(&server, ANN, "offline_token=true").await["refresh_token"].is_string());
    assert!(ask(&server, ANN, "").await["refresh_token"].is_null());
    assert!(ask(&server, None, "offline_token=true").await["refresh_token"].is_null());

    write_users(directory.path(), &[("ann", "changed")]);
    expect(&send(server.request("POST", "/token").body(form)).await, 401);
    // Who is taken out is out at once, whatever token is left.
    assert_eq!(status(&server, &own, "POST", "/v2/a/b/blobs/uploads/").await, 202);
    write_users(directory.path(), &[("bob", "guess")]);
    let gone = send(server.request("POST", "/v2/a/b/blobs/uploads/").bearer_auth(&own)).await;
    assert!(header(&gone, "www-authenticate").ends_with("error=\"invalid_token\""));
}

#[tokio::test]
async fn an_upload_outlives_the_password_it_began_with() {
    let directory = TempDir::new().expect("temporary directory");
    let (server, minter) = start(directory.path(), rules()).await;
    let password = minter.mint("v1", &[Permission::Push], Duration::from_secs(8));
    let with = |method: &str, path: &str| server.request(method, path).basic_auth("v1", Some(&password));
    let begun = send(with("POST", "/v2/a/blobs/uploads/")).await;
    expect(&begun, 202);
    let location = header(&begun, "location");
    expect(&send(with("PATCH", &location).body("half ")).await, 202);
    let expired = async {
        while send(with("GET", "/v2/")).await.status() == 200 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), expired).await.expect("it expires");
    // Nothing new begins, nothing else opens.
    expect(&send(with("POST", "/v2/a/blobs/uploads/")).await, 401);
    expect(&send(with("POST", &format!("/v2/a/blobs/uploads/?digest={}", Digest::of(b"x"))).body("x")).await, 401);
    expect(&send(server.request("GET", "/token").basic_auth("v1", Some(&password))).await, 401);
    expect(&send(with("PATCH", &location.replace("/v2/a/", "/v2/b/")).body("x")).await, 404);
    expect(&send(server.request("PATCH", &location).basic_auth("v2", Some(&password)).body("x")).await, 401);
    // What began goes on to its end.
    expect(&send(with("PATCH", &location).body("done")).await, 202);
    let path = format!("{location}?digest={}", Digest::of(b"half done"));
    expect(&send(with("PUT", &path)).await, 201);
    expect(&send(with("PATCH", &location).body("x")).await, 404);
}

#[tokio::test]
async fn a_password_that_was_made_opens_what_it_was_made_for() {
    let directory = TempDir::new().expect("temporary directory");
    let (server, minter) = start(directory.path(), rules()).await;
    let digest = Digest::of(b"x");
    let hour = Duration::from_secs(3600);
    let pusher = minter.mint("v1", &[Permission::Push, Permission::Pull], hour);
    let puller = minter.mint("v1", &[Permission::Pull], hour);
    let push = format!("/v2/any/where/blobs/uploads/?digest={digest}");
    expect(&send(server.request("POST", &push).basic_auth("v1", Some(&pusher)).body("x")).await, 201);
    expect(&send(server.request("POST", &push).basic_auth("v1", Some(&puller)).body("x")).await, 403);
    let blob = format!("/v2/any/where/blobs/{digest}");
    expect(&send(server.request("GET", &blob).basic_auth("v1", Some(&puller))).await, 200);
    expect(&send(server.request("DELETE", &blob).basic_auth("v1", Some(&puller))).await, 403);
    // It goes with its name, and is no token.
    expect(&send(server.request("GET", &blob).basic_auth("ann", Some(&puller))).await, 401);
    expect(&send(server.request("GET", &blob).bearer_auth(&puller)).await, 401);
    // It buys a token, for no more, and none that refreshes.
    let answer = ask(&server, Some(("v1", &puller)), "offline_token=true&scope=repository:any/where:pull,push").await;
    assert_eq!(answer["scope"], "repository:any/where:pull");
    assert!(answer["refresh_token"].is_null());
    let token = answer["token"].as_str().expect("a token");
    assert_eq!(status(&server, token, "GET", &blob).await, 200);
    assert_eq!(status(&server, token, "POST", &push).await, 403);
    // Another registry's is nothing here.
    let other = TempDir::new().expect("temporary directory");
    let (_, minter) = start(other.path(), rules()).await;
    let foreign = minter.mint("v1", &[Permission::Pull], hour);
    expect(&send(server.request("GET", &blob).basic_auth("v1", Some(&foreign))).await, 401);
}

/// What an operator asks for who wants to have a CI job push.
fn loan(permissions: &[Permission], repositories: &[&str], seconds: u64) -> LoanRequest {
    let repositories = repositories.iter().map(|pattern| pattern.to_string()).collect();
    LoanRequest {
        username: "ci".to_string(),
        grant: Grant { permissions: permissions.to_vec(), repositories },
        seconds,
    }
}

#[tokio::test]
async fn what_an_operator_lends_opens_the_places_that_he_has_named() {
    use Permission::{Catalog, Pull, Push};
    let directory = TempDir::new().expect("temporary directory");
    let users = write_users(directory.path(), &[("ann", "secret")]);
    let (key, log) = (directory.path().join("key"), directory.path().join("audit.log"));
    let access = AccessRules::new(&users, rules()).expect("opens").with_tokens(&key).expect("a key");
    let audit = AuditLog::to_file(&log, 1 << 20).expect("opens");
    let options = Options { authorizer: Some(Arc::new(access)), audit: Some(Arc::new(audit)), ..Options::default() };
    let server = Server::start_with(options).await;
    for name in ["ci/app", "other/app"] {
        let push = format!("/v2/{name}/manifests/v1");
        let body = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
        let type_ = cfc_oci::media_type::INDEX;
        let put = server.request("PUT", &push).basic_auth("ann", Some("secret")).header("content-type", type_);
        expect(&send(put.body(body)).await, 201);
    }
    // Nobody gets it from elsewhere.
    let body = serde_json::to_string(&loan(&[Pull], &["**"], 600)).expect("JSON");
    for method in ["POST", "GET", "DELETE"] {
        for path in ["/operator/loans", "/operator/loans?id=x", "/operator%2Floans", "//operator/loans"] {
            let from_outside = server.request(method, path).basic_auth("ann", Some("secret")).body(body.clone());
            expect(&send(from_outside).await, 404);
        }
    }
    let socket = directory.path().join("operator");
    crate::harness::operator(&server.registry, &socket).await;
    let lend = async |request: LoanRequest| ask_for_loan(&socket, &request).await;
    let lent: Loan = lend(loan(&[Pull, Push, Catalog], &["ci/*"], 600)).await.expect("lends");
    assert!(lent.username == "ci" && lent.expires.ends_with('Z'), "{lent:?}");

    let digest = Digest::of(b"x");
    let with = |method: &str, path: &str| server.request(method, path).basic_auth("ci", Some(&lent.password));
    let push = |name: &str| format!("/v2/{name}/blobs/uploads/?digest={digest}");
    expect(&send(with("GET", "/v2/")).await, 200);
    expect(&send(with("POST", &push("ci/app")).body("x")).await, 201);
    expect(&send(with("GET", "/v2/ci/app/manifests/v1")).await, 200);
    for (method, path) in [
        ("POST", push("other/app")),
        ("POST", push("ci/deep/app")),
        ("GET", "/v2/other/app/manifests/v1".to_string()),
        ("HEAD", "/v2/other/app/manifests/v1".to_string()),
        ("DELETE", "/v2/ci/app/manifests/v1".to_string()),
        ("PUT", "/v2/gc/layers".to_string()),
        ("GET", "/metrics".to_string()),
    ] {
        expect(&send(with(method, &path).body("x")).await, 403);
    }
    // What is elsewhere is not mounted either, and not listed.
    let mount = format!("/v2/ci/app/blobs/uploads/?mount={}&from=other/app", Digest::of(b"y"));
    expect(&send(with("POST", &mount)).await, 202);
    let listed: Value = send(with("GET", "/v2/_catalog")).await.json().await.expect("JSON");
    assert_eq!(listed["repositories"], serde_json::json!(["ci/app"]));
    // It buys a token for no more, and goes with its name.
    let scopes = "scope=repository:ci/app:pull,push,delete&scope=repository:other/app:pull,push&offline_token=true";
    let answer = ask(&server, Some(("ci", &lent.password)), scopes).await;
    assert_eq!(answer["scope"], "repository:ci/app:pull,push");
    assert!(answer["refresh_token"].is_null());
    let token = answer["token"].as_str().expect("a token");
    assert_eq!(status(&server, token, "GET", "/v2/ci/app/manifests/v1").await, 200);
    assert_eq!(status(&server, token, "GET", "/v2/other/app/manifests/v1").await, 403);
    expect(&send(server.request("GET", "/v2/").basic_auth("ann", Some(&lent.password))).await, 401);

    // What cannot be meant is refused in words.
    let named = |name: &str| LoanRequest { username: name.to_string(), ..loan(&[Pull], &["**"], 600) };
    for (request, expected) in [
        (named("ann"), "`ann` is a user with a password of its own"),
        (named("a:b"), "no user name"),
        (named("anonymous"), "stands for others"),
        (loan(&[], &["**"], 600), "good for nothing"),
        (loan(&[Pull], &[], 600), "no repositories are named"),
        (loan(&[Pull], &["Team/*"], 600), "no name has a `T`"),
        (loan(&[Pull], &["a"; 51], 600), "at most 50 patterns"),
        (loan(&[Pull], &["**"], 59), "a minute to 24 hours"),
        (loan(&[Pull], &["**"], 24 * 3600 + 1), "a minute to 24 hours"),
    ] {
        let refused = lend(request).await.expect_err(expected).to_string();
        assert!(refused.contains("400") && refused.contains(expected), "{refused}");
    }
    drop(server);
    let lines = std::fs::read_to_string(&log).expect("a log");
    let line = lines.lines().find(|line| line.contains("\"action\":\"lend\"")).expect("it is written down");
    let line: Value = serde_json::from_str(line).expect("JSON");
    assert_eq!(line["lent"]["repositories"], serde_json::json!(["ci/*"]));
    assert_eq!((&line["lent"]["username"], &line["lent"]["expires"]), (&"ci".into(), &lent.expires.into()));
    assert_eq!((&line["lent"]["id"], &line["lent"]["by"]), (&lent.id.into(), &"operator".into()));
    assert!(!lines.contains(&lent.password));
}

/// A registry with users and an operator's socket, what makes passwords for it as the control API does, and its log.
async fn start_lending(directory: &Path) -> (Server, Minter, PathBuf, PathBuf) {
    let users = write_users(directory, &[("ann", "secret")]);
    let access = AccessRules::new(&users, rules()).expect("opens").with_tokens(&directory.join("key")).expect("a key");
    let minter = access.minter().expect("there are tokens");
    let (log, socket) = (directory.join("audit.log"), directory.join("operator"));
    let audit = Some(Arc::new(AuditLog::to_file(&log, 1 << 20).expect("opens")));
    let server = Server::start_with(Options { authorizer: Some(Arc::new(access)), audit, ..Options::default() }).await;
    crate::harness::operator(&server.registry, &socket).await;
    (server, minter, socket, log)
}

#[tokio::test]
async fn one_password_is_taken_back_alone_with_what_was_made_of_it() {
    use Permission::{Pull, Push};
    let directory = TempDir::new().expect("temporary directory");
    let (server, minter, socket, log) = start_lending(directory.path()).await;
    let lend = async || ask_for_loan(&socket, &loan(&[Pull, Push], &["ci/*"], 600)).await.expect("lends");
    let (lost, kept) = (lend().await, lend().await);
    let minted = server.registry.mint(&minter, "v1", &[Pull], Duration::from_secs(600)).await.expect("mints");
    let with = |loan: &Loan, method: &str, path: &str| {
        server.request(method, path).basic_auth(&loan.username, Some(&loan.password))
    };
    let token = async |loan: &Loan| {
        let user = Some((loan.username.as_str(), loan.password.as_str()));
        token(&server, user, "repository:ci/app:pull,push").await
    };
    let (of_lost, of_kept) = (token(&lost).await, token(&kept).await);
    let began = send(with(&lost, "POST", "/v2/ci/app/blobs/uploads/")).await;
    let upload = crate::harness::location(&began);

    let ids = async || {
        let loans = ask_for_loans(&socket).await.expect("lists");
        loans.into_iter().map(|loan| (loan.id, loan.revoked.is_some())).collect::<BTreeMap<_, _>>()
    };
    let expected = |is_revoked| {
        BTreeMap::from([(lost.id.clone(), is_revoked), (kept.id.clone(), false), (minted.id.clone(), false)])
    };
    assert_eq!(ids().await, expected(false));
    let revoked = ask_to_revoke(&socket, &lost.id).await.expect("takes back");
    assert_eq!((revoked.username.as_str(), &revoked.grant.repositories), ("ci", &vec!["ci/*".to_string()]));
    // Once more does no harm.
    assert_eq!(ask_to_revoke(&socket, &lost.id).await.expect("takes back").revoked, revoked.revoked);
    assert_eq!(ids().await, expected(true));

    // Neither it nor its tokens open anything, begin anything, or go on; it buys no other token, in either way.
    for request in [
        with(&lost, "GET", "/v2/"),
        with(&lost, "POST", "/v2/ci/app/blobs/uploads/"),
        with(&lost, "PATCH", &upload).body("x"),
        with(&lost, "GET", "/token?scope=repository:ci/app:pull"),
        server.request("PATCH", &upload).bearer_auth(&of_lost).body("x"),
        server.request("GET", "/v2/ci/app/manifests/v1").bearer_auth(&of_lost),
        server.request("POST", "/token").body(format!("grant_type=password&username=ci&password={}", lost.password)),
    ] {
        let response = send(request).await;
        assert!(!header(&response, "www-authenticate").is_empty());
        let said = expect_error(response, 401, "UNAUTHORIZED").await;
        assert!(said.contains("this password was taken back by who runs the registry"), "{said}");
    }
    // Whoever has not the right name is told nothing of it.
    let stranger = send(server.request("GET", "/v2/").basic_auth("eve", Some(&lost.password))).await;
    assert!(!expect_error(stranger, 401, "UNAUTHORIZED").await.contains("taken back"));
    // The others are as they were.
    expect(&send(with(&kept, "GET", "/v2/")).await, 200);
    expect(&send(with(&minted, "GET", "/v2/")).await, 200);
    expect(&send(server.request("PATCH", &upload).bearer_auth(&of_kept).body("x")).await, 202);
    expect(&send(server.request("GET", "/v2/").basic_auth("ann", Some("secret"))).await, 200);
    // What is no id of one is said, whatever it is.
    for nobody in ["", "x", "../../token-key", "0123456789abcdef0123456789abcdef", "a/b?c=%2f&id=d"] {
        let refused = ask_to_revoke(&socket, nobody).await.expect_err("there is none").to_string();
        assert!(refused.contains("400") && refused.contains(&format!("the id `{nobody}`")), "{refused}");
    }

    drop(server);
    let lines = std::fs::read_to_string(&log).expect("a log");
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let about = |action: &str| -> Vec<(&Value, &Value)> {
        let lines = lines.iter().filter(|line| line["action"] == action && line["status"] == 200);
        lines.map(|line| (&line["lent"]["id"], &line["lent"]["by"])).collect()
    };
    let value = |text: &str| Value::from(text.to_string());
    let [operator, control] = ["operator", "control-api"].map(value);
    let [lost, kept, minted] = [&lost.id, &kept.id, &minted.id].map(|id| value(id));
    assert_eq!(about("lend"), [(&lost, &operator), (&kept, &operator), (&minted, &control)]);
    assert_eq!(about("revoke"), [(&lost, &operator), (&lost, &operator)]);
}

#[tokio::test]
async fn a_password_that_was_taken_back_stays_so_in_the_next_process() {
    let directory = TempDir::new().expect("temporary directory");
    let users = write_users(directory.path(), &[("ann", "secret")]);
    let options = || {
        let access = AccessRules::new(&users, rules()).expect("opens");
        let access = access.with_tokens(&directory.path().join("key")).expect("a key");
        Options { authorizer: Some(Arc::new(access)), ..Options::default() }
    };
    let server = Server::start_with(options()).await;
    let lend = async || server.registry.lend(&loan(&[Permission::Pull], &["**"], 600)).await.expect("lends");
    let (lost, kept) = (lend().await, lend().await);
    assert!(server.registry.revoke(&lost.id).await.expect("takes back").is_some());
    let server = server.restart_with(options()).await;
    for (loan, expected) in [(&kept, 200), (&lost, 401), (&kept, 200)] {
        expect(&send(server.request("GET", "/v2/").basic_auth("ci", Some(&loan.password))).await, expected);
    }
}

#[tokio::test]
async fn a_registry_without_users_lends_nothing() {
    let server = Server::start().await;
    let socket = server.root().join("operator");
    crate::harness::operator(&server.registry, &socket).await;
    let refused = ask_for_loan(&socket, &loan(&[Permission::Pull], &["**"], 600)).await.expect_err("refused");
    assert!(refused.to_string().contains("it has no users"), "{refused}");
}
