//! Secrets: what wrangler sends, and that their values are in no record and no answer.

use std::sync::Arc;

use cfc_control::Code;
use futures::StreamExt;
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};

use crate::server::{ACCOUNT, Server, TOKEN, starter};

const SECRETS: &str = "/workers/scripts/starter/secrets";

/// The values that the platform keeps.
fn kept(server: &Server) -> Vec<String> {
    let mut values: Vec<String> = server.platform.secrets.lock().expect("not poisoned").values().cloned().collect();
    values.sort();
    values
}

async fn assert_not_recorded(bucket: &InMemory, text: &str) {
    let objects: Vec<_> = bucket.list(None).collect().await;
    for object in objects {
        let path = object.expect("listed").location;
        let bytes = bucket.get(&path).await.expect("is there").bytes().await.expect("readable");
        assert!(!String::from_utf8_lossy(&bytes).contains(text), "{path}");
    }
}

/// A multipart request as wrangler sends it.
async fn send(server: &Server, method: &str, path: &str, part: &'static str, body: Value) -> (u16, Value) {
    let url = format!("{}/client/v4/accounts/{ACCOUNT}{path}", server.url);
    let module = Part::text("export default {}").file_name("index.js");
    let form = Form::new()
        .part(part, Part::text(body.to_string()))
        .part("index.js", module.mime_str("application/javascript+module").expect("a type"));
    let request = reqwest::Client::new().request(method.parse().expect("a method"), url).bearer_auth(TOKEN);
    let response = request.multipart(form).send().await.expect("the server answers");
    (response.status().as_u16(), response.json().await.expect("JSON"))
}

#[tokio::test]
async fn wranglers_secrets_are_set_listed_and_deleted() {
    let bucket = Arc::new(InMemory::new());
    let server = Server::start_on(bucket.clone()).await;
    let secret = json!({"name": "KEY", "text": "s3cret", "type": "secret_text"});
    let (status, body) = server.call("PUT", SECRETS, Some(secret.clone())).await;
    assert_eq!((status, &body["errors"][0]["code"]), (404, &json!(10007)), "wrangler then makes a draft");

    let before = server.client.deploy(&starter("localhost/app:1", "one")).await.expect("deploys");
    let (status, body) = server.call("PUT", SECRETS, Some(secret)).await;
    assert_eq!((status, &body["result"]), (200, &json!({"name": "KEY", "type": "secret_text"})), "{body}");
    let serving = server.platform.serving("starter").expect("serves");
    assert_ne!(serving.worker.version_id, before.worker.version_id, "a secret is a new version");
    assert_eq!(serving.applications, before.applications);
    let (_, body) = server.call("GET", SECRETS, None).await;
    assert_eq!(body["result"], json!([{"name": "KEY", "type": "secret_text"}]));
    let (_, body) = server.call("GET", "/workers/scripts/starter/settings", None).await;
    let bindings = body["result"]["bindings"].as_array().expect("a list");
    assert!(bindings.contains(&json!({"type": "secret_text", "name": "KEY"})), "{body}");
    assert_not_recorded(&bucket, "s3cret").await;

    // A deployment that says nothing of it keeps it, and one with a text sets it anew.
    server.client.deploy(&starter("localhost/app:1", "two")).await.expect("deploys");
    assert_eq!(kept(&server), ["s3cret"]);
    let metadata = json!({
        "main_module": "index.js", "compatibility_date": "2025-10-03", "keep_bindings": ["secret_text"],
        "bindings": [{"type": "secret_text", "name": "KEY", "text": "other-s3cret"}, {"type": "inherit", "name": "A"}],
    });
    let (status, body) = send(&server, "PUT", "/workers/scripts/starter", "metadata", metadata).await;
    assert_eq!(status, 200, "{body}");
    assert!(!body.to_string().contains("s3cret"), "{body}");
    assert_eq!(kept(&server), ["other-s3cret"]);
    assert_eq!(
        server.platform.serving("starter").expect("serves").worker.vars,
        [("A".to_string(), json!("text"))].into()
    );
    assert_not_recorded(&bucket, "s3cret").await;

    let (status, body) = server.call("DELETE", &format!("{SECRETS}/KEY?url_encoded=true"), None).await;
    assert_eq!(status, 200, "{body}");
    assert!(kept(&server).is_empty());
    let (status, body) = server.call("DELETE", &format!("{SECRETS}/KEY?url_encoded=true"), None).await;
    assert_eq!((status, &body["errors"][0]["code"]), (404, &json!(10056)));
}

