//! The groups of the distribution conformance suite that are about kinds of content: each kind is pushed, listed, looked
//! for, pulled, found by its subject and deleted, under both digest algorithms, as the suite does it.

use cfc_oci::{Digest, media_type};
use cfc_registry::Options;
use serde_json::{Value, json};

use crate::harness::{Server, expect, header, location, noise, send, sha512};

const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const EXAMPLE: &str = "application/vnd.example.config.v1+json";

/// Content of one kind, in the order in which it is pushed.
struct Kind {
    blobs: Vec<Vec<u8>>,
    manifests: Vec<Pushed>,
}

/// A manifest and how it is pushed.
struct Pushed {
    json: String,
    tags: Vec<String>,
    /// All tags go in `?tag=`, beside the digest.
    by_parameter: bool,
}

/// Makes content of one digest algorithm.
struct Maker {
    is_sha512: bool,
    seed: u64,
    kind: Kind,
}

impl Maker {
    fn new(is_sha512: bool, seed: u64) -> Maker {
        Maker { is_sha512, seed, kind: Kind { blobs: Vec::new(), manifests: Vec::new() } }
    }

    fn digest(&self, bytes: &[u8]) -> Digest {
        if self.is_sha512 { sha512(bytes) } else { Digest::of(bytes) }
    }

    fn descriptor(&self, media_type: &str, bytes: &[u8]) -> Value {
        json!({ "mediaType": media_type, "digest": self.digest(bytes), "size": bytes.len() })
    }

    fn blob(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let descriptor = self.descriptor(media_type, &bytes);
        self.kind.blobs.push(bytes);
        descriptor
    }

    fn random_blob(&mut self, media_type: &str) -> Value {
        self.seed += 1;
        let bytes = noise(512, self.seed);
        self.blob(media_type, bytes)
    }

    /// A manifest of its own config and layers, with `extra` members; gives its descriptor.
    fn image(&mut self, layers: usize, extra: Value, tags: &[&str]) -> Value {
        self.seed += 1;
        let config = self.blob(media_type::CONFIG, format!("{{\"seed\":{}}}", self.seed).into_bytes());
        let layers = (0..layers).map(|_| self.random_blob(media_type::LAYER)).collect();
        self.manifest(config, layers, extra, tags)
    }

    fn artifact(&mut self, layer_type: &str, extra: Value, tags: &[&str]) -> Value {
        let config = self.blob(EMPTY, b"{}".to_vec());
        let layer = if layer_type == EMPTY { config.clone() } else { self.random_blob(layer_type) };
        self.manifest(config, vec![layer], extra, tags)
    }

    fn manifest(&mut self, config: Value, layers: Vec<Value>, extra: Value, tags: &[&str]) -> Value {
        let mut json =
            json!({ "schemaVersion": 2, "mediaType": media_type::MANIFEST, "config": config, "layers": layers });
        merge(&mut json, extra);
        self.push(media_type::MANIFEST, json, tags)
    }

    fn index(&mut self, manifests: Vec<Value>, extra: Value, tags: &[&str]) -> Value {
        let mut json = json!({ "schemaVersion": 2, "mediaType": media_type::INDEX, "manifests": manifests });
        merge(&mut json, extra);
        self.push(media_type::INDEX, json, tags)
    }

    fn two_images(&mut self, extra: Value) -> Vec<Value> {
        let platforms = ["amd64", "arm64"];
        let image = |architecture: &str| {
            let mut image = self.image(2, extra.clone(), &[]);
            image["platform"] = json!({ "os": "linux", "architecture": architecture });
            image
        };
        platforms.map(image).to_vec()
    }

    fn push(&mut self, media_type: &str, json: Value, tags: &[&str]) -> Value {
        let json = json.to_string();
        let descriptor = self.descriptor(media_type, json.as_bytes());
        let tags = tags.iter().map(|tag| tag.to_string()).collect();
        self.kind.manifests.push(Pushed { json, tags, by_parameter: false });
        descriptor
    }
}

