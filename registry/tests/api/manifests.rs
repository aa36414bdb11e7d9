//! Group: manifests of all kinds.

use cfc_oci::{Digest, media_type};

use crate::harness::{Server, expect, expect_error, header, image, index, location, send, sha512};

#[tokio::test]
async fn an_image_comes_back_as_it_was_pushed() {
    let server = Server::start().await;
    let (digest, json) = server.push_image("a/b", "latest", "x").await;
    for reference in ["latest".to_string(), digest.to_string()] {
        let path = format!("/v2/a/b/manifests/{reference}");
        let head = server.head(&path).await;
        expect(&head, 200);
        assert_eq!(header(&head, "content-length"), json.len().to_string());
        let response = server.get(&path).await;
        expect(&response, 200);
        assert_eq!(header(&response, "content-type"), media_type::MANIFEST);
        assert_eq!(header(&response, "docker-content-digest"), digest.to_string());
        assert_eq!(response.text().await.expect("body"), json);
    }
    let name = "a/b".parse().expect("name");
    let (descriptor, bytes) = server.registry.manifest(&name, "latest").await.expect("read").expect("there");
    assert_eq!((descriptor.digest, descriptor.size), (digest.clone(), json.len() as u64));
    assert_eq!(bytes, json.as_bytes());
    assert!(server.registry.manifest(&name, &digest.to_string()).await.expect("read").is_some());
    assert!(server.registry.manifest(&name, "../x").await.expect("read").is_none());
}

#[tokio::test]
async fn a_manifest_is_pushed_by_its_digest() {
    let server = Server::start().await;
    let config = server.push_blob("a", b"{}").await;
    let json = image(&config, &[], ",\"annotations\":{\"x\":\"1\"},\"unknown\":{\"kept\":true}");
    for digest in [Digest::of(json.as_bytes()), sha512(json.as_bytes())] {
        let response = server.put_manifest("a", &digest.to_string(), &json).await;
        expect(&response, 201);
        assert_eq!(header(&response, "docker-content-digest"), digest.to_string());
        assert_eq!(location(&response), format!("/v2/a/manifests/{digest}"));
        let response = server.get(&location(&response)).await;
        assert_eq!(header(&response, "docker-content-digest"), digest.to_string());
        assert_eq!(response.text().await.expect("body"), json);
    }
    let other = Digest::of(b"other").to_string();
    expect_error(server.put_manifest("a", &other, &json).await, 400, "DIGEST_INVALID").await;
    expect_error(server.put_manifest("a", "sha256:baddigeststring", &json).await, 400, "DIGEST_INVALID").await;
    expect_error(server.get("/v2/a/manifests/sha256:baddigeststring").await, 400, "DIGEST_INVALID").await;
}

#[tokio::test]
async fn tags_may_come_with_the_digest() {
    let server = Server::start().await;
    let config = server.push_blob("a", b"{}").await;
    let json = image(&config, &[], "");
    let digest = sha512(json.as_bytes());
    let tags: Vec<String> = (0..10).map(|number| format!("t{number}")).collect();
    let query: Vec<String> = tags.iter().map(|tag| format!("tag={tag}")).collect();
    let response = server.put_manifest("a", &format!("{digest}?{}", query.join("&")), &json).await;
    expect(&response, 201);
    let accepted: Vec<_> = response.headers().get_all("oci-tag").iter().collect();
    assert_eq!(accepted, tags.iter().collect::<Vec<_>>());
    for tag in &tags {
        let response = server.get(&format!("/v2/a/manifests/{tag}")).await;
        assert_eq!(header(&response, "docker-content-digest"), digest.to_string());
    }
    let many = "tag=x&".repeat(101);
    expect_error(server.put_manifest("a", &format!("{digest}?{many}"), &json).await, 414, "TAG_INVALID").await;
    expect_error(server.put_manifest("a", &format!("{digest}?tag=-"), &json).await, 400, "TAG_INVALID").await;
}

