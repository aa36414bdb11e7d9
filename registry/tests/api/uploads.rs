//! Group: pushing blobs.

use cfc_oci::Digest;

use crate::harness::{Server, expect, expect_error, header, location, noise, send, sha512};

/// The blob is there under its digest, whole.
async fn check_pull(server: &Server, name: &str, digest: &Digest, content: &[u8]) {
    let path = format!("/v2/{name}/blobs/{digest}");
    let head = server.head(&path).await;
    expect(&head, 200);
    assert_eq!(header(&head, "content-length"), content.len().to_string());
    assert_eq!(header(&head, "docker-content-digest"), digest.to_string());
    let response = server.get(&path).await;
    expect(&response, 200);
    assert_eq!(header(&response, "docker-content-digest"), digest.to_string());
    assert_eq!(header(&response, "content-length"), content.len().to_string());
    assert!(response.bytes().await.expect("body") == content, "the bytes differ");
}

#[tokio::test]
async fn a_blob_is_pushed_in_every_way_under_both_digests() {
    let server = Server::start().await;
    for is_sha512 in [false, true] {
        let digest = |content: &[u8]| if is_sha512 { sha512(content) } else { Digest::of(content) };

        let content = noise(512, 1);
        let path = format!("/v2/a/b/blobs/uploads/?digest={}", digest(&content));
        let response = send(server.request("POST", &path).body(content.clone())).await;
        expect(&response, 201);
        assert_eq!(location(&response), format!("/v2/a/b/blobs/{}", digest(&content)));
        check_pull(&server, "a/b", &digest(&content), &content).await;

        let content = noise(512, 2);
        let path = format!("{}?digest={}", server.begin("a/b").await, digest(&content));
        expect(&send(server.request("PUT", &path).body(content.clone())).await, 201);
        check_pull(&server, "a/b", &digest(&content), &content).await;

        let content = noise(3000, 3);
        let mut upload = server.begin("a/b").await;
        for (number, chunk) in content.chunks(1000).enumerate() {
            let range = format!("{}-{}", number * 1000, number * 1000 + 999);
            let request = server.request("PATCH", &upload).header("content-range", range);
            let response = send(request.body(chunk.to_vec())).await;
            expect(&response, 202);
            assert_eq!(header(&response, "range"), format!("0-{}", number * 1000 + 999));
            upload = location(&response);
        }
        let path = format!("{upload}?digest={}", digest(&content));
        expect(&send(server.request("PUT", &path).header("content-length", "0")).await, 201);
        check_pull(&server, "a/b", &digest(&content), &content).await;

        let content = noise(700_000, 4);
        let upload = server.begin("a/b").await;
        let frames: Vec<_> = content.chunks(10_000).map(|c| Ok::<_, std::io::Error>(c.to_vec())).collect();
        let body = reqwest::Body::wrap_stream(futures::stream::iter(frames));
        expect(&send(server.request("PATCH", &upload).body(body)).await, 202);
        let path = format!("{upload}?digest={}", digest(&content));
        expect(&send(server.request("PUT", &path)).await, 201);
        check_pull(&server, "a/b", &digest(&content), &content).await;
    }
}

#[tokio::test]
async fn the_last_chunk_may_come_with_the_put() {
    let server = Server::start().await;
    let content = noise(300, 5);
    let upload = server.begin("a").await;
    let request = server.request("PATCH", &upload).header("content-range", "0-199");
    expect(&send(request.body(content[..200].to_vec())).await, 202);
    let path = format!("{upload}?digest={}", Digest::of(&content));
    let request = server.request("PUT", &path).header("content-range", "200-299");
    expect(&send(request.body(content[200..].to_vec())).await, 201);
    check_pull(&server, "a", &Digest::of(&content), &content).await;
}

#[tokio::test]
async fn a_server_may_be_told_the_algorithm_at_the_start() {
    let server = Server::start().await;
    let response = send(server.request("POST", "/v2/a/blobs/uploads/?digest-algorithm=sha512")).await;
    expect(&response, 202);
    let upload = location(&response);
    expect(&send(server.request("PATCH", &upload).body("content")).await, 202);
    let digest = sha512(b"content");
    expect(&send(server.request("PUT", &format!("{upload}?digest={digest}"))).await, 201);
    check_pull(&server, "a", &digest, b"content").await;
    let response = send(server.request("POST", "/v2/a/blobs/uploads/?digest-algorithm=md5")).await;
    expect_error(response, 400, "DIGEST_INVALID").await;
}

