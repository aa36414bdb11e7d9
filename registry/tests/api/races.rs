//! Requests that meet on one upload, through two replicas of a registry in a bucket: one is held back on its way to the
//! store, and others overtake it there.

use std::time::Duration;

use cfc_oci::Digest;
use cfc_registry::{Options, Rules};

use crate::bucket::{keys, patch, store, through};
use crate::faults::{Manners, Proxy};
use crate::harness::{Server, expect, header, noise, send};
use crate::process::Process;
use crate::store::{Moto, place, place_alone};

/// What a commit asks of the store, one after the other, where it can be overtaken: its bytes or last part, the number
/// that it wins, the end of the parts if there are any, and the blob's pointer.
const STEPS: [&str; 4] = ["PUT registry/data/", "PUT registry/uploads/", "POST ?uploadId=", "PUT registry/blobs/"];

/// So many bytes are more than one part.
const MANY: usize = 8 * 1024 * 1024 + 1000;

/// What overtakes it.
#[derive(Clone, Copy, Debug)]
enum Rival {
    Commit,
    SameCommit,
    Append,
    Cancel,
    WrongDigest,
    Collection,
}

const RIVALS: [Rival; 6] =
    [Rival::Commit, Rival::SameCommit, Rival::Append, Rival::Cancel, Rival::WrongDigest, Rival::Collection];

/// Forgets what nobody goes on with at once, and no blob.
fn hasty() -> Options {
    let collection = Rules { grace: Duration::from_secs(1800), untagged: None };
    Options { upload_expiry: Duration::ZERO, collection, collect_every: None, ..Options::default() }
}

/// Whether both replicas have the blob whole, or both say that there is none.
async fn has(replicas: &[&Server], content: &[u8]) -> bool {
    let path = format!("/v2/a/blobs/{}", Digest::of(content));
    let mut has = Vec::new();
    for replica in replicas {
        let pulled = replica.get(&path).await;
        let is_there = pulled.status() == 200;
        assert!(!is_there || pulled.bytes().await.expect("body") == content, "other bytes");
        has.push(is_there);
    }
    assert_eq!(has[0], has[1]);
    has[0]
}

/// The statuses of what was held back and of its rival; `None` when a commit of that length has no such step.
async fn race(endpoint: &str, step: &str, rival: Rival, first: &[u8]) -> Option<(u16, u16)> {
    let place = place_alone(endpoint);
    let proxy = Proxy::start(endpoint.trim_start_matches("http://"), Manners::default(), 1).await;
    let slow = Server::start_on(&through(&proxy, &place), hasty()).await;
    let fast = Server::start_on(&place, hasty()).await;
    let upload = slow.begin("a").await;
    let length = first.len();
    expect(&send(slow.request("PATCH", &upload).body(first.to_vec())).await, 202);
    // Ends of one length, so that nobody tells them apart by that.
    let [one, two] = [b"one", b"two"].map(|end| [first, &end[..]].concat());
    let commit = async |server: &Server, content: &[u8]| {
        let path = format!("{upload}?digest={}", Digest::of(content));
        send(server.request("PUT", &path).body(content[length..].to_vec())).await.status().as_u16()
    };
    let mut held = proxy.hold(step);
    let committing = commit(&slow, &one);
    futures::pin_mut!(committing);
    tokio::select! {
        () = held.arrives() => {}
        _ = &mut committing => return None,
    }
    let other = match rival {
        Rival::Commit => commit(&fast, &two).await,
        Rival::SameCommit => commit(&fast, &one).await,
        Rival::Append => send(fast.request("PATCH", &upload).body("two")).await.status().as_u16(),
        Rival::Cancel => fast.delete(&upload).await.status().as_u16(),
        Rival::WrongDigest => {
            let path = format!("{upload}?digest={}", Digest::of(b"other"));
            send(fast.request("PUT", &path).body("two")).await.status().as_u16()
        }
        Rival::Collection => {
            fast.registry.collect(hasty().collection, false).await.expect("collects");
            200
        }
    };
    drop(held);
    let status = committing.await;
    let replicas = [&slow, &fast];
    let said = format!("{rival:?} before `{step}` of {length} bytes: {status}, {other}");
    assert!(status < 500 && other < 500, "{said}");
    assert_eq!(
        has(&replicas, &one).await,
        status == 201 || (other == 201 && matches!(rival, Rival::SameCommit)),
        "{said}"
    );
    let is_rivals_blob = other == 201 && matches!(rival, Rival::Commit);
    assert_eq!(has(&replicas, &two).await, is_rivals_blob, "{said}");
    let is_open = slow.get(&upload).await.status() == 204;
    match rival {
        Rival::Append if other == 202 => {
            assert!(status != 201 && is_open, "{said}");
            expect(&patch(&slow, &upload, length + 3, b"more").await, 202);
        }
        Rival::Append | Rival::Collection => {}
        Rival::SameCommit => assert_eq!(other, 201, "{said}"),
        _ => assert!([201, 204, 400].contains(&other) != (status == 201), "{said}"),
    }
    assert!(!is_open || matches!(rival, Rival::Append), "{said}");
    assert_eq!(fast.registry.verify(false).await.expect("reads").findings, [], "{said}");
    // Nobody is in the way of the next, and nothing stays but the blobs.
    if length < MANY {
        fast.push_blob("a", &one).await;
        fast.push_blob("a", &two).await;
    }
    for _ in 0..3 {
        fast.registry.collect(hasty().collection, false).await.expect("collects");
    }
    assert!(length >= MANY || has(&replicas, &one).await && has(&replicas, &two).await, "{said}");
    if std::env::var_os("CFC_TEST_OTHER_S3").is_none() {
        let left = keys(endpoint, &place).await;
        assert!(left.iter().all(|key| !key.starts_with("registry/uploads/")), "{said}: {left:?}");
        let data = left.iter().filter(|key| key.starts_with("registry/data/")).count();
        let pointers = left.iter().filter(|key| key.starts_with("registry/blobs/")).count();
        assert_eq!(data, pointers, "{said}: {left:?}");
    }
    Some((status, other))
}

