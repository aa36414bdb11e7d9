//! Events of pushes and deletions, as receivers of distribution's notifications get them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cfc_registry::{AuditLog, HookEvent, Options, RetentionRule, Webhook};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::harness::{Server, expect};

/// What a receiver got: head and body.
type Got = Arc<Mutex<Vec<(String, String)>>>;

/// A receiver that gives these answers, one a request, and then 200; one that is `0` it keeps to itself, and after a last
/// `0` all.
async fn receiver(answers: &'static [u16]) -> (String, Got) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback port");
    let url = format!("http://{}/hook", listener.local_addr().expect("bound"));
    let got = Got::default();
    let all = got.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("accepts");
            let got = all.clone();
            tokio::spawn(async move {
                let mut text = Vec::new();
                loop {
                    let (head, body, length) = loop {
                        let whole = String::from_utf8_lossy(&text).into_owned();
                        if let Some((head, body)) = whole.split_once("\r\n\r\n") {
                            let length = head.to_ascii_lowercase();
                            let length = length.lines().find_map(|line| line.strip_prefix("content-length: "));
                            let length: usize = length.expect("a length").parse().expect("a number");
                            if body.len() >= length {
                                break (head.to_string(), body[..length].to_string(), whole.len());
                            }
                        }
                        let mut more = [0; 4096];
                        match stream.read(&mut more).await {
                            Ok(count) if count > 0 => text.extend_from_slice(&more[..count]),
                            _ => return,
                        }
                    };
                    text.drain(..length);
                    let number = {
                        let mut got = got.lock().expect("nobody panics");
                        got.push((head, body));
                        got.len()
                    };
                    let goes_on = answers.last().filter(|last| **last == 0);
                    let status = answers.get(number - 1).or(goes_on).copied().unwrap_or(200);
                    if status == 0 {
                        std::future::pending::<()>().await;
                    }
                    let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\nLocation: /elsewhere\r\n\r\n");
                    stream.write_all(answer.as_bytes()).await.expect("answers");
                }
            });
        }
    });
    (url, got)
}

fn webhook(url: &str) -> Webhook {
    Webhook {
        url: url.to_string(),
        headers: BTreeMap::new(),
        secret: None,
        repositories: vec!["**".to_string()],
        events: vec![HookEvent::Push, HookEvent::Delete],
        attempts: 5,
        backoff: Duration::from_millis(10),
    }
}

