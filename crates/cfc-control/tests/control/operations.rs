//! Looking after instances over HTTP, and what can be seen without a token.

use std::time::Duration;

use cfc_control::{ClientErrorKind, Code, EventRequest, EventView};
use futures::StreamExt;

use crate::server::Server;

fn refused(error: cfc_control::ClientError) -> (Option<Code>, String) {
    match error.kind {
        ClientErrorKind::Refused { code, message, .. } => (code, message),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn stop_carries_the_grace_and_failures_have_codes() {
    let server = Server::start().await;
    let stopped = server.client.stop("i1", Some(Duration::from_millis(1500))).await.expect("stops");
    assert_eq!((stopped.id.as_str(), stopped.exit_code), ("i1", 1500));
    assert_eq!(server.client.stop("i1", None).await.expect("stops").exit_code, -1);
    let error = server.client.restart("i1", None).await.expect_err("it does not run");
    assert_eq!(refused(error), (Some(Code::Conflict), "instance `i1` is not running".to_string()));
    let error = server.client.inspect("nothing").await.expect_err("is not there");
    assert_eq!(refused(error), (Some(Code::NotFound), "there is no instance `nothing`".to_string()));
    let error = server.client.inspect("i").await.expect_err("is ambiguous");
    assert_eq!(refused(error), (Some(Code::Malformed), "`i` is the beginning of 2 instances: i1, i2".to_string()));
    let (status, body) = server.call("POST", "/containers/instances/i1/stop?grace_ms=soon", None).await;
    assert_eq!(status, 400, "{body}");
    let error = server.client.stats(Some("none")).await.expect_err("there is no such application");
    assert_eq!(refused(error).0, Some(Code::NotFound));
    assert_eq!(server.client.stats(None).await.expect("measures"), []);
}

#[tokio::test]
async fn events_are_json_lines_that_come_at_once() {
    let server = Server::start().await;
    let request = EventRequest { follow: true, since: None };
    let mut stream = server.client.events(&request).await.expect("a stream");
    let bytes = stream.next().await.expect("a line").expect("comes");
    let event: EventView = serde_json::from_slice(bytes.strip_suffix(b"\n").expect("a line")).expect("JSON");
    assert_eq!((event.number, event.event.as_str(), event.id.as_str()), (1, "created", "i1"));
}

#[tokio::test]
async fn metrics_and_health_need_no_token_and_the_api_does() {
    let server = Server::start().await;
    let get = async |path: &str| {
        let response = reqwest::get(format!("{}{path}", server.url)).await.expect("the server answers");
        (response.status().as_u16(), response.text().await.expect("text"))
    };
    let (status, text) = get("/metrics").await;
    assert_eq!((status, text.lines().last()), (200, Some("cfc_test_total{application=\"app\"} 1")));
    assert_eq!(get("/healthz").await, (200, "ok\n".to_string()));
    for path in ["events", "stats", "instances/i1"] {
        let path = format!("/client/v4/accounts/{}/containers/{path}", crate::server::ACCOUNT);
        assert_eq!(get(&path).await.0, 401, "{path}");
    }
}
