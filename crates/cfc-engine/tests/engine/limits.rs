//! What an application may have: places and memory; and starts that fail.

use serde_json::json;

use crate::Test;
use crate::client::tunnel;
use crate::platform::{Platform, container, on_platform};

pub const TESTS: &[Test] = &[
    ("an_instance_without_a_place_says_so_and_starts_later", || on_platform(no_place)),
    ("a_start_that_fails_says_why", || on_platform(failed_start)),
    ("memory_is_limited_and_its_end_reported", || on_platform(out_of_memory)),
];

const NO_INSTANCE: &str = "there is no container instance that can be provided to this durable object";

async fn no_place(platform: Platform) {
    platform.run_script("exec httpd -f -p 4000 -h /www");
    let (first, second, third) = (container("a1"), container("a2"), container("a3"));
    platform.run(&first).await;
    platform.run(&second).await;
    let port = platform.sidecar(&third).await;
    platform.run(&third).await;
    assert_eq!(platform.status(&third).await, "running", "it counts as running at first");
    let (status, text) = tunnel(port, 4000).await.expect_err("there is no place");
    assert_eq!(status, 503);
    let limit = "application `app` already has 2 live instances, its `max_instances`";
    assert_eq!(text, format!("the container is not listening: {NO_INSTANCE}: {limit}"));
    assert_eq!(platform.status(&third).await, "running");
    let wait = format!("/containers/{third}/wait");
    let (waited, connected) = tokio::join!(platform.request("POST", &wait, None), tunnel(port, 4000));
    assert_eq!(waited, (503, json!({ "message": text })));
    assert_eq!(connected.expect_err("there is no place").0, 503);
    assert_eq!(platform.status(&third).await, "exited");
    assert_eq!(platform.remove(&third).await, 204);
    assert_eq!(platform.status(&third).await, "none");
    assert_eq!(platform.remove(&first).await, 204);
    platform.run(&third).await;
    assert!(tunnel(port, 4000).await.is_ok(), "there is a place now");
    platform.close().await;
}

async fn failed_start(platform: Platform) {
    platform.run_script_with("", |config| config.cmd = Some(vec!["/server".to_string()]));
    let name = container("a1");
    let port = platform.sidecar(&name).await;
    platform.run(&name).await;
    let (status, text) = tunnel(port, 4000).await.expect_err("there is no such command");
    assert_eq!(status, 503);
    assert!(text.contains("could not be started") && text.contains("`/server`"), "{text}");
    // Nobody connects again: the end comes by itself.
    let (status, body) = platform.request("POST", &format!("/containers/{name}/wait"), None).await;
    assert_eq!((status, &body["message"]), (503, &json!(text)));
    assert_eq!(platform.launcher.list().expect("the launcher answers"), []);
    platform.close().await;
}

async fn out_of_memory(platform: Platform) {
    platform.run_script("tail /dev/zero");
    let name = container("a1");
    platform.run(&name).await;
    let code = platform.wait(&name).await;
    let (_, body) = platform.request("GET", &format!("/containers/{name}/json"), None).await;
    assert_eq!((code, &body["State"]["OOMKilled"]), (137, &json!(true)), "{body}");
    platform.close().await;
}
