//! Requests that nobody sends by accident: all are the client's fault, none leaves the registry's directory.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Server, expect, expect_error, send};

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
