//! What survives: restarts, clients that vanish, stale sessions.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use cfc_oci::Digest;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::harness::{Server, expect, header, image, noise, send};
use crate::process::Process;

#[tokio::test]
async fn an_upload_goes_on_after_a_restart() {
    let mut server = Server::start().await;
    let content = noise(1_000_000, 1);
    let upload = server.begin("a/b").await;
    let mut sent = 0;
    for chunk in [1, 63, 64, 999, 300_000] {
        let range = format!("{sent}-{}", sent + chunk - 1);
        let request = server.request("PATCH", &upload).header("content-range", range);
        expect(&send(request.body(content[sent..sent + chunk].to_vec())).await, 202);
        sent += chunk;
        server = server.restart().await;
        let status = server.get(&upload).await;
        expect(&status, 204);
        assert_eq!(header(&status, "range"), format!("0-{}", sent - 1));
    }
    let digest = Digest::of(&content);
    let request = server.request("PUT", &format!("{upload}?digest={digest}"));
    expect(&send(request.body(content[sent..].to_vec())).await, 201);
    let pulled = server.get(&format!("/v2/a/b/blobs/{digest}")).await.bytes().await.expect("body");
    assert!(pulled == content);
}

#[tokio::test]
async fn an_upload_whose_saved_hash_is_lost_or_torn_is_hashed_again() {
    if crate::store::skips("an upload whose saved hash is lost or torn is hashed again") {
        return;
    }
    for damage in ["removed", "torn", "behind"] {
        let server = Server::start().await;
        let content = noise(100_000, 2);
        let upload = server.begin("a").await;
        expect(&send(server.request("PATCH", &upload).body(content[..30_000].to_vec())).await, 202);
        let id = upload.rsplit('/').next().expect("id");
        let hash = server.root().join(format!("registry/uploads/{id}.hash"));
        let saved = std::fs::read(&hash).expect("a saved hash");
        expect(&send(server.request("PATCH", &upload).body(content[30_000..60_000].to_vec())).await, 202);
        match damage {
            "removed" => std::fs::remove_file(&hash).expect("removes"),
            "torn" => std::fs::write(&hash, &saved[..saved.len() / 2]).expect("writes"),
            _ => std::fs::write(&hash, &saved).expect("writes"),
        }
        let server = server.restart().await;
        let digest = Digest::of(&content);
        let request = server.request("PUT", &format!("{upload}?digest={digest}"));
        expect(&send(request.body(content[60_000..].to_vec())).await, 201);
    }
}

