//! The authorizer hook.

use std::sync::Arc;

use async_trait::async_trait;
use cfc_registry::{Access, Action, Authorizer, Challenge, Credentials, Decision, Options};

use crate::harness::{Server, expect, expect_error, header, send};

/// `v1:secret` may do everything, the token `reader` may pull below `public/`.
struct Rules;

#[async_trait]
impl Authorizer for Rules {
    async fn authorize(&self, credentials: &Credentials, access: &Access) -> Decision {
        let is_public = access.repository.as_ref().is_some_and(|name| name.as_str().starts_with("public/"));
        match credentials {
            Credentials::Basic { username, password } if username == "v1" && password == "secret" => Decision::Allow,
            Credentials::Bearer(token) if token == "reader" => match access.action {
                Action::Ping => Decision::Allow,
                Action::Pull if is_public => Decision::Allow,
                _ => Decision::Deny,
            },
            Credentials::Bearer(_) => Decision::Challenge(Challenge::Bearer {
                realm: "http://127.0.0.1/token".to_string(),
                service: "cfc".to_string(),
                error: None,
            }),
            _ => Decision::Challenge(Challenge::Basic { realm: "cfc".to_string() }),
        }
    }
}

async fn start() -> Server {
    Server::start_with(Options { authorizer: Some(Arc::new(Rules)), ..Default::default() }).await
}

#[tokio::test]
async fn a_client_is_asked_for_credentials() {
    let server = start().await;
    for path in ["/v2/", "/v2/_catalog", "/v2/a/tags/list", "/v2/a/manifests/x", "/v2/NOT A NAME/x"] {
        let response = server.get(path).await;
        assert_eq!(header(&response, "www-authenticate"), "Basic realm=\"cfc\"", "{path}");
        expect_error(response, 401, "UNAUTHORIZED").await;
    }
    expect(&send(server.request("GET", "/v2/").basic_auth("v1", Some("secret"))).await, 200);
    expect(&send(server.request("GET", "/v2/").basic_auth("v1", Some("wrong"))).await, 401);
    let response = send(server.request("POST", "/v2/a/b/blobs/uploads/").bearer_auth("stale")).await;
    let expected = r#"Bearer realm="http://127.0.0.1/token",service="cfc",scope="repository:a/b:pull,push""#;
    assert_eq!(header(&response, "www-authenticate"), expected);
}

#[tokio::test]
async fn nobody_does_more_than_allowed() {
    let server = start().await;
    let push = |name: &str| {
        let digest = cfc_oci::Digest::of(b"x");
        server.request("POST", &format!("/v2/{name}/blobs/uploads/?digest={digest}")).body("x")
    };
    expect(&send(push("public/a").basic_auth("v1", Some("secret"))).await, 201);
    expect(&send(push("private/a").basic_auth("v1", Some("secret"))).await, 201);
    expect_error(send(push("public/a").bearer_auth("reader")).await, 403, "DENIED").await;
    let digest = cfc_oci::Digest::of(b"x");
    for (method, name, status) in [("GET", "public/a", 200), ("GET", "private/a", 403), ("DELETE", "public/a", 403)] {
        let request = server.request(method, &format!("/v2/{name}/blobs/{digest}"));
        expect(&send(request.bearer_auth("reader")).await, status);
    }
    expect(&send(server.request("GET", "/v2/_catalog").bearer_auth("reader")).await, 403);
}

/// Who may push to one repository must not take a blob from another that he may not read.
struct Pusher;

#[async_trait]
impl Authorizer for Pusher {
    async fn authorize(&self, _: &Credentials, access: &Access) -> Decision {
        match access.repository.as_ref().map(|name| name.as_str()) {
            Some("private") if matches!(access.action, Action::Pull | Action::Mount) => Decision::Deny,
            _ => Decision::Allow,
        }
    }
}

#[tokio::test]
async fn a_mount_needs_the_right_to_pull_from_its_source() {
    let server = Server::start_with(Options { authorizer: Some(Arc::new(Pusher)), ..Default::default() }).await;
    let digest = server.push_blob("private", b"secret").await;
    for query in [format!("mount={digest}&from=private"), format!("mount={digest}")] {
        let response = send(server.request("POST", &format!("/v2/mine/blobs/uploads/?{query}"))).await;
        expect(&response, 202);
    }
    expect(&server.get(&format!("/v2/mine/blobs/{digest}")).await, 404);
    server.push_blob("open", b"secret").await;
    let response = send(server.request("POST", &format!("/v2/mine/blobs/uploads/?mount={digest}"))).await;
    expect(&response, 201);
}
