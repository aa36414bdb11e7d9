//! Garbage collection.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use cfc_oci::{Digest, media_type};
use cfc_registry::{Collected, CollectionRequest, Options, RemovalReason, Removed, RemovedKind, Rules, ask_to_collect};
use serde_json::Value;

use crate::harness::{Server, expect, image, index, noise, send};

const AT_ONCE: Rules = Rules { grace: Duration::ZERO, untagged: None };
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The object that says that a repository holds a blob.
fn link(server: &Server, name: &str, digest: &Digest) -> PathBuf {
    let pair = format!("{}/{}", digest.algorithm().as_str(), digest.hex());
    server.root().join(format!("registry/links/{pair}/{name}/_link"))
}

/// Nobody has asked for the blob in two days.
fn age(server: &Server, name: &str, digest: &Digest) {
    set_age(&link(server, name, digest), 2 * DAY);
}

/// The object that holds a manifest.
fn manifest(server: &Server, name: &str, digest: &Digest) -> PathBuf {
    server.root().join(format!("registry/repositories/{name}/_manifests/sha256/{}", digest.hex()))
}

fn set_age(path: &Path, age: Duration) {
    let file = std::fs::File::options().write(true).open(path).expect("an object");
    file.set_modified(SystemTime::now() - age).expect("sets the time");
}

async fn collect(server: &Server, rules: Rules) -> Collected {
    let expected = server.registry.collect_and_list(rules, true).await.expect("tells");
    let listing = server.registry.collect_and_list(rules, false).await.expect("collects");
    let collected = listing.counts;
    assert_eq!(Collected { uploads: 0, ..collected }, expected.counts, "the dry run told something else");
    let removed = listing.removed.expect("was asked for");
    assert_eq!(Some(&removed), expected.removed.as_ref(), "the dry run listed something else");
    assert_eq!(Collected { uploads: 0, ..collected }, count(&removed));
    collected
}

/// What a list adds up to.
fn count(removed: &[Removed]) -> Collected {
    let of = |kind| removed.iter().filter(move |removed| removed.kind == kind);
    let links = removed.iter().filter(|removed| removed.kind != RemovedKind::Manifest);
    Collected {
        manifests: of(RemovedKind::Manifest).count() as u64,
        unlinked: links.map(|removed| removed.repositories.len() as u64).sum(),
        blobs: of(RemovedKind::Blob).count() as u64,
        bytes: of(RemovedKind::Blob).map(|removed| removed.bytes).sum(),
        uploads: 0,
    }
}

#[tokio::test]
async fn the_operator_is_told_what_each_thing_is_that_goes() {
    let collection = Rules { grace: Duration::ZERO, untagged: Some(Duration::ZERO) };
    let server = Server::start_with(Options { collection, collect_every: None, ..Options::default() }).await;
    server.push_image("a", "kept", "x").await;
    // Each names a blob that the other repository holds as well.
    let (gone, json) = server.push_image("a", "gone", "y").await;
    server.push_image("b", "kept", "y").await;
    let shared = server.push_blob("b", b"both").await;
    server.push_blob("a", b"both").await;
    let orphan = server.push_blob("a", b"orphan").await;
    server.push_image("a", "gone", "x").await;

    let path = "/v2/gc/layers?dry-run=true&list=true";
    expect(&send(server.request("PUT", path)).await, 403);
    let socket = server.root().join("operator");
    crate::harness::operator(&server.registry, &socket).await;
    let ask = |is_dry_run, is_listed| ask_to_collect(&socket, CollectionRequest { is_dry_run, is_listed });
    assert_eq!(ask(true, false).await.expect("tells").removed, None);
    let told = ask(true, true).await.expect("tells");
    let removed = told.removed.clone().expect("was asked for");
    let find = |digest: &Digest| {
        let found = removed.iter().find(|removed| removed.digest == *digest).expect("it is there");
        let repositories: Vec<&str> = found.repositories.iter().map(|name| name.as_str()).collect();
        (found.kind, found.bytes, repositories.join(","), found.reason)
    };
    use RemovalReason::{Unnamed, Untagged};
    assert_eq!(find(&gone), (RemovedKind::Manifest, json.len() as u64, "a".to_string(), Untagged));
    assert_eq!(find(&orphan), (RemovedKind::Blob, 6, "a".to_string(), Unnamed));
    assert_eq!(find(&shared), (RemovedKind::Blob, 4, "a,b".to_string(), Unnamed));
    let layer = Digest::of(b"layer of y");
    assert_eq!(find(&layer), (RemovedKind::Link, 10, "a".to_string(), Unnamed));
    assert_eq!(told.counts, count(&removed));
    assert_eq!(ask(false, true).await.expect("collects"), told);
    assert_eq!(ask(false, true).await.expect("collects").removed, Some(Vec::new()));
}

