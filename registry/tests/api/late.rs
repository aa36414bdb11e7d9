//! What a store and those who died leave behind: requests that are done a second time, late, and things half done.

use std::time::Duration;

use cfc_oci::Digest;
use cfc_registry::{Options, Rules};
use serde_json::{Value, json};

use crate::bucket::{keys, put_object, store};
use crate::harness::{Server, expect, image, noise};
use crate::races::two;
use crate::store::{Moto, place};

const LONG: Duration = Duration::from_secs(1800);

/// Nothing is relied on for longer than a moment.
fn hasty() -> Options {
    let collection = Rules { grace: Duration::ZERO, untagged: None };
    Options { collection, collect_every: None, upload_expiry: LONG, ..Options::default() }
}

/// No request comes late: words that something is gone are forgotten by the next collection.
pub fn forgetful() -> Options {
    Options { late_requests: Duration::ZERO, ..hasty() }
}

/// Collects nothing but what nobody needs to know any more.
pub async fn forget(server: &Server) {
    server.registry.collect(Rules { grace: LONG, untagged: None }, false).await.expect("collects");
}

async fn tidy(server: &Server) {
    forget(server).await;
    assert_eq!(server.registry.verify(false).await.expect("reads").findings, []);
}

#[tokio::test]
async fn what_was_deleted_does_not_come_back_with_a_request_that_is_late() {
    let Some((endpoint, _store)) = store().await else { return };
    let layer = Digest::of(b"layer of x");
    for (kind, what) in [
        ("PUT /_tags/x", "manifests/x".to_string()),
        ("PUT /a/_manifests/", "manifests/".to_string()),
        (&*format!("PUT /{}/a/_link/", layer.hex()), format!("blobs/{layer}")),
    ] {
        for is_replaced in [false, true] {
            // However little is relied on what was found, a collection in between forgets nothing.
            let (proxy, slow, fast) = two(&endpoint, hasty).await;
            let late = proxy.copy(kind);
            let (manifest, json) = slow.push_image("a", "x", "x").await;
            if is_replaced {
                // By what comes in its place, which then goes.
                expect(&slow.put_manifest("a", "x", &json).await, 201);
                slow.push_blob("a", b"layer of x").await;
            }
            let path = match what.as_str() {
                "manifests/" => format!("/v2/a/manifests/{manifest}"),
                what => format!("/v2/a/{what}"),
            };
            expect(&slow.delete(&path).await, 202);
            forget(&fast).await;
            late.comes_late().await;
            for replica in [&slow, &fast] {
                expect(&replica.head(&path).await, 404);
            }
            if what == "manifests/x" {
                let tags: Value = fast.get("/v2/a/tags/list?n=1").await.json().await.expect("JSON");
                assert_eq!(tags["tags"], json!([]), "{is_replaced}");
            }
            // It can be pushed again, and is what it was.
            fast.push_image("a", "x", "x").await;
            expect(&slow.head(&path).await, 200);
        }
    }
}

#[tokio::test]
async fn word_that_something_is_gone_does_not_stay_for_ever() {
    // Lists the bucket without a signature, which only moto allows.
    let Some(moto) = Moto::start().await else { return };
    let place = place(&moto.endpoint());
    let server = Server::start_on(&place, forgetful()).await;
    for _ in 0..3 {
        server.push_image("a", "x", "x").await;
        server.push_image("a", "y", "x").await;
        expect(&server.delete("/v2/a/manifests/y").await, 202);
    }
    let (manifest, _) = server.push_image("a", "z", "z").await;
    expect(&server.delete(&format!("/v2/a/manifests/{manifest}")).await, 202);
    let words = async || {
        let keys = keys(&moto.endpoint(), &place).await;
        [
            keys.iter().filter(|key| key.contains("!gone-")).count(),
            keys.iter().filter(|key| key.ends_with(".gone")).count(),
        ]
    };
    assert!(words().await.iter().all(|count| *count > 0));
    tidy(&server).await;
    assert_eq!(words().await, [0, 0]);
    expect(&server.get("/v2/a/manifests/x").await, 200);
    expect(&server.get("/v2/a/manifests/y").await, 404);
}

