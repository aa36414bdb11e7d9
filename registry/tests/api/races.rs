//! Requests that meet on one upload, through two replicas of a registry in a bucket: one is held back on its way to the
//! store, and others overtake it there.

use std::time::Duration;

use cfc_oci::Digest;
use cfc_registry::{Options, RetentionRule, Rules};

use crate::bucket::{keys, patch, store, through};
use crate::faults::{Held, Manners, Proxy};
use crate::harness::{Server, expect, header, image, index, noise, send};
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

/// Who is told that he has failed, though he has won the number and others have gone on, takes nothing from them.
#[tokio::test]
async fn an_answer_that_is_lost_costs_nobody_what_others_acknowledged() {
    let Some((endpoint, _store)) = store().await else { return };
    // A small upload, whose end is done by the rival; and a large one, whose parts have just been begun.
    for content in [noise(1000, 1), noise(2 * MANY, 2)] {
        let (proxy, slow, fast) = two(&endpoint, Options::default).await;
        let upload = slow.begin("a").await;
        let path = format!("{upload}?digest={}", Digest::of(&content));
        let is_small = content.len() < MANY;
        let mut lost = proxy.lose_answer("PUT registry/uploads/");
        let request = match is_small {
            true => slow.request("PUT", &path).body(content.clone()),
            false => slow.request("PATCH", &upload).body(content.clone()),
        };
        let asked = send(request);
        futures::pin_mut!(asked);
        tokio::select! {
            () = lost.arrives() => {}
            _ = &mut asked => panic!("it won nothing"),
        }
        if is_small {
            expect(&send(fast.request("PUT", &path).body(content.clone())).await, 201);
        } else {
            expect(&patch(&fast, &upload, 0, &content[..MANY]).await, 202);
        }
        drop(lost);
        let status = asked.await.status();
        if is_small {
            assert!(has(&[&slow, &fast], &content).await, "{status}");
        } else {
            assert_ne!(status, 202);
            expect(&send(fast.request("PUT", &path).body(content[MANY..].to_vec())).await, 201);
            assert!(has(&[&slow, &fast], &content).await);
        }
    }
}

/// An image whose manifest is made young by a pull while a collection reads it keeps its blobs.
#[tokio::test]
async fn a_manifest_that_is_made_young_while_a_collection_reads_it_keeps_its_blobs() {
    let Some((endpoint, _store)) = store().await else { return };
    let options = || {
        let collection = Rules { grace: Duration::from_secs(2), untagged: None };
        Options { collection, collect_every: None, ..Options::default() }
    };
    let (proxy, slow, fast) = two(&endpoint, options).await;
    let (manifest, _) = fast.push_image("a", "x", "x").await;
    tokio::time::sleep(Duration::from_millis(4500)).await;
    let mut held = proxy.hold("GET /a/_manifests/sha256/");
    let collecting = slow.registry.collect(options().collection, false);
    futures::pin_mut!(collecting);
    tokio::select! {
        () = held.arrives() => {}
        done = &mut collecting => panic!("no manifest was read: {done:?}"),
    }
    expect(&fast.get(&format!("/v2/a/manifests/{manifest}")).await, 200);
    drop(held);
    let collected = collecting.await.expect("collects");
    assert_eq!((collected.unlinked, collected.blobs), (0, 0));
    expect(&fast.get(&format!("/v2/a/blobs/{}", Digest::of(b"layer of x"))).await, 200);
}

/// Content is not taken for nobody's because it becomes a blob's while a sweep looks.
#[tokio::test]
async fn a_blob_that_comes_while_uploads_are_swept_stays() {
    let Some((endpoint, _store)) = store().await else { return };
    let place = place_alone(&endpoint);
    let address = endpoint.trim_start_matches("http://");
    let [first, second] = [1, 2].map(|seed| Proxy::start(address, Manners::default(), seed));
    let (first, second) = futures::join!(first, second);
    let pushing = Server::start_on(&through(&first, &place), Options::default()).await;
    let sweeping = Server::start_on(&through(&second, &place), hasty()).await;
    let content = noise(1000, 1);
    let upload = pushing.begin("a").await;
    let path = format!("{upload}?digest={}", Digest::of(&content));
    let mut numbering = first.hold("PUT registry/uploads/");
    let putting = send(pushing.request("PUT", &path).body(content.clone()));
    futures::pin_mut!(putting);
    tokio::select! {
        () = numbering.arrives() => {}
        _ = &mut putting => panic!("it won nothing"),
    }
    // Its uploads are listed when the content is old and the number is new.
    let mut listing = second.hold("GET registry%2Fuploads%2F");
    let sweep = sweeping.registry.collect(hasty().collection, false);
    futures::pin_mut!(sweep);
    tokio::select! {
        () = listing.arrives() => {}
        done = &mut sweep => panic!("it listed no uploads: {done:?}"),
    }
    let mut pointing = first.hold("PUT registry/blobs/");
    // Stores tell times in whole seconds.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    drop(numbering);
    tokio::select! {
        () = pointing.arrives() => {}
        _ = &mut putting => panic!("it pointed at nothing"),
    }
    let mut pointers = second.hold_answer("GET registry%2Fblobs%2F");
    drop(listing);
    tokio::select! {
        () = pointers.arrives() => {}
        done = &mut sweep => panic!("it listed no pointers: {done:?}"),
    }
    drop(pointing);
    expect(&putting.await, 201);
    drop(pointers);
    sweep.await.expect("collects");
    assert!(has(&[&pushing, &sweeping], &content).await);
}