#[tokio::test]
async fn what_nothing_refers_to_goes_and_the_rest_stays() {
    let server = Server::start().await;
    server.push_image("a", "kept", "x").await;
    let (gone, json) = server.push_image("a", "gone", "y").await;
    server.push_image("b", "kept", "y").await;
    let orphan = server.push_blob("a", b"orphan").await;
    let shared = Digest::of(b"layer of y");
    expect(&server.delete(&format!("/v2/a/manifests/{gone}")).await, 202);
    // An upload that is under way is nobody's garbage.
    let upload = server.begin("a").await;
    expect(&send(server.request("PATCH", &upload).body("half")).await, 202);

    let collected = collect(&server, AT_ONCE).await;
    assert_eq!((collected.unlinked, collected.blobs, collected.bytes), (3, 1, 6));
    expect(&server.get(&format!("/v2/a/blobs/{orphan}")).await, 404);
    assert_eq!(server.registry.blob_path(&orphan), None, "the disk shrinks");
    expect(&server.get(&format!("/v2/a/blobs/{shared}")).await, 404);
    expect(&server.get(&format!("/v2/b/blobs/{shared}")).await, 200);
    expect(&server.get("/v2/a/manifests/kept").await, 200);
    expect(&server.get(&format!("/v2/a/blobs/{}", Digest::of(b"layer of x"))).await, 200);
    expect(&server.get(&upload).await, 204);
    assert_eq!(collect(&server, AT_ONCE).await, Collected::default());
    // Pushed again, it is there again.
    server.push_image("a", "gone", "y").await;
    assert_eq!(server.get("/v2/a/manifests/gone").await.text().await.expect("body"), json);
    assert_eq!(server.registry.verify(false).await.expect("reads").findings, []);
}

#[tokio::test]
async fn what_somebody_has_just_asked_for_stays() {
    if crate::store::skips("what somebody has just asked for stays") {
        return;
    }
    let server = Server::start().await;
    let rules = Rules::default();
    let orphan = server.push_blob("a", b"orphan").await;
    let path = format!("/v2/a/blobs/{orphan}");
    assert_eq!(collect(&server, rules).await, Collected::default(), "just pushed");
    age(&server, "a", &orphan);
    expect(&server.head(&path).await, 200);
    assert_eq!(collect(&server, rules).await, Collected::default(), "just looked for");
    age(&server, "a", &orphan);
    server.push_blob("a", b"orphan").await;
    assert_eq!(collect(&server, rules).await, Collected::default(), "just pushed again");
    age(&server, "a", &orphan);
    expect(&send(server.request("POST", &format!("/v2/b/blobs/uploads/?mount={orphan}&from=a"))).await, 201);
    assert_eq!(collect(&server, rules).await, Collected::default(), "just mounted");
    age(&server, "a", &orphan);
    age(&server, "b", &orphan);
    let collected = collect(&server, rules).await;
    assert_eq!((collected.unlinked, collected.blobs), (2, 1), "nobody asked for it");
    expect(&server.head(&path).await, 404);
}