#[tokio::test]
async fn indexes_nest_and_may_be_empty() {
    let server = Server::start().await;
    let (image, _) = server.push_image("a", "image", "x").await;
    for (tag, json) in [("index", index(&[&image], "")), ("empty", index(&[], ""))] {
        expect(&server.put_manifest("a", tag, &json).await, 201);
        let response = server.get(&format!("/v2/a/manifests/{tag}")).await;
        assert_eq!(header(&response, "content-type"), media_type::INDEX);
    }
    let nested = Digest::of(index(&[&image], "").as_bytes());
    expect(&server.put_manifest("a", "nested", &index(&[&nested], "")).await, 201);
}

#[tokio::test]
async fn everything_that_is_missing_is_named() {
    let server = Server::start().await;
    let (config, layer) = (Digest::of(b"no config"), Digest::of(b"no layer"));
    let response = server.put_manifest("a", "x", &image(&config, &[&layer], "")).await;
    let errors = expect_error(response, 400, "MANIFEST_BLOB_UNKNOWN").await;
    assert!(errors.contains(config.hex()) && errors.contains(layer.hex()), "{errors}");
    expect(&server.get("/v2/a/manifests/x").await, 404);
    let response = server.put_manifest("a", "x", &index(&[&layer], "")).await;
    expect_error(response, 400, "MANIFEST_BLOB_UNKNOWN").await;
    // What another repository holds is not here.
    let elsewhere = server.push_blob("b", b"elsewhere").await;
    let response = server.put_manifest("a", "x", &image(&elsewhere, &[], "")).await;
    expect_error(response, 400, "MANIFEST_BLOB_UNKNOWN").await;
}

#[tokio::test]
async fn sparse_manifests_are_accepted_when_asked() {
    let options = cfc_registry::Options { accept_sparse: true, ..Default::default() };
    let server = Server::start_with(options).await;
    let missing = Digest::of(b"missing");
    expect(&server.put_manifest("a", "image", &image(&missing, &[&missing], "")).await, 201);
    expect(&server.put_manifest("a", "index", &index(&[&missing], "")).await, 201);
}

#[tokio::test]
async fn layers_that_may_not_be_distributed_need_not_be_here() {
    let server = Server::start().await;
    let config = server.push_blob("a", b"{}").await;
    let json = image(&config, &[&Digest::of(b"elsewhere")], "");
    let json = json.replace(media_type::LAYER, "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip");
    expect(&server.put_manifest("a", "x", &json).await, 201);
}

#[tokio::test]
async fn a_manifest_of_four_mebibytes_is_accepted_and_six_megabytes_are_not() {
    let server = Server::start().await;
    let config = server.push_blob("a", b"{}").await;
    let large = |length: usize| image(&config, &[], &format!(",\"annotations\":{{\"x\":\"{}\"}}", "A".repeat(length)));
    let json = large(3_900_000);
    expect(&server.put_manifest("a", "large", &json).await, 201);
    assert_eq!(server.get("/v2/a/manifests/large").await.text().await.expect("body"), json);
    expect_error(server.put_manifest("a", "huge", &large(6_000_000)).await, 413, "SIZE_INVALID").await;
    let stream = futures::stream::iter((0..60).map(|_| Ok::<_, std::io::Error>(vec![b' '; 100_000])));
    let request = server.request("PUT", "/v2/a/manifests/huge").body(reqwest::Body::wrap_stream(stream));
    expect_error(send(request).await, 413, "SIZE_INVALID").await;
}

