//! A container's life over the socket: create, start, inspect, wait, kill, remove.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cfc_runtime::{InstanceType, Trial};
use rustix::process::{Resource, Rlimit};
use serde_json::json;

use crate::Test;
use crate::image;
use crate::platform::{Platform, container, on_platform};

pub const TESTS: &[Test] = &[
    ("a_container_lives_and_ends_as_docker_tells_it", || on_platform(whole_life)),
    ("a_thousand_starts_over_http_are_one_container", || on_platform(thousand_starts)),
    ("exit_codes_are_dockers", || on_platform(exit_codes)),
    ("the_process_gets_what_the_image_and_the_request_say", || on_platform(process)),
    ("the_disk_is_fresh_at_each_start", || on_platform(fresh_disk)),
    ("what_is_not_there_is_named", || on_platform(not_there)),
    ("an_api_version_in_front_changes_nothing", || on_platform(versions)),
    ("the_log_outlives_its_instance", || on_platform(ended_log)),
    ("a_trial_start_tells_whether_an_image_starts", || on_platform(trial)),
];

async fn whole_life(platform: Platform) {
    platform.run_script("sleep 1000");
    let name = container("a1");
    assert_eq!(platform.status(&name).await, "none");
    assert_eq!(platform.create(&name).await.0, 201);
    assert_eq!(platform.status(&name).await, "created");
    assert_eq!(platform.create(&name).await.0, 409);
    assert_eq!(platform.start(&name).await, 204);
    assert_eq!(platform.start(&name).await, 304);
    let (_, body) = platform.request("GET", &format!("/containers/{name}/json"), None).await;
    assert_eq!(body["State"]["Status"], "running");
    assert_eq!(body["Config"]["Image"], platform.image_name());
    assert!(body["State"]["Pid"].as_i64().is_some_and(|pid| pid > 1), "{body}");
    assert_eq!(platform.request("DELETE", &format!("/containers/{name}"), None).await.0, 409);
    let (code, killed) = tokio::join!(platform.wait(&name), platform.kill(&name, "SIGTERM"));
    assert_eq!((code, killed), (143, 204));
    assert_eq!(platform.status(&name).await, "exited");
    assert_eq!(platform.kill(&name, "SIGTERM").await, 409);
    assert_eq!(platform.remove(&name).await, 204);
    assert_eq!(platform.remove(&name).await, 404);
    assert_eq!(platform.request("POST", &format!("/containers/{name}/wait?condition=removed"), None).await.0, 404);
    platform.close().await;
}

/// A thousand start it while half as many want to make it again.
async fn thousand_starts(platform: Platform) {
    const STARTS: usize = 1_000;
    // Both ends of every connection are ours.
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let all = Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(Resource::Nofile, all).expect("up to the maximum it may be raised");
    platform.run_script("exec sleep 1000");
    let (platform, name) = (Arc::new(platform), container("a1"));
    assert_eq!(platform.create(&name).await.0, 201);
    let requests: Vec<_> = (0..STARTS + STARTS / 2)
        .map(|number| {
            let (platform, name) = (platform.clone(), name.clone());
            tokio::spawn(async move {
                match number % 3 {
                    2 => platform.create(&name).await.0,
                    _ => platform.start(&name).await,
                }
            })
        })
        .collect();
    let mut answers: BTreeMap<u16, usize> = BTreeMap::new();
    for request in requests {
        *answers.entry(request.await.expect("it does not panic")).or_default() += 1;
    }
    let expected = BTreeMap::from([(204, 1), (304, STARTS - 1), (409, STARTS / 2)]);
    assert_eq!(answers, expected, "one starts it, to the others it runs already, and it exists already");
    assert_eq!(platform.launcher.list().expect("the launcher answers").len(), 1);
    assert_eq!(platform.runtime.inspect(&name).map(|view| view.launches), Some(1));
    Arc::into_inner(platform).expect("all clients are gone").close().await;
}

async fn exit_codes(platform: Platform) {
    platform.run_script("trap 'exit 0' TERM; echo ready; while true; do sleep 0.05; done");
    let (handles, forced) = (container("a1"), container("a2"));
    platform.run(&handles).await;
    platform.until_said(&handles, "ready").await;
    assert_eq!(platform.kill(&handles, "15").await, 204);
    assert_eq!(platform.wait(&handles).await, 0);
    platform.run(&forced).await;
    assert_eq!(platform.kill(&forced, "SIGKILL").await, 204);
    assert_eq!(platform.wait(&forced).await, 137);
    platform.run_script("exit 7");
    platform.run(&container("a3")).await;
    assert_eq!(platform.wait(&container("a3")).await, 7);
    // A wait that is pending while the container is removed ends as a kill.
    platform.run_script("sleep 1000");
    platform.run(&container("a4")).await;
    let name = container("a4");
    let (code, removed) = tokio::join!(platform.wait(&name), platform.remove(&name));
    assert_eq!((code, removed), (137, 204));
    platform.close().await;
}