#[tokio::test]
async fn wranglers_bulk_sets_secrets_and_keeps_everything_else() {
    let server = Server::start().await;
    server.client.deploy(&starter("localhost/app:1", "one")).await.expect("deploys");
    server.call("PUT", SECRETS, Some(json!({"name": "OLD", "text": "old", "type": "secret_text"}))).await;
    let path = "/workers/scripts/starter/settings";
    let inherited = json!([
        {"type": "plain_text", "name": "A"}, {"type": "json", "name": "B"},
        {"type": "durable_object_namespace", "name": "MY_CONTAINER"}, {"type": "secret_text", "name": "OLD"},
    ]);
    let with = |more: Value| {
        let bindings = inherited.as_array().expect("a list").iter().cloned().chain([more]);
        json!({"bindings": bindings.collect::<Vec<_>>()})
    };
    let new = json!({"type": "secret_text", "name": "NEW", "text": "new"});
    let (status, body) = send(&server, "PATCH", path, "settings", with(new)).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(kept(&server), ["new", "old"]);
    let serving = server.platform.serving("starter").expect("serves");
    assert_eq!((serving.worker.vars.len(), serving.worker.durable_objects.len()), (2, 1));

    for (wrong, expected) in [
        (json!({"type": "plain_text", "name": "C", "text": "x"}), "binding `C` of type `plain_text`"),
        (json!({"type": "kv_namespace", "name": "D"}), "binding `D` of type `kv_namespace`"),
    ] {
        let (status, body) = send(&server, "PATCH", path, "settings", with(wrong)).await;
        assert!(status == 501 && body.to_string().contains(expected), "{body}");
    }
    let (status, body) = send(&server, "PATCH", path, "settings", json!({"bindings": []})).await;
    assert!(status == 501 && body.to_string().contains("is left out"), "{body}");
    assert_eq!(kept(&server), ["new", "old"]);
}

#[tokio::test]
async fn a_secret_that_cannot_be_put_changes_nothing() {
    let server = Server::start().await;
    let mut request = starter("localhost/app:1", "one");
    let before = server.client.deploy(&request).await.expect("deploys");
    let changes = |name: &str| [(name.to_string(), Some("s3cret".to_string()))].into();
    for name in ["A", "MY_CONTAINER"] {
        let error = server.client.change_secrets("starter", &changes(name)).await.expect_err("taken");
        assert_eq!(error.code(), Some(Code::BindingInUse));
    }
    server.platform.fail_next("activate");
    server.client.change_secrets("starter", &changes("KEY")).await.expect_err("not started");
    assert_eq!(kept(&server), [] as [String; 0]);
    assert_eq!(server.platform.serving("starter").expect("serves").worker, before.worker);

    server.client.change_secrets("starter", &changes("KEY")).await.expect("put");
    request.vars.insert("KEY".to_string(), json!("a variable"));
    let error = server.client.deploy(&request).await.expect_err("taken");
    assert_eq!(error.code(), Some(Code::BindingInUse));
    assert_eq!(kept(&server), ["s3cret"]);
}

#[tokio::test]
async fn a_value_that_a_crash_left_goes_at_the_next_start() {
    let server = Server::start().await;
    server.client.deploy(&starter("localhost/app:1", "one")).await.expect("deploys");
    let changes = [("KEY".to_string(), Some("used".to_string()))].into();
    server.client.change_secrets("starter", &changes).await.expect("put");
    let unrecorded = ("starter".to_string(), uuid::Uuid::new_v4());
    server.platform.secrets.lock().expect("not poisoned").insert(unrecorded, "never recorded".to_string());
    server.control.finish_deletions().await.expect("readable");
    assert_eq!(kept(&server), ["used"]);
}