fn merge(json: &mut Value, extra: Value) {
    let (Some(json), Value::Object(extra)) = (json.as_object_mut(), extra) else { return };
    json.extend(extra);
}

/// Does with a kind what the suite does.
async fn check(server: &Server, name: &str, maker: Maker) {
    let digest = |bytes: &[u8]| maker.digest(bytes);
    push(server, name, &maker).await;
    let listed: Value = server.get(&format!("/v2/{name}/tags/list")).await.json().await.expect("JSON");
    for pushed in &maker.kind.manifests {
        let digest = digest(pushed.json.as_bytes());
        for tag in &pushed.tags {
            assert!(listed["tags"].as_array().is_some_and(|tags| tags.contains(&json!(tag))), "{name}: {listed}");
        }
        for reference in pushed.tags.iter().cloned().chain([digest.to_string()]) {
            check_manifest(server, &format!("/v2/{name}/manifests/{reference}"), &digest, &pushed.json).await;
        }
        check_referrers(server, name, &digest, &maker).await;
    }
    for blob in &maker.kind.blobs {
        let path = format!("/v2/{name}/blobs/{}", digest(blob));
        let head = server.head(&path).await;
        expect(&head, 200);
        assert_eq!(header(&head, "docker-content-digest"), digest(blob).to_string());
        assert!(server.get(&path).await.bytes().await.expect("body") == *blob, "{name}");
    }
    delete(server, name, &maker).await;
}

async fn push(server: &Server, name: &str, maker: &Maker) {
    for blob in &maker.kind.blobs {
        let path = format!("/v2/{name}/blobs/uploads/?digest={}", maker.digest(blob));
        expect(&send(server.request("POST", &path).body(blob.clone())).await, 201);
    }
    for pushed in &maker.kind.manifests {
        let digest = maker.digest(pushed.json.as_bytes());
        let references = if pushed.by_parameter {
            let query: Vec<String> = pushed.tags.iter().map(|tag| format!("tag={tag}")).collect();
            vec![format!("{digest}?{}", query.join("&"))]
        } else {
            pushed.tags.iter().cloned().chain([digest.to_string()]).collect()
        };
        for reference in references {
            let response = server.put_manifest(name, &reference, &pushed.json).await;
            expect(&response, 201);
            assert_eq!(header(&response, "docker-content-digest"), digest.to_string(), "{name}");
            if pushed.by_parameter {
                assert_eq!(response.headers().get_all("oci-tag").iter().count(), pushed.tags.len());
            }
            let json: Value = serde_json::from_str(&pushed.json).expect("JSON");
            if let Some(subject) = json.get("subject") {
                assert_eq!(header(&response, "oci-subject"), subject["digest"].as_str().expect("digest"));
            }
            check_manifest(server, &location(&response), &digest, &pushed.json).await;
        }
    }
}

async fn check_manifest(server: &Server, path: &str, digest: &Digest, json: &str) {
    let media_type = if json.contains("\"manifests\"") { media_type::INDEX } else { media_type::MANIFEST };
    for method in ["HEAD", "GET"] {
        let response = send(server.request(method, path)).await;
        expect(&response, 200);
        assert_eq!(header(&response, "docker-content-digest"), digest.to_string());
        assert_eq!(header(&response, "content-type"), media_type);
        assert_eq!(header(&response, "content-length"), json.len().to_string());
        let body = response.text().await.expect("body");
        assert_eq!(body, if method == "HEAD" { "" } else { json });
    }
}

