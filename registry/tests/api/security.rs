//! Known ways into registries, one test each: those that the tests of the parts do not have.

use std::sync::Arc;

use cfc_oci::Digest;
use cfc_registry::{AccessRules, Options, Permission, Rule};
use serde_json::Value;
use tempfile::TempDir;

use crate::access::write_users;
use crate::harness::{Server, expect, expect_error, image, index, location, send};

async fn team(directory: &TempDir) -> Server {
    let users = write_users(directory.path(), &[("ann", "secret"), ("bob", "guess")]);
    let rule = |user: &str, place: &str| Rule {
        users: vec![user.to_string()],
        repositories: vec![place.to_string()],
        actions: vec![Permission::Pull, Permission::Push, Permission::Delete],
    };
    let rules = vec![rule("ann", "ann/**"), rule("bob", "bob/**")];
    let access = AccessRules::new(&users, rules).expect("opens");
    let access = access.with_tokens(&directory.path().join("key")).expect("a key");
    Server::start_with(Options { authorizer: Some(Arc::new(access)), ..Options::default() }).await
}

/// CVE-2026-35172: a blob that a repository has deleted was readable there again once another one had it.
#[tokio::test]
async fn what_a_repository_has_deleted_stays_gone_there_whatever_others_do() {
    let server = Server::start().await;
    let digest = server.push_blob("a", b"secret").await;
    let (a, b) = (format!("/v2/a/blobs/{digest}"), format!("/v2/b/blobs/{digest}"));
    expect(&server.get(&a).await, 200);
    expect(&server.delete(&a).await, 202);
    for _ in 0..3 {
        server.push_blob("b", b"secret").await;
        expect(&server.get(&b).await, 200);
        expect(&server.head(&b).await, 200);
        expect_error(server.get(&a).await, 404, "BLOB_UNKNOWN").await;
        expect(&server.head(&a).await, 404);
        let ranged = server.request("GET", &a).header("range", "bytes=0-1");
        expect(&send(ranged).await, 404);
        let cached = server.request("GET", &a).header("if-none-match", format!("\"{digest}\""));
        expect(&send(cached).await, 404);
    }
}

/// CVE-2026-31801, zot#4266: a policy that one way of setting a tag did not ask.
#[tokio::test]
async fn of_many_who_set_an_immutable_tag_at_once_one_does() {
    let options = Options { immutable_tags: vec!["**:v*".to_string()], ..Options::default() };
    let server = Server::start_with(options).await;
    for round in 0..5 {
        let tag = format!("v{round}");
        let pushes = (0..12).map(|number| {
            let json = index(&[], &format!(",\"annotations\":{{\"number\":\"{number}\"}}"));
            let (server, tag) = (&server, &tag);
            async move {
                let digest = Digest::of(json.as_bytes());
                let reference =
                    if number % 2 == 0 { tag.clone() } else { format!("{digest}?tag={tag}&tag=free{number}") };
                let status = server.put_manifest("a", &reference, &json).await.status().as_u16();
                (status, digest)
            }
        });
        let done = futures::future::join_all(pushes).await;
        let winners: Vec<_> = done.iter().filter(|(status, _)| *status == 201).collect();
        assert_eq!(winners.len(), 1, "{done:?}");
        assert!(done.iter().all(|(status, _)| [201, 403].contains(status)), "{done:?}");
        let found = server.head(&format!("/v2/a/manifests/{tag}")).await;
        assert_eq!(crate::harness::header(&found, "docker-content-digest"), winners[0].1.to_string());
    }
}

/// An upload belongs to its repository; who may not push there gets nowhere with it, though he knows its id.
#[tokio::test]
async fn an_upload_is_nothing_to_who_may_not_push_there() {
    let directory = TempDir::new().expect("temporary directory");
    let server = team(&directory).await;
    let ann = |method: &str, path: &str| server.request(method, path).basic_auth("ann", Some("secret"));
    let bob = |method: &str, path: &str| server.request(method, path).basic_auth("bob", Some("guess"));
    let location = location(&send(ann("POST", "/v2/ann/app/blobs/uploads/")).await);
    expect(&send(ann("PATCH", &location).body("begun")).await, 202);
    let moved = location.replace("/v2/ann/app/", "/v2/bob/app/");
    let digest = Digest::of(b"begun");
    let scope = "/token?scope=repository:ann/app:pull,push&scope=repository:bob/app:pull,push";
    let token: Value = send(bob("GET", scope)).await.json().await.expect("JSON");
    let token = token["token"].as_str().expect("a token");
    for method in ["GET", "PATCH", "PUT", "DELETE"] {
        let query = if method == "PUT" { format!("?digest={digest}") } else { String::new() };
        for (path, status) in [(&location, 403), (&moved, 404)] {
            let path = format!("{path}{query}");
            expect(&send(bob(method, &path).body("x")).await, status);
            expect(&send(server.request(method, &path).bearer_auth(token).body("x")).await, status);
            expect(&send(server.request(method, &path).body("x")).await, 401);
        }
        let guessed = format!("/v2/bob/app/blobs/uploads/{}{query}", "67e55044-10b1-426f-9247-bb680e5fe0c8");
        expect(&send(bob(method, &guessed).body("x")).await, 404);
    }
    expect(&send(ann("PUT", &format!("{location}?digest={digest}"))).await, 201);
    // What only ann may read cannot be taken over by knowing its digest, nor named in a manifest to get at it.
    for query in [format!("mount={digest}&from=ann/app"), format!("mount={digest}"), format!("mount={digest}&from=..")]
    {
        expect(&send(bob("POST", &format!("/v2/bob/app/blobs/uploads/?{query}"))).await, 202);
    }
    let json = image(&digest, &[&digest], "");
    let put = bob("PUT", "/v2/bob/app/manifests/v1").header("content-type", cfc_oci::media_type::MANIFEST).body(json);
    expect_error(send(put).await, 400, "MANIFEST_BLOB_UNKNOWN").await;
    expect(&send(bob("GET", &format!("/v2/bob/app/blobs/{digest}"))).await, 404);
}