/// The names of notes, lists of referrers and the catalog are used again, so a late request hits what is there now.
#[tokio::test]
async fn a_collection_mends_what_requests_that_are_late_have_spoiled() {
    let Some((endpoint, _store)) = store().await else { return };
    let (proxy, server, _) = two(&endpoint, forgetful).await;
    let names = async |path: &str, list: &str| -> usize {
        let listed: Value = server.get(path).await.json().await.expect("JSON");
        listed[list].as_array().expect("a list").len()
    };
    // The list of referrers.
    let (subject, _) = server.push_image("a", "subject", "x").await;
    let extra =
        format!(r#","subject":{{"mediaType":"{}","digest":"{subject}","size":1}}"#, cfc_oci::media_type::MANIFEST);
    let json = image(&Digest::of(b"{\"seed\":\"x\"}"), &[], &extra);
    let referrer = Digest::of(json.as_bytes()).to_string();
    let referrers = format!("/v2/a/referrers/{subject}");
    let (put, deletion) = (proxy.copy("PUT /_referrers/"), proxy.copy("DELETE /_referrers/"));
    for (late, before) in [(&put, 1), (&deletion, 0)] {
        expect(&server.put_manifest("a", &referrer, &json).await, 201);
        expect(&server.delete(&format!("/v2/a/manifests/{referrer}")).await, 202);
        if before == 0 {
            expect(&server.put_manifest("a", &referrer, &json).await, 201);
        }
        late.comes_late().await;
        assert_eq!(names(&referrers, "manifests").await, before);
        tidy(&server).await;
        assert_eq!(names(&referrers, "manifests").await, 1 - before);
    }
    // The catalog.
    let (put, deletion) = (proxy.copy("PUT registry/catalog/b/"), proxy.copy("DELETE registry/catalog/b/"));
    for (late, before) in [(&put, 2), (&deletion, 1)] {
        let (manifest, _) = server.push_image("b", "x", "b").await;
        expect(&server.delete(&format!("/v2/b/manifests/{manifest}")).await, 202);
        if before == 1 {
            server.push_image("b", "x", "b").await;
        }
        late.comes_late().await;
        assert_eq!(names("/v2/_catalog", "repositories").await, before);
        tidy(&server).await;
        assert_eq!(names("/v2/_catalog", "repositories").await, 3 - before);
    }
    // The note of a tag.
    let deletion = proxy.copy("DELETE /_tagged/");
    let (manifest, json) = server.push_image("c", "x", "c").await;
    expect(&server.delete("/v2/c/manifests/x").await, 202);
    expect(&server.put_manifest("c", "x", &json).await, 201);
    deletion.comes_late().await;
    tidy(&server).await;
    expect(&server.delete(&format!("/v2/c/manifests/{manifest}")).await, 202);
    expect(&server.get("/v2/c/manifests/x").await, 404);
    tidy(&server).await;
}

#[tokio::test]
async fn who_dies_about_to_touch_a_manifest_does_not_keep_its_repository_from_collection_for_ever() {
    let Some(moto) = Moto::start().await else { return };
    let place = place(&moto.endpoint());
    let server = Server::start_on(&place, hasty()).await;
    server.push_image("a", "x", "x").await;
    server.push_blob("a", b"garbage").await;
    let hex = "0".repeat(64);
    let announced = format!("registry/repositories/a/_manifests/sha256/{hex}/!new-{}", uuid::Uuid::new_v4());
    put_object(&moto, &place, &announced, "").await;
    let garbage = Rules { grace: Duration::ZERO, untagged: None };
    let is_announced = async || keys(&moto.endpoint(), &place).await.contains(&announced);
    // It may live, and be slow.
    let collected = server.registry.collect(garbage, false).await.expect("collects");
    assert_eq!((collected.unlinked, collected.blobs), (0, 0));
    assert!(is_announced().await);
    let server = Server::start_on(&place, forgetful()).await;
    let collected = server.registry.collect(garbage, false).await.expect("collects");
    assert_eq!((collected.unlinked, collected.blobs), (1, 1));
    assert!(!is_announced().await);
}

#[tokio::test]
async fn who_dies_removing_a_blob_does_not_keep_others_from_pushing_it() {
    let Some(moto) = Moto::start().await else { return };
    let place = place(&moto.endpoint());
    let (content, digest) = (noise(1000, 1), Digest::of(&noise(1000, 1)));
    let server = Server::start_on(&place, Options::default()).await;
    server.push_blob("a", &content).await;
    let going = format!("registry/blobs/sha256/{}/!going-{}", digest.hex(), uuid::Uuid::new_v4());
    put_object(&moto, &place, &going, "").await;
    let other = Server::start_on(&place, Options::default()).await;
    other.push_blob("b", &content).await;
    for name in ["a", "b"] {
        assert!(server.get(&format!("/v2/{name}/blobs/{digest}")).await.bytes().await.expect("body") == content);
    }
    assert_eq!(server.registry.verify(false).await.expect("reads").findings, []);
}