#[tokio::test]
async fn a_chunk_out_of_order_is_refused_and_the_upload_goes_on() {
    let server = Server::start().await;
    let content = noise(300, 6);
    let digest = Digest::of(&content);
    let upload = server.begin("a").await;
    for (range, body) in [("100-199", 100..200), ("0-99", 0..100)] {
        let request = server.request("PATCH", &upload).header("content-range", range);
        let response = send(request.body(content[body].to_vec())).await;
        if range == "0-99" {
            expect(&response, 202);
        } else {
            assert_eq!(location(&response), upload);
            assert_eq!(header(&response, "range"), "0-0");
            expect_error(response, 416, "BLOB_UPLOAD_INVALID").await;
        }
    }
    let path = format!("{upload}?digest={digest}");
    let request = server.request("PUT", &path).header("content-range", "200-299");
    expect_error(send(request.body(content[200..].to_vec())).await, 416, "BLOB_UPLOAD_INVALID").await;
    let status = server.get(&upload).await;
    expect(&status, 204);
    assert_eq!(header(&status, "range"), "0-99");
    let request = server.request("PUT", &path).header("content-range", "100-299");
    expect(&send(request.body(content[100..].to_vec())).await, 201);
    check_pull(&server, "a", &digest, &content).await;
}

#[tokio::test]
async fn a_large_chunk_out_of_order_gets_its_answer() {
    let server = Server::start().await;
    let upload = server.begin("a").await;
    let request = server.request("PATCH", &upload).header("content-range", "5-6000004");
    expect_error(send(request.body(noise(6_000_000, 7))).await, 416, "BLOB_UPLOAD_INVALID").await;
}

#[tokio::test]
async fn a_chunk_that_is_not_as_long_as_its_range_is_refused() {
    let server = Server::start().await;
    let upload = server.begin("a").await;
    for body in [vec![1; 9], vec![1; 11]] {
        let request = server.request("PATCH", &upload).header("content-range", "0-9").body(body.clone());
        expect_error(send(request).await, 400, "SIZE_INVALID").await;
        let stream = reqwest::Body::wrap_stream(futures::stream::iter([Ok::<_, std::io::Error>(body)]));
        let request = server.request("PATCH", &upload).header("content-range", "0-9").body(stream);
        expect_error(send(request).await, 400, "SIZE_INVALID").await;
    }
    for malformed in ["", "x", "5-1", "bytes 0-9/10"] {
        let request = server.request("PATCH", &upload).header("content-range", malformed).body(vec![1; 10]);
        expect_error(send(request).await, 416, "BLOB_UPLOAD_INVALID").await;
    }
    let request = server.request("PATCH", &upload).header("content-range", "0-9").body(vec![1; 10]);
    expect(&send(request).await, 202);
}

#[tokio::test]
async fn a_wrong_digest_is_refused_and_nothing_stays() {
    let server = Server::start().await;
    let digest = Digest::of(b"expected");
    let path = format!("/v2/a/blobs/uploads/?digest={digest}");
    let errors = expect_error(send(server.request("POST", &path).body("found")).await, 400, "DIGEST_INVALID").await;
    assert!(errors.contains(&Digest::of(b"found").to_string()), "{errors}");
    let upload = server.begin("a").await;
    expect(&send(server.request("PATCH", &upload).body("found")).await, 202);
    let response = send(server.request("PUT", &format!("{upload}?digest={digest}"))).await;
    expect_error(response, 400, "DIGEST_INVALID").await;
    expect_error(server.get(&upload).await, 404, "BLOB_UPLOAD_UNKNOWN").await;
    expect(&server.head(&format!("/v2/a/blobs/{digest}")).await, 404);
    if !crate::store::skips("files of uploads") {
        let left = std::fs::read_dir(server.root().join("registry/uploads")).expect("directory").count();
        assert_eq!(left, 0, "files of refused uploads are left");
    }
}