/// The referrers of `subject` are exactly the manifests that name it.
async fn check_referrers(server: &Server, name: &str, subject: &Digest, maker: &Maker) {
    let subject = json!(subject);
    let parsed = maker.kind.manifests.iter().map(|pushed| serde_json::from_str::<Value>(&pushed.json).expect("JSON"));
    let expected: Vec<(String, Value)> = parsed
        .zip(&maker.kind.manifests)
        .filter(|(json, _)| json["subject"]["digest"] == subject)
        .map(|(json, pushed)| (maker.digest(pushed.json.as_bytes()).to_string(), json))
        .collect();
    let path = format!("/v2/{name}/referrers/{}", subject.as_str().expect("text"));
    let found: Value = server.get(&path).await.json().await.expect("JSON");
    let found = found["manifests"].as_array().expect("a list");
    assert_eq!(found.len(), expected.len(), "{name}");
    for (digest, json) in expected {
        let entry = found.iter().find(|entry| entry["digest"] == digest).expect("listed");
        let own = json.get("artifactType").or_else(|| json["config"].get("mediaType"));
        assert_eq!(entry.get("artifactType"), own, "{name}");
        assert_eq!(entry.get("annotations"), json.get("annotations"), "{name}");
    }
}

async fn delete(server: &Server, name: &str, maker: &Maker) {
    let mut gone = Vec::new();
    for tag in maker.kind.manifests.iter().flat_map(|pushed| &pushed.tags) {
        gone.push(format!("/v2/{name}/manifests/{tag}"));
    }
    for pushed in maker.kind.manifests.iter().rev() {
        gone.push(format!("/v2/{name}/manifests/{}", maker.digest(pushed.json.as_bytes())));
    }
    let mut blobs: Vec<Digest> = maker.kind.blobs.iter().map(|blob| maker.digest(blob)).collect();
    blobs.sort();
    blobs.dedup();
    gone.extend(blobs.iter().map(|digest| format!("/v2/{name}/blobs/{digest}")));
    for path in gone {
        expect(&server.delete(&path).await, 202);
        expect(&server.head(&path).await, 404);
    }
}