/// An upload that cannot be done away with is in nobody's way.
#[tokio::test]
async fn an_upload_that_cannot_be_ended_is_told_of_and_the_rest_is_swept() {
    let Some((endpoint, _store)) = store().await else { return };
    let (proxy, slow, fast) = two(&endpoint, hasty).await;
    proxy.behave(Manners { forbids_aborts: true, ..Manners::default() });
    let mut uploads = vec![fast.begin("a").await];
    expect(&send(fast.request("PATCH", &uploads[0]).body(noise(MANY, 1))).await, 202);
    for _ in 0..8 {
        uploads.push(fast.begin("a").await);
    }
    let failed = slow.registry.collect(hasty().collection, false).await.expect_err("it is told");
    assert!(failed.to_string().contains("registry/data/"), "{failed}");
    for upload in &uploads {
        expect(&fast.get(upload).await, 404);
    }
    proxy.behave(Manners::default());
    slow.registry.collect(hasty().collection, false).await.expect("collects");
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

/// Who ends an upload that had become a blob already, which is going by now, does not take it for his own young one.
#[tokio::test]
async fn an_upload_that_was_ended_long_ago_is_not_relied_on_while_its_blob_goes() {
    let Some((endpoint, _store)) = store().await else { return };
    let place = place(&endpoint);
    let address = endpoint.trim_start_matches("http://");
    let [first, second] = [1, 2].map(|seed| Proxy::start(address, Manners::default(), seed));
    let (first, second) = futures::join!(first, second);
    let directory = tempfile::TempDir::new().expect("temporary directory");
    let dying = Process::start_on(&through(&first, &place), directory.path()).await;
    let other = Server::start_on(&place, Options { upload_expiry: Duration::from_secs(1800), ..hasty() }).await;
    let content = noise(1000, 1);
    let digest = Digest::of(&content);
    let upload = other.begin("a").await;
    let path = format!("{upload}?digest={digest}");
    // It wins the number, empties the one before, makes the blob, and dies before it says that all is done.
    let [mut winning, mut emptying, mut closing] = [(); 3].map(|()| first.hold("PUT registry/uploads/"));
    let committing = tokio::spawn(dying.request("PUT", &path).body(content.clone()).send());
    winning.arrives().await;
    drop(winning);
    emptying.arrives().await;
    drop(emptying);
    closing.arrives().await;
    dying.kill();
    assert!(committing.await.expect("ends").is_err(), "it is dead");
    // Stores tell times in whole seconds.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let collector = Server::start_on(&through(&second, &place), Options::default()).await;
    let mut going = second.hold("DELETE registry/blobs/");
    let garbage = Rules { grace: Duration::ZERO, untagged: None };
    let collecting = tokio::spawn(async move { collector.registry.collect(garbage, false).await });
    going.arrives().await;
    // The client tries again, with another replica.
    expect(&send(other.request("PUT", &path).body(content.clone())).await, 404);
    drop(going);
    collecting.await.expect("ends").expect("collects");
    expect(&other.get(&format!("/v2/a/blobs/{digest}")).await, 404);
    other.push_blob("a", &content).await;
    assert!(has(&[&other, &other], &content).await);
}

/// Rules by which a moment makes things old enough to be touched again, and none go.
fn soon_old() -> Options {
    let collection = Rules { grace: Duration::from_secs(8), untagged: Some(Duration::from_secs(1800)) };
    Options { collection, collect_every: None, ..Options::default() }
}

/// Two replicas, of which the first reaches the store through a proxy.
pub async fn two(endpoint: &str, options: impl Fn() -> Options) -> (Proxy, Server, Server) {
    let place = place_alone(endpoint);
    let proxy = Proxy::start(endpoint.trim_start_matches("http://"), Manners::default(), 1).await;
    let slow = Server::start_on(&through(&proxy, &place), options()).await;
    (proxy, slow, Server::start_on(&place, options()).await)
}

#[tokio::test]
async fn what_was_deleted_does_not_come_back_with_a_client_that_was_looking_at_it() {
    let Some((endpoint, _store)) = store().await else { return };
    let (proxy, slow, fast) = two(&endpoint, soon_old).await;
    let (manifest, json) = fast.push_image("a", "x", "x").await;
    let config = Digest::of(b"{\"seed\":\"x\"}");
    // Old enough to be touched by who looks.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    for (path, kind) in [
        (format!("/v2/a/blobs/{config}"), "PUT /a/_link/"),
        (format!("/v2/a/manifests/{manifest}"), "PUT /a/_manifests/"),
    ] {
        // It says what it is about to do, and then does it.
        let (mut saying, mut doing) = (proxy.hold(kind), proxy.hold(kind));
        let looking = slow.get(&path);
        futures::pin_mut!(looking);
        tokio::select! {
            () = saying.arrives() => {}
            _ = &mut looking => panic!("{path} was not old"),
        }
        drop(saying);
        tokio::select! {
            () = doing.arrives() => {}
            _ = &mut looking => panic!("{path} was not made young"),
        }
        expect(&fast.delete(&path).await, 202);
        drop(doing);
        looking.await;
        for replica in [&slow, &fast] {
            expect(&replica.head(&path).await, 404);
        }
    }
    // It can be pushed again.
    fast.push_image("a", "x", "x").await;
    assert_eq!(slow.get(&format!("/v2/a/manifests/{manifest}")).await.text().await.expect("body"), json);
}