#[tokio::test]
async fn requests_that_end_one_upload_leave_what_they_acknowledged() {
    let Some((endpoint, _store)) = store().await else { return };
    let (mut ran, content) = (Vec::new(), noise(MANY, 1));
    for step in STEPS {
        for rival in RIVALS {
            ran.extend(race(&endpoint, step, rival, &content[..1000]).await);
            if !matches!(rival, Rival::SameCommit | Rival::WrongDigest) {
                ran.extend(race(&endpoint, step, rival, &content).await);
            }
        }
    }
    eprintln!("{ran:?}");
    // Three steps of a small one, four of a large one.
    assert_eq!(ran.len(), 3 * 6 + 4 * 4);
}

/// A request that was slow does not win a number that was used long ago: not of an upload that goes on, nor of one that
/// is over.
#[tokio::test]
async fn a_chunk_that_comes_late_is_not_acknowledged() {
    let Some((endpoint, _store)) = store().await else { return };
    let place = place(&endpoint);
    let proxy = Proxy::start(endpoint.trim_start_matches("http://"), Manners::default(), 1).await;
    let slow = Server::start_on(&through(&proxy, &place), Options::default()).await;
    let fast = Server::start_on(&place, Options::default()).await;
    for is_over in [false, true] {
        let content = noise(4000, is_over.into());
        let upload = slow.begin("a").await;
        expect(&patch(&fast, &upload, 0, &content[..1000]).await, 202);
        let mut held = proxy.hold("PUT registry/uploads/");
        let late = patch(&slow, &upload, 1000, b"late");
        futures::pin_mut!(late);
        tokio::select! {
            () = held.arrives() => {}
            _ = &mut late => panic!("it wrote nothing down"),
        }
        expect(&patch(&fast, &upload, 1000, &content[1000..2000]).await, 202);
        expect(&patch(&fast, &upload, 2000, &content[2000..3000]).await, 202);
        let commit = format!("{upload}?digest={}", Digest::of(&content));
        if is_over {
            expect(&send(fast.request("PUT", &commit).body(content[3000..].to_vec())).await, 201);
        }
        drop(held);
        expect(&late.await, 429);
        let status = fast.get(&upload).await;
        if is_over {
            expect(&status, 404);
        } else {
            assert_eq!(header(&status, "range"), "0-2999");
            expect(&send(slow.request("PUT", &commit).body(content[3000..].to_vec())).await, 201);
        }
        assert!(has(&[&slow, &fast], &content).await);
    }
}