/// Sends the head of a PATCH and `part` of its body, then vanishes.
async fn vanish(server: &Server, upload: &str, headers: &str, part: &[u8]) {
    let mut stream = TcpStream::connect(server.address).await.expect("connects");
    let head = format!("PATCH {upload} HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).await.expect("sends");
    stream.write_all(part).await.expect("sends");
    stream.flush().await.expect("sends");
    // The bytes must have arrived, or there is nothing to keep.
    let id = upload.rsplit('/').next().expect("id");
    let data = server.root().join(format!("registry/uploads/{id}.data"));
    for _ in 0..200 {
        if data.metadata().is_ok_and(|metadata| metadata.len() >= 5000) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_stream_that_breaks_off_goes_on_where_it_broke() {
    let server = Server::start().await;
    let content = noise(20_000, 3);
    let upload = server.begin("a").await;
    vanish(&server, &upload, "content-length: 20000\r\n", &content[..5000]).await;
    // A bucket is told of it by nobody who waits for the answer.
    let kept = async {
        while header(&server.get(&upload).await, "range") != "0-4999" {
            assert!(crate::store::endpoint().is_some(), "a directory's status waits for what has arrived");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), kept).await.expect("it is kept");
    let digest = Digest::of(&content);
    let request = server.request("PUT", &format!("{upload}?digest={digest}")).header("content-range", "5000-19999");
    expect(&send(request.body(content[5000..].to_vec())).await, 201);
}

#[tokio::test]
async fn a_chunk_that_breaks_off_is_sent_again_whole() {
    let server = Server::start().await;
    let content = noise(20_000, 4);
    let upload = server.begin("a").await;
    let headers = "content-range: 0-19999\r\ncontent-length: 20000\r\n";
    vanish(&server, &upload, headers, &content[..5000]).await;
    let request = server.request("PATCH", &upload).header("content-range", "0-19999");
    expect(&send(request.body(content.clone())).await, 202);
    let digest = Digest::of(&content);
    expect(&send(server.request("PUT", &format!("{upload}?digest={digest}"))).await, 201);
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let server = Server::start().await;
    let (digest, json) = server.push_image("a/b", "latest", "x").await;
    let server = server.restart().await;
    let response = server.get("/v2/a/b/manifests/latest").await;
    assert_eq!(header(&response, "docker-content-digest"), digest.to_string());
    assert_eq!(response.text().await.expect("body"), json);
    let layer = Digest::of(b"layer of x");
    expect(&server.get(&format!("/v2/a/b/blobs/{layer}")).await, 200);
    if crate::store::skips("a blob is a file") {
        return;
    }
    let path = server.registry.blob_path(&layer).expect("a file");
    assert_eq!(std::fs::read(path).expect("reads"), b"layer of x");
    assert_eq!(server.registry.blob_path(&Digest::of(b"missing")), None);
}

#[tokio::test]
async fn stale_uploads_are_swept_at_the_start_and_others_stay() {
    if crate::store::skips("stale uploads are swept at the start and others stay") {
        return;
    }
    let server = Server::start().await;
    let (stale, fresh) = (server.begin("a").await, server.begin("a").await);
    for upload in [&stale, &fresh] {
        expect(&send(server.request("PATCH", upload).body("x")).await, 202);
    }
    let id = stale.rsplit('/').next().expect("id");
    let data = server.root().join(format!("registry/uploads/{id}.data"));
    let yesterday = SystemTime::now() - Duration::from_secs(25 * 60 * 60);
    let file = std::fs::File::options().write(true).open(&data).expect("opens");
    file.set_modified(yesterday).expect("sets the time");
    let server = server.restart().await;
    expect(&server.get(&stale).await, 404);
    expect(&server.get(&fresh).await, 204);
    let left = std::fs::read_dir(server.root().join("registry/uploads")).expect("directory").count();
    assert_eq!(left, 3, "files of the swept upload are left");
}

#[tokio::test]
async fn uploads_at_once_do_not_disturb_each_other() {
    let server = Server::start().await;
    let contents: Vec<Vec<u8>> = (0..8).map(|seed| noise(200_000, seed % 4)).collect();
    futures::future::join_all(contents.iter().map(|content| server.push_blob("a", content))).await;
    let blobs = contents.iter().map(|content| async {
        let path = format!("/v2/a/blobs/{}", Digest::of(content));
        server.get(&path).await.bytes().await.expect("body") == *content
    });
    assert!(futures::future::join_all(blobs).await.into_iter().all(|same| same));
}

#[tokio::test]
async fn two_writers_of_one_upload_cannot_mix_their_bytes() {
    let server = Server::start().await;
    let upload = server.begin("a").await;
    let chunk = |byte: u8| {
        let request = server.request("PATCH", &upload).header("content-range", "0-99999");
        send(request.body(vec![byte; 100_000]))
    };
    let (one, two) = futures::join!(chunk(1), chunk(2));
    let mut statuses = [one.status().as_u16(), two.status().as_u16()];
    statuses.sort_unstable();
    // In a bucket, nobody waits for the other: who is second is told to come back.
    let second = if crate::store::endpoint().is_some() { 416..=429 } else { 416..=416 };
    assert!(statuses[0] == 202 && second.contains(&statuses[1]), "{statuses:?}");
    let winner = if one.status() == 202 { 1 } else { 2 };
    let digest = Digest::of(&vec![winner; 100_000]);
    expect(&send(server.request("PUT", &format!("{upload}?digest={digest}"))).await, 201);
}

#[tokio::test]
async fn an_upload_survives_kill_9() {
    if crate::store::skips("an upload survives kill 9") {
        return;
    }
    let directory = tempfile::TempDir::new().expect("temporary directory");
    let content = noise(3_000_000, 5);
    let digest = Digest::of(&content);

    let process = Process::start(directory.path()).await;
    let response = process.send("POST", "/v2/a/blobs/uploads/", &[], b"").await;
    let upload = header(&response, "location");
    expect(&process.send("PATCH", &upload, &[("content-range", "0-999999")], &content[..1_000_000]).await, 202);
    // The second chunk is on its way when the process is killed.
    let mut stream = TcpStream::connect(&process.address).await.expect("connects");
    let head = format!("PATCH {upload} HTTP/1.1\r\nhost: x\r\ncontent-length: 2000000\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("sends");
    stream.write_all(&content[1_000_000..1_500_000]).await.expect("sends");
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(process);

    let process = Process::start(directory.path()).await;
    let status = process.send("GET", &upload, &[], b"").await;
    expect(&status, 204);
    let received = header(&status, "range");
    let last: usize = received.strip_prefix("0-").and_then(|last| last.parse().ok()).expect("a range");
    assert!((999_999..1_500_000).contains(&last), "what was acknowledged is lost: {received}");
    let next = format!("{}-2999999", last + 1);
    expect(&process.send("PATCH", &upload, &[("content-range", &next)], &content[last + 1..]).await, 202);
    drop(process);

    let process = Process::start(directory.path()).await;
    expect(&process.send("PUT", &format!("{upload}?digest={digest}"), &[], b"").await, 201);
    drop(process);

    let process = Process::start(directory.path()).await;
    let pulled = process.send("GET", &format!("/v2/a/blobs/{digest}"), &[], b"").await;
    assert!(pulled.bytes().await.expect("body") == content, "the bytes differ");
}

/// What is on the disk of a registry: what the power being cut would leave.
fn cut(disk: &Path, directory: &Path, number: usize) -> PathBuf {
    let copy = directory.join(format!("cut{number}"));
    std::fs::copy(disk, &copy).expect("copies");
    copy
}

/// A request with the status that answers it, and the status that its proof is answered with from then on.
struct Step<'a> {
    request: (&'a str, String),
    headers: &'a [(&'a str, &'a str)],
    body: &'a [u8],
    status: u16,
    proof: (String, u16),
}

#[tokio::test]
async fn what_was_acknowledged_is_on_the_disk_when_the_power_is_cut() {
    if crate::store::skips("what was acknowledged is on the disk when the power is cut") {
        return;
    }
    let directory = tempfile::TempDir::new().expect("temporary directory");
    let Some(process) = Process::start_with_little_ext4(directory.path()).await else { return };
    let disk = directory.path().join("image");
    let (config, layer, chunk) = (b"{}".to_vec(), noise(200_000, 1), noise(300_000, 2));
    let digest = |content: &[u8]| Digest::of(content);
    let json = image(&digest(&config), &[&digest(&layer)], "");
    let manifest = digest(json.as_bytes());
    let push = |name: &str, content: &[u8]| format!("/v2/{name}/blobs/uploads/?digest={}", digest(content));
    let headers = [("content-type", cfc_oci::media_type::MANIFEST)];
    let range = [("content-range", "0-299999")];
    let mount = format!("/v2/other/blobs/uploads/?mount={}&from=a", digest(&layer));
    let upload = header(&process.send("POST", "/v2/a/blobs/uploads/", &[], b"").await, "location");
    let ended = format!("{upload}?digest={}", digest(&chunk));
    let blob = |name: &str, content: &[u8]| format!("/v2/{name}/blobs/{}", digest(content));
    let step = |method, path: String, headers, body, status, proof: (String, u16)| Step {
        request: (method, path),
        headers,
        body,
        status,
        proof,
    };
    let (tag, by_digest) = ("/v2/a/manifests/v1".to_string(), format!("/v2/a/manifests/{manifest}"));
    let steps = [
        step("POST", push("a", &config), &[], &config[..], 201, (blob("a", &config), 200)),
        step("POST", push("a", &layer), &[], &layer, 201, (blob("a", &layer), 200)),
        step("PUT", tag.clone(), &headers, json.as_bytes(), 201, (tag.clone(), 200)),
        step("PATCH", upload.clone(), &range, &chunk, 202, (upload.clone(), 204)),
        step("PUT", ended, &[], b"", 201, (blob("a", &chunk), 200)),
        step("POST", mount, &[], b"", 201, (blob("other", &layer), 200)),
        step("DELETE", tag.clone(), &[], b"", 202, (tag, 404)),
        step("DELETE", by_digest.clone(), &[], b"", 202, (by_digest, 404)),
    ];
    let mut cuts = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        let (method, path) = &step.request;
        let answer = process.send(method, path, step.headers, step.body).await;
        assert_eq!(answer.status(), step.status, "{method} {path}");
        cuts.push(cut(&disk, directory.path(), number));
    }
    drop(process);
    for (number, copy) in cuts.iter().enumerate() {
        let place = tempfile::TempDir::new().expect("temporary directory");
        let process = Process::start_with_copy(copy, place.path()).await.expect("the registry starts");
        let Step { request: (method, path), proof: (proof, status), .. } = &steps[number];
        let answer = process.send("GET", proof, &[], b"").await;
        assert_eq!(answer.status(), *status, "after {method} {path}");
        if *status == 204 {
            assert_eq!(header(&answer, "range"), "0-299999");
        }
        // All that was there before, too, and whole.
        for (content, since) in [(&config, 0), (&layer, 1), (&chunk, 4)] {
            if number >= since {
                let pulled = process.send("GET", &blob("a", content), &[], b"").await;
                assert!(pulled.bytes().await.expect("body") == content[..], "after {method} {path}");
            }
        }
    }
}
