//! Group: tags, catalog, referrers.

use cfc_oci::{Digest, Index, media_type};
use serde_json::{Value, json};

use crate::harness::{Server, expect, expect_error, header, image, index};

async fn body(server: &Server, path: &str) -> Value {
    let response = server.get(path).await;
    expect(&response, 200);
    response.json().await.expect("JSON")
}

/// The path of the next page.
async fn next(server: &Server, path: &str) -> Option<String> {
    let response = server.get(path).await;
    let link = response.headers().get("link")?.to_str().expect("ASCII");
    let (path, rest) = link.trim_start_matches('<').split_once('>').expect("a link");
    assert_eq!(rest, "; rel=\"next\"");
    Some(path.to_string())
}

#[tokio::test]
async fn an_empty_repository_has_no_tags_and_no_referrers() {
    let server = Server::start().await;
    expect_error(server.get("/v2/a/tags/list").await, 404, "NAME_UNKNOWN").await;
    let path = format!("/v2/a/referrers/{}", Digest::of(b"unknown"));
    let response = server.get(&path).await;
    expect(&response, 200);
    assert_eq!(header(&response, "content-type"), media_type::INDEX);
    let index: Index = response.json().await.expect("an index");
    assert_eq!((index.schema_version, index.manifests.len()), (2, 0));
    expect_error(server.get("/v2/a/referrers/sha256:zz").await, 400, "DIGEST_INVALID").await;
}

#[tokio::test]
async fn tags_come_sorted_and_in_pages() {
    let server = Server::start().await;
    let (_, json) = server.push_image("a/b", "c", "x").await;
    for tag in ["B", "a", "a.b", "a-b", "1", "_"] {
        expect(&server.put_manifest("a/b", tag, &json).await, 201);
    }
    let all = ["1", "B", "_", "a", "a-b", "a.b", "c"];
    assert_eq!(body(&server, "/v2/a/b/tags/list").await, json!({ "name": "a/b", "tags": all }));
    let mut path = "/v2/a/b/tags/list?n=3".to_string();
    let mut pages = Vec::new();
    loop {
        pages.push(body(&server, &path).await["tags"].clone());
        match next(&server, &path).await {
            Some(next) => path = next,
            None => break,
        }
    }
    assert_eq!(json!(pages), json!([&all[..3], &all[3..6], &all[6..]]));
    assert_eq!(body(&server, "/v2/a/b/tags/list?last=_").await["tags"], json!(&all[3..]));
    assert_eq!(body(&server, "/v2/a/b/tags/list?last=b").await["tags"], json!(&all[6..]));
    assert_eq!(body(&server, "/v2/a/b/tags/list?last=%2e%2e/~").await["tags"], json!(&all));
    assert_eq!(body(&server, "/v2/a/b/tags/list?n=0").await["tags"], json!([]));
    assert_eq!(next(&server, "/v2/a/b/tags/list?n=7").await, None);
}

#[tokio::test]
async fn a_silly_number_of_results_is_refused_or_cut() {
    let server = Server::start().await;
    server.push_image("a", "x", "x").await;
    for list in ["/v2/a/tags/list", "/v2/_catalog"] {
        for silly in ["-1", "abc", "1.5", "", "+1", "1e30"] {
            expect_error(server.get(&format!("{list}?n={silly}")).await, 400, "PAGINATION_NUMBER_INVALID").await;
        }
        for huge in ["1000000000000", "99999999999999999999999999999999"] {
            expect(&server.get(&format!("{list}?n={huge}")).await, 200);
        }
    }
    assert_eq!(body(&server, "/v2/a/tags/list?n=0").await["tags"], json!([]));
    assert_eq!(next(&server, "/v2/a/tags/list?n=0").await, None);
}

#[tokio::test]
async fn the_catalog_lists_repositories_that_hold_a_manifest() {
    let server = Server::start().await;
    assert_eq!(body(&server, "/v2/_catalog").await, json!({ "repositories": [] }));
    let (digest, _) = server.push_image("a", "x", "x").await;
    server.push_image("a/b/c", "y", "x").await;
    server.push_image("a-b", "z", "x").await;
    server.push_blob("blobs-only", b"x").await;
    assert_eq!(body(&server, "/v2/_catalog").await, json!({ "repositories": ["a", "a-b", "a/b/c"] }));
    let names: Vec<String> =
        server.registry.repositories().await.expect("list").into_iter().map(String::from).collect();
    assert_eq!(names, ["a", "a-b", "a/b/c"]);
    let with_tags = body(&server, "/v2/_catalog?tags=true").await;
    assert_eq!(with_tags, json!({ "repositories": { "a": ["x"], "a-b": ["z"], "a/b/c": ["y"] } }));
    assert_eq!(body(&server, "/v2/_catalog?n=1").await["repositories"], json!(["a"]));
    let second = next(&server, "/v2/_catalog?n=2").await.expect("more");
    assert_eq!(body(&server, &second).await["repositories"], json!(["a/b/c"]));
    expect(&server.delete(&format!("/v2/a/manifests/{digest}")).await, 202);
    assert_eq!(body(&server, "/v2/_catalog").await, json!({ "repositories": ["a-b", "a/b/c"] }));
}

