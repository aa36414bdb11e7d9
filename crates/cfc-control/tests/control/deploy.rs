//! The main path: deploy, look, read logs, deploy again, restart, delete.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cfc_control::*;
use futures::StreamExt;
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use serde_json::json;

use crate::platform::manifest_of;
use crate::server::{Server, starter};

#[tokio::test]
async fn a_deployment_serves_and_is_recorded() {
    let server = Server::start().await;
    let deployed = server.client.deploy(&starter("localhost/app:1", "one")).await.expect("deploys");
    assert_eq!(deployed.url, "http://starter.localhost:8787");
    assert_eq!(deployed.applications.len(), 1);

    let serving = server.platform.serving("starter").expect("serves");
    assert_eq!(serving.worker, deployed.worker);
    assert!(serving.modules[0].bytes.ends_with(b"new Response(\"one\") } }"));
    let application = serving.application_of("MyContainer").expect("attached");
    assert_eq!(application.image.manifest, manifest_of("localhost/app:1"));
    assert_eq!(application.max_instances, 5);
    assert_eq!(serving.worker.migration_tag(), Some("v1"));
    assert_eq!(serving.worker.vars["B"], serde_json::json!({"x": 1}));

    let listed = server.client.applications().await.expect("lists");
    assert_eq!(listed[0].record, *application);
    assert_eq!(listed[0].instances[0].pid, Some(42));
    let instances = server.client.instances("starter-mycontainer").await.expect("lists");
    assert_eq!(instances, listed[0].instances);
    assert_eq!(server.client.workers().await.expect("lists")[0].1, "http://starter.localhost:8787");
}

#[tokio::test]
async fn the_same_again_changes_the_worker_and_not_the_application() {
    let server = Server::start().await;
    let first = server.client.deploy(&starter("localhost/app:1", "one")).await.expect("deploys");
    let second = server.client.deploy(&starter("localhost/app:1", "two")).await.expect("deploys");
    assert_ne!(first.worker.version_id, second.worker.version_id);
    assert_eq!(first.applications, second.applications);
    assert_eq!(server.platform.trials.load(Ordering::SeqCst), 1, "an image that runs already is not tried again");

    let third = server.client.deploy(&starter("localhost/app:2", "two")).await.expect("deploys");
    assert_eq!(third.applications[0].version, 2);
    assert_eq!(third.applications[0].created_at, first.applications[0].created_at);
}

#[tokio::test]
async fn a_container_that_left_the_config_is_deleted() {
    let server = Server::start().await;
    server.client.deploy(&starter("localhost/app:1", "one")).await.expect("deploys");
    let mut without = starter("localhost/app:1", "one");
    without.containers.clear();
    server.client.deploy(&without).await.expect("deploys");
    assert!(server.client.applications().await.expect("lists").is_empty());
    let again = server.client.deploy(&starter("localhost/app:1", "one")).await.expect("deploys");
    assert_eq!(again.applications[0].version, 3, "the numbers go on");
}

#[tokio::test]
async fn what_was_deployed_is_there_after_a_restart() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let bucket = Arc::new(LocalFileSystem::new_with_prefix(directory.path()).expect("the directory exists"));
    let before = Server::start_on(bucket.clone()).await;
    before.client.deploy(&starter("localhost/app:1", "one")).await.expect("deploys");
    let deployed = before.client.deploy(&starter("localhost/app:2", "two")).await.expect("deploys");

    let after = Server::start_on(bucket).await;
    let restored = after.control.restore().await.expect("readable");
    let restored: Vec<Deployment> = restored.into_iter().collect::<Result<_, _>>().expect("every module is there");
    assert_eq!(restored.len(), 1);
    assert_eq!(restored[0].worker, deployed.worker);
    assert_eq!(restored[0].applications, deployed.applications);
    assert!(restored[0].modules[0].bytes.windows(5).any(|window| window == b"\"two\""));
}

#[tokio::test]
async fn deployments_of_one_worker_wait_for_each_other() {
    let server = Server::start().await;
    let deployments = (0..8).map(|number| {
        let client = server.client.clone();
        async move { client.deploy(&starter(&format!("localhost/app:{number}"), &number.to_string())).await }
    });
    let deployed: Vec<_> = futures::future::join_all(deployments).await;
    assert!(deployed.iter().all(Result::is_ok), "{deployed:?}");
    assert_eq!(server.platform.most_at_once.load(Ordering::SeqCst), 1);
    let serving = server.platform.serving("starter").expect("serves");
    let recorded = server.control.restore().await.expect("readable").remove(0).expect("readable");
    assert_eq!(serving.worker, recorded.worker);
    assert_eq!(serving.applications, recorded.applications);
}

#[tokio::test]
async fn logs_come_as_they_are_written() {
    let server = Server::start().await;
    server.client.deploy(&starter("localhost/app:1", "one")).await.expect("deploys");
    let follow = LogRequest { follow: true, ..LogRequest::default() };
    let mut lines = server.client.logs("starter-mycontainer", &follow).await.expect("a log");
    assert_eq!(lines.next().await.expect("a line").expect("readable"), "hello\n");

    let other = LogRequest { instance: Some("i2".to_string()), ..LogRequest::default() };
    let error = server.client.logs("starter-mycontainer", &other).await.err().expect("no such instance");
    assert_eq!(error.code(), Some(Code::NotFound));
}

