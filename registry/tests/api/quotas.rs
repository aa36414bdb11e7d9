//! Quotas: nobody stores more than the repository, or the registry, may hold.

use std::time::Duration;

use cfc_oci::Digest;
use cfc_registry::{Options, QuotaRule, Quotas, Rules};
use tokio::io::AsyncWriteExt;

use crate::harness::{Server, expect, expect_error, noise, send};

fn limited(total: Option<u64>, rules: &[(&str, u64)]) -> Options {
    let rule = |(pattern, bytes): &(&str, u64)| QuotaRule { repositories: vec![pattern.to_string()], bytes: *bytes };
    let quotas = Quotas { total, rules: rules.iter().map(rule).collect(), blob: None };
    let collection = Rules { grace: Duration::ZERO, untagged: None };
    Options { quotas, collection, collect_every: None, ..Options::default() }
}

async fn push(server: &Server, name: &str, content: &[u8]) -> reqwest::Response {
    let path = format!("/v2/{name}/blobs/uploads/?digest={}", Digest::of(content));
    send(server.request("POST", &path).body(content.to_vec())).await
}

/// A body of unknown length.
fn streamed(content: Vec<u8>) -> reqwest::Body {
    let frames: Vec<_> = content.chunks(1000).map(|chunk| Ok::<_, std::io::Error>(chunk.to_vec())).collect();
    reqwest::Body::wrap_stream(futures::stream::iter(frames))
}

#[tokio::test]
async fn a_push_that_has_no_room_is_refused_with_the_numbers() {
    let server = Server::start_with(limited(None, &[("team/*", 1000), ("**", 100_000)])).await;
    expect(&push(&server, "team/a", &noise(600, 1)).await, 201);
    let refused = expect_error(push(&server, "team/a", &noise(500, 2)).await, 403, "DENIED").await;
    assert!(refused.contains("`team/a` may hold 1000 bytes and has 600; there is no room for 500 more"), "{refused}");
    // What was refused has taken nothing.
    expect(&push(&server, "team/a", &noise(400, 3)).await, 201);
    expect_error(send(server.request("POST", "/v2/team/a/blobs/uploads/")).await, 403, "DENIED").await;
    // Each has its own, and the first rule that matches holds.
    expect(&push(&server, "team/b", &noise(1000, 4)).await, 201);
    expect(&push(&server, "other", &noise(5000, 5)).await, 201);
    // What is there already takes no more, in whatever way it comes again.
    expect(&push(&server, "other", &noise(5000, 5)).await, 201);
    let mount = |name: &str| format!("/v2/{name}/blobs/uploads/?mount={}&from=other", Digest::of(&noise(5000, 5)));
    expect_error(send(server.request("POST", &mount("team/b"))).await, 403, "DENIED").await;
    expect(&send(server.request("POST", &mount("another"))).await, 201);
    // A manifest takes room, too.
    let json = format!("{{\"schemaVersion\":2,\"manifests\":[],\"annotations\":{{\"a\":\"{}\"}}}}", "x".repeat(100));
    expect_error(server.put_manifest("team/b", "v1", &json).await, 403, "DENIED").await;
    expect(&server.put_manifest("other", "v1", &json).await, 201);
}

#[tokio::test]
async fn a_stream_ends_where_the_room_ends() {
    let server = Server::start_with(limited(None, &[("**", 10_000)])).await;
    let location = server.begin("a").await;
    let refused = send(server.request("PATCH", &location).body(streamed(noise(50_000, 1)))).await;
    expect_error(refused, 403, "DENIED").await;
    // What was kept of it takes room until it is given up.
    expect_error(push(&server, "a", &noise(9_000, 2)).await, 403, "DENIED").await;
    expect(&server.delete(&location).await, 204);
    expect(&push(&server, "a", &noise(9_000, 2)).await, 201);
    // A promise is refused before anything of it comes.
    let location = server.begin("a").await;
    let promised = server.request("PATCH", &location).header("content-range", "0-1999").body(noise(2000, 3));
    expect_error(send(promised).await, 403, "DENIED").await;
    let content = noise(900, 4);
    expect(&send(server.request("PATCH", &location).body(streamed(content.clone()))).await, 202);
    let put = server.request("PUT", &format!("{location}?digest={}", Digest::of(&content)));
    expect(&send(put).await, 201);
    // An upload that fails gives back what it had.
    let wrong = format!("/v2/a/blobs/uploads/?digest={}", Digest::of(b"other"));
    for _ in 0..5 {
        expect_error(send(server.request("POST", &wrong).body(noise(90, 5))).await, 400, "DIGEST_INVALID").await;
    }
    expect(&push(&server, "a", &noise(100, 6)).await, 201);
}

