//! Requests that nobody sends by accident: all are the client's fault, none leaves the registry's directory.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use cfc_oci::Digest;
use cfc_registry::Options;

use crate::harness::{Server, expect, expect_error, header, image, index, noise, seed, send, sha512};
use crate::process::Process;

/// Sends a request line as it is, which HTTP clients would tidy up, and gives the status.
async fn raw(server: &Server, line: &str) -> u16 {
    let mut stream = TcpStream::connect(server.address).await.expect("connects");
    let request = format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sends");
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    tokio::time::timeout(Duration::from_secs(10), read).await.expect("in time").expect("an answer");
    let answer = String::from_utf8_lossy(&answer);
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status line")
}

#[tokio::test]
async fn no_path_leads_out_or_to_a_server_error() {
    let server = Server::start().await;
    let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let names = [
        "..",
        "../..",
        "%2e%2e",
        "..%2f..%2fetc",
        "a/../b",
        "a//b",
        "/a",
        ".",
        "a/.",
        "A",
        "a%00",
        "%ff",
        "a%2fb",
        "_a",
        "a_",
        "a/_tags",
        "a/_manifests/sha256",
        "~",
        "a b",
        "a%20b",
        "%",
        "%zz",
        "\\..\\..",
        "a:b",
        "a@b",
        "é",
    ];
    let long = "a".repeat(4096);
    let deep = "a/".repeat(2000) + "a";
    for name in names.iter().copied().chain([long.as_str(), deep.as_str()]) {
        for rest in ["tags/list", "manifests/x", "blobs/uploads/", &format!("blobs/{digest}")] {
            for method in ["GET", "PUT", "POST", "DELETE", "PATCH", "HEAD"] {
                let status = raw(&server, &format!("{method} /v2/{name}/{rest}")).await;
                assert!((400..500).contains(&status), "{method} {name:.40} {rest}: {status}");
            }
        }
    }
    for rest in
        ["blobs/..", "blobs/sha256:zz", "blobs/sha256:..", "blobs/uploads/..%2f..%2fx", "manifests/..", "manifests/a:b"]
    {
        for method in ["GET", "PUT", "DELETE", "PATCH", "HEAD"] {
            let status = raw(&server, &format!("{method} /v2/a/{rest}")).await;
            assert!((400..500).contains(&status), "{method} {rest}: {status}");
        }
    }
    if crate::store::skips("files of strange names") {
        return;
    }
    let left = std::fs::read_dir(server.root()).expect("directory");
    let left: Vec<_> = left.map(|entry| entry.expect("entry").file_name()).collect();
    assert_eq!(left, ["registry"], "something was written elsewhere");
}

#[tokio::test]
async fn a_name_as_long_as_a_name_may_be_works() {
    let server = Server::start().await;
    for name in ["a".repeat(255), format!("{}a", "a/".repeat(127))] {
        server.push_image(&name, &"t".repeat(128), "x").await;
        expect(&server.get(&format!("/v2/{name}/manifests/{}", "t".repeat(128))).await, 200);
    }
}