/// Every kind of content that the suite has.
fn kinds(is_sha512: bool) -> Vec<(&'static str, Maker)> {
    let mut seed = if is_sha512 { 1_000_000 } else { 0 };
    let mut maker = || {
        seed += 1000;
        Maker::new(is_sha512, seed)
    };
    let mut kinds = Vec::new();
    let annotated =
        |kind: &str| json!({ "artifactType": kind, "annotations": { "org.opencontainers.conformance": "hello" } });
    let with_subject = |mut extra: Value, subject: &Value| {
        extra["subject"] = subject.clone();
        extra
    };
    // A digest of another algorithm cannot be pushed by tag alone.
    let tag = |name: &'static str| if is_sha512 { vec![] } else { vec![name] };

    let mut image = maker();
    image.image(2, json!({}), &tag("image"));
    kinds.push(("image", image));

    let mut uncompressed = maker();
    let config = uncompressed.blob(media_type::CONFIG, b"{\"uncompressed\":true}".to_vec());
    let layer = uncompressed.random_blob("application/vnd.oci.image.layer.v1.tar");
    uncompressed.manifest(config, vec![layer], json!({}), &tag("uncompressed"));
    kinds.push(("image-uncompressed", uncompressed));

    // Large by its bytes, whatever they are hashed with.
    let mut large = Maker::new(false, 500);
    let annotations: Value = (0..390).map(|n| (format!("large-annotation-{n}"), json!("A".repeat(10_000)))).collect();
    large.image(2, json!({ "annotations": annotations }), &["large"]);
    if !is_sha512 {
        kinds.push(("large-manifest", large));
    }

    let mut index = maker();
    let images = index.two_images(json!({}));
    index.index(images, json!({}), &tag("index"));
    kinds.push(("index", index));

    let mut nested = maker();
    let inner = [0, 1].map(|_| {
        let images = nested.two_images(json!({}));
        nested.index(images, json!({}), &[])
    });
    nested.index(inner.to_vec(), json!({}), &tag("nested"));
    kinds.push(("nested-index", nested));

    let mut empty = maker();
    empty.index(vec![], json!({}), &tag("empty"));
    kinds.push(("empty-index", empty));

    let mut artifact = maker();
    artifact.artifact(EXAMPLE, json!({ "artifactType": EXAMPLE }), &tag("artifact"));
    kinds.push(("artifact", artifact));

    let mut artifacts = maker();
    let entries = [0, 1].map(|_| artifacts.artifact(EXAMPLE, json!({ "artifactType": EXAMPLE }), &[]));
    artifacts.index(entries.to_vec(), json!({ "artifactType": EXAMPLE }), &tag("artifacts"));
    kinds.push(("artifact-index", artifacts));

    let mut bare = maker();
    bare.artifact(EMPTY, json!({ "artifactType": EXAMPLE }), &tag("bare"));
    kinds.push(("artifact-without-layers", bare));

    let mut referrers = maker();
    let subject = referrers.image(2, json!({}), &tag("subject"));
    referrers.image(1, with_subject(json!({}), &subject), &[]);
    referrers.artifact(EXAMPLE, with_subject(annotated(EXAMPLE), &subject), &tag("one"));
    referrers.artifact("application/octet-stream", with_subject(annotated("text/x"), &subject), &tag("two"));
    kinds.push(("artifacts-with-subject", referrers));

    let mut about_index = maker();
    let images = about_index.two_images(json!({}));
    let subject = about_index.index(images, json!({}), &tag("index"));
    let entry = about_index.artifact(EXAMPLE, annotated(EXAMPLE), &[]);
    about_index.index(vec![entry], with_subject(annotated(EXAMPLE), &subject), &tag("about"));
    kinds.push(("index-with-subject", about_index));

    let mut missing = maker();
    let subject = missing.descriptor(media_type::MANIFEST, b"missing content");
    missing.artifact(EXAMPLE, with_subject(annotated(EXAMPLE), &subject), &tag("missing"));
    kinds.push(("missing-subject", missing));

    let mut data = maker();
    let mut config = data.blob(media_type::CONFIG, b"{}".to_vec());
    config["data"] = json!("e30=");
    let layer = data.random_blob(media_type::LAYER);
    data.manifest(config, vec![layer], json!({}), &tag("data"));
    kinds.push(("data-field", data));

    let mut foreign = maker();
    let config = foreign.blob(media_type::CONFIG, b"{\"foreign\":1}".to_vec());
    let layer = foreign.random_blob(media_type::LAYER);
    let elsewhere = ["nondistributable.v1.tar+gzip", "nondistributable.v1.tar"].map(|kind| {
        let media_type = format!("application/vnd.oci.image.layer.{kind}");
        let mut layer = foreign.descriptor(&media_type, kind.as_bytes());
        layer["urls"] = json!(["https://store.example.com/blobs/x"]);
        layer
    });
    foreign.manifest(config, [elsewhere.to_vec(), vec![layer]].concat(), json!({}), &tag("foreign"));
    kinds.push(("non-distributable-layers", foreign));

    let mut custom = maker();
    let images = custom.two_images(json!({ "org.example.custom": { "kept": [1, 2] } }));
    custom.index(images, json!({ "org.example.custom": "kept" }), &tag("custom"));
    kinds.push(("custom-fields", custom));

    let mut no_layers = maker();
    no_layers.image(0, json!({}), &tag("no-layers"));
    kinds.push(("no-layers", no_layers));

    let mut parameters = maker();
    let images = parameters.two_images(json!({}));
    parameters.index(images, json!({}), &[]);
    for (number, pushed) in parameters.kind.manifests.iter_mut().enumerate() {
        pushed.by_parameter = true;
        pushed.tags = vec![format!("p{number}"), format!("q{number}")];
    }
    kinds.push(("tag-param", parameters));
    kinds
}

#[tokio::test]
async fn every_kind_of_content_is_kept_found_and_deleted() {
    let server = Server::start().await;
    for is_sha512 in [false, true] {
        for (kind, maker) in kinds(is_sha512) {
            check(&server, &format!("conformance/{kind}"), maker).await;
        }
    }
}