/// A client that promises bytes and goes away has them reserved no longer.
#[tokio::test]
async fn what_was_promised_and_never_came_makes_room() {
    let server = Server::start_with(limited(None, &[("**", 10_000)])).await;
    let (whole, ten) = (noise(10_000, 1), [0; 10]);
    let digest = Digest::of(&whole);
    let begin = "/v2/a/blobs/uploads/";
    let until = async |status: u16, request: &dyn Fn() -> reqwest::RequestBuilder| {
        let asked = async {
            while send(request()).await.status() != status {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), asked).await.expect("it comes to that");
    };
    for (method, range) in [("PATCH", "Content-Range: 0-9999\r\n"), ("PATCH", ""), ("POST", "")] {
        let location = server.begin("a").await;
        let path = if method == "PATCH" { location.clone() } else { format!("{begin}?digest={digest}") };
        let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 10000\r\n{range}\r\n");
        let mut client = tokio::net::TcpStream::connect(server.address).await.expect("connects");
        client.write_all(&[head.as_bytes(), &ten].concat()).await.expect("sends");
        until(403, &|| server.request("POST", begin)).await;
        drop(client);
        until(202, &|| server.request("POST", begin)).await;
        expect(&server.delete(&location).await, 204);
        until(201, &|| server.request("POST", &format!("{begin}?digest={digest}")).body(whole.clone())).await;
        expect(&server.delete(&format!("/v2/a/blobs/{digest}")).await, 202);
        let garbage = Rules { grace: Duration::ZERO, untagged: None };
        server.registry.collect(garbage, false).await.expect("collects");
    }
}

#[tokio::test]
async fn many_at_once_get_no_more_than_one_after_another() {
    let server = Server::start_with(limited(Some(20_000), &[("small", 5_000)])).await;
    let pushes = (0..40).map(|number| {
        let server = &server;
        async move {
            let name = if number % 2 == 0 { "small" } else { "large" };
            let content = noise(1000, number + 1);
            let response = match number % 4 < 2 {
                true => push(server, name, &content).await,
                false => {
                    let begun = send(server.request("POST", &format!("/v2/{name}/blobs/uploads/"))).await;
                    if begun.status() != 202 {
                        return (name, begun.status().as_u16());
                    }
                    let location = crate::harness::location(&begun);
                    let path = format!("{location}?digest={}", Digest::of(&content));
                    let put = send(server.request("PUT", &path).body(streamed(content))).await;
                    if put.status() != 201 {
                        server.delete(&location).await;
                    }
                    put
                }
            };
            (name, response.status().as_u16())
        }
    });
    let done = futures::future::join_all(pushes).await;
    assert!(done.iter().all(|(_, status)| [201, 403].contains(status)), "{done:?}");
    let usage = server.registry.usage().await.expect("adds up");
    let bytes = |name: &str| usage.get(name).map_or(0, |usage| usage.bytes);
    assert!(bytes("small") <= 5_000 && bytes("small") + bytes("large") <= 20_000, "{usage:?}");
    let stored = done.iter().filter(|(_, status)| *status == 201).count() as u64;
    assert_eq!(bytes("small") + bytes("large"), stored * 1000, "whoever was told so has stored it");
    // What uploads had reserved that failed is there again: all of it can be used.
    for number in 100..140 {
        push(&server, "large", &noise(1000, number)).await;
        push(&server, "small", &noise(1000, number + 1000)).await;
    }
    let usage = server.registry.usage().await.expect("adds up");
    assert_eq!((usage["small"].bytes, usage["small"].bytes + usage["large"].bytes), (5_000, 20_000));
}

#[tokio::test]
async fn what_is_collected_makes_room_and_what_was_there_before_counts() {
    let server = Server::start_with(limited(None, &[("**", 10_000)])).await;
    let digest = Digest::of(&noise(8_000, 1));
    expect(&push(&server, "a", &noise(8_000, 1)).await, 201);
    expect_error(push(&server, "a", &noise(3_000, 2)).await, 403, "DENIED").await;
    expect(&server.delete(&format!("/v2/a/blobs/{digest}")).await, 202);
    expect(&send(server.request("PUT", "/v2/gc/layers")).await, 200);
    expect(&push(&server, "a", &noise(3_000, 2)).await, 201);
    let server = server.restart_with(limited(None, &[("**", 10_000)])).await;
    expect_error(push(&server, "a", &noise(8_000, 3)).await, 403, "DENIED").await;
    expect(&push(&server, "a", &noise(7_000, 4)).await, 201);
}

#[tokio::test]
async fn one_blob_has_its_own_limit() {
    let options = Options { quotas: Quotas { blob: Some(1000), ..Quotas::default() }, ..Options::default() };
    let server = Server::start_with(options).await;
    expect(&push(&server, "a", &noise(1000, 1)).await, 201);
    expect_error(push(&server, "a", &noise(1001, 2)).await, 413, "SIZE_INVALID").await;
    let location = server.begin("a").await;
    expect(&send(server.request("PATCH", &location).body(noise(700, 3))).await, 202);
    expect_error(send(server.request("PATCH", &location).body(streamed(noise(700, 4)))).await, 413, "SIZE_INVALID")
        .await;
}