#[tokio::test]
async fn bad_manifests_are_refused() {
    let server = Server::start().await;
    let config = server.push_blob("a", b"{}").await;
    let good = image(&config, &[], "");
    let both = good.replace("\"layers\":[]", "\"layers\":[],\"manifests\":[]");
    let deep = format!("{{\"schemaVersion\":2,\"manifests\":[],\"x\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    for json in ["", "{", "null", "[]", "{}", "\u{0}", &both, &deep, &good.replace("sha256:", "sha256:Z")] {
        expect_error(server.put_manifest("a", "x", json).await, 400, "MANIFEST_INVALID").await;
    }
    let request = server.request("PUT", "/v2/a/manifests/x").header("content-type", media_type::INDEX);
    expect_error(send(request.body(good.clone())).await, 400, "MANIFEST_INVALID").await;
    let request = server.request("PUT", "/v2/a/manifests/x").header("content-type", "text/html");
    expect_error(send(request.body(good.clone())).await, 400, "MANIFEST_INVALID").await;
    expect_error(server.put_manifest("a", ".x", &good).await, 400, "TAG_INVALID").await;
    let long = "x".repeat(129);
    expect_error(server.put_manifest("a", &long, &good).await, 400, "TAG_INVALID").await;
    // The parameters of a content type are nobody's business.
    let request = server.request("PUT", "/v2/a/manifests/x");
    let request = request.header("content-type", format!("{}; charset=utf-8", media_type::MANIFEST));
    expect(&send(request.body(good)).await, 201);
    let found = server.get("/v2/a/manifests/x").await;
    assert_eq!(header(&found, "content-type"), media_type::MANIFEST);
}

#[tokio::test]
async fn a_manifest_that_is_not_there_is_404() {
    let server = Server::start().await;
    for reference in ["latest", ".INVALID_MANIFEST_NAME", &Digest::of(b"x").to_string()] {
        let path = format!("/v2/a/manifests/{reference}");
        expect_error(server.get(&path).await, 404, "MANIFEST_UNKNOWN").await;
        expect(&server.head(&path).await, 404);
        expect_error(server.delete(&path).await, 404, "MANIFEST_UNKNOWN").await;
    }
}

#[tokio::test]
async fn deleting_a_tag_leaves_the_manifest() {
    let server = Server::start().await;
    let (digest, json) = server.push_image("a", "one", "x").await;
    expect(&server.put_manifest("a", "two", &json).await, 201);
    expect(&server.delete("/v2/a/manifests/one").await, 202);
    expect(&server.get("/v2/a/manifests/one").await, 404);
    expect(&server.get("/v2/a/manifests/two").await, 200);
    expect(&server.get(&format!("/v2/a/manifests/{digest}")).await, 200);
}

#[tokio::test]
async fn deleting_a_manifest_takes_its_tags_along() {
    let server = Server::start().await;
    let (digest, json) = server.push_image("a", "one", "x").await;
    expect(&server.put_manifest("a", "two", &json).await, 201);
    let (other, _) = server.push_image("a", "moved", "x").await;
    assert_eq!(other, digest);
    let (other, _) = server.push_image("a", "moved", "y").await;
    expect(&server.delete(&format!("/v2/a/manifests/{digest}")).await, 202);
    for reference in ["one", "two", &digest.to_string()] {
        expect(&server.get(&format!("/v2/a/manifests/{reference}")).await, 404);
    }
    let moved = server.get("/v2/a/manifests/moved").await;
    assert_eq!(header(&moved, "docker-content-digest"), other.to_string());
    // Pushed again, it has no tags of before.
    expect(&server.put_manifest("a", &digest.to_string(), &json).await, 201);
    let tags = server.get("/v2/a/tags/list").await.text().await.expect("body");
    assert_eq!(tags, r#"{"name":"a","tags":["moved"]}"#);
}

/// A deletion of a manifest takes the tags along that are pushed meanwhile, or they bring it back.
#[tokio::test]
async fn no_tag_leads_nowhere_though_its_manifest_is_deleted_while_it_is_pushed() {
    let server = Server::start().await;
    let (digest, json) = server.push_image("a", "first", "x").await;
    let path = format!("/v2/a/manifests/{digest}");
    let push = async |tag: &str| expect(&server.put_manifest("a", tag, &json).await, 201);
    let delete = async || {
        let status = server.delete(&path).await.status().as_u16();
        assert!([202, 404].contains(&status), "{status}");
    };
    let rounds = if crate::store::endpoint().is_some() { 20 } else { 400 };
    for round in 0..rounds {
        futures::join!(push("one"), delete(), push("two"), delete(), push("three"));
        let is_there = server.head(&path).await.status() == 200;
        for tag in server.registry.tags(&"a".parse().expect("a name")).await.expect("lists") {
            let leads = server.head(&format!("/v2/a/manifests/{tag}")).await.status();
            assert!(is_there && leads == 200, "round {round}: `{tag}` leads to {leads}");
        }
    }
    assert_eq!(server.registry.verify(false).await.expect("reads").findings, []);
}