async fn wait_for(got: &Got, count: usize) -> Vec<(String, String)> {
    for _ in 0..2000 {
        let all = got.lock().expect("nobody panics").clone();
        if all.len() >= count {
            return all;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{} of {count} events came", got.lock().expect("nobody panics").len());
}

fn events(got: &[(String, String)]) -> Vec<Value> {
    let parse = |(_, body): &(String, String)| -> Value { serde_json::from_str(body).expect("JSON") };
    got.iter().map(|got| parse(got)["events"][0].clone()).collect()
}

#[tokio::test]
async fn pushes_and_deletions_are_told_in_distributions_envelope() {
    let (url, got) = receiver(&[]).await;
    let headers = BTreeMap::from([("authorization".to_string(), "Bearer of-the-receiver".to_string())]);
    let hook = Webhook { headers, secret: Some("Jefe".to_string()), ..webhook(&url) };
    let server = Server::start_with(Options { webhooks: vec![hook], ..Options::default() }).await;
    let (digest, json) = server.push_image("team/app", "v1", "one").await;
    expect(&server.put_manifest("team/app", &format!("{digest}?tag=a&tag=b"), &json).await, 201);
    expect(&server.put_manifest("team/app", &digest.to_string(), &json).await, 201);
    expect(&server.delete("/v2/team/app/manifests/v1").await, 202);
    expect(&server.delete(&format!("/v2/team/app/manifests/{digest}")).await, 202);
    expect(&server.delete("/v2/team/app/manifests/none").await, 404);
    let got = wait_for(&got, 6).await;
    let events = events(&got);
    let brief: Vec<String> = events
        .iter()
        .map(|event| {
            let target = &event["target"];
            assert_eq!(target["repository"], "team/app");
            let is_whole = target["digest"] == digest.to_string();
            format!("{} {} {is_whole}", event["action"].as_str().unwrap_or("?"), target["tag"].as_str().unwrap_or("-"))
        })
        .collect();
    let expected = ["push v1 true", "push a true", "push b true", "push - true", "delete v1 false", "delete - true"];
    assert_eq!(brief, expected);
    let target = &events[0]["target"];
    assert_eq!((&target["size"], &target["length"]), (&json.len().into(), &json.len().into()));
    assert_eq!(target["mediaType"], "application/vnd.oci.image.manifest.v1+json");
    let address = server.address.to_string();
    assert_eq!(target["url"], format!("http://{address}/v2/team/app/manifests/{digest}"));
    let request = &events[0]["request"];
    assert_eq!(
        (&request["method"], &request["host"], &request["addr"]),
        (&"PUT".into(), &address.into(), &"127.0.0.1".into())
    );
    assert!(events.iter().all(|event| event["id"].is_string() && event["timestamp"].is_string()));
    for (head, body) in &got {
        let head = head.to_ascii_lowercase();
        assert!(head.contains("content-type: application/vnd.docker.distribution.events.v1+json"), "{head}");
        assert!(head.contains("authorization: bearer of-the-receiver"), "{head}");
        // Checked with another implementation.
        if let Some(signature) = hmac("Jefe", body) {
            assert!(head.contains(&format!("x-cfc-signature-256: sha256={signature}")), "{head}");
        }
    }
}

fn hmac(key: &str, text: &str) -> Option<String> {
    use std::io::Write;
    let mut command = std::process::Command::new("openssl");
    command.args(["dgst", "-sha256", "-hmac", key, "-r"]);
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let Ok(mut child) = command.spawn() else {
        eprintln!("skipped: openssl is not installed");
        return None;
    };
    child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("ends").stdout;
    String::from_utf8(output).expect("text").split_whitespace().next().map(str::to_string)
}

#[tokio::test]
async fn a_receiver_that_fails_is_tried_again_and_is_not_led_elsewhere() {
    let (url, got) = receiver(&[500, 302, 429]).await;
    let server = Server::start_with(Options { webhooks: vec![webhook(&url)], ..Options::default() }).await;
    server.push_image("a", "v1", "one").await;
    server.push_image("a", "v2", "two").await;
    let got = wait_for(&got, 5).await;
    assert!(got.iter().all(|(head, _)| head.starts_with("POST /hook ")));
    let events = events(&got);
    let tags: Vec<_> = events.iter().map(|event| event["target"]["tag"].clone()).collect();
    assert_eq!(tags, ["v1", "v1", "v1", "v1", "v2"]);
    assert!(events[..4].iter().all(|event| event["id"] == events[0]["id"]), "one event has one id");
}

#[tokio::test]
async fn what_retention_removes_is_told_and_written_down() {
    let (url, got) = receiver(&[]).await;
    let directory = tempfile::TempDir::new().expect("temporary directory");
    let path = directory.path().join("audit.log");
    let rule = RetentionRule {
        repositories: vec!["**".to_string()],
        tags: vec!["**".to_string()],
        keep_last: Some(1),
        keep_younger: None,
        keep: Vec::new(),
    };
    let options = Options {
        webhooks: vec![Webhook { events: vec![HookEvent::Delete], ..webhook(&url) }],
        audit: Some(Arc::new(AuditLog::to_file(&path, 1 << 20).expect("opens"))),
        retention: vec![rule],
        collect_every: Some(Duration::from_millis(50)),
        url: Some("https://registry.example:5000/".to_string()),
        ..Options::default()
    };
    let server = Server::start_with(options).await;
    let (digest, _) = server.push_image("a", "one", "one").await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    server.push_image("a", "two", "two").await;
    let event = events(&wait_for(&got, 1).await).remove(0);
    assert_eq!((&event["action"], &event["target"]["tag"]), (&"delete".into(), &"one".into()));
    assert_eq!(event["target"]["repository"], "a");
    assert_eq!(event["request"]["useragent"], "cfc-registry-retention");
    assert_eq!((&event["request"]["method"], &event["request"]["addr"]), (&"".into(), &"".into()));
    assert_eq!(event["source"]["addr"], "registry.example:5000");
    assert_eq!(event["actor"], serde_json::json!({}));
    let own = |action: &str| -> Option<Value> {
        let text = std::fs::read_to_string(&path).expect("reads");
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.into_iter().find(|line| line["action"] == action)
    };
    for (action, kind, status) in [("retain", "manifest", 202), ("collect", "collection", 200)] {
        let mut line = own(action);
        for _ in 0..1000 {
            if line.is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            line = own(action);
        }
        let line = line.expect(action);
        assert_eq!((&line["kind"], &line["status"], &line["outcome"]), (&kind.into(), &status.into(), &"done".into()));
        assert!(line["time"].is_string(), "{line}");
        for nobodys in ["user", "claimed_user", "address", "method", "user_agent"] {
            assert!(line.get(nobodys).is_none(), "{nobodys}: {line}");
        }
        if action == "retain" {
            assert_eq!((&line["repository"], &line["reference"]), (&"a".into(), &"one".into()));
            assert_eq!(line["digest"], digest.to_string());
        }
    }
}

/// More tags go than wait for a receiver, who does not answer at first.
#[tokio::test]
async fn retention_does_not_outrun_who_is_told_of_it() {
    const TAGS: usize = 1100;
    let (url, got) = receiver(&[0, 200]).await;
    let hook = Webhook { events: vec![HookEvent::Delete], ..webhook(&url) };
    let retention = vec![RetentionRule {
        repositories: vec!["a".to_string()],
        tags: vec!["t*".to_string()],
        keep_last: None,
        keep_younger: Some(Duration::ZERO),
        keep: Vec::new(),
    }];
    let options = Options { webhooks: vec![hook], retention, collect_every: None, ..Options::default() };
    let server = Server::start_with(options).await;
    let (digest, json) = server.push_image("a", "kept", "one").await;
    for first in (0..TAGS).step_by(50) {
        let tags: Vec<String> = (first..first + 50).map(|number| format!("tag=t{number}")).collect();
        expect(&server.put_manifest("a", &format!("{digest}?{}", tags.join("&")), &json).await, 201);
    }
    assert_eq!(server.registry.retain(false).await.expect("removes").len(), TAGS);
    assert_eq!(server.registry.finish_telling(Duration::from_secs(60)).await, 0, "all is delivered");
    // The first one twice.
    assert_eq!(got.lock().expect("nobody panics").len(), TAGS + 1);
}

#[tokio::test]
async fn a_receiver_gets_what_it_wants() {
    let (url, got) = receiver(&[]).await;
    let hook = Webhook { repositories: vec!["team/*".to_string()], events: vec![HookEvent::Delete], ..webhook(&url) };
    let server = Server::start_with(Options { webhooks: vec![hook], ..Options::default() }).await;
    for name in ["team/a", "other/a"] {
        server.push_image(name, "v1", "one").await;
        expect(&server.delete(&format!("/v2/{name}/manifests/v1")).await, 202);
    }
    server.push_image("team/a", "v2", "one").await;
    expect(&server.delete("/v2/team/a/manifests/v2").await, 202);
    let events = events(&wait_for(&got, 2).await);
    let told: Vec<_> = events.iter().map(|event| event["target"]["tag"].clone()).collect();
    assert_eq!(told, ["v1", "v2"]);
}

#[tokio::test]
async fn a_receiver_that_says_nothing_slows_no_push_and_its_queue_is_bounded() {
    let (silent, got_silent) = receiver(&[0]).await;
    let (quick, got_quick) = receiver(&[]).await;
    let hooks = vec![webhook(&silent), webhook(&quick)];
    let server = Server::start_with(Options { webhooks: hooks, ..Options::default() }).await;
    let (digest, json) = server.push_image("a", "v1", "one").await;
    wait_for(&got_silent, 1).await;
    let tags: Vec<String> = (0..50).map(|number| format!("tag=t{number}")).collect();
    for _ in 0..24 {
        let reference = format!("{digest}?{}", tags.join("&"));
        expect(&server.put_manifest("a", &reference, &json).await, 201);
        // The other one gets its events meanwhile.
        let count = got_quick.lock().expect("nobody panics").len();
        wait_for(&got_quick, count + 1).await;
    }
    let page = server.get("/metrics").await.text().await.expect("text");
    let dropped =
        page.lines().find_map(|line| line.strip_prefix("cfc_registry_webhook_events_total{outcome=\"dropped\"} "));
    let dropped: u64 = dropped.expect("counted").parse().expect("a number");
    assert!(dropped >= 150, "{dropped} were dropped of 1200 while at most 1000 wait");
}

#[tokio::test]
async fn a_webhook_that_could_never_be_told_anything_is_refused_at_the_start() {
    let directory = tempfile::TempDir::new().expect("temporary directory");
    let good = || webhook("https://ann:secret@r.example/hook?key=secret");
    let header = |name: &str, value: &str| BTreeMap::from([(name.to_string(), value.to_string())]);
    let hooks = [
        (Webhook { url: "nonsense".to_string(), ..good() }, "its URL is none"),
        (Webhook { url: "ftp://r.example/".to_string(), ..good() }, "found `ftp`"),
        (Webhook { headers: header("a b", "x"), ..good() }, "`a b` is no name of a header"),
        (Webhook { headers: header("a", "secret\n"), ..good() }, "the value of `a` cannot be in a header"),
        (Webhook { repositories: vec!["Team/*".to_string()], ..good() }, "no name has a `T`"),
        (Webhook { repositories: Vec::new(), ..good() }, "it is told of no event"),
        (Webhook { events: Vec::new(), ..good() }, "it is told of no event"),
    ];
    for (hook, expected) in hooks {
        let options = Options { webhooks: vec![hook], ..Options::default() };
        let refused = cfc_registry::Registry::open(directory.path(), options).err().expect(expected);
        let why = std::error::Error::source(&refused).expect("a cause").to_string();
        assert!(why.contains(expected), "{why}");
        assert!(!why.contains("secret") && !refused.to_string().contains("secret"), "{refused}: {why}");
    }
    let options = Options { webhooks: vec![webhook("http://r.example/")], ..Options::default() };
    assert!(cfc_registry::Registry::open(directory.path(), options).is_ok());
}