#[tokio::test]
async fn malformed_digests_are_refused() {
    let server = Server::start().await;
    for digest in ["", "sha256:zz", "sha1:da39a3ee5e6b4b0d3255bfef95601890afd80709", "sha256:..%2f..%2fx", "md5:x"] {
        let path = format!("/v2/a/blobs/uploads/?digest={digest}");
        expect_error(send(server.request("POST", &path).body("x")).await, 400, "DIGEST_INVALID").await;
        let path = format!("{}?digest={digest}", server.begin("a").await);
        expect_error(send(server.request("PUT", &path).body("x")).await, 400, "DIGEST_INVALID").await;
    }
    let upload = server.begin("a").await;
    expect_error(send(server.request("PUT", &upload).body("x")).await, 400, "DIGEST_INVALID").await;
}

#[tokio::test]
async fn an_empty_blob_is_a_blob() {
    let server = Server::start().await;
    let digest = server.push_blob("a", b"").await;
    check_pull(&server, "a", &digest, b"").await;
    let path = format!("{}?digest={digest}", server.begin("b").await);
    expect(&send(server.request("PUT", &path)).await, 201);
    check_pull(&server, "b", &digest, b"").await;
}

#[tokio::test]
async fn a_cancelled_upload_is_gone() {
    let server = Server::start().await;
    let upload = server.begin("a").await;
    expect(&server.delete(&upload).await, 204);
    expect_error(server.delete(&upload).await, 404, "BLOB_UPLOAD_UNKNOWN").await;
    expect_error(server.get(&upload).await, 404, "BLOB_UPLOAD_UNKNOWN").await;
    expect_error(send(server.request("PATCH", &upload).body("x")).await, 404, "BLOB_UPLOAD_UNKNOWN").await;
}

#[tokio::test]
async fn an_upload_is_of_one_repository_and_ends_once() {
    let server = Server::start().await;
    let upload = server.begin("a").await;
    let elsewhere = upload.replace("/v2/a/", "/v2/b/");
    for method in ["GET", "PATCH", "DELETE"] {
        expect_error(send(server.request(method, &elsewhere).body("x")).await, 404, "BLOB_UPLOAD_UNKNOWN").await;
    }
    let path = |upload: &str| format!("{upload}?digest={}", Digest::of(b"x"));
    let response = send(server.request("PUT", &path(&elsewhere)).body("x")).await;
    expect_error(response, 404, "BLOB_UPLOAD_UNKNOWN").await;
    expect(&send(server.request("PUT", &path(&upload)).body("x")).await, 201);
    let response = send(server.request("PUT", &path(&upload)).body("x")).await;
    expect_error(response, 404, "BLOB_UPLOAD_UNKNOWN").await;
}

#[tokio::test]
async fn a_blob_is_mounted_from_a_repository_that_holds_it() {
    let server = Server::start().await;
    let digest = server.push_blob("source/x", b"mounted").await;
    let mount = |name: &str, query: &str| server.request("POST", &format!("/v2/{name}/blobs/uploads/?{query}"));
    let response = send(mount("a", &format!("mount={digest}&from=source/x"))).await;
    expect(&response, 201);
    assert_eq!(location(&response), format!("/v2/a/blobs/{digest}"));
    check_pull(&server, "a", &digest, b"mounted").await;
    expect(&send(mount("b", &format!("mount={digest}"))).await, 201);
    check_pull(&server, "b", &digest, b"mounted").await;
    for query in [
        format!("mount={digest}&from=elsewhere"),
        format!("mount={digest}&from=.."),
        format!("mount={}&from=source/x", Digest::of(b"missing")),
        format!("mount={}", Digest::of(b"missing")),
        "mount=sha256:zz".to_string(),
    ] {
        let response = send(mount("c", &query)).await;
        expect(&response, 202);
        assert!(location(&response).starts_with("/v2/c/blobs/uploads/"));
    }
    expect(&server.head(&format!("/v2/c/blobs/{digest}")).await, 404);
}

#[tokio::test]
async fn a_blob_that_every_repository_deleted_cannot_be_mounted() {
    let server = Server::start().await;
    let digest = server.push_blob("a", b"once").await;
    expect(&server.delete(&format!("/v2/a/blobs/{digest}")).await, 202);
    expect(&send(server.request("POST", &format!("/v2/b/blobs/uploads/?mount={digest}"))).await, 202);
}
