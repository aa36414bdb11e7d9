//! Verification and usage.

use cfc_oci::Digest;

use crate::harness::{Server, expect};

async fn findings(server: &Server, quarantine: bool) -> Vec<String> {
    let verified = server.registry.verify(quarantine).await.expect("reads");
    verified.findings.iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn a_blob_with_other_bytes_is_found_and_taken_away() {
    if crate::store::skips("a blob with other bytes is found and taken away") {
        return;
    }
    let server = Server::start().await;
    server.push_image("a", "x", "x").await;
    let verified = server.registry.verify(false).await.expect("reads");
    assert_eq!((verified.blobs, verified.manifests, verified.findings), (2, 1, vec![]));

    let layer = Digest::of(b"layer of x");
    let path = server.registry.blob_path(&layer).expect("a file");
    std::fs::remove_file(&path).expect("removes");
    std::fs::write(&path, "rotten").expect("writes");
    let expected = format!("blob: its name says {layer}, its bytes hash to {}", Digest::of(b"rotten"));
    assert_eq!(findings(&server, false).await, std::slice::from_ref(&expected));
    let found = findings(&server, true).await;
    assert_eq!(found[0], expected);
    assert!(found[1].contains(&format!("its repository lacks {layer}")), "{found:?}");
    expect(&server.get(&format!("/v2/a/blobs/{layer}")).await, 404);
    let kept = server.root().join(format!("registry/quarantine/sha256-{}", layer.hex()));
    assert_eq!(std::fs::read(kept).expect("kept"), b"rotten");
    // Clients are told that it is missing, and push it again.
    server.push_image("a", "x", "x").await;
    assert_eq!(findings(&server, false).await, [""; 0]);
}

#[tokio::test]
async fn manifests_and_tags_that_lead_nowhere_are_found() {
    if crate::store::skips("manifests and tags that lead nowhere are found") {
        return;
    }
    let server = Server::start().await;
    let (one, json) = server.push_image("a/b", "one", "x").await;
    let (two, _) = server.push_image("a/b", "two", "y").await;
    let manifest =
        |digest: &Digest| server.root().join(format!("registry/repositories/a/b/_manifests/sha256/{}", digest.hex()));
    let torn = format!("{}\n{}", cfc_oci::media_type::MANIFEST, &json[..json.len() - 1]);
    std::fs::write(manifest(&one), torn).expect("writes");
    let found = findings(&server, true).await;
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with(&format!("manifest `a/b@{one}`: its bytes hash to sha256:")), "{found:?}");
    assert_eq!(found[1], format!("tag `a/b:one`: its repository lacks the manifest {one}"));
    expect(&server.get("/v2/a/b/manifests/one").await, 404);
    expect(&server.put_manifest("a/b", "one", &json).await, 201);

    expect(&server.delete(&format!("/v2/a/b/blobs/{}", Digest::of(b"layer of y"))).await, 202);
    let expected = format!("manifest `a/b@{two}`: its repository lacks {}", Digest::of(b"layer of y"));
    assert_eq!(findings(&server, false).await, [expected]);
}

#[tokio::test]
async fn what_cannot_be_read_is_found_and_the_rest_is_read_all_the_same() {
    if crate::store::skips("what cannot be read is found and the rest is read all the same") {
        return;
    }
    let server = Server::start().await;
    let (one, _) = server.push_image("a", "one", "x").await;
    let (two, _) = server.push_image("a", "two", "y").await;
    let (three, _) = server.push_image("a", "three", "z").await;
    let repository = server.root().join("registry/repositories/a");
    let manifest = |digest: &Digest| repository.join(format!("_manifests/sha256/{}", digest.hex()));
    // A directory opens, and cannot be read.
    let layer = Digest::of(b"layer of x");
    let path = server.registry.blob_path(&layer).expect("a file");
    std::fs::remove_file(&path).expect("removes");
    std::fs::create_dir(&path).expect("creates");
    // The system does not even tell how long this is.
    let other = server.registry.blob_path(&Digest::of(b"layer of z")).expect("a file");
    std::fs::remove_file(&other).expect("removes");
    std::os::unix::fs::symlink(&other, &other).expect("links");
    std::fs::write(manifest(&two), "nothing").expect("writes");
    std::fs::remove_file(manifest(&three)).expect("removes");
    std::os::unix::fs::symlink(manifest(&three), manifest(&three)).expect("links");
    std::fs::write(repository.join("_tags/one"), "nothing").expect("writes");

    let mut found = findings(&server, false).await;
    found.sort();
    let expected = [
        format!("blob {layer}: cannot read "),
        format!("blob {}: cannot read ", Digest::of(b"layer of z")),
        format!("manifest `a@{one}`: its repository lacks {layer}"),
        format!("manifest `a@{two}`: cannot read "),
        format!("manifest `a@{three}`: cannot read "),
        "tag `a:one`: cannot read ".to_string(),
        "tag `a:three`: cannot read ".to_string(),
    ];
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for start in &expected {
        assert!(found.iter().any(|finding| finding.starts_with(start)), "no `{start}` in {found:?}");
    }
    let rules = cfc_registry::Rules { grace: std::time::Duration::ZERO, untagged: None };
    let collected = server.registry.collect(rules, false).await.expect("goes on");
    assert_eq!((collected.blobs, collected.unlinked), (0, 0), "what it names is not known");
    // What was read and is no manifest is taken away; what cannot be read may be another time.
    findings(&server, true).await;
    assert!(!manifest(&two).exists() && manifest(&three).symlink_metadata().is_ok());
}

#[tokio::test]
async fn usage_says_what_each_repository_takes() {
    let server = Server::start().await;
    server.push_image("a", "one", "x").await;
    server.push_image("a", "two", "x").await;
    server.push_image("b", "one", "x").await;
    server.push_blob("b", b"own").await;
    let usage = server.registry.usage().await.expect("counts");
    let shared = (b"{\"seed\":\"x\"}".len() + b"layer of x".len()) as u64;
    let (a, b) = (&usage["a"], &usage["b"]);
    assert_eq!((a.tags, a.manifests, a.blobs, a.bytes, a.own_bytes), (2, 1, 2, shared, 0));
    assert_eq!((b.tags, b.manifests, b.blobs, b.bytes, b.own_bytes), (1, 1, 3, shared + 3, 3));
}
