//! Group: pulling and deleting blobs.

use cfc_oci::Digest;

use crate::harness::{Server, expect, expect_error, header, noise, send};

#[tokio::test]
async fn the_base_answers() {
    let server = Server::start().await;
    for path in ["/v2/", "/v2"] {
        let response = server.get(path).await;
        expect(&response, 200);
        assert_eq!(header(&response, "docker-distribution-api-version"), "registry/2.0");
    }
}

#[tokio::test]
async fn a_blob_that_is_not_there_is_404() {
    let server = Server::start().await;
    let path = format!("/v2/a/blobs/{}", Digest::of(b"missing"));
    expect_error(server.get(&path).await, 404, "BLOB_UNKNOWN").await;
    expect(&server.head(&path).await, 404);
    expect_error(server.delete(&path).await, 404, "BLOB_UNKNOWN").await;
}

#[tokio::test]
async fn ranges_are_served() {
    let server = Server::start().await;
    let content = noise(2048, 1);
    let path = format!("/v2/a/blobs/{}", server.push_blob("a", &content).await);
    for (range, expected) in [
        ("bytes=500-1499", 500..1500),
        ("bytes=500-", 500..2048),
        ("bytes=-500", 1548..2048),
        ("bytes=2000-5000", 2000..2048),
    ] {
        let response = send(server.request("GET", &path).header("range", range)).await;
        expect(&response, 206);
        let (start, end) = (expected.start, expected.end);
        assert_eq!(header(&response, "content-range"), format!("bytes {start}-{}/2048", end - 1));
        assert_eq!(header(&response, "content-length"), (end - start).to_string());
        assert_eq!(response.bytes().await.expect("body"), content[expected]);
    }
    for range in ["bytes=500-0", "bytes=5000-10000"] {
        let response = send(server.request("GET", &path).header("range", range)).await;
        assert_eq!(header(&response, "content-range"), "bytes */2048");
        expect(&response, 416);
    }
    for range in ["bytes=0-1,5-6", "nonsense"] {
        let response = send(server.request("GET", &path).header("range", range)).await;
        expect(&response, 200);
        assert_eq!(response.bytes().await.expect("body"), content);
    }
}

#[tokio::test]
async fn a_blob_of_many_frames_comes_whole() {
    let server = Server::start().await;
    let content = noise(3_000_001, 2);
    let path = format!("/v2/a/blobs/{}", server.push_blob("a", &content).await);
    assert!(server.get(&path).await.bytes().await.expect("body") == content);
    let response = send(server.request("GET", &path).header("range", "bytes=524287-1048577")).await;
    assert!(response.bytes().await.expect("body") == content[524_287..=1_048_577]);
}

#[tokio::test]
async fn a_copy_that_is_still_good_is_not_sent_again() {
    let server = Server::start().await;
    let path = format!("/v2/a/blobs/{}", server.push_blob("a", b"content").await);
    let tag = header(&server.get(&path).await, "etag");
    expect(&send(server.request("GET", &path).header("if-none-match", &tag)).await, 304);
    let stale = server.request("GET", &path).header("range", "bytes=1-2").header("if-range", "\"other\"");
    expect(&send(stale).await, 200);
    let fresh = server.request("GET", &path).header("range", "bytes=1-2").header("if-range", tag);
    expect(&send(fresh).await, 206);
}

#[tokio::test]
async fn a_blob_is_deleted_from_one_repository() {
    let server = Server::start().await;
    let digest = server.push_blob("a", b"shared").await;
    server.push_blob("b", b"shared").await;
    let path = format!("/v2/a/blobs/{digest}");
    expect(&server.delete(&path).await, 202);
    expect(&server.get(&path).await, 404);
    expect(&server.get(&format!("/v2/b/blobs/{digest}")).await, 200);
    // Reading it elsewhere does not bring it back.
    expect(&server.get(&path).await, 404);
}

#[tokio::test]
async fn other_methods_are_refused() {
    let server = Server::start().await;
    let digest = Digest::of(b"x");
    for (method, path) in [
        ("POST", "/v2/".to_string()),
        ("PUT", "/v2/_catalog".to_string()),
        ("PUT", format!("/v2/a/blobs/{digest}")),
        ("GET", "/v2/a/blobs/uploads/".to_string()),
        ("POST", "/v2/a/tags/list".to_string()),
        ("PATCH", "/v2/a/manifests/x".to_string()),
        ("DELETE", format!("/v2/a/referrers/{digest}")),
    ] {
        let response = send(server.request(method, &path)).await;
        assert!(!header(&response, "allow").is_empty());
        expect_error(response, 405, "UNSUPPORTED").await;
    }
}