/// Who wins an upload and dies leaves enough for the client's next try, and for a collection.
#[tokio::test]
async fn an_upload_that_was_being_ended_by_who_died_is_ended_by_others() {
    let Some((endpoint, _store)) = store().await else { return };
    for (number, step) in ["POST ?uploadId=", "PUT registry/blobs/"].into_iter().enumerate() {
        for is_tried_again in [true, false] {
            let place = place(&endpoint);
            let proxy = Proxy::start(endpoint.trim_start_matches("http://"), Manners::default(), 1).await;
            let directory = tempfile::TempDir::new().expect("temporary directory");
            let dying = Process::start_on(&through(&proxy, &place), directory.path()).await;
            let other = Server::start_on(&place, hasty()).await;
            let content = noise(9_000_000, number as u64);
            let upload = other.begin("a").await;
            let path = format!("{upload}?digest={}", Digest::of(&content));
            let mut held = proxy.hold(step);
            let committing = tokio::spawn(dying.request("PUT", &path).body(content.clone()).send());
            held.arrives().await;
            dying.kill();
            assert!(committing.await.expect("ends").is_err(), "it is dead");
            expect(&other.get(&upload).await, 404);
            if is_tried_again {
                expect(&send(other.request("PUT", &path).body(content.clone())).await, 201);
                assert!(has(&[&other, &other], &content).await);
            } else {
                expect(&other.delete(&upload).await, 404);
                other.registry.collect(hasty().collection, false).await.expect("collects");
                let garbage = Rules { grace: Duration::ZERO, untagged: None };
                for _ in 0..2 {
                    other.registry.collect(garbage, false).await.expect("collects");
                }
            }
            assert_eq!(other.registry.verify(false).await.expect("reads").findings, []);
            if std::env::var_os("CFC_TEST_OTHER_S3").is_none() && !is_tried_again {
                let mut left = keys(&endpoint, &place).await;
                // What the other one was about when it was killed, beside the upload.
                left.retain(|key| !key.starts_with("registry/_"));
                assert_eq!(left, [""; 0]);
            }
        }
    }
}

#[tokio::test]
async fn a_blob_whose_bytes_are_gone_is_found_and_comes_back_when_it_is_pushed() {
    // Changes the bucket with a signature that is none, which only moto allows.
    let Some(moto) = Moto::start().await else { return };
    let (endpoint, content) = (moto.endpoint(), noise(1000, 1));
    let digest = Digest::of(&content);
    let store = reqwest::Client::builder().no_proxy().build().expect("client");
    for (quarantine, name) in [(false, "a"), (true, "a"), (false, "b")] {
        let place = place(&endpoint);
        let url = |key: &str| format!("{endpoint}/{}/{}{key}", place.bucket, place.prefix);
        let server = Server::start_on(&place, Options::default()).await;
        server.push_blob("a", &content).await;
        let data = keys(&endpoint, &place).await.into_iter().find(|key| key.starts_with("registry/data/"));
        let signed = "AWS4-HMAC-SHA256 Credential=x/20260101/x/s3/aws4_request, SignedHeaders=host, Signature=x";
        let deletion = store.delete(url(&data.expect("content"))).header("authorization", signed);
        expect(&send(deletion).await, 204);
        let server = Server::start_on(&place, Options::default()).await;
        let path = format!("/v2/a/blobs/{digest}");
        expect(&server.head(&path).await, 404);
        expect(&server.get(&path).await, 404);
        let found = server.registry.verify(quarantine).await.expect("reads").findings;
        assert_eq!(
            found.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [format!("blob {digest}: its bytes are gone")]
        );
        assert_eq!(server.registry.verify(false).await.expect("reads").findings.is_empty(), quarantine);
        server.push_blob(name, &content).await;
        for name in ["a", name] {
            let pulled = server.get(&format!("/v2/{name}/blobs/{digest}")).await;
            expect(&pulled, 200);
            assert!(pulled.bytes().await.expect("body") == content);
        }
        assert_eq!(server.registry.verify(false).await.expect("reads").findings, []);
    }
}

#[tokio::test]
async fn of_two_contents_of_a_blob_only_the_one_that_is_another_is_taken_away() {
    let Some(moto) = Moto::start().await else { return };
    let (endpoint, content) = (moto.endpoint(), noise(1000, 1));
    let (place, digest) = (place(&endpoint), Digest::of(&content));
    let store = reqwest::Client::builder().no_proxy().build().expect("client");
    let url = |key: &str| format!("{endpoint}/{}/{}{key}", place.bucket, place.prefix);
    let server = Server::start_on(&place, Options::default()).await;
    server.push_blob("a", &content).await;
    // One that comes before the sound one in a list, and one that comes after it.
    for first in ["00000000", "ffffffff"] {
        let name = format!("{first}-0000-4000-8000-000000000000");
        expect(&send(store.put(url(&format!("registry/data/{name}"))).body(noise(1000, 2))).await, 200);
        let pointer = format!("registry/blobs/sha256/{}/{name}-1000", digest.hex());
        expect(&send(store.put(url(&pointer)).body("")).await, 200);
        let server = Server::start_on(&place, Options::default()).await;
        let found = server.registry.verify(true).await.expect("reads").findings;
        let expected = format!("blob: its name says {digest}, its bytes hash to {}", Digest::of(&noise(1000, 2)));
        assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), [expected]);
        assert_eq!(server.registry.verify(false).await.expect("reads").findings, []);
        let kept = format!("registry/quarantine/sha256-{}/{name}-1000", digest.hex());
        assert!(keys(&endpoint, &place).await.contains(&kept));
        let pulled = server.get(&format!("/v2/a/blobs/{digest}")).await;
        assert!(pulled.bytes().await.expect("body") == content);
    }
}