#[tokio::test]
async fn sparse_content_is_kept_where_the_operator_wants_it() {
    let server = Server::start_with(Options { accept_sparse: true, ..Options::default() }).await;
    let mut maker = Maker::new(false, 1);
    maker.image(2, json!({}), &["sparse-image"]);
    // The first layer is not pushed.
    maker.kind.blobs.remove(1);
    let image = maker.image(1, json!({}), &[]);
    let absent = maker.descriptor(media_type::MANIFEST, b"another platform");
    maker.index(vec![image, absent], json!({}), &["sparse-index"]);
    check(&server, "conformance/sparse", maker).await;
}

#[tokio::test]
async fn a_manifest_whose_bytes_are_others_is_refused() {
    let server = Server::start().await;
    let mut maker = Maker::new(false, 1);
    maker.image(1, json!({}), &[]);
    for blob in &maker.kind.blobs {
        server.push_blob("a", blob).await;
    }
    let json = &maker.kind.manifests[0].json;
    let digest = Digest::of(json.as_bytes());
    expect(&server.put_manifest("a", &digest.to_string(), &format!("{json}  ")).await, 400);
    expect(&server.get(&format!("/v2/a/manifests/{digest}")).await, 404);
}

/// A chunked push whose first chunks are taken, in the ways the suite has.
async fn check_chunks(server: &Server, is_sha512: bool, last_with_put: bool, is_bad: bool) {
    let content = noise(3 * 1024 - 5, 7 + u64::from(is_sha512));
    let digest = if is_sha512 { sha512(&content) } else { Digest::of(&content) };
    let sent = if is_bad { [&content[..], b"oh no"].concat() } else { content.clone() };
    let mut upload = server.begin("chunks").await;
    let chunks: Vec<&[u8]> = sent.chunks(1024).collect();
    let mut start = 0;
    for (number, chunk) in chunks.iter().enumerate() {
        let is_last = number + 1 == chunks.len();
        let range = format!("{start}-{}", start + chunk.len() - 1);
        let (method, path) = match is_last && last_with_put {
            true => ("PUT", format!("{upload}?digest={digest}")),
            false => ("PATCH", upload.clone()),
        };
        let request = server.request(method, &path).header("content-range", range);
        let response = send(request.header("content-type", "application/octet-stream").body(chunk.to_vec())).await;
        start += chunk.len();
        if method == "PUT" {
            return expect(&response, if is_bad { 400 } else { 201 });
        }
        expect(&response, 202);
        upload = location(&response);
    }
    let response = send(server.request("PUT", &format!("{upload}?digest={digest}"))).await;
    expect(&response, if is_bad { 400 } else { 201 });
}

#[tokio::test]
async fn chunks_are_put_together_under_both_digests_or_refused() {
    let server = Server::start().await;
    for is_sha512 in [false, true] {
        for last_with_put in [false, true] {
            check_chunks(&server, is_sha512, last_with_put, true).await;
            check_chunks(&server, is_sha512, last_with_put, false).await;
        }
    }
}

#[tokio::test]
async fn manifests_from_before_the_referrers_api_are_listed() {
    if crate::store::skips("manifests from before the referrers api are listed") {
        return;
    }
    let server = Server::start().await;
    let mut maker = Maker::new(false, 1);
    let subject = maker.image(1, json!({}), &["image"]);
    maker.artifact(EXAMPLE, json!({ "artifactType": EXAMPLE, "subject": subject }), &[]);
    push(&server, "a/b", &maker).await;
    // As it was before: nobody had listed them.
    std::fs::remove_dir_all(server.root().join("registry/repositories/a/b/_referrers")).expect("removes");
    std::fs::remove_file(server.root().join("registry/_referrers-listed")).expect("removes");
    let server = server.restart().await;
    let subject = maker.digest(maker.kind.manifests[0].json.as_bytes());
    check_referrers(&server, "a/b", &subject, &maker).await;
}