/// CVE-2025-24976 and its like: tokens that say themselves how they are to be believed.
#[tokio::test]
async fn forged_tokens_open_nothing() {
    let directory = TempDir::new().expect("temporary directory");
    let server = team(&directory).await;
    let scope = "/token?scope=repository:ann/app:pull,push,delete";
    let good: Value =
        send(server.request("GET", scope).basic_auth("ann", Some("secret"))).await.json().await.expect("JSON");
    let good = good["token"].as_str().expect("a token");
    let parts: Vec<&str> = good.split('.').collect();
    let encode = |text: &str| cfc_oci::base64::encode_url(text.as_bytes());
    let none = encode(r#"{"alg":"none","typ":"JWT"}"#);
    let jwk = encode(r#"{"alg":"HS256","typ":"JWT","jwk":{"kty":"oct","k":"QUFBQQ"}}"#);
    let kid = encode(r#"{"alg":"HS256","typ":"JWT","kid":"/dev/null"}"#);
    let claims = encode(
        r#"{"iss":"cfc-registry","aud":"cfc-registry","sub":"ann","exp":99999999999,"nbf":0,"iat":0,"jti":"x","kind":"access","holder":"user","access":[{"type":"repository","name":"ann/app","actions":["pull","push"]}]}"#,
    );
    let forged = [
        format!("{none}.{}.", parts[1]),
        format!("{none}.{}.{}", parts[1], parts[2]),
        format!("{jwk}.{}.{}", parts[1], parts[2]),
        format!("{kid}.{}.{}", parts[1], parts[2]),
        format!("{}.{claims}.{}", parts[0], parts[2]),
        format!("{}.{claims}.", parts[0]),
        format!("{}.{}", parts[0], parts[1]),
        format!("{}.{}.{}=", parts[0], parts[1], parts[2]),
        format!("{good}.{good}"),
        "null".to_string(),
        "x".repeat(20_000),
    ];
    let begin = "/v2/ann/app/blobs/uploads/";
    expect(&send(server.request("POST", begin).bearer_auth(good)).await, 202);
    for token in forged {
        expect(&send(server.request("POST", begin).bearer_auth(&token)).await, 401);
        expect(&send(server.request("GET", "/v2/").bearer_auth(&token)).await, 401);
        expect(&send(server.request("GET", "/token").basic_auth("ann", Some(&token))).await, 401);
    }
}

/// What a client asks tokens for, and says of itself, costs little.
#[tokio::test]
async fn a_flood_of_scopes_and_headers_is_bounded() {
    let directory = TempDir::new().expect("temporary directory");
    let server = team(&directory).await;
    let scopes: Vec<String> = (0..2000).map(|number| format!("scope=repository:ann/a{number}:pull")).collect();
    let path = format!("/token?{}", scopes.join("&"));
    let answer = send(server.request("GET", &path).basic_auth("ann", Some("secret"))).await;
    expect_error(answer, 400, "UNSUPPORTED").await;
    let path = format!("/token?{}", scopes[..50].join("&"));
    let answer = send(server.request("GET", &path).basic_auth("ann", Some("secret"))).await;
    expect(&answer, 200);
    let answer: Value = answer.json().await.expect("JSON");
    assert!(answer["token"].as_str().expect("a token").len() < 16_000);
    for name in ["repository:../../etc:pull", "repository:ann/app\u{0}:pull", "repository::pull", "::::"] {
        let path = format!("/token?scope={}", name.replace('\u{0}', "%00"));
        let answer: Value =
            send(server.request("GET", &path).basic_auth("ann", Some("secret"))).await.json().await.expect("JSON");
        assert_eq!(answer["scope"], "", "{name}");
    }
}