#[tokio::test]
async fn manifests_that_nothing_leads_to_go_only_when_asked() {
    let server = Server::start().await;
    let child = |seed: &'static str| server.push_image("a", "moving", seed);
    let (one, _) = child("1").await;
    let (two, _) = child("2").await;
    let (three, _) = child("3").await;
    expect(&server.put_manifest("a", "index", &index(&[&one], "")).await, 201);
    let config = server.push_blob("a", b"{}").await;
    let about = |digest: &Digest| {
        image(
            &config,
            &[],
            &format!(r#","subject":{{"mediaType":"{}","digest":"{digest}","size":1}}"#, media_type::MANIFEST),
        )
    };
    let (kept, gone) = (about(&one), about(&two));
    for json in [&kept, &gone] {
        let digest = Digest::of(json.as_bytes()).to_string();
        expect(&server.put_manifest("a", &digest, json).await, 201);
    }
    assert_eq!(collect(&server, AT_ONCE).await.manifests, 0);
    let untagged = Rules { untagged: Some(Duration::ZERO), ..AT_ONCE };
    let collected = collect(&server, untagged).await;
    assert_eq!((collected.manifests, collected.unlinked, collected.blobs), (2, 2, 2));
    for digest in [&one, &three, &Digest::of(kept.as_bytes())] {
        expect(&server.get(&format!("/v2/a/manifests/{digest}")).await, 200);
    }
    for digest in [&two, &Digest::of(gone.as_bytes())] {
        expect(&server.get(&format!("/v2/a/manifests/{digest}")).await, 404);
    }
    let referrers: Value = server.get(&format!("/v2/a/referrers/{two}")).await.json().await.expect("JSON");
    assert_eq!(referrers["manifests"], serde_json::json!([]));
    assert_eq!(server.registry.verify(false).await.expect("reads").findings, []);
    // The last ones take the repository along.
    for tag in ["moving", "index"] {
        expect(&server.delete(&format!("/v2/a/manifests/{tag}")).await, 202);
    }
    collect(&server, untagged).await;
    assert_eq!(server.registry.repositories().await.expect("lists"), []);
}

#[tokio::test]
async fn a_manifest_that_somebody_has_just_asked_for_stays_however_soon_it_would_go() {
    if crate::store::skips("a manifest that somebody has just asked for stays however soon it would go") {
        return;
    }
    let hour = DAY / 24;
    let rules = Rules { untagged: Some(hour), ..Rules::default() };
    let server = Server::start_with(Options { collection: rules, ..Options::default() }).await;
    let (digest, _) = server.push_image("a", "x", "x").await;
    expect(&server.delete("/v2/a/manifests/x").await, 202);
    let path = format!("/v2/a/manifests/{digest}");
    for age in [hour / 2, 2 * hour] {
        set_age(&manifest(&server, "a", &digest), age);
        expect(&server.get(&path).await, 200);
        let age = manifest(&server, "a", &digest).metadata().expect("there").modified().expect("a time").elapsed();
        assert!(age.is_ok_and(|age| age < hour / 2), "who asks for it keeps it");
        assert_eq!(collect(&server, rules).await, Collected::default());
    }
    set_age(&manifest(&server, "a", &digest), 2 * hour);
    assert_eq!(collect(&server, rules).await.manifests, 1, "nobody asked for it");
}

#[tokio::test]
async fn an_index_that_somebody_asks_for_keeps_its_entries() {
    if crate::store::skips("an index that somebody asks for keeps its entries") {
        return;
    }
    let rules = Rules { untagged: Some(DAY), ..Rules::default() };
    let server = Server::start_with(Options { collection: rules, ..Options::default() }).await;
    let (entry, _) = server.push_image("a", "x", "x").await;
    expect(&server.delete("/v2/a/manifests/x").await, 202);
    let json = index(&[&entry], "");
    let inner = Digest::of(json.as_bytes());
    expect(&server.put_manifest("a", &inner.to_string(), &json).await, 201);
    let json = index(&[&inner], "");
    let outer = Digest::of(json.as_bytes());
    expect(&server.put_manifest("a", &outer.to_string(), &json).await, 201);
    for digest in [&entry, &inner, &outer] {
        set_age(&manifest(&server, "a", digest), 2 * DAY);
    }
    expect(&server.get(&format!("/v2/a/manifests/{outer}")).await, 200);
    assert_eq!(collect(&server, rules).await, Collected::default());
    assert_eq!(server.registry.verify(false).await.expect("reads").findings, []);
    set_age(&manifest(&server, "a", &outer), 2 * DAY);
    assert_eq!(collect(&server, rules).await.manifests, 3, "nobody asks for it any more");
}

/// A collection that began before there was the manifest does not know what it names, and may get to the blobs when the
/// push is over.
#[tokio::test]
async fn a_push_keeps_what_its_manifest_names_from_a_collection_under_way() {
    if crate::store::skips("a push keeps what its manifest names from a collection under way") {
        return;
    }
    for accept_sparse in [false, true] {
        let server = Server::start_with(Options { accept_sparse, ..Options::default() }).await;
        let config = server.push_blob("a", b"{}").await;
        let layer = server.push_blob("a", b"layer").await;
        let foreign = server.push_blob("a", b"foreign").await;
        let json = image(&config, &[&layer, &foreign], "");
        let (before, last) = json.rsplit_once(media_type::LAYER).expect("two layers");
        let json = format!("{before}application/vnd.oci.image.layer.nondistributable.v1.tar{last}");
        let blobs = [config, layer, foreign];
        blobs.iter().for_each(|digest| age(&server, "a", digest));
        expect(&server.put_manifest("a", "x", &json).await, 201);
        for digest in &blobs {
            let touched = link(&server, "a", digest).metadata().expect("a link").modified().expect("a time");
            assert!(touched.elapsed().is_ok_and(|age| age < DAY), "{digest}, sparse: {accept_sparse}");
        }
    }
}

#[tokio::test]
async fn a_layer_that_need_not_be_here_stays_if_it_is() {
    let server = Server::start().await;
    let config = server.push_blob("a", b"{}").await;
    let layer = server.push_blob("a", b"foreign").await;
    let json = image(&config, &[&layer], "");
    let json = json.replace(media_type::LAYER, "application/vnd.oci.image.layer.nondistributable.v1.tar");
    expect(&server.put_manifest("a", "x", &json).await, 201);
    assert_eq!(collect(&server, AT_ONCE).await, Collected::default());
    expect(&server.get(&format!("/v2/a/blobs/{layer}")).await, 200);
}

#[tokio::test]
async fn a_manifest_that_cannot_be_read_costs_nobody_a_blob() {
    if crate::store::skips("a manifest that cannot be read costs nobody a blob") {
        return;
    }
    let server = Server::start().await;
    let (digest, _) = server.push_image("a", "x", "x").await;
    let garbage = server.push_blob("b", b"garbage").await;
    let (file, aside) = (manifest(&server, "a", &digest), server.root().join("aside"));
    std::fs::rename(&file, &aside).expect("renames");
    let untagged = Rules { untagged: Some(Duration::ZERO), ..AT_ONCE };
    std::fs::write(&file, "application/json\nnothing").expect("writes");
    // The others' garbage goes all the same.
    assert_eq!(collect(&server, untagged).await, Collected { unlinked: 1, blobs: 1, bytes: 7, ..Collected::default() });
    assert_eq!(server.registry.blob_path(&garbage), None);
    std::fs::write(&file, "nothing").expect("writes");
    assert_eq!(collect(&server, untagged).await, Collected::default(), "without a media type");
    std::fs::remove_file(&file).expect("removes");
    std::os::unix::fs::symlink(&file, &file).expect("links");
    assert_eq!(collect(&server, untagged).await, Collected::default(), "the system cannot read it");
    std::fs::remove_file(&file).expect("removes");
    std::fs::rename(&aside, &file).expect("renames");
    std::fs::write(server.root().join("registry/repositories/a/_tags/x"), "nothing").expect("writes");
    assert_eq!(collect(&server, untagged).await, Collected::default(), "a tag that leads nobody knows where");
}

#[tokio::test]
async fn what_a_killed_collection_left_half_done_is_taken_back() {
    if crate::store::skips("what a killed collection left half done is taken back") {
        return;
    }
    let server = Server::start().await;
    let (_, json) = server.push_image("a", "x", "x").await;
    let layer = Digest::of(b"layer of x");
    let aside = |path: &PathBuf| {
        let mut aside = path.clone().into_os_string();
        aside.push("~");
        std::fs::rename(path, aside).expect("renames");
    };
    let blob = server.registry.blob_path(&layer).expect("a file");
    for path in [&link(&server, "a", &layer), &blob] {
        aside(path);
    }
    expect(&server.get(&format!("/v2/a/blobs/{layer}")).await, 200);
    for path in [&link(&server, "a", &layer), &blob] {
        aside(path);
    }
    collect(&server, AT_ONCE).await;
    assert!(blob.exists(), "what is referred to is back in its place");
    assert_eq!(server.get("/v2/a/manifests/x").await.text().await.expect("body"), json);
    assert_eq!(server.registry.verify(false).await.expect("reads").findings, []);
}

#[tokio::test]
async fn a_deletion_that_was_killed_is_taken_back_for_an_immutable_tag_and_ended_otherwise() {
    if crate::store::skips("a deletion that was killed is taken back for an immutable tag and ended otherwise") {
        return;
    }
    for is_immutable in [true, false] {
        let immutable_tags = if is_immutable { vec!["a:v*".to_string()] } else { Vec::new() };
        let server = Server::start_with(Options { immutable_tags, ..Options::default() }).await;
        let (digest, json) = server.push_image("a", "other", "x").await;
        expect(&server.put_manifest("a", "v1", &json).await, 201);
        server.push_image("a", "last", "y").await;
        let aside = server.root().join(format!("registry/deleting/a/_manifests/sha256/{}", digest.hex()));
        std::fs::create_dir_all(&aside).expect("creates");
        std::fs::rename(manifest(&server, "a", &digest), aside.join("0")).expect("renames");
        assert_eq!(server.registry.verify(false).await.expect("reads").findings, []);
        server.registry.collect(AT_ONCE, false).await.expect("collects");
        let expected = if is_immutable { 200 } else { 404 };
        for reference in ["v1", "other", &digest.to_string()] {
            expect(&server.get(&format!("/v2/a/manifests/{reference}")).await, expected);
        }
        let listed: Value = server.get("/v2/a/tags/list").await.json().await.expect("JSON");
        let expected: &[&str] = if is_immutable { &["last", "other", "v1"] } else { &["last"] };
        assert_eq!(listed["tags"], serde_json::json!(expected));
        assert!(!server.root().join("registry/deleting").exists());
        assert_eq!(server.registry.verify(false).await.expect("reads").findings, []);
    }
}

#[tokio::test]
async fn wrangler_deletes_an_image_and_asks_for_collection() {
    let options = Options { collection: AT_ONCE, ..Options::default() };
    let server = Server::start_with(options).await;
    server.push_image("account/app", "v1", "x").await;
    let catalog: Value = server.get("/v2/_catalog?tags=true").await.json().await.expect("JSON");
    assert_eq!(catalog["repositories"], serde_json::json!({ "account/app": ["v1"] }));
    expect(&server.head("/v2/account/app/manifests/v1").await, 200);
    expect(&server.delete("/v2/account/app/manifests/v1").await, 202);
    let orphan = server.push_blob("account/app", b"orphan").await;
    let told = send(server.request("PUT", "/v2/gc/layers?dry-run=true")).await;
    expect(&told, 200);
    assert_eq!(told.json::<Collected>().await.expect("JSON").blobs, 1);
    expect(&server.head(&format!("/v2/account/app/blobs/{orphan}")).await, 200);
    expect(&send(server.request("PUT", "/v2/gc/layers")).await, 200);
    expect(&server.head(&format!("/v2/account/app/blobs/{orphan}")).await, 404);
    expect(&server.get("/v2/gc/layers").await, 405);
}

/// How long [`soak`] goes on, and after which time of not being asked for a blob is garbage.
const SOAK: Duration = Duration::from_secs(8);
const GRACE: Duration = Duration::from_secs(2);

/// Pushes an image of a few blobs out of a small pool as clients do, and pulls it again. Gives nothing when this took so
/// long that the registry owes it nothing.
async fn push_and_pull(server: &Server, name: &str, tag: &str, seeds: &[u64]) -> Option<Digest> {
    let begun = Instant::now();
    let blobs: Vec<Vec<u8>> = seeds.iter().map(|seed| noise(2000, *seed)).collect();
    for blob in &blobs {
        let digest = Digest::of(blob);
        if server.head(&format!("/v2/{name}/blobs/{digest}")).await.status() == 200 {
            continue;
        }
        let mounted = send(server.request("POST", &format!("/v2/{name}/blobs/uploads/?mount={digest}"))).await;
        if mounted.status() != 201 {
            expect(&mounted, 202);
            server.push_blob(name, blob).await;
        }
    }
    let digests: Vec<Digest> = blobs.iter().map(|blob| Digest::of(blob)).collect();
    let layers: Vec<&Digest> = digests[1..].iter().collect();
    let json = image(&digests[0], &layers, "");
    let put = server.put_manifest(name, tag, &json).await;
    if begun.elapsed() > GRACE * 7 / 8 {
        return None;
    }
    expect(&put, 201);
    let manifest = Digest::of(json.as_bytes());
    expect(&server.get(&format!("/v2/{name}/manifests/{manifest}")).await, 200);
    for (digest, blob) in digests.iter().zip(&blobs) {
        let pulled = server.get(&format!("/v2/{name}/blobs/{digest}")).await;
        expect(&pulled, 200);
        assert!(pulled.bytes().await.expect("body") == *blob, "{digest} has other bytes");
    }
    Some(manifest)
}

/// Pushes, pulls and deletes until the time is up; gives the number of pushes. Each client has a repository of its own,
/// since a deletion by another one is no error; the blobs are everybody's.
async fn soak(server: &Server, client: u64) -> u64 {
    let name = format!("soak/{client}");
    let begun = Instant::now();
    let mut pushes = 0;
    while begun.elapsed() < SOAK {
        let random = noise(4, client * 100_000 + pushes);
        let seeds: Vec<u64> = random[..3].iter().map(|byte| u64::from(byte % 120)).collect();
        let tag = format!("t{}", random[3] % 3);
        let pushed = push_and_pull(server, &name, &tag, &seeds).await;
        if let Some(digest) = pushed
            && random[3].is_multiple_of(2)
        {
            expect(&server.delete(&format!("/v2/{name}/manifests/{digest}")).await, 202);
        }
        pushes += 1;
    }
    pushes
}

fn add(total: &std::sync::Mutex<Collected>, collected: Collected) {
    let mut total = total.lock().expect("total");
    total.unlinked += collected.unlinked;
    total.blobs += collected.blobs;
    total.manifests += collected.manifests;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pushers_never_notice_a_collection() {
    if crate::store::skips("a soak that is too short for a store; bucket.rs has another") {
        return;
    }
    let rules = Rules { grace: GRACE, untagged: Some(GRACE) };
    let server = Server::start_with(Options { collection: rules, ..Options::default() }).await;
    let total = std::sync::Mutex::new(Collected::default());
    let collecting = async {
        loop {
            let collected = server.registry.collect(rules, false).await.expect("collects");
            add(&total, collected);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let pushing = futures::future::join_all((0..6).map(|client| soak(&server, client)));
    let pushes = tokio::select! {
        never = collecting => never,
        pushes = pushing => pushes.iter().sum::<u64>(),
    };
    let total = *total.lock().expect("total");
    eprintln!("{pushes} pushes, {total:?}");
    assert!(
        pushes > 6 && total.unlinked > 0 && total.blobs > 0,
        "{pushes} pushes, {total:?}: nothing was put to the test"
    );
    assert_eq!(server.registry.verify(false).await.expect("reads").findings, []);
}