async fn process(platform: Platform) {
    let script = "env; pwd; id -u; id -g; cat /etc/hosts /etc/hostname; cat /etc/resolv.conf; echo oops >&2; ls /proc";
    platform.run_script_with(script, |config| {
        config.env = Some(vec!["GREETING=image".to_string(), "FROM_IMAGE=1".to_string()]);
        config.working_dir = "/www".to_string();
        config.user = "ada".to_string();
    });
    let name = container("0123456789abcdef");
    platform.run(&name).await;
    assert_eq!(platform.wait(&name).await, 0, "{}", platform.output(&name).await);
    let output = platform.output(&name).await;
    let expected = [
        "GREETING=hello",
        "FROM_IMAGE=1",
        "CLOUDFLARE_LOCATION=loc01",
        "HOME=/home/ada",
        "HOSTNAME=0123456789ab",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "/www",
        "1815",
        "127.0.0.1\tlocalhost",
        "127.0.0.1\t0123456789ab",
        "oops",
    ];
    for line in expected {
        assert!(output.lines().any(|other| other == line), "no {line:?} in {output}");
    }
    platform.close().await;
}

async fn fresh_disk(platform: Platform) {
    platform.run_script("ls /tmp; touch /tmp/trace; rm -f /www/index.html; ls /www; echo done");
    let name = container("a1");
    assert_eq!(platform.create(&name).await.0, 201);
    for _ in 0..2 {
        assert_eq!(platform.start(&name).await, 204);
        assert_eq!(platform.wait(&name).await, 0);
    }
    assert_eq!(platform.output(&name).await.matches("trace").count(), 0, "{}", platform.output(&name).await);
    assert!(!platform.directory.join("instances").join(&name).join("upper").exists());
    platform.close().await;
}

async fn not_there(platform: Platform) {
    platform.run_script("true");
    let name = container("a1");
    assert_eq!(platform.create(&name).await.0, 201);
    let requests = [
        ("PUT", format!("/containers/{name}/archive?path=%2Fetc"), "archive"),
        ("POST", format!("/commit?container={name}"), "commit"),
        ("POST", "/volumes/create".to_string(), "volumes"),
    ];
    for (method, path, word) in requests {
        let (status, body) = platform.request(method, &path, Some(json!({}))).await;
        assert_eq!(status, 501, "{path}");
        assert!(body["message"].as_str().is_some_and(|message| message.contains(word)), "{path}: {body}");
    }
    let mounted = json!({ "Image": platform.image_name(), "HostConfig": { "Mounts": [{ "Type": "volume" }] } });
    let path = format!("/containers/create?name={}", container("a2"));
    let (status, body) = platform.request("POST", &path, Some(mounted)).await;
    assert_eq!(status, 501, "{body}");
    let (status, body) = platform.request("POST", &path, Some(json!({ "Image": "other:1" }))).await;
    assert_eq!((status, &body["message"]), (404, &json!("No such image: other:1")));
    let path = "/containers/create?name=workerd-other-Class-a1";
    assert_eq!(platform.request("POST", path, Some(json!({ "Image": platform.image_name() }))).await.0, 400);
    platform.close().await;
}

async fn versions(platform: Platform) {
    platform.run_script("sleep 1000");
    let name = container("a1");
    platform.run(&name).await;
    assert_eq!(platform.request("GET", &format!("/v1.43/containers/{name}/json"), None).await.0, 200);
    assert_eq!(platform.request("GET", "/_ping", None).await, (200, json!("OK")));
    assert_eq!(platform.request("GET", "/v1.24/version", None).await.0, 200);
    assert_eq!(platform.request("GET", "/info", None).await.1["ContainersRunning"], 1);
    let (_, bridge) = platform.request("GET", "/networks/bridge", None).await;
    assert_eq!(bridge["IPAM"]["Config"][0]["Gateway"], "127.0.0.1");
    assert_eq!(platform.request("GET", "/volumes?filters=%7B%7D", None).await.1["Volumes"], json!([]));
    platform.close().await;
}

async fn ended_log(platform: Platform) {
    platform.run_script("echo last words; exit 3");
    let name = container("a1");
    platform.run(&name).await;
    assert_eq!(platform.wait(&name).await, 3);
    platform.remove(&name).await;
    assert_eq!(platform.output(&name).await, "last words\n");
    assert!(platform.runtime.ended().iter().map(|(_, name)| name).eq([&name]));
    platform.run(&name).await;
    platform.wait(&name).await;
    assert_eq!(platform.output(&name).await, "last words\nlast words\n");
    platform.close().await;
}

async fn trial(platform: Platform) {
    let patience = Duration::from_millis(300);
    let attempt = async |script: &str, command: &[&str]| {
        let image = image::busybox(&platform.store, script, |config| {
            if !command.is_empty() {
                config.cmd = Some(command.iter().map(|word| word.to_string()).collect());
            }
        });
        platform.runtime.try_image(&image, InstanceType::LITE, patience).await
    };
    assert!(matches!(attempt("sleep 1000", &[]).await, Ok(Trial::Runs)));
    match attempt("echo no database; exit 4", &[]).await {
        Ok(Trial::Ended { report, output, .. }) => {
            assert_eq!((report.code, output[0].line.as_str()), (4, "no database"));
        }
        other => panic!("{other:?}"),
    }
    let error = attempt("", &["/server"]).await.expect_err("there is no such command");
    let text = format!("{error}: {}", error.kind);
    assert!(text.starts_with("cannot start instance `cfc-trial-") && text.contains("`/server`"), "{text}");
    assert!(platform.runtime.list().is_empty());
    platform.close().await;
}
