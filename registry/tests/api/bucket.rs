//! The registry in a bucket: the tests of the directory over again, and what only a bucket can go through.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use cfc_oci::Digest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use cfc_registry::{BucketLocation, Options, Registry, Rules};

use crate::faults::{FAULTS, Late, Manners, Proxy};
use crate::harness::{Server, expect, expect_error, header, image, noise, seed, send};
use crate::process::Process;
use crate::store::{ENDPOINT, Moto, place};

/// The groups of tests that a bucket has to pass as a directory does. The one that mirrors the official suite takes half a
/// minute of moto's time, nearly all of it for the kinds of content.
const GROUPS: [&str; 15] = [
    "auth::",
    "blobs::",
    "collect::",
    "coming::",
    "conformance::",
    "crash::",
    "durability::",
    "hostile::",
    "lists::",
    "manifests::",
    "model::",
    "quotas::",
    "retention::",
    "uploads::",
    "verify::",
];

/// Runs this binary's other tests against the S3 server at `endpoint`.
fn run_groups(endpoint: &str) {
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    command.args(GROUPS).env(ENDPOINT, endpoint);
    let output = command.output().expect("runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    let ran = said.lines().filter(|line| line.starts_with("test ") && line.ends_with("ok")).count();
    assert!(ran > 65, "only {ran} tests ran");
}

#[tokio::test]
async fn what_a_directory_does_a_bucket_does() {
    let Some(moto) = Moto::start().await else { return };
    let endpoint = moto.endpoint();
    tokio::task::spawn_blocking(move || run_groups(&endpoint)).await.expect("passes");
}

/// Another S3 server, whose address an operator gives: the same tests, and those of this file.
#[tokio::test]
async fn what_a_directory_does_another_store_does() {
    let Ok(endpoint) = std::env::var("CFC_TEST_OTHER_S3") else {
        eprintln!("skipped: CFC_TEST_OTHER_S3 is not set (scripts/ceph starts a Ceph to test against)");
        return;
    };
    tokio::task::spawn_blocking(move || run_groups(&endpoint)).await.expect("passes");
}

/// The endpoint of a store for the tests below: the operator's, or moto.
pub async fn store() -> Option<(String, Option<Moto>)> {
    if let Ok(endpoint) = std::env::var("CFC_TEST_OTHER_S3") {
        return Some((endpoint, None));
    }
    Moto::start().await.map(|moto| (moto.endpoint(), Some(moto)))
}

pub fn through(proxy: &Proxy, place: &BucketLocation) -> BucketLocation {
    BucketLocation { endpoint: Some(format!("http://{}", proxy.address)), ..place.clone() }
}

pub async fn patch(server: &Server, upload: &str, start: usize, chunk: &[u8]) -> reqwest::Response {
    let range = format!("{start}-{}", start + chunk.len() - 1);
    send(server.request("PATCH", upload).header("content-range", range).body(chunk.to_vec())).await
}

#[tokio::test]
async fn chunks_go_to_any_replica() {
    let Some((endpoint, _store)) = store().await else { return };
    let place = place(&endpoint);
    let mut replicas = Vec::new();
    for _ in 0..3 {
        replicas.push(Server::start_on(&place, Options::default()).await);
    }
    // Chunks smaller and larger than what the store takes as a part.
    let content = noise(21_000_000, 7);
    let upload = replicas[0].begin("a/b").await;
    let (mut sent, mut number) = (0, 0);
    for length in [1, 4_000_000, 9_000_000, 100, 7_000_000] {
        let response = patch(&replicas[number % 3], &upload, sent, &content[sent..sent + length]).await;
        expect(&response, 202);
        sent += length;
        number += 1;
        let status = replicas[number % 3].get(&upload).await;
        assert_eq!(header(&status, "range"), format!("0-{}", sent - 1));
    }
    let stale = patch(&replicas[0], &upload, 1, &content[1..2]).await;
    expect(&stale, 416);
    let digest = Digest::of(&content);
    let path = format!("{upload}?digest={digest}");
    expect(&send(replicas[2].request("PUT", &path).body(content[sent..].to_vec())).await, 201);
    for replica in &replicas {
        let pulled = replica.get(&format!("/v2/a/b/blobs/{digest}")).await;
        expect(&pulled, 200);
        assert!(pulled.bytes().await.expect("body") == content);
        expect(&replica.get(&upload).await, 404);
    }
    // Tags, lists and deletions are everywhere at once.
    let (manifest, _) = replicas[0].push_image("a/b", "x", "x").await;
    expect(&replicas[1].get("/v2/a/b/manifests/x").await, 200);
    expect(&replicas[2].delete(&format!("/v2/a/b/manifests/{manifest}")).await, 202);
    expect(&replicas[0].get(&format!("/v2/a/b/manifests/{manifest}")).await, 404);
    expect(&replicas[1].get("/v2/a/b/manifests/x").await, 404);
}

#[tokio::test]
async fn an_upload_outlives_the_process_that_took_it() {
    let Some((endpoint, _store)) = store().await else { return };
    let place = place(&endpoint);
    let directories = [(); 2].map(|()| tempfile::TempDir::new().expect("temporary directory"));
    let first = Process::start_on(&place, directories[0].path()).await;
    let second = Process::start_on(&place, directories[1].path()).await;
    let content = noise(40_000_000, 3);
    let begun = first.send("POST", "/v2/a/blobs/uploads/", &[], b"").await;
    let upload = header(&begun, "location");
    // A stream of unknown length, which the first process takes until it dies.
    let (sender, body) = futures::channel::mpsc::channel::<Result<Vec<u8>, std::io::Error>>(1);
    let request = first.request("PATCH", &upload).body(reqwest::Body::wrap_stream(body)).send();
    let streaming = tokio::spawn(request);
    let mut sender = sender;
    for chunk in content[..35_000_000].chunks(1_000_000) {
        let _ = futures::SinkExt::send(&mut sender, Ok(chunk.to_vec())).await;
    }
    // What was kept can be asked of the other; at most the parts that were on their way are lost.
    let kept = loop {
        let status = second.send("GET", &upload, &[], b"").await;
        expect(&status, 204);
        let last: usize = header(&status, "range").trim_start_matches("0-").parse().expect("a number");
        if last > 0 {
            break last + 1;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    first.kill();
    drop(sender);
    assert!(streaming.await.expect("ends").is_err(), "it is dead");
    let status = second.send("GET", &upload, &[], b"").await;
    let last: usize = header(&status, "range").trim_start_matches("0-").parse().expect("a number");
    assert!(last + 1 >= kept);
    let rest = content[last + 1..].to_vec();
    let range = format!("{}-{}", last + 1, content.len() - 1);
    let digest = Digest::of(&content);
    let path = format!("{upload}?digest={digest}");
    expect(&second.send("PUT", &path, &[("content-range", &range)], &rest).await, 201);
    let pulled = second.send("GET", &format!("/v2/a/blobs/{digest}"), &[], b"").await;
    assert!(pulled.bytes().await.expect("body") == content);
}

const MIB: usize = 1024 * 1024;

/// Sends the head of a request and `part` of its body. The client waits to be told to go on, or does not.
async fn begin_request(server: &Server, line: &str, headers: &str, part: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(server.address).await.expect("connects");
    let head = format!("{line} HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).await.expect("sends");
    stream.write_all(part).await.expect("sends");
    stream
}

/// Whoever goes on with an upload goes on with parts of the size that was chosen when its length was told.
#[tokio::test]
async fn an_upload_whose_length_is_told_has_parts_of_one_size_that_are_enough() {
    let Some((endpoint, _store)) = store().await else { return };
    let place = place(&endpoint);
    let proxy = Proxy::start(endpoint.trim_start_matches("http://"), Manners::default(), 1).await;
    let first = Server::start_on(&through(&proxy, &place), Options::default()).await;
    let second = Server::start_on(&through(&proxy, &place), Options::default()).await;
    let content = noise(MIB, 1).repeat(50);
    let upload = first.begin("a").await;
    let hundred_gib = format!("content-length: {}\r\n", 100 * 1024 * MIB as u64);
    let stream = begin_request(&first, &format!("PATCH {upload}"), &hundred_gib, &content[..26 * MIB]).await;
    let arrives = async {
        while proxy.parts().is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        drop(stream);
        while header(&second.get(&upload).await, "range") != format!("0-{}", 26 * MIB - 1) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), arrives).await.expect("it is kept");
    expect(&patch(&second, &upload, 26 * MIB, &content[26 * MIB..]).await, 202);
    let path = format!("{upload}?digest={}", Digest::of(&content));
    expect(&send(first.request("PUT", &path)).await, 201);
    assert_eq!(proxy.parts(), [21 * MIB, 21 * MIB, 8 * MIB]);
    let pulled = second.get(&format!("/v2/a/blobs/{}", Digest::of(&content))).await;
    assert!(pulled.bytes().await.expect("body") == content);
}

#[tokio::test]
async fn an_upload_that_cannot_fit_is_refused_before_it_is_sent() {
    let Some((endpoint, _store)) = store().await else { return };
    let server = Server::start_on(&place(&endpoint), Options::default()).await;
    let (content, digest) = (noise(1000, 1), Digest::of(&noise(1000, 1)));
    let upload = server.begin("a").await;
    let two_tib = 2u64 << 40;
    for (line, range) in [
        (format!("POST /v2/a/blobs/uploads/?digest={digest}"), String::new()),
        (format!("PATCH {upload}"), format!("content-range: 0-{}\r\n", two_tib - 1)),
        (format!("PATCH {upload}"), String::new()),
        (format!("PUT {upload}?digest={digest}"), String::new()),
    ] {
        let headers = format!("{range}content-length: {two_tib}\r\nexpect: 100-continue\r\nconnection: close\r\n");
        let mut stream = begin_request(&server, &line, &headers, b"").await;
        let mut answer = String::new();
        let read = tokio::time::timeout(Duration::from_secs(60), stream.read_to_string(&mut answer)).await;
        read.expect("in time").expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("SIZE_INVALID"), "{line}: {answer}");
        assert!(answer.contains("takes 1342177280000 bytes of this upload, which has 2199023255552"), "{answer}");
    }
    // What is there is as it was.
    expect(&patch(&server, &upload, 0, &content).await, 202);
    expect(&send(server.request("PUT", &format!("{upload}?digest={digest}"))).await, 201);
}

#[tokio::test]
async fn a_store_that_turns_out_to_want_parts_of_one_size_gets_them() {
    let Some(moto) = Moto::start().await else { return };
    let (proxy, place) = (Proxy::start(&moto.address, Manners::default(), 1).await, place(&moto.endpoint()));
    let server = Server::start_on(&through(&proxy, &place), Options::default()).await;
    proxy.behave(Manners { finds_parts_unequal: true, ..Manners::default() });
    let content = noise(MIB, 1).repeat(9);
    let push = || {
        let path = format!("/v2/a/blobs/uploads/?digest={}", Digest::of(&content));
        send(server.request("POST", &path).body(content.clone()))
    };
    let why = expect_error(push().await, 400, "BLOB_UPLOAD_INVALID").await;
    assert!(why.contains("push it once more"), "{why}");
    assert!(keys(&moto.endpoint(), &place).await.iter().all(|key| !key.starts_with("registry/data/")));
    proxy.behave(Manners::default());
    expect(&push().await, 201);
    // Where the length was not told, so many parts of that size are all that there can be.
    let upload = server.begin("a").await;
    expect(&patch(&server, &upload, 0, &content).await, 202);
    let end = 100 * 1024 * MIB as u64;
    let (range, length) = (format!("{}-{}", 9 * MIB, end - 1), end - 9 * MIB as u64);
    let headers =
        format!("content-range: {range}\r\ncontent-length: {length}\r\nexpect: 100-continue\r\nconnection: close\r\n");
    let mut stream = begin_request(&server, &format!("PATCH {upload}"), &headers, b"").await;
    let mut answer = String::new();
    let read = tokio::time::timeout(Duration::from_secs(60), stream.read_to_string(&mut answer)).await;
    read.expect("in time").expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("takes 83886080000 bytes"), "{answer}");
}

#[tokio::test]
async fn nothing_is_lost_to_a_store_that_fails() {
    let Some((endpoint, _store)) = store().await else { return };
    let place = place(&endpoint);
    let seed = seed();
    let address = endpoint.trim_start_matches("http://");
    let proxy = Proxy::start(address, Manners::default(), seed).await;
    let server = Server::start_on(&through(&proxy, &place), Options::default()).await;
    proxy.behave(Manners { one_in: 8, ..Manners::default() });
    let mut pushed = BTreeSet::new();
    for number in 0..12 {
        let content = noise(if number % 4 == 0 { 20_000_000 } else { 30_000 }, seed + number);
        let layer = server.push_blob("a", &content).await;
        let config = server.push_blob("a", format!("{{\"n\":{number}}}").as_bytes()).await;
        let json = image(&config, &[&layer], "");
        expect(&server.put_manifest("a", &format!("t{number}"), &json).await, 201);
        let pulled = server.get(&format!("/v2/a/blobs/{layer}")).await;
        expect(&pulled, 200);
        assert!(pulled.bytes().await.expect("body") == content, "other bytes");
        let pulled = server.get(&format!("/v2/a/manifests/t{number}")).await;
        assert_eq!(pulled.text().await.expect("body"), json);
        pushed.insert(format!("t{number}"));
    }
    let orphan = server.push_blob("a", b"orphan").await;
    let rules = Rules { grace: Duration::ZERO, untagged: None };
    let collected = server.registry.collect(rules, false).await.expect("collects");
    assert_eq!(collected.blobs, 1, "{orphan}");
    assert_eq!(server.registry.verify(false).await.expect("reads").findings, []);
    let tags = server.registry.tags(&"a".parse().expect("a name")).await.expect("lists");
    assert_eq!(tags.iter().map(|tag| tag.to_string()).collect::<BTreeSet<_>>(), pushed);
    let faults = proxy.faults();
    assert_eq!(faults.len(), FAULTS.len());
    assert!(faults.iter().all(|(_, count)| *count > 0), "{faults:?} in {} requests", proxy.requests());
    eprintln!("{faults:?} in {} requests", proxy.requests());
}

#[tokio::test]
async fn a_store_that_is_gone_is_told_from_a_blob_that_is() {
    let Some((endpoint, _store)) = store().await else { return };
    let proxy = Proxy::start(endpoint.trim_start_matches("http://"), Manners::default(), 1).await;
    let server = Server::start_on(&through(&proxy, &place(&endpoint)), Options::default()).await;
    let digest = server.push_blob("a", b"x").await;
    expect(&server.get(&format!("/v2/a/blobs/{digest}")).await, 200);
    expect(&server.get(&format!("/v2/a/blobs/{}", Digest::of(b"y"))).await, 404);
    drop(proxy);
    // Connections are not made any more, which the client library takes as long to believe as it is told to.
    let asked = tokio::time::timeout(Duration::from_secs(180), server.get(&format!("/v2/a/blobs/{digest}"))).await;
    let answer = asked.expect("an answer");
    expect(&answer, 503);
    assert_eq!(header(&answer, "retry-after"), "2");
}

#[tokio::test]
async fn a_store_that_lets_two_be_the_first_is_refused() {
    let Some(moto) = Moto::start().await else { return };
    let proxy = Proxy::start(&moto.address, Manners { forgets_conditions: true, ..Manners::default() }, 1).await;
    let place = through(&proxy, &place(&moto.endpoint()));
    let Err(refused) = Registry::open_bucket(&place, Options::default()).await else { panic!("it was taken") };
    let why = said(&refused);
    assert!(why.contains("told that theirs was the first") && why.contains("single_replica = true"), "{why}");
    let alone = BucketLocation { single_replica: true, ..place };
    let server = Server::start_on(&alone, Options::default()).await;
    server.push_image("a", "x", "x").await;
    expect(&server.get("/v2/a/manifests/x").await, 200);
    // One that keeps its word is taken.
    proxy.behave(Manners::default());
    Registry::open_bucket(&BucketLocation { single_replica: false, ..alone }, Options::default()).await.expect("opens");
}

/// An error with all that it says of its causes.
fn said(error: &cfc_registry::StorageError) -> String {
    format!("{error}: {}", std::error::Error::source(error).expect("a cause"))
}

#[tokio::test]
async fn a_store_whose_lists_are_late_is_refused() {
    let Some(moto) = Moto::start().await else { return };
    let proxy = Proxy::start(&moto.address, Manners::default(), 1).await;
    let place = through(&proxy, &place(&moto.endpoint()));
    for late in [Late::Puts, Late::Deletions] {
        for single_replica in [false, true] {
            proxy.behave(Manners { late, ..Manners::default() });
            let place = BucketLocation { single_replica, ..place.clone() };
            let Err(refused) = Registry::open_bucket(&place, Options::default()).await else {
                panic!("{late:?}: taken")
            };
            let why = said(&refused);
            assert!(why.contains("would lose tags: put the bucket in a store whose lists show at once"), "{why}");
            let found =
                if late == Late::Puts { "has nothing where `0` of 1 bytes, `1`" } else { ", `2` of 1 bytes where" };
            assert!(why.contains(found), "{why}");
        }
    }
    proxy.behave(Manners::default());
    Registry::open_bucket(&place, Options::default()).await.expect("opens");
    let left: Vec<String> = keys(&moto.endpoint(), &place).await;
    assert_eq!(left, ["registry/_format/0000000003"]);
}

/// Puts an object by way of nobody's signature, which only moto allows.
pub async fn put_object(moto: &Moto, place: &BucketLocation, key: &str, body: &str) {
    let client = reqwest::Client::builder().no_proxy().build().expect("client");
    let url = format!("{}/{}/{}{key}", moto.endpoint(), place.bucket, place.prefix);
    expect(&send(client.put(url).body(body.to_string())).await, 200);
}

#[tokio::test]
async fn a_registry_of_an_older_version_leaves_a_bucket_alone_that_a_newer_one_has_taken() {
    let Some(moto) = Moto::start().await else { return };
    let place = place(&moto.endpoint());
    let server = Server::start_on(&place, Options::default()).await;
    let (digest, json) = server.push_image("a", "x", "x").await;
    put_object(&moto, &place, "registry/_format/0000000004", "cfc 9.9.9").await;
    // One that runs notices.
    let noticed = async {
        loop {
            let ready = server.get("/readyz").await;
            if ready.status() == 503 {
                break ready.text().await.expect("text");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let why = tokio::time::timeout(Duration::from_secs(60), noticed).await.expect("it notices");
    assert_eq!(why, "a newer registry shares the storage, and this one takes no pushes any more\n");
    for refused in [
        server.put_manifest("a", "y", &json).await,
        send(server.request("POST", "/v2/a/blobs/uploads/")).await,
        server.delete("/v2/a/manifests/x").await,
        send(server.request("PUT", "/v2/gc/layers")).await,
    ] {
        assert!(expect_error(refused, 503, "UNAVAILABLE").await.contains("newer registry"));
    }
    assert!(server.registry.retain(false).await.is_err());
    assert_eq!(server.get(&format!("/v2/a/manifests/{digest}")).await.text().await.expect("body"), json);
    // One that starts does not, for whatever it is.
    let opened = [
        Registry::open_bucket(&place, Options::default()).await,
        Registry::open_bucket_beside(&place, Options::default()).await,
    ];
    for opened in opened {
        let Err(refused) = opened else { panic!("it was opened") };
        let why = said(&refused);
        assert!(
            why.contains("cfc 9.9.9 stores things here in format 4") && why.contains("up to 3: use the same"),
            "{why}"
        );
    }
}

/// What earlier versions have left says nothing of its format, and is taken over.
#[tokio::test]
async fn a_bucket_without_a_format_is_given_one() {
    let Some(moto) = Moto::start().await else { return };
    let place = place(&moto.endpoint());
    put_object(&moto, &place, "registry/_referrers-listed", "").await;
    // Looking after it changes nothing.
    Registry::open_bucket_beside(&place, Options::default()).await.expect("opens");
    assert_eq!(keys(&moto.endpoint(), &place).await, ["registry/_referrers-listed"]);
    let opened = [(); 2].map(|()| Registry::open_bucket(&place, Options::default()));
    for opened in futures::future::join_all(opened).await {
        opened.expect("opens");
    }
    assert_eq!(keys(&moto.endpoint(), &place).await, ["registry/_format/0000000003", "registry/_referrers-listed"]);
}

#[tokio::test]
async fn clients_are_sent_to_the_store() {
    let Some((endpoint, _store)) = store().await else { return };
    let lifetime = Duration::from_secs(1200);
    let place = BucketLocation { redirect: Some(lifetime), ..place(&endpoint) };
    let server = Server::start_on(&place, Options::default()).await;
    let content = noise(300_000, 1);
    let digest = server.push_blob("a", &content).await;
    let path = format!("/v2/a/blobs/{digest}");
    let client = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build();
    let client = client.expect("client");
    let ask = |path: String| client.get(format!("http://{}{path}", server.address)).send();
    let sent = ask(path.clone()).await.expect("an answer");
    expect(&sent, 307);
    let url = header(&sent, "location");
    assert!(url.starts_with(&endpoint) && url.contains("X-Amz-Expires=1200"), "{url}");
    assert_eq!(header(&sent, "docker-content-digest"), digest.to_string());
    assert_eq!(header(&sent, "cache-control"), "private, max-age=600");
    let pulled = server.get(&path).await;
    assert_eq!(pulled.url().as_str(), url.replace(&url, pulled.url().as_str()), "followed");
    assert!(pulled.bytes().await.expect("body") == content);
    let part = send(server.request("GET", &path).header("range", "bytes=100-199")).await;
    expect(&part, 206);
    assert!(part.bytes().await.expect("body") == content[100..200]);
    let head = server.head(&path).await;
    expect(&head, 200);
    assert_eq!(header(&head, "content-length"), "300000");
    // What is small comes from us, in one answer.
    let small = server.push_blob("a", b"small").await;
    expect(&ask(format!("/v2/a/blobs/{small}")).await.expect("an answer"), 200);
}

/// What is in the bucket below the place, but for its first part.
pub async fn keys(endpoint: &str, place: &BucketLocation) -> Vec<String> {
    let client = reqwest::Client::builder().no_proxy().build().expect("client");
    let url = format!("{endpoint}/{}?list-type=2&prefix={}", place.bucket, place.prefix);
    let text = client.get(url).send().await.expect("an answer").text().await.expect("text");
    text.split("<Key>")
        .skip(1)
        .filter_map(|rest| rest.split_once("</Key>"))
        .map(|(key, _)| key.strip_prefix(&place.prefix).expect("below it").to_string())
        .collect()
}

#[tokio::test]
async fn nothing_is_left_of_what_was_pushed_and_is_gone() {
    // Lists the bucket without a signature, which only moto allows.
    let Some(moto) = Moto::start().await else { return };
    let (endpoint, rules) = (moto.endpoint(), Rules { grace: Duration::ZERO, untagged: Some(Duration::ZERO) });
    let place = place(&endpoint);
    let options = Options {
        upload_expiry: Duration::ZERO,
        collection: rules,
        late_requests: Duration::ZERO,
        ..Options::default()
    };
    let server = Server::start_on(&place, options).await;
    let (manifest, _) = server.push_image("a", "x", "x").await;
    let large = server.push_blob("a", &noise(18_000_000, 1)).await;
    server.push_blob("b", &noise(18_000_000, 1)).await;
    let data =
        || async { keys(&endpoint, &place).await.into_iter().filter(|key| key.starts_with("registry/data/")).count() };
    assert_eq!(data().await, 3, "what another repository holds is not stored twice");
    let abandoned = server.begin("a").await;
    expect(&send(server.request("PATCH", &abandoned).body(noise(9_000_000, 2))).await, 202);
    // Who asked something of the store died, too.
    for question in ["_clock/x", "_race/x", "_list/x/0"] {
        put_object(&moto, &place, &format!("registry/{question}"), "").await;
    }
    // Parts of an upload of which nothing was written down: who began it died.
    let client = reqwest::Client::builder().no_proxy().build().expect("client");
    let lost = format!("{endpoint}/{}/{}registry/data/{}?uploads", place.bucket, place.prefix, uuid::Uuid::new_v4());
    expect(&send(client.post(lost)).await, 200);
    expect(&server.delete(&format!("/v2/a/manifests/{manifest}")).await, 202);
    let told = server.registry.collect(rules, true).await.expect("tells");
    let collected = server.registry.collect(rules, false).await.expect("collects");
    assert_eq!((collected.blobs, collected.unlinked, collected.uploads), (3, 4, 1), "{large}");
    assert_eq!((told.blobs, told.unlinked), (3, 4));
    // That an upload is over is remembered until the next one.
    assert_eq!(server.registry.collect(rules, false).await.expect("collects").uploads, 0);
    assert_eq!(keys(&endpoint, &place).await, ["registry/_format/0000000003", "registry/_referrers-listed"]);
    let uploads = client.get(format!("{endpoint}/{}?uploads", place.bucket)).send().await.expect("an answer");
    let uploads = uploads.text().await.expect("text");
    assert!(!uploads.contains(&place.prefix), "parts are left: {uploads}");
}

#[tokio::test]
async fn a_page_of_tags_is_one_request() {
    let Some(moto) = Moto::start().await else { return };
    let proxy = Proxy::start(&moto.address, Manners::default(), 1).await;
    let server = Server::start_on(&through(&proxy, &place(&moto.endpoint())), Options::default()).await;
    let (digest, json) = server.push_image("a", "t0000", "x").await;
    for fifty in 0..24 {
        let tags: Vec<String> = (0..50).map(|number| format!("tag=t{:04}", fifty * 50 + number)).collect();
        expect(&server.put_manifest("a", &format!("{digest}?{}", tags.join("&")), &json).await, 201);
    }
    let before = proxy.requests();
    let page = server.get("/v2/a/tags/list?n=100&last=t0999").await;
    assert_eq!(proxy.requests() - before, 1);
    let page: serde_json::Value = page.json().await.expect("JSON");
    let names: Vec<String> = (1000..1100).map(|number| format!("t{number:04}")).collect();
    assert_eq!(page["tags"], serde_json::json!(names));
    let all: serde_json::Value = server.get("/v2/a/tags/list").await.json().await.expect("JSON");
    assert_eq!(all["tags"].as_array().map(Vec::len), Some(1200));
}

/// The order of names is not that of keys, and nobody lists all that there is to give some of it.
#[tokio::test]
async fn a_page_of_the_catalog_costs_what_it_is_long() {
    // Changes the bucket with a signature that is none, which only moto allows.
    let Some(moto) = Moto::start().await else { return };
    let (proxy, place) = (Proxy::start(&moto.address, Manners::default(), 1).await, place(&moto.endpoint()));
    let server = Server::start_on(&through(&proxy, &place), Options::default()).await;
    let client = reqwest::Client::builder().no_proxy().build().expect("client");
    let odd = ["a", "a-b", "a-b/c", "a.c/d", "a/0", "a/b", "a/b/c", "a/b-c", "a0", "a_b", "b/c/d/e", "b/c-d", "c/c/c"];
    let mut names: Vec<String> = odd.map(str::to_string).to_vec();
    names.extend((0..150).map(|number| format!("many/app-{number:04}")));
    let put = |name: &String| {
        let key = format!("{}registry/catalog/{name}/_repository", place.prefix);
        client.put(format!("{}/{}/{key}", moto.endpoint(), place.bucket)).body("").send()
    };
    for some in names.chunks(50) {
        let put = futures::future::join_all(some.iter().map(put)).await;
        assert!(put.into_iter().all(|put| put.expect("an answer").status() == 200));
    }
    names.sort();
    let page = async |after: &str, limit: usize| {
        let answer = server.get(&format!("/v2/_catalog?n={limit}&last={after}")).await;
        let body: serde_json::Value = answer.json().await.expect("JSON");
        let names = body["repositories"].as_array().expect("a list").iter();
        names.map(|name| name.as_str().expect("text").to_string()).collect::<Vec<_>>()
    };
    let between = ["", "a,", "a-", "a/", "a/b.", "a/zz", "b", "b/c", "many", "many/app", "a-b/c/d", "a!", "zz"];
    for (after, limit) in odd.iter().map(|after| (after, 3)).chain(between.iter().map(|after| (after, 1))) {
        let left = names.iter().filter(|name| name.as_str() > *after);
        let expected: Vec<String> = left.take(limit).cloned().collect();
        assert_eq!(page(after, limit).await, expected, "{limit} after `{after}`");
    }
    for (after, limit, requests) in [("a/b", 5, 12), ("many/app-0050", 50, 4), ("many/app-0000", 140, 4)] {
        let before = proxy.requests();
        assert_eq!(page(after, limit).await.len(), limit);
        let asked = proxy.requests() - before;
        assert!(asked <= requests, "{limit} after `{after}` took {asked} requests");
    }
}

#[tokio::test]
async fn replicas_that_race_for_an_immutable_tag_agree() {
    let Some((endpoint, _store)) = store().await else { return };
    let place = place(&endpoint);
    let options = || Options { immutable_tags: vec!["**:v*".to_string()], ..Options::default() };
    let replicas = [Server::start_on(&place, options()).await, Server::start_on(&place, options()).await];
    for round in 0..5 {
        let push = async |number: usize| {
            let config = replicas[number].push_blob("a", format!("{{\"by\":{number}}}").as_bytes()).await;
            let json = image(&config, &[], "");
            (replicas[number].put_manifest("a", &format!("v{round}"), &json).await.status().as_u16(), json)
        };
        let (one, two) = futures::join!(push(0), push(1));
        let winner = match (one.0, two.0) {
            (201, 403) => one.1,
            (403, 201) => two.1,
            other => panic!("{other:?}"),
        };
        for replica in &replicas {
            let pulled = replica.get(&format!("/v2/a/manifests/v{round}")).await;
            assert_eq!(pulled.text().await.expect("body"), winner);
        }
    }
}

/// Pushers on two replicas while both collect all the time: nobody is told of a blob or manifest that then is not there.
#[tokio::test]
async fn collections_on_two_replicas_take_nothing_that_somebody_relies_on() {
    let Some((endpoint, _store)) = store().await else { return };
    let place = place(&endpoint);
    let grace = Duration::from_secs(8);
    let rules = Rules { grace, untagged: Some(grace) };
    let options =
        || Options { collection: rules, collect_every: Some(Duration::from_millis(100)), ..Options::default() };
    let replicas = [Server::start_on(&place, options()).await, Server::start_on(&place, options()).await];
    let begun = std::time::Instant::now();
    let push = async |pusher: usize| {
        let mut pushes = 0;
        // On a slow machine until there is one.
        while begun.elapsed() < Duration::from_secs(20) || pushes == 0 {
            let (name, tag) = (format!("r{}", pusher % 2), format!("p{pusher}"));
            let at = std::time::Instant::now();
            let blobs = [0, 1].map(|which| noise(1000, (pushes * 2 + which + pusher as u64) % 7));
            for (number, blob) in blobs.iter().enumerate() {
                let digest = Digest::of(blob);
                let replica = &replicas[(pusher + number) % 2];
                if replica.head(&format!("/v2/{name}/blobs/{digest}")).await.status() != 200 {
                    replica.push_blob(&name, blob).await;
                }
            }
            let json = image(&Digest::of(&blobs[0]), &[&Digest::of(&blobs[1])], "");
            let replica = &replicas[(pusher + 1) % 2];
            let put = replica.put_manifest(&name, &tag, &json).await.status();
            // Who takes longer than seven eighths of the time is owed nothing.
            if at.elapsed() > grace / 2 {
                continue;
            }
            assert_eq!(put, 201, "{tag} after {:?}", at.elapsed());
            for blob in &blobs {
                let pulled = replicas[pusher % 2].get(&format!("/v2/{name}/blobs/{}", Digest::of(blob))).await;
                expect(&pulled, 200);
                assert!(pulled.bytes().await.expect("body") == blob[..]);
            }
            pushes += 1;
            // Now and then long enough that what was pushed gets old.
            if pushes % 3 == 0 {
                expect(&replicas[0].delete(&format!("/v2/{name}/manifests/{tag}")).await, 202);
            }
        }
        pushes
    };
    let pushes = futures::future::join_all((0..4).map(push)).await;
    eprintln!("{pushes:?} pushes");
    assert!(pushes.iter().all(|pushes| *pushes > 0));
    assert_eq!(replicas[0].registry.verify(false).await.expect("reads").findings, []);
}

#[tokio::test]
async fn a_registry_whose_store_does_not_answer_is_not_ready() {
    let Some(moto) = Moto::start().await else { return };
    let server = Server::start_on(&place(&moto.endpoint()), Options::default()).await;
    expect(&server.get("/readyz").await, 200);
    let ready = async || {
        let ready = tokio::time::timeout(Duration::from_secs(10), server.get("/readyz")).await;
        ready.expect("it says so before who watches gives up")
    };
    moto.pause();
    let hung = ready().await;
    expect(&hung, 503);
    assert_eq!(hung.text().await.expect("text"), "the storage does not answer\n");
    expect(&server.get("/healthz").await, 200);
    moto.resume();
    let is_ready = async {
        while server.get("/readyz").await.status() != 200 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), is_ready).await.expect("it is ready again");
    drop(moto);
    expect(&ready().await, 503);
}
