//! `kill -9` while clients push: nothing that was acknowledged is lost, and nothing corrupt is served.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use cfc_oci::Digest;
use cfc_registry::{Options, Registry};

use crate::harness::{expect, header, image, noise, seed};
use crate::process::Process;

const PUSHERS: u64 = 4;
const KILLS: u64 = 12;

/// What clients were told.
#[derive(Clone, Default)]
struct Acknowledged {
    blobs: HashMap<Digest, Vec<u8>>,
    manifests: HashMap<Digest, String>,
    /// What a tag may point at: what was acknowledged last, and what was asked for since.
    tags: HashMap<String, Vec<Digest>>,
}

/// Pushes images until the registry is killed, each with a new layer and one that all share.
async fn push_until_killed(process: &Process, told: &Mutex<Acknowledged>, pusher: u64, round: u64) {
    for number in 0.. {
        let seed = (round * PUSHERS + pusher) * 10_000 + number;
        if push(process, told, pusher, seed).await.is_none() {
            return;
        }
    }
}

/// `None` when the registry is gone.
async fn push(process: &Process, told: &Mutex<Acknowledged>, pusher: u64, seed: u64) -> Option<()> {
    let layers = [noise(40_000 + seed as usize % 50_000, seed), b"shared by all".to_vec()];
    for layer in &layers {
        push_blob(process, told, layer, seed).await?;
    }
    let config = format!("{{\"seed\":{seed}}}").into_bytes();
    push_blob(process, told, &config, seed).await?;
    let json = image(&Digest::of(&config), &[&Digest::of(&layers[0]), &Digest::of(&layers[1])], "");
    let digest = Digest::of(json.as_bytes());
    let tag = format!("p{pusher}");
    told.lock().expect("told").tags.entry(tag.clone()).or_default().push(digest.clone());
    let put = process.request("PUT", &format!("/v2/crash/manifests/{tag}")).body(json.clone());
    let response = put.header("content-type", cfc_oci::media_type::MANIFEST).send().await.ok()?;
    expect(&response, 201);
    let mut told = told.lock().expect("told");
    told.manifests.insert(digest.clone(), json);
    told.tags.insert(tag, vec![digest]);
    Some(())
}

async fn push_blob(process: &Process, told: &Mutex<Acknowledged>, content: &[u8], seed: u64) -> Option<()> {
    let digest = Digest::of(content);
    let response = if seed.is_multiple_of(2) {
        let path = format!("/v2/crash/blobs/uploads/?digest={digest}");
        process.request("POST", &path).body(content.to_vec()).send().await.ok()?
    } else {
        let begun = process.request("POST", "/v2/crash/blobs/uploads/").send().await.ok()?;
        let upload = header(&begun, "location");
        let half = content.len() / 2;
        let sent = process.request("PATCH", &upload).body(content[..half].to_vec()).send().await.ok()?;
        expect(&sent, 202);
        let path = format!("{upload}?digest={digest}");
        process.request("PUT", &path).body(content[half..].to_vec()).send().await.ok()?
    };
    expect(&response, 201);
    told.lock().expect("told").blobs.insert(digest, content.to_vec());
    Some(())
}

/// Everything acknowledged is there, byte for byte. Manifests that lost their tag may be collected one day, not yet.
async fn check(process: &Process, told: &Acknowledged) {
    for (digest, content) in &told.blobs {
        let response = process.send("GET", &format!("/v2/crash/blobs/{digest}"), &[], b"").await;
        expect(&response, 200);
        assert!(response.bytes().await.expect("body") == *content, "{digest} has other bytes");
    }
    for (digest, json) in &told.manifests {
        let response = process.send("GET", &format!("/v2/crash/manifests/{digest}"), &[], b"").await;
        expect(&response, 200);
        assert_eq!(response.text().await.expect("body"), *json);
    }
    for (tag, possible) in &told.tags {
        let response = process.send("GET", &format!("/v2/crash/manifests/{tag}"), &[], b"").await;
        if response.status() == 404 {
            assert!(!possible.iter().any(|digest| told.manifests.contains_key(digest)), "tag {tag} is lost");
            continue;
        }
        let found: Digest = header(&response, "docker-content-digest").parse().expect("a digest");
        assert!(possible.contains(&found), "tag {tag} went back to {found}");
    }
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_and_nothing_corrupt_is_served() {
    let directory = tempfile::TempDir::new().expect("temporary directory");
    let place = crate::store::endpoint().map(|endpoint| crate::store::place(&endpoint));
    let start = || async {
        match &place {
            Some(place) => Process::start_on(place, directory.path()).await,
            None => Process::start(directory.path()).await,
        }
    };
    let told = Mutex::new(Acknowledged::default());
    let seed = seed();
    let kills = if place.is_some() { KILLS / 3 } else { KILLS };
    for round in 0..kills {
        let process = start().await;
        let pause = Duration::from_millis(noise(1, seed + round)[0].into());
        {
            let pushers = (0..PUSHERS).map(|pusher| push_until_killed(&process, &told, pusher, round));
            let pushers = futures::future::join_all(pushers);
            // As much is pushed as it takes: at least one image is acknowledged, then the axe falls at any moment.
            let axe = async {
                let before = told.lock().expect("told").manifests.len();
                while told.lock().expect("told").manifests.len() == before {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                tokio::time::sleep(pause).await;
            };
            futures::pin_mut!(pushers);
            tokio::select! {
                _ = &mut pushers => panic!("the registry went away by itself"),
                () = axe => {}
            }
            process.kill();
        }
        // A pusher that had asked for a tag and got no answer may have got its way.
        let process = start().await;
        let told = told.lock().expect("told").clone();
        check(&process, &told).await;
    }
    let told = told.into_inner().expect("told");
    assert!(told.manifests.len() >= kills as usize, "{} images were pushed", told.manifests.len());
    if let Some(place) = &place {
        let registry = Registry::open_bucket(place, Options::default()).await.expect("opens");
        let verified = registry.verify(false).await.expect("reads");
        assert_eq!(verified.findings, []);
        return;
    }
    let registry = Registry::open(&directory.path().join("data"), Options::default()).expect("opens");
    let verified = registry.verify(false).await.expect("reads");
    assert_eq!(verified.findings, []);
    assert!(verified.blobs >= told.blobs.len() as u64);
    let left = std::fs::read_dir(directory.path().join("data/registry/temporary")).expect("lists").count();
    assert_eq!(left, 0, "files that were being written are left");
}