#[tokio::test]
async fn what_a_worker_prints_is_its_own() {
    let server = Server::start().await;
    server.client.deploy(&starter("localhost/app:1", "one")).await.expect("deploys");
    let request = LogRequest { tail_lines: Some(3), ..LogRequest::default() };
    let mut lines = server.client.worker_logs("starter", &request).await.expect("a log");
    let line = lines.next().await.expect("a line").expect("readable");
    assert_eq!(line, "starter printed this, and was asked for Some(3)\n");
    let error = server.client.worker_logs("other", &request).await.err().expect("no such Worker");
    assert_eq!(error.code(), Some(Code::NoSuchWorker));
    // `wrangler tail` is told what there is instead.
    let (status, body) = server.call("POST", "/workers/scripts/starter/tails", None).await;
    assert_eq!(
        (status, &body["errors"][0]["cfc"]["hint"]),
        (501, &json!("`cfc logs starter -f` shows what it prints"))
    );
}

#[tokio::test]
async fn a_deleted_worker_takes_its_applications_along() {
    let server = Server::start().await;
    server.client.deploy(&starter("localhost/app:1", "one")).await.expect("deploys");
    let deleted = server.client.delete_worker("starter").await.expect("deletes");
    let applications = vec!["starter-mycontainer".to_string()];
    assert_eq!(deleted, Deleted { applications: applications.clone(), ending: 1 });
    assert_eq!(*server.platform.erased.lock().expect("not poisoned"), [("starter".to_string(), applications)]);
    assert!(server.platform.serving("starter").is_none());
    assert!(server.client.applications().await.expect("lists").is_empty());
    assert!(server.control.restore().await.expect("readable").is_empty());
    let error = server.client.delete_worker("starter").await.expect_err("gone");
    assert_eq!(error.code(), Some(Code::NoSuchWorker));
}

#[tokio::test]
async fn what_a_deletion_has_left_goes_at_the_next_start_or_before_the_next_deployment() {
    for by_deployment in [false, true] {
        let bucket = Arc::new(InMemory::new());
        let server = Server::start_on(bucket.clone()).await;
        server.client.deploy(&starter("localhost/app:1", "one")).await.expect("deploys");
        server.client.deploy(&starter("localhost/app:1", "two")).await.expect("deploys");
        server.platform.fail_next("erase");
        let error = server.client.delete_worker("starter").await.expect_err("something is left");
        let cause = std::error::Error::source(&error).expect("a cause").to_string();
        assert!(cause.starts_with("Worker `starter` is deleted, and not all that it has left is gone"), "{cause}");
        assert!(server.client.applications().await.expect("lists").is_empty(), "an application outlives its Worker");
        let names = vec!["starter-mycontainer".to_string(), "never".to_string()];
        let deleted = server.control.deleted_applications(&names).await.expect("readable");
        assert_eq!(deleted, names[..1]);

        let server = Server::start_on(bucket.clone()).await;
        match by_deployment {
            true => drop(server.client.deploy(&starter("localhost/app:1", "three")).await.expect("deploys")),
            false => {
                assert!(server.control.restore().await.expect("readable").is_empty());
                server.control.finish_deletions().await.expect("readable");
            }
        }
        let erased = server.platform.erased.lock().expect("not poisoned").clone();
        assert_eq!(erased, [("starter".to_string(), names[..1].to_vec())], "{by_deployment}");
        if by_deployment {
            let applications = server.client.applications().await.expect("lists");
            assert_eq!(applications.iter().map(|application| application.record.version).collect::<Vec<_>>(), [3]);
        }
        // What the Worker was, variables included, is not kept.
        let folder = object_store::path::Path::from("control/workers/starter");
        let kept: Vec<_> = bucket.list(Some(&folder)).collect().await;
        assert_eq!(kept.len(), 1 + usize::from(by_deployment), "{kept:?}");
    }
}

#[tokio::test]
async fn what_the_machine_cannot_give_is_in_the_answer() {
    let server = Server::start().await;
    let mut large = starter("localhost/app:1", "one");
    assert_eq!(server.client.deploy(&large).await.expect("deploys").warnings, Vec::<String>::new());
    large.containers[0].size.memory_mib = 2 << 20;
    let deployed = server.client.deploy(&large).await.expect("deploys");
    let warning = "instances of `starter-mycontainer` get less than it asks for: 1048576 MiB of memory instead of \
                   2097152\nhint: this machine has no more; an instance of this size starts all the same";
    assert_eq!(deployed.warnings, [warning]);
    assert_eq!(deployed.isolations["starter-mycontainer"], "the sandbox of starter-mycontainer");
    large.containers[0].name = "other".to_string();
    let deployed = server.client.deploy(&large).await.expect("deploys");
    assert!(deployed.warnings[1].starts_with("`[applications.starter-mycontainer]`"), "{:?}", deployed.warnings);
    assert!(deployed.warnings[1].ends_with("there are `other`"), "{:?}", deployed.warnings);
}