#[tokio::test]
async fn referrers_are_found_by_their_subject() {
    let server = Server::start().await;
    let (subject, _) = server.push_image("a", "image", "x").await;
    let config = server.push_blob("a", b"{}").await;
    let names = |digest: &Digest| {
        format!(r#","subject":{{"mediaType":"{}","digest":"{digest}","size":1}}"#, media_type::MANIFEST)
    };
    let by_config = image(&config, &[], &names(&subject));
    let typed = format!(r#"{},"artifactType":"text/x+y","annotations":{{"k":"v"}}"#, names(&subject));
    let by_type = image(&config, &[], &typed);
    let by_index = index(&[], &names(&subject));
    for (tag, json) in [("one", &by_config), ("two", &by_type), ("three", &by_index)] {
        let response = server.put_manifest("a", tag, json).await;
        expect(&response, 201);
        assert_eq!(header(&response, "oci-subject"), subject.to_string());
    }
    let path = format!("/v2/a/referrers/{subject}");
    let found = body(&server, &path).await;
    assert_eq!(found["manifests"].as_array().map(Vec::len), Some(3));
    let entry = |json: &str| {
        let digest = Digest::of(json.as_bytes()).to_string();
        found["manifests"].as_array().and_then(|all| all.iter().find(|m| m["digest"] == digest)).cloned()
    };
    assert_eq!(entry(&by_config).map(|e| e["artifactType"].clone()), Some(json!(media_type::CONFIG)));
    let typed = entry(&by_type).expect("listed");
    assert_eq!((&typed["artifactType"], &typed["annotations"]), (&json!("text/x+y"), &json!({ "k": "v" })));
    assert_eq!((&typed["size"], &typed["mediaType"]), (&json!(by_type.len()), &json!(media_type::MANIFEST)));
    assert_eq!(entry(&by_index).map(|e| e.get("artifactType").cloned()), Some(None));

    let response = server.get(&format!("{path}?artifactType=text/x%2By")).await;
    assert_eq!(header(&response, "oci-filters-applied"), "artifactType");
    let filtered: Value = response.json().await.expect("JSON");
    assert_eq!(filtered["manifests"], json!([typed]));

    expect(&server.delete(&format!("/v2/a/manifests/{}", Digest::of(by_type.as_bytes()))).await, 202);
    assert_eq!(body(&server, &path).await["manifests"].as_array().map(Vec::len), Some(2));
    assert_eq!(body(&server, &path.replace("/a/", "/b/")).await["manifests"], json!([]));
}

#[tokio::test]
async fn a_subject_need_not_be_here() {
    let server = Server::start().await;
    let config = server.push_blob("a", b"{}").await;
    let subject = Digest::of(b"to come");
    let extra = format!(r#","subject":{{"mediaType":"x","digest":"{subject}","size":1}}"#);
    expect(&server.put_manifest("a", "x", &image(&config, &[], &extra)).await, 201);
    let found = body(&server, &format!("/v2/a/referrers/{subject}")).await;
    assert_eq!(found["manifests"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn a_long_list_of_referrers_comes_in_pages() {
    let server = Server::start().await;
    let config = server.push_blob("a", b"{}").await;
    let subject = Digest::of(b"popular");
    for number in 0..3 {
        let extra = format!(
            r#","annotations":{{"n":"{number}","x":"{}"}},"subject":{{"mediaType":"x","digest":"{subject}","size":1}}"#,
            "A".repeat(2_000_000)
        );
        expect(&server.put_manifest("a", &format!("t{number}"), &image(&config, &[], &extra)).await, 201);
    }
    let mut path = format!("/v2/a/referrers/{subject}");
    let mut counts = Vec::new();
    loop {
        counts.push(body(&server, &path).await["manifests"].as_array().map_or(0, Vec::len));
        match next(&server, &path).await {
            Some(next) => path = next,
            None => break,
        }
    }
    assert_eq!(counts, [2, 1]);
}