#[tokio::test]
async fn names_below_names_do_not_mix() {
    let server = Server::start().await;
    for name in ["a", "a/tags", "a/tags/list", "a/manifests", "a/blobs/uploads"] {
        server.push_image(name, "t", name).await;
    }
    for name in ["a", "a/tags", "a/tags/list", "a/manifests", "a/blobs/uploads"] {
        let tags = server.get(&format!("/v2/{name}/tags/list")).await.text().await.expect("body");
        assert_eq!(tags, format!(r#"{{"name":"{name}","tags":["t"]}}"#));
    }
}

#[tokio::test]
async fn what_is_not_part_of_the_api_is_not_there() {
    let server = Server::start().await;
    for path in ["/v2/a", "/v2/a/b/c", "/v2/a/tags", "/v2/a/manifests", "/v2/_catalog/x"] {
        let response = server.get(path).await;
        assert!(response.status().is_client_error(), "{path}: {}", response.status());
    }
    expect_error(send(server.request("GET", "/v2/a/b")).await, 404, "UNSUPPORTED").await;
}

#[tokio::test]
async fn digests_that_are_almost_right_are_refused() {
    let server = Server::start().await;
    let hex = Digest::of(b"x").hex().to_string();
    for digest in [
        format!("sha256:{}", hex.to_uppercase()),
        format!("sha256:{}", &hex[1..]),
        format!("sha256:{hex}0"),
        format!("SHA256:{hex}"),
        format!("sha512:{hex}"),
        format!("sha256:{}", sha512(b"x").hex()),
        format!("sha256:{hex}\u{301}"),
    ] {
        let path = format!("/v2/a/blobs/uploads/?digest={digest}");
        expect_error(send(server.request("POST", &path).body("x")).await, 400, "DIGEST_INVALID").await;
        let path = format!("{}?digest={digest}", server.begin("a").await);
        expect_error(send(server.request("PUT", &path).body("x")).await, 400, "DIGEST_INVALID").await;
        expect_error(server.get(&format!("/v2/a/blobs/{digest}")).await, 400, "DIGEST_INVALID").await;
    }
    // The digest of another algorithm's bytes is well-formed, and wrong.
    let wrong = sha512(b"y");
    let path = format!("/v2/a/blobs/uploads/?digest={wrong}");
    expect_error(send(server.request("POST", &path).body("x")).await, 400, "DIGEST_INVALID").await;
}

#[tokio::test]
async fn where_deletes_are_off_nothing_can_be_deleted() {
    let server = Server::start_with(Options { deletes: false, ..Options::default() }).await;
    let (digest, _) = server.push_image("a", "x", "x").await;
    let layer = Digest::of(b"layer of x");
    for path in [format!("manifests/{digest}"), "manifests/x".to_string(), format!("blobs/{layer}")] {
        expect_error(server.delete(&format!("/v2/a/{path}")).await, 405, "UNSUPPORTED").await;
        expect(&server.get(&format!("/v2/a/{path}")).await, 200);
    }
    let upload = server.begin("a").await;
    expect(&server.delete(&upload).await, 204);
}

#[tokio::test]
async fn an_immutable_tag_cannot_be_moved_in_any_way() {
    let immutable_tags = vec!["**:v*".to_string()];
    let server = Server::start_with(Options { immutable_tags, ..Options::default() }).await;
    let (digest, json) = server.push_image("a/b", "v1", "x").await;
    let (other, other_json) = server.push_image("a/b", "latest", "y").await;
    expect(&server.put_manifest("a/b", "v1", &json).await, 201);
    for reference in ["v1".to_string(), format!("{other}?tag=w&tag=v1")] {
        expect_error(server.put_manifest("a/b", &reference, &other_json).await, 403, "DENIED").await;
    }
    expect(&server.get("/v2/a/b/manifests/w").await, 404);
    for reference in ["v1", &digest.to_string()] {
        expect_error(server.delete(&format!("/v2/a/b/manifests/{reference}")).await, 403, "DENIED").await;
    }
    expect(&server.delete("/v2/a/b/manifests/latest").await, 202);
    assert_eq!(server.get("/v2/a/b/manifests/v1").await.text().await.expect("body"), json);
    // Of many pushes at once to a new tag, one wins and stays.
    for number in 0..10 {
        let tag = format!("v2.{number}");
        let pushes = [&json, &other_json, &json, &other_json].map(|json| server.put_manifest("a/b", &tag, json));
        let answers = futures::future::join_all(pushes).await;
        let winners: Vec<&String> = answers
            .iter()
            .zip([&json, &other_json, &json, &other_json])
            .filter(|(a, _)| a.status() == 201)
            .map(|(_, j)| j)
            .collect();
        let found = server.get(&format!("/v2/a/b/manifests/{tag}")).await.text().await.expect("body");
        assert!(!winners.is_empty() && winners.iter().all(|json| **json == found), "two pushes of {tag} won");
    }
}

#[tokio::test]
async fn nothing_that_an_immutable_tag_needs_can_be_deleted() {
    let immutable_tags = vec!["team/*:v*".to_string()];
    let server = Server::start_with(Options { immutable_tags, ..Options::default() }).await;
    let parts = |seed: &str| {
        [format!("{{\"seed\":\"{seed}\"}}"), format!("layer of {seed}")].map(|part| Digest::of(part.as_bytes()))
    };
    for name in ["team/im", "other/im"] {
        server.push_image(name, "v1", "x").await;
        // An index in an index, which names an image by its digest only, and something that is not a manifest.
        let (child, _) = server.push_image(name, "mutable", "y").await;
        let entry = server.push_blob(name, b"a blob that an index names").await;
        let inner = index(&[&child, &entry], "");
        let inner_digest = Digest::of(inner.as_bytes());
        expect(&server.put_manifest(name, &inner_digest.to_string(), &inner).await, 201);
        let outer = index(&[&inner_digest], "");
        expect(&server.put_manifest(name, "v2", &outer).await, 201);
        let (free, _) = server.push_image(name, "latest", "z").await;
        let [x, y] = ["x", "y"].map(parts);
        // Nobody has to push such a layer, but who has may keep it.
        let foreign = server.push_blob(name, b"a foreign layer").await;
        let json = image(&x[0], &[&foreign], "").replace("image.layer.v1", "image.layer.nondistributable.v1");
        expect(&server.put_manifest(name, "v3", &json).await, 201);

        let mut needed = vec![("v2", format!("manifests/{child}")), ("v2", format!("manifests/{inner_digest}"))];
        needed.extend(x.iter().map(|blob| ("v1", format!("blobs/{blob}"))));
        needed.extend(y.iter().chain([&entry]).map(|blob| ("v2", format!("blobs/{blob}"))));
        needed.push(("v3", format!("blobs/{foreign}")));
        for (tag, what) in needed {
            let path = format!("/v2/{name}/{what}");
            if name == "team/im" {
                let errors = expect_error(server.delete(&path).await, 403, "DENIED").await;
                assert!(errors.contains("an immutable tag needs this"), "{errors}");
                assert!(errors.contains(&format!("the immutable tag `{tag}` needs sha256:")), "{errors}");
                expect(&server.get(&path).await, 200);
            } else {
                expect(&server.delete(&path).await, 202);
                expect(&server.get(&path).await, 404);
            }
        }
        // The tag is not what is needed, and nobody needs the rest.
        if name == "team/im" {
            expect(&server.delete(&format!("/v2/{name}/manifests/mutable")).await, 202);
            expect(&server.get(&format!("/v2/{name}/manifests/{child}")).await, 200);
        }
        for blob in parts("z") {
            expect(&server.delete(&format!("/v2/{name}/blobs/{blob}")).await, 202);
        }
        expect(&server.delete(&format!("/v2/{name}/manifests/{free}")).await, 202);
        expect_error(server.delete(&format!("/v2/{name}/manifests/{free}")).await, 404, "MANIFEST_UNKNOWN").await;
    }
}

#[tokio::test]
async fn too_much_of_anything_is_refused() {
    let server = Server::start().await;
    let layer = Digest::of(b"no such layer");
    let many = image(&layer, &vec![&layer; 100_000], "");
    expect_error(server.put_manifest("a", "x", &many).await, 413, "SIZE_INVALID").await;
    // As many as fit are looked at once each.
    let fitting = image(&layer, &vec![&layer; 20_000], "");
    let errors = server.put_manifest("a", "x", &fitting).await;
    expect_error(errors, 400, "MANIFEST_BLOB_UNKNOWN").await;
    let config = server.push_blob("a", b"{}").await;
    let json = image(&config, &[], "");
    let reference = format!("{}?{}", Digest::of(json.as_bytes()), "tag=x&".repeat(10_000));
    let response = server.put_manifest("a", &reference, &json).await;
    expect_error(response, 414, "TAG_INVALID").await;
    for long in [100_000, 1_000_000] {
        let status = raw(&server, &format!("GET /v2/{}/tags/list", "a".repeat(long))).await;
        assert!((400..500).contains(&status), "{long}: {status}");
    }
}

/// Sends bytes as they are and gives the status, if there is an answer.
async fn raw_bytes(server: &Server, bytes: &[u8]) -> Option<u16> {
    let mut stream = TcpStream::connect(server.address).await.expect("connects");
    // It may have refused already.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    let _ = tokio::time::timeout(Duration::from_secs(60), read).await.expect("in time");
    String::from_utf8_lossy(&answer).split(' ').nth(1).and_then(|status| status.parse().ok())
}

/// Requests that are valid once, then changed in a few places.
#[tokio::test]
async fn no_garbled_request_gets_a_server_error() {
    let seed = seed();
    let server = Server::start().await;
    let (digest, json) = server.push_image("a/b", "x", "x").await;
    let upload = server.begin("a/b").await;
    let layer = Digest::of(b"layer of x");
    let body = |text: &str| format!("content-length: {}\r\n\r\n{text}", text.len());
    let requests = [
        format!("GET /v2/_catalog?n=10&last=a&tags=true HTTP/1.1\r\nhost: x\r\n{}", body("")),
        format!("GET /v2/a/b/tags/list?n=1&last=a%2e HTTP/1.1\r\nhost: x\r\n{}", body("")),
        format!("GET /v2/a/b/blobs/{layer} HTTP/1.1\r\nhost: x\r\nrange: bytes=1-4\r\n{}", body("")),
        format!("GET /v2/a/b/referrers/{digest}?artifactType=a%2Fb HTTP/1.1\r\nhost: x\r\n{}", body("")),
        format!("HEAD /v2/a/b/manifests/{digest} HTTP/1.1\r\nhost: x\r\nif-none-match: \"x\"\r\n{}", body("")),
        format!("PUT /v2/a/b/manifests/x?tag=y HTTP/1.1\r\nhost: x\r\n{}", body(&json)),
        format!("PUT /v2/a/b/manifests/{digest}?tag=y&tag=z HTTP/1.1\r\nhost: x\r\n{}", body(&json)),
        format!("POST /v2/c/blobs/uploads/?mount={layer}&from=a/b HTTP/1.1\r\nhost: x\r\n{}", body("")),
        format!("POST /v2/c/blobs/uploads/?digest={layer} HTTP/1.1\r\nhost: x\r\n{}", body("layer of x")),
        format!("PATCH {upload} HTTP/1.1\r\nhost: x\r\ncontent-range: 0-3\r\n{}", body("body")),
        format!(
            "PUT {upload}?digest={layer} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"
        ),
    ];
    for round in 0..1500 {
        let mut request = requests[round % requests.len()].clone().into_bytes();
        let random = noise(64, seed + round as u64);
        for change in random.chunks(8).take(1 + usize::from(random[0] % 4)) {
            let position = (usize::from(change[1]) << 8 | usize::from(change[2])) % request.len().max(1);
            if request.is_empty() {
                break;
            }
            match change[3] % 5 {
                0 => request[position] = change[4],
                1 => drop(request.remove(position)),
                2 => request.insert(position, change[4]),
                3 => request.truncate(position.max(1)),
                _ => request.splice(position..position, *b"%2f../").for_each(drop),
            }
        }
        let status = raw_bytes(&server, &request).await;
        let is_fine = status.is_none_or(|status| (200..500).contains(&status));
        assert!(is_fine, "{status:?} for {:?}", String::from_utf8_lossy(&request));
    }
    assert_eq!(server.get(&format!("/v2/a/b/manifests/{digest}")).await.text().await.expect("body"), json);
    assert_eq!(server.registry.verify(false).await.expect("reads").findings, []);
}

#[tokio::test]
async fn a_full_disk_is_said_and_costs_nothing_that_was_there() {
    if crate::store::skips("a full disk is said and costs nothing that was there") {
        return;
    }
    let directory = tempfile::TempDir::new().expect("temporary directory");
    let Some(process) = Process::start_with_little_disk(directory.path(), &[]).await else { return };
    let small = noise(100_000, 1);
    let path = |content: &[u8]| format!("/v2/a/blobs/uploads/?digest={}", Digest::of(content));
    expect(&process.send("POST", &path(&small), &[], &small).await, 201);
    let large = noise(20_000_000, 2);
    for _ in 0..2 {
        let refused = process.send("POST", &path(&large), &[], &large).await;
        expect_error(refused, 507, "UNKNOWN").await;
    }
    // What was not kept is gone, so there is room again.
    let other = noise(4_000_000, 3);
    expect(&process.send("POST", &path(&other), &[], &other).await, 201);
    let pulled = process.send("GET", &format!("/v2/a/blobs/{}", Digest::of(&small)), &[], b"").await;
    assert!(pulled.bytes().await.expect("body") == small);
}

/// What can be said about a request without storing it is said as ever.
async fn check_malformed(process: &Process, upload: &str) {
    let digest = Digest::of(b"x");
    for (method, path, body, status) in [
        ("POST", "/v2/a/blobs/uploads/?digest=sha256:zz".to_string(), "x", 400),
        ("POST", "/v2/A/blobs/uploads/".to_string(), "", 400),
        ("PUT", format!("{upload}?digest=md5:x"), "x", 400),
        ("PUT", upload.to_string(), "x", 400),
        ("PATCH", format!("/v2/a/blobs/uploads/{}", uuid::Uuid::new_v4()), "x", 404),
        ("PUT", "/v2/a/manifests/x".to_string(), "{", 400),
        ("PUT", format!("/v2/a/manifests/{digest}"), "{}", 400),
        ("GET", format!("/v2/a/blobs/{digest}"), "", 404),
        ("GET", "/v2/a/tags/list?n=x".to_string(), "", 400),
    ] {
        let answer = process.send(method, &path, &[], body.as_bytes()).await;
        assert_eq!(answer.status(), status, "{method} {path}");
    }
    let answer = process.send("PATCH", upload, &[("content-range", "7-7")], b"x").await;
    expect_error(answer, 416, "BLOB_UPLOAD_INVALID").await;
}

#[tokio::test]
async fn on_a_full_disk_what_needs_no_room_goes_on_and_all_else_when_there_is_room_again() {
    if crate::store::skips("on a full disk what needs no room goes on") {
        return;
    }
    for filesystem in ["tmpfs", "ext4"] {
        let directory = tempfile::TempDir::new().expect("temporary directory");
        let started = match filesystem {
            "tmpfs" => Process::start_with_little_disk(directory.path(), &[]).await,
            _ => Process::start_with_little_ext4(directory.path()).await,
        };
        let Some(process) = started else { continue };
        let push = async |content: &[u8]| {
            let path = format!("/v2/a/blobs/uploads/?digest={}", Digest::of(content));
            process.send("POST", &path, &[], content).await
        };
        let begin = async || header(&process.send("POST", "/v2/a/blobs/uploads/", &[], b"").await, "location");
        // Of what is refused, the registry still takes in 8 MiB for the client to see its answer.
        let (config, large) = (b"{}", noise(22_000_000, 1));
        expect(&push(config).await, 201);
        let json = image(&Digest::of(config), &[], "");
        let put = async |tag: &str| {
            let headers = [("content-type", cfc_oci::media_type::MANIFEST)];
            process.send("PUT", &format!("/v2/a/manifests/{tag}"), &headers, json.as_bytes()).await
        };
        expect(&put("x").await, 201);
        let (whole, pieces) = (begin().await, begin().await);
        // A chunk is kept whole or not at all, and what has no length as far as there was room.
        let range = format!("0-{}", large.len() - 1);
        let refused = process.send("PATCH", &whole, &[("content-range", &range)], &large).await;
        expect_error(refused, 507, "UNKNOWN").await;
        assert_eq!(header(&process.send("GET", &whole, &[], b"").await, "range"), "0-0");
        let refused = process.send("PATCH", &pieces, &[], &large).await;
        expect_error(refused, 507, "UNKNOWN").await;
        let there = header(&process.send("GET", &pieces, &[], b"").await, "range");
        let there = there.trim_start_matches("0-").parse::<usize>().expect("a number") + 1;
        assert!(there > 10_000_000, "{filesystem}: {there} bytes");

        check_malformed(&process, &whole).await;
        expect(&push(&noise(1_000_000, 2)).await, 507);
        expect(&process.send("GET", "/v2/a/manifests/x", &[], b"").await, 200);
        expect(&process.send("GET", &format!("/v2/a/blobs/{}", Digest::of(config)), &[], b"").await, 200);
        expect(&process.send("DELETE", "/v2/a/manifests/x", &[], b"").await, 202);
        expect(&process.send("DELETE", &pieces, &[], b"").await, 204);

        // There is room for as much as there was.
        let other = noise(10_000_000, 3);
        expect(&push(&other).await, 201);
        expect(&put("y").await, 201);
        let end = noise(1_000_000, 4);
        expect(&process.send("PATCH", &whole, &[("content-range", "0-999999")], &end).await, 202);
        let path = format!("{whole}?digest={}", Digest::of(&end));
        expect(&process.send("PUT", &path, &[], b"").await, 201);
        for content in [&other, &end] {
            let pulled = process.send("GET", &format!("/v2/a/blobs/{}", Digest::of(content)), &[], b"").await;
            assert!(pulled.bytes().await.expect("body") == content[..], "{filesystem}");
        }
    }
}

#[tokio::test]
async fn an_upload_whose_bytes_the_disk_did_not_take_is_never_a_blob() {
    if crate::store::skips("an upload whose bytes the disk did not take is never a blob") {
        return;
    }
    let directory = tempfile::TempDir::new().expect("temporary directory");
    let Some((process, disk)) = Process::start_with_thin_ext4(directory.path()).await else { return };
    let blob = noise(3_000_000, 1);
    let digest = Digest::of(&blob);
    let range = [("content-range", "0-2999999")];
    let ballast = disk.join("ballast");
    for is_chunked in [true, false] {
        let upload = header(&process.send("POST", "/v2/a/blobs/uploads/", &[], b"").await, "location");
        // No room at all where the filesystem, which has some, lies.
        let mut file = std::fs::File::create(&ballast).expect("creates");
        while std::io::Write::write_all(&mut file, &[0; 65536]).is_ok() {}
        let refused = match is_chunked {
            true => process.send("PATCH", &upload, &range, &blob).await,
            false => process.send("PUT", &format!("{upload}?digest={digest}"), &[], &blob).await,
        };
        assert!(refused.status().is_server_error(), "{}", refused.status());
        std::fs::remove_file(&ballast).expect("removes");
        // The kernel has forgotten that, and lost the bytes.
        expect(&process.send("GET", &upload, &[], b"").await, 404);
        let ended = process.send("PUT", &format!("{upload}?digest={digest}"), &[], b"").await;
        expect_error(ended, 404, "BLOB_UPLOAD_UNKNOWN").await;
        expect(&process.send("HEAD", &format!("/v2/a/blobs/{digest}"), &[], b"").await, 404);
    }
}

#[tokio::test]
async fn where_nothing_can_be_written_clients_pull_and_are_told_why_they_cannot_push() {
    if crate::store::skips("where nothing can be written clients pull") {
        return;
    }
    let directory = tempfile::TempDir::new().expect("temporary directory");
    let Some(process) = Process::start_with_little_ext4(directory.path()).await else { return };
    let config = b"{}";
    let digest = Digest::of(config);
    let push = format!("/v2/a/blobs/uploads/?digest={digest}");
    expect(&process.send("POST", &push, &[], config).await, 201);
    let json = image(&digest, &[], "");
    let headers = [("content-type", cfc_oci::media_type::MANIFEST)];
    expect(&process.send("PUT", "/v2/a/manifests/x", &headers, json.as_bytes()).await, 201);
    expect(&process.send("GET", "/readyz", &[], b"").await, 200);
    process.make_old(directory.path());
    process.stop_writing(directory.path());
    for path in ["/v2/a/manifests/x".to_string(), format!("/v2/a/blobs/{digest}"), "/v2/a/tags/list".to_string()] {
        for method in ["HEAD", "GET"] {
            assert_eq!(process.send(method, &path, &[], b"").await.status(), 200, "{method} {path}");
        }
    }
    let other = format!("/v2/a/blobs/uploads/?digest={}", Digest::of(b"other"));
    let told = expect_error(process.send("POST", &other, &[], b"other").await, 503, "UNAVAILABLE").await;
    assert!(told.contains("cannot be written to"), "{told}");
    let answer = process.send("GET", "/readyz", &[], b"").await;
    assert_eq!(answer.status(), 503);
    assert!(answer.text().await.expect("text").contains("cannot be written to"));
}

#[tokio::test]
async fn a_push_heals_a_blob_that_was_damaged() {
    if crate::store::skips("a push heals a blob that was damaged") {
        return;
    }
    let server = crate::harness::Server::start().await;
    let content = noise(100_000, 1);
    let digest = server.push_blob("a", &content).await;
    let hex = digest.hex();
    let path = server.root().join("registry/blobs/sha256").join(&hex[..2]).join(hex);
    for damage in [b"short".to_vec(), noise(100_000, 2)] {
        std::fs::remove_file(&path).expect("removes");
        std::fs::write(&path, damage).expect("writes");
        server.push_blob("b", &content).await;
        for name in ["a", "b"] {
            let pulled = server.get(&format!("/v2/{name}/blobs/{digest}")).await;
            assert!(pulled.bytes().await.expect("body") == content[..], "{name}");
        }
        assert_eq!(server.registry.verify(false).await.expect("reads").findings, []);
    }
}