/// A push of a manifest that is being collected, while what was noted about it is removed.
#[tokio::test]
async fn a_manifest_that_comes_back_while_it_is_forgotten_is_noted() {
    let Some((endpoint, _store)) = store().await else { return };
    let rules = Rules { grace: Duration::from_secs(1800), untagged: Some(Duration::ZERO) };
    for kind in ["DELETE /_referrers/", "DELETE /_tagged/"] {
        let (proxy, slow, fast) =
            two(&endpoint, || Options { collection: rules, collect_every: None, ..Options::default() }).await;
        let (subject, _) = fast.push_image("a", "subject", "x").await;
        let config = fast.push_blob("a", b"{}").await;
        let extra =
            format!(r#","subject":{{"mediaType":"{}","digest":"{subject}","size":1}}"#, cfc_oci::media_type::MANIFEST);
        let json = image(&config, &[], &extra);
        let referrer = Digest::of(json.as_bytes());
        expect(&fast.put_manifest("a", "v1", &json).await, 201);
        // The tag goes elsewhere and leaves its note.
        fast.push_image("a", "v1", "y").await;
        let mut held = proxy.hold(kind);
        let collecting = slow.registry.collect(rules, false);
        futures::pin_mut!(collecting);
        // The subject leads to its referrer.
        expect(&fast.delete("/v2/a/manifests/subject").await, 202);
        tokio::select! {
            () = held.arrives() => {}
            done = &mut collecting => panic!("nothing was forgotten: {done:?}"),
        }
        expect(&fast.put_manifest("a", "v1", &json).await, 201);
        drop(held);
        assert_eq!(collecting.await.expect("collects").manifests, 2);
        let listed: serde_json::Value =
            fast.get(&format!("/v2/a/referrers/{subject}")).await.json().await.expect("JSON");
        assert_eq!(listed["manifests"][0]["digest"], referrer.to_string(), "{kind}: {listed}");
        // Who deletes the manifest knows its tag.
        expect(&fast.delete(&format!("/v2/a/manifests/{referrer}")).await, 202);
        expect(&fast.get("/v2/a/manifests/v1").await, 404);
        assert_eq!(fast.registry.verify(false).await.expect("reads").findings, [], "{kind}");
    }
}

/// Content that another repository holds, which gives it up in between: the client is told to push.
#[tokio::test]
async fn who_relies_on_the_link_of_another_repository_is_told_when_that_is_gone() {
    let Some((endpoint, _store)) = store().await else { return };
    let content = noise(1000, 1);
    let digest = Digest::of(&content);
    let garbage = Rules { grace: Duration::ZERO, untagged: None };
    for is_mounted in [true, false] {
        for is_going in [true, false] {
            let place = place_alone(&endpoint);
            let [proxy, other] =
                [1, 2].map(|seed| Proxy::start(endpoint.trim_start_matches("http://"), Manners::default(), seed));
            let (proxy, other) = futures::join!(proxy, other);
            let slow = Server::start_on(&through(&proxy, &place), hasty()).await;
            let fast = Server::start_on(&place, hasty()).await;
            fast.push_blob("source", &content).await;
            let mut linking = proxy.hold("PUT registry/links/");
            let request = match is_mounted {
                true => slow.request("POST", &format!("/v2/a/blobs/uploads/?mount={digest}&from=source")),
                false => slow.request("POST", &format!("/v2/a/blobs/uploads/?digest={digest}")).body(content.clone()),
            };
            let asked = send(request);
            futures::pin_mut!(asked);
            tokio::select! {
                () = linking.arrives() => {}
                _ = &mut asked => panic!("nothing was linked"),
            }
            expect(&fast.delete(&format!("/v2/source/blobs/{digest}")).await, 202);
            let answer = if is_going {
                // The collection is about to remove it, and does not look any more who links it.
                let collector = Server::start_on(&through(&other, &place), hasty()).await;
                let mut gone = other.hold("DELETE registry/blobs/");
                let collecting = tokio::spawn(async move { collector.registry.collect(garbage, false).await });
                gone.arrives().await;
                drop(linking);
                let answer = asked.await;
                drop(gone);
                collecting.await.expect("ends").expect("collects");
                answer
            } else {
                assert_eq!(fast.registry.collect(garbage, false).await.expect("collects").blobs, 1);
                drop(linking);
                asked.await
            };
            expect(&answer, if is_mounted { 202 } else { 404 });
            expect(&fast.get(&format!("/v2/a/blobs/{digest}")).await, 404);
            slow.push_blob("a", &content).await;
            assert!(has(&[&slow, &fast], &content).await);
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

/// Waits until the request that is `held` has come, which `asked` makes.
async fn comes(held: &mut Held, mut asked: std::pin::Pin<&mut impl Future>) {
    tokio::select! {
        () = held.arrives() => {}
        _ = &mut asked => panic!("it ended before that"),
    }
}

/// Whether both replicas have the tag, and what it points at; verification finds nothing wrong.
async fn tag_is_there(slow: &Server, fast: &Server, tag: &str, json: &str) -> bool {
    let mut is_there = Vec::new();
    for replica in [slow, fast] {
        let pulled = replica.get(&format!("/v2/a/manifests/{tag}")).await;
        is_there.push(pulled.status() == 200);
        assert!(pulled.status() != 200 || pulled.text().await.expect("body") == json);
    }
    assert_eq!(is_there[0], is_there[1]);
    assert_eq!(fast.registry.verify(false).await.expect("reads").findings, []);
    is_there[0]
}

#[tokio::test]
async fn a_push_whose_manifest_another_replica_deletes_meanwhile_puts_it_again() {
    let Some((endpoint, _store)) = store().await else { return };
    // Its tag is noted, is put, and is looked for among the notes.
    for step in ["PUT /_tagged/", "PUT /_tags/x", "HEAD /_tagged/"] {
        let (proxy, slow, fast) = two(&endpoint, hasty).await;
        let (manifest, json) = fast.push_image("a", "other", "x").await;
        let path = format!("/v2/a/manifests/{manifest}");
        let mut held = proxy.hold(step);
        let pushing = slow.put_manifest("a", "x", &json);
        futures::pin_mut!(pushing);
        comes(&mut held, pushing.as_mut()).await;
        expect(&fast.delete(&path).await, 202);
        expect(&fast.get("/v2/a/manifests/other").await, 404);
        drop(held);
        expect(&pushing.await, 201);
        assert!(tag_is_there(&slow, &fast, "x", &json).await, "{step}");
        // The tag goes with the manifest.
        expect(&slow.delete(&path).await, 202);
        assert!(!tag_is_there(&slow, &fast, "x", &json).await, "{step}");
    }
}

#[tokio::test]
async fn a_deletion_takes_the_tags_along_that_another_replica_pushes_meanwhile() {
    let Some((endpoint, _store)) = store().await else { return };
    for is_pushed_again in [false, true] {
        let (proxy, slow, fast) = two(&endpoint, hasty).await;
        let (manifest, json) = fast.push_image("a", "other", "x").await;
        // Tags have been looked for, and the manifest is about to go.
        let path = format!("/v2/a/manifests/{manifest}");
        let mut held = proxy.hold("PUT /a/_manifests/");
        let deleting = slow.delete(&path);
        futures::pin_mut!(deleting);
        comes(&mut held, deleting.as_mut()).await;
        expect(&fast.put_manifest("a", "x", &json).await, 201);
        let mut removing = proxy.hold("DELETE /_tags/x");
        drop(held);
        comes(&mut removing, deleting.as_mut()).await;
        if is_pushed_again {
            expect(&fast.put_manifest("a", "x", &json).await, 201);
        }
        drop(removing);
        expect(&deleting.await, 202);
        assert_eq!(tag_is_there(&slow, &fast, "x", &json).await, is_pushed_again);
        assert!(!tag_is_there(&slow, &fast, "other", &json).await);
    }
}

/// Tags that begin with `v` stay.
fn immutable(options: Options) -> Options {
    Options { immutable_tags: vec!["**:v*".to_string()], ..options }
}

async fn tags(server: &Server) -> String {
    let listed: serde_json::Value = server.get("/v2/a/tags/list").await.json().await.expect("JSON");
    listed["tags"].to_string()
}

#[tokio::test]
async fn a_manifest_that_is_being_deleted_stays_for_an_immutable_tag_that_is_pushed_meanwhile() {
    stays_for_an_immutable_tag(|_, json| json.to_string()).await;
}

#[tokio::test]
async fn an_image_that_is_being_deleted_stays_for_an_immutable_index_that_is_pushed_meanwhile() {
    stays_for_an_immutable_tag(|manifest, _| index(&[manifest], "")).await;
}

/// One deletes an image while another pushes, as `v1`, what `pushed` makes of its digest and its JSON.
async fn stays_for_an_immutable_tag(pushed: impl Fn(&Digest, &str) -> String) {
    let Some((endpoint, _store)) = store().await else { return };
    for who_dies in [false, true] {
        let (proxy, slow, fast) = two(&endpoint, || immutable(hasty())).await;
        let (manifest, json) = fast.push_image("a", "other", "x").await;
        let pushed = pushed(&manifest, &json);
        let path = format!("/v2/a/manifests/{manifest}");
        let [mut going, mut coming] = [(); 2].map(|()| proxy.hold("PUT repositories/a/_manifests/"));
        let deleting = slow.delete(&path);
        futures::pin_mut!(deleting);
        comes(&mut going, deleting.as_mut()).await;
        expect(&fast.put_manifest("a", "v1", &pushed).await, 201);
        drop(going);
        comes(&mut coming, deleting.as_mut()).await;
        if who_dies {
            // Until the next collection, it is gone, and tags of its own lead nowhere.
            expect(&fast.get(&path).await, 404);
            assert!(pushed != json || !tag_is_there(&slow, &fast, "v1", &json).await);
            fast.registry.collect(hasty().collection, false).await.expect("collects");
        } else {
            drop(coming);
            expect(&deleting.await, 403);
        }
        expect(&fast.get(&path).await, 200);
        for (tag, content) in [("v1", &pushed), ("other", &json)] {
            assert!(tag_is_there(&slow, &fast, tag, content).await, "{tag}");
        }
        assert_eq!(tags(&fast).await, r#"["other","v1"]"#);
        expect(&fast.delete(&path).await, 403);
    }
}

#[tokio::test]
async fn a_layer_that_is_being_deleted_stays_for_an_immutable_tag_that_is_pushed_meanwhile() {
    let Some((endpoint, _store)) = store().await else { return };
    let (proxy, slow, fast) = two(&endpoint, || immutable(hasty())).await;
    let (_, json) = fast.push_image("a", "other", "x").await;
    let path = format!("/v2/a/blobs/{}", Digest::of(b"layer of x"));
    let mut going = proxy.hold("PUT registry/links/");
    let deleting = slow.delete(&path);
    futures::pin_mut!(deleting);
    comes(&mut going, deleting.as_mut()).await;
    expect(&fast.put_manifest("a", "v1", &json).await, 201);
    drop(going);
    expect(&deleting.await, 403);
    for server in [&slow, &fast] {
        expect(&server.get(&path).await, 200);
    }
    fast.registry.collect(hasty().collection, false).await.expect("collects");
    assert_eq!(fast.registry.verify(false).await.expect("reads").findings, []);
}

#[tokio::test]
async fn a_deletion_that_was_not_ended_is_ended_by_a_collection() {
    let Some((endpoint, _store)) = store().await else { return };
    let (proxy, slow, fast) = two(&endpoint, hasty).await;
    let (manifest, json) = fast.push_image("a", "x", "x").await;
    fast.push_image("a", "y", "y").await;
    let path = format!("/v2/a/manifests/{manifest}");
    let mut held = proxy.hold("PUT /_tags/x");
    let deleting = slow.delete(&path);
    futures::pin_mut!(deleting);
    comes(&mut held, deleting.as_mut()).await;
    assert!(!tag_is_there(&slow, &fast, "x", &json).await);
    let at_once = Rules { grace: Duration::ZERO, untagged: None };
    fast.registry.collect(at_once, false).await.expect("collects");
    assert_eq!(tags(&fast).await, r#"["y"]"#);
    assert_eq!(fast.registry.verify(false).await.expect("reads").findings, []);
    if std::env::var_os("CFC_TEST_OTHER_S3").is_none() {
        // Nothing is left of it.
        let place = fast.place().expect("a bucket");
        let left = keys(&endpoint, place).await;
        assert!(!left.iter().any(|key| key.starts_with("registry/deleting/")), "{left:?}");
    }
}

/// What happens while somebody who wants to be the first has not got to the store.
#[derive(Clone, Copy, Debug)]
enum Meanwhile {
    /// What he has seen of an earlier tag is forgotten.
    Forgotten,
    /// What he has seen of an earlier first is forgotten.
    FirstForgotten,
    /// Another tag comes and goes.
    CameAndWent,
}

/// Operators may make tags immutable that have been others', and change their minds.
#[tokio::test]
async fn of_two_who_put_an_immutable_tag_first_one_wins_whatever_was_there_before() {
    use Meanwhile::*;
    let Some((endpoint, _store)) = store().await else { return };
    for meanwhile in [Forgotten, FirstForgotten, CameAndWent] {
        let (proxy, slow, fast) = two(&endpoint, || immutable(crate::late::forgetful())).await;
        let free = Server::start_on(fast.place().expect("a bucket"), crate::late::forgetful()).await;
        let come_and_go = async |by: &Server| {
            by.push_image("a", "v1", "earlier").await;
            expect(&free.delete("/v2/a/manifests/v1").await, 202);
        };
        match meanwhile {
            Forgotten => come_and_go(&free).await,
            FirstForgotten => come_and_go(&fast).await,
            CameAndWent => {}
        }
        let config = fast.push_blob("a", b"{}").await;
        let layers = [fast.push_blob("a", b"one").await, fast.push_blob("a", b"two").await];
        let [one, two] = layers.each_ref().map(|layer| image(&config, &[layer], ""));
        let mut held = proxy.hold("PUT /_tags/v1");
        let pushing = slow.put_manifest("a", "v1", &one);
        futures::pin_mut!(pushing);
        comes(&mut held, pushing.as_mut()).await;
        match meanwhile {
            Forgotten | FirstForgotten => crate::late::forget(&fast).await,
            CameAndWent => come_and_go(&free).await,
        }
        expect(&fast.put_manifest("a", "v1", &two).await, 201);
        assert!(tag_is_there(&slow, &fast, "v1", &two).await, "{meanwhile:?}");
        drop(held);
        expect(&pushing.await, 403);
        crate::late::forget(&fast).await;
        assert!(tag_is_there(&slow, &fast, "v1", &two).await, "{meanwhile:?}");
        expect(&fast.put_manifest("a", "v1", &one).await, 403);
        expect(&slow.put_manifest("a", "v1", &two).await, 201);
    }
}

/// Its name has been used meanwhile, and what it named is gone.
#[tokio::test]
async fn a_first_that_comes_after_another_has_come_and_gone_is_there() {
    let Some((endpoint, _store)) = store().await else { return };
    let (proxy, slow, fast) = two(&endpoint, || immutable(hasty())).await;
    let free = Server::start_on(fast.place().expect("a bucket"), hasty()).await;
    let (_, json) = slow.push_image("a", "other", "x").await;
    let mut held = proxy.hold("PUT /_tags/v1");
    let pushing = slow.put_manifest("a", "v1", &json);
    futures::pin_mut!(pushing);
    comes(&mut held, pushing.as_mut()).await;
    fast.push_image("a", "v1", "y").await;
    expect(&free.delete("/v2/a/manifests/v1").await, 202);
    drop(held);
    expect(&pushing.await, 201);
    assert!(tag_is_there(&slow, &fast, "v1", &json).await);
}

/// A version that came so late that a collection took it for one that is gone, with what it had not seen.
#[tokio::test]
async fn a_tag_that_is_put_below_one_that_came_and_went_is_put_again() {
    let Some((endpoint, _store)) = store().await else { return };
    let (proxy, slow, fast) = two(&endpoint, crate::late::forgetful).await;
    let (_, json) = slow.push_image("a", "other", "x").await;
    let mut held = proxy.hold("PUT /_tags/x");
    let pushing = slow.put_manifest("a", "x", &json);
    futures::pin_mut!(pushing);
    comes(&mut held, pushing.as_mut()).await;
    for seed in ["y", "z"] {
        fast.push_image("a", "x", seed).await;
    }
    expect(&fast.delete("/v2/a/manifests/x").await, 202);
    // It is put, and its pusher is about to look whether it is the last.
    let mut looking = proxy.hold("GET _tags%2Fx");
    drop(held);
    comes(&mut looking, pushing.as_mut()).await;
    crate::late::forget(&fast).await;
    drop(looking);
    expect(&pushing.await, 201);
    assert!(tag_is_there(&slow, &fast, "x", &json).await);
}

#[tokio::test]
async fn a_list_of_referrers_has_what_is_there_though_replicas_push_and_delete_it_at_once() {
    let Some((endpoint, _store)) = store().await else { return };
    let (proxy, slow, fast) = two(&endpoint, hasty).await;
    let (subject, _) = fast.push_image("a", "subject", "x").await;
    let config = fast.push_blob("a", b"{}").await;
    let extra =
        format!(r#","subject":{{"mediaType":"{}","digest":"{subject}","size":1}}"#, cfc_oci::media_type::MANIFEST);
    let json = image(&config, &[], &extra);
    let referrer = Digest::of(json.as_bytes()).to_string();
    let path = format!("/v2/a/manifests/{referrer}");
    let listed = async || {
        let list = fast.get(&format!("/v2/a/referrers/{subject}")).await;
        let list: serde_json::Value = list.json().await.expect("JSON");
        list["manifests"].as_array().expect("a list").len()
    };
    // A deletion that has taken it off the list meets a push that finds the manifest.
    expect(&fast.put_manifest("a", &referrer, &json).await, 201);
    let mut held = proxy.hold("PUT /a/_manifests/");
    let deleting = slow.delete(&path);
    futures::pin_mut!(deleting);
    comes(&mut held, deleting.as_mut()).await;
    expect(&fast.put_manifest("a", &referrer, &json).await, 201);
    drop(held);
    expect(&deleting.await, 202);
    expect(&fast.get(&path).await, 404);
    assert_eq!(listed().await, 0);
    // A push that has put the manifest meets a deletion.
    let mut held = proxy.hold("PUT /_referrers/");
    let pushing = slow.put_manifest("a", &referrer, &json);
    futures::pin_mut!(pushing);
    comes(&mut held, pushing.as_mut()).await;
    expect(&fast.delete(&path).await, 202);
    drop(held);
    expect(&pushing.await, 201);
    expect(&fast.get(&path).await, 200);
    assert_eq!(listed().await, 1);
}

/// Who takes a tag away takes what he has seen, never what another replica has pushed since.
#[tokio::test]
async fn a_tag_that_is_pushed_while_another_replica_removes_it_stays() {
    let Some((endpoint, _store)) = store().await else { return };
    for remover in ["the tag", "its manifest", "retention"] {
        let retention = vec![RetentionRule {
            repositories: vec!["**".to_string()],
            tags: vec!["x".to_string()],
            keep_last: None,
            keep_younger: Some(Duration::ZERO),
            keep: Vec::new(),
        }];
        let (proxy, slow, fast) = two(&endpoint, || Options { retention: retention.clone(), ..hasty() }).await;
        let (before, _) = fast.push_image("a", "x", "before").await;
        let mut held = proxy.hold("DELETE /_tags/x");
        let removing = async {
            match remover {
                "the tag" => slow.delete("/v2/a/manifests/x").await.status().as_u16(),
                "its manifest" => slow.delete(&format!("/v2/a/manifests/{before}")).await.status().as_u16(),
                _ => 202 + u16::from(slow.registry.retain(false).await.expect("removes").len() != 1),
            }
        };
        futures::pin_mut!(removing);
        tokio::select! {
            () = held.arrives() => {}
            _ = &mut removing => panic!("{remover}: no tag was removed"),
        }
        let (after, json) = fast.push_image("a", "x", "after").await;
        drop(held);
        assert_eq!(removing.await, 202, "{remover}");
        for replica in [&slow, &fast] {
            let pulled = replica.get("/v2/a/manifests/x").await;
            expect(&pulled, 200);
            assert_eq!(pulled.text().await.expect("body"), json, "{remover}");
            let listed: serde_json::Value = replica.get("/v2/a/tags/list").await.json().await.expect("JSON");
            assert_eq!(listed["tags"], serde_json::json!(["x"]), "{remover}");
        }
        // It goes with its manifest, so that is noted.
        expect(&slow.delete(&format!("/v2/a/manifests/{after}")).await, 202);
        expect(&fast.get("/v2/a/manifests/x").await, 404);
        assert_eq!(fast.registry.verify(false).await.expect("reads").findings, [], "{remover}");
    }
}

/// Pushers and removers of one tag on two replicas, all the time: after a push whose tag nobody has removed since, the tag
/// is there.
#[tokio::test]
async fn a_tag_that_many_push_and_remove_is_what_was_pushed_last() {
    let Some((endpoint, _store)) = store().await else { return };
    let place = place(&endpoint);
    let replicas =
        [Server::start_on(&place, Options::default()).await, Server::start_on(&place, Options::default()).await];
    let mut manifests = Vec::new();
    for seed in ["one", "two", "three", "four"] {
        manifests.push(replicas[0].push_image("a", seed, seed).await.1);
    }
    for round in 0..6 {
        let push = async |number: usize| {
            expect(&replicas[number % 2].put_manifest("a", "x", &manifests[number]).await, 201);
        };
        let remove = async |number: usize| {
            let status = replicas[number % 2].delete("/v2/a/manifests/x").await.status().as_u16();
            assert!([202, 404].contains(&status), "{status}");
        };
        futures::join!(push(0), remove(0), push(1), remove(1), push(2), remove(2));
        let (last, other) = (&manifests[3], &replicas[round % 2]);
        expect(&other.put_manifest("a", "x", last).await, 201);
        for replica in &replicas {
            assert_eq!(&replica.get("/v2/a/manifests/x").await.text().await.expect("body"), last);
        }
    }
    let listed: serde_json::Value = replicas[0].get("/v2/a/tags/list").await.json().await.expect("JSON");
    assert_eq!(listed["tags"], serde_json::json!(["four", "one", "three", "two", "x"]));
    // Nothing stays of what was replaced.
    if std::env::var_os("CFC_TEST_OTHER_S3").is_none() {
        let versions = keys(&endpoint, &place).await.into_iter().filter(|key| key.contains("/_tags/x")).count();
        assert_eq!(versions, 1);
    }
}

/// Tags as registries wrote them that had one object for each.
#[tokio::test]
async fn tags_of_earlier_registries_are_read_replaced_and_removed() {
    // Changes the bucket with a signature that is none, which only moto allows.
    let Some(moto) = Moto::start().await else { return };
    let (endpoint, place) = (moto.endpoint(), place(&moto.endpoint()));
    let immutable_tags = vec!["a:v1".to_string()];
    let retention = vec![RetentionRule {
        repositories: vec!["a".to_string()],
        tags: vec!["old*".to_string()],
        keep_last: None,
        keep_younger: Some(Duration::ZERO),
        keep: Vec::new(),
    }];
    let options = Options { immutable_tags, retention, ..hasty() };
    let server = Server::start_on(&place, options).await;
    let (digest, json) = server.push_image("a", "new", "x").await;
    let (_, other) = server.push_image("a", "other", "y").await;
    let store = reqwest::Client::builder().no_proxy().build().expect("client");
    let tags = format!("{endpoint}/{}/{}registry/repositories/a", place.bucket, place.prefix);
    let descriptor =
        format!(r#"{{"mediaType":"{}","digest":"{digest}","size":{}}}"#, cfc_oci::media_type::MANIFEST, json.len());
    for tag in ["b", "b-1", "gone", "old", "v1"] {
        expect(&send(store.put(format!("{tags}/_tags/{tag}")).body(descriptor.clone())).await, 200);
        let note = format!("{tags}/_tagged/sha256/{}/{tag}", digest.hex());
        expect(&send(store.put(note).body("")).await, 200);
    }
    let listed = async |path: &str| {
        let listed: serde_json::Value = server.get(path).await.json().await.expect("JSON");
        listed["tags"].as_array().expect("a list").iter().map(|tag| tag.as_str().unwrap_or("?").to_string()).collect()
    };
    let all: Vec<String> = listed("/v2/a/tags/list").await;
    assert_eq!(all.join(" "), "b b-1 gone new old other v1");
    assert_eq!(server.get("/v2/a/manifests/b").await.text().await.expect("body"), json);
    expect(&server.put_manifest("a", "v1", &other).await, 403);
    expect(&server.put_manifest("a", "v1", &json).await, 201);
    expect(&server.put_manifest("a", "b", &other).await, 201);
    assert_eq!(server.get("/v2/a/manifests/b").await.text().await.expect("body"), other);
    let all: Vec<String> = listed("/v2/a/tags/list?n=3&last=b").await;
    assert_eq!(all.join(" "), "b-1 gone new");
    expect(&server.delete("/v2/a/manifests/gone").await, 202);
    expect(&server.get("/v2/a/manifests/gone").await, 404);
    let retired = server.registry.retain(false).await.expect("removes");
    assert_eq!(retired.iter().map(|tag| tag.tag.as_str()).collect::<Vec<_>>(), ["old"]);
    let all: Vec<String> = listed("/v2/a/tags/list").await;
    assert_eq!(all.join(" "), "b b-1 new other v1");
    assert_eq!(server.registry.verify(false).await.expect("reads").findings, []);
    // What a tag pointed at before is not kept by it.
    let rules = Rules { grace: Duration::from_secs(1800), untagged: Some(Duration::ZERO) };
    assert_eq!(server.registry.collect(rules, false).await.expect("collects").manifests, 0);
}
