//! Pushes and pulls against a registry that we did not write.
#![allow(clippy::print_stdout, reason = "a test says why it is skipped")]

mod peers;

use std::collections::HashMap;
use std::sync::Mutex;

use cfc_oci::{Descriptor, Digest, Index, Platform, media_type};
use cfc_transfer::{Credentials, NoProgress, Options, Outcome, Progress, TransferErrorKind, pull, push};
use peers::{BreakingLine, Peer, image, options, put, reference, temporary_store};

/// Counts how blobs came to be where they should be.
#[derive(Default)]
struct Tally(Mutex<HashMap<Digest, Outcome>>);

impl Progress for Tally {
    fn blob_started(&self, _blob: &Descriptor) {}
    fn blob_advanced(&self, _digest: &Digest, _bytes: u64) {}
    fn blob_finished(&self, digest: &Digest, outcome: Outcome) {
        self.0.lock().expect("not poisoned").insert(digest.clone(), outcome);
    }
}

impl Tally {
    fn count(&self, wanted: Outcome) -> usize {
        self.0.lock().expect("not poisoned").values().filter(|outcome| **outcome == wanted).count()
    }
}

#[tokio::test]
async fn what_is_pushed_can_be_pulled() {
    let Some(peer) = Peer::start() else { return };
    let (_directory, store) = temporary_store();
    let pushed = image(&store, &[10, 3_000_000, 100]);
    let name = reference(&format!("{}/team/app:v1", peer.address));
    let digest = push(&store, &pushed, &name, &options(), &NoProgress).await.expect("pushed");
    assert_eq!(digest, pushed.digest);
    let (_other_directory, other) = temporary_store();
    let pulled = pull(&other, &name, &options(), &NoProgress).await.expect("pulled");
    assert_eq!(pulled, pushed);
    assert_eq!(other.images().resolve(&name).expect("read"), Some(pushed.clone()));
    let loaded = other.images().load(&pulled).expect("loaded");
    assert_eq!(other.unpack_image(&loaded).expect("unpacked").len(), 3);
    let by_digest = reference(&format!("{}/team/app@{}", peer.address, pushed.digest));
    assert_eq!(pull(&other, &by_digest, &options(), &NoProgress).await.expect("pulled"), pushed);
}

#[tokio::test]
async fn only_what_the_registry_lacks_is_uploaded() {
    let Some(peer) = Peer::start() else { return };
    let (_directory, store) = temporary_store();
    let name = reference(&format!("{}/app:v1", peer.address));
    let first = Tally::default();
    push(&store, &image(&store, &[1000, 2000]), &name, &options(), &first).await.expect("pushed");
    // Two layers, config and manifest.
    assert_eq!((first.count(Outcome::Uploaded), first.count(Outcome::Existed)), (4, 0));
    let second = Tally::default();
    push(&store, &image(&store, &[1000, 2000, 3000]), &name, &options(), &second).await.expect("pushed");
    assert_eq!((second.count(Outcome::Uploaded), second.count(Outcome::Existed)), (3, 2));
    let elsewhere = reference(&format!("{}/other:v1", peer.address));
    let from_app = Options { mount_from: Some("app".parse().expect("well-formed")), ..options() };
    let third = Tally::default();
    push(&store, &image(&store, &[1000, 2000]), &elsewhere, &from_app, &third).await.expect("pushed");
    assert_eq!((third.count(Outcome::Mounted), third.count(Outcome::Uploaded)), (3, 1));
}

#[tokio::test]
async fn an_index_is_pushed_whole_and_pulled_for_one_platform() {
    let Some(peer) = Peer::start() else { return };
    let (_directory, store) = temporary_store();
    let ours = Descriptor { platform: Some(Platform::host()), ..image(&store, &[10]) };
    let foreign = Descriptor { platform: Some(Platform::new("linux", "s390x")), ..image(&store, &[20]) };
    let index = put(&store, media_type::INDEX, &Index::new(vec![foreign, ours.clone()]).to_bytes());
    let name = reference(&format!("{}/app", peer.address));
    push(&store, &index, &name, &options(), &NoProgress).await.expect("pushed");
    let (_other_directory, other) = temporary_store();
    let pulled = pull(&other, &name, &options(), &NoProgress).await.expect("pulled");
    assert_eq!(pulled.digest, ours.digest);
    let wanted = Options { platform: Some(Platform::new("linux", "riscv64")), ..options() };
    let error = pull(&other, &name, &wanted, &NoProgress).await.expect_err("no such platform");
    assert!(error.kind.to_string().contains("linux/s390x"), "{}", error.kind);
}

#[tokio::test]
async fn chunks_are_as_small_as_wanted() {
    let Some(peer) = Peer::start() else { return };
    let (_directory, store) = temporary_store();
    let pushed = image(&store, &[1_000_000]);
    let name = reference(&format!("{}/app:v1", peer.address));
    let in_chunks = Options { chunk_bytes: Some(100_000), ..options() };
    push(&store, &pushed, &name, &in_chunks, &NoProgress).await.expect("pushed");
    let (_other_directory, other) = temporary_store();
    assert_eq!(pull(&other, &name, &options(), &NoProgress).await.expect("pulled"), pushed);
}

/// This registry refuses to go on with an upload whose connection broke, so it starts over.
#[tokio::test]
async fn an_interrupted_upload_is_repeated() {
    let Some(peer) = Peer::start() else { return };
    let line = BreakingLine::start(&peer.address, 5_000_000, i64::MAX).await;
    let (_directory, store) = temporary_store();
    let pushed = image(&store, &[9_000_000]);
    let name = reference(&format!("{}/app:v1", line.address));
    push(&store, &pushed, &name, &options(), &NoProgress).await.expect("pushed");
    assert_eq!(line.breaks(), 1);
    let (_other_directory, other) = temporary_store();
    let directly = reference(&format!("{}/app:v1", peer.address));
    assert_eq!(pull(&other, &directly, &options(), &NoProgress).await.expect("pulled"), pushed);
}

#[tokio::test]
async fn an_interrupted_download_goes_on() {
    let Some(peer) = Peer::start() else { return };
    let (_directory, store) = temporary_store();
    let pushed = image(&store, &[9_000_000]);
    push(&store, &pushed, &reference(&format!("{}/app:v1", peer.address)), &options(), &NoProgress)
        .await
        .expect("pushed");
    let line = BreakingLine::start(&peer.address, i64::MAX, 5_000_000).await;
    let (_other_directory, other) = temporary_store();
    let name = reference(&format!("{}/app:v1", line.address));
    assert_eq!(pull(&other, &name, &options(), &NoProgress).await.expect("pulled"), pushed);
    assert_eq!(line.breaks(), 1);
}

#[tokio::test]
async fn a_password_is_given_when_asked_for() {
    let Some(peer) = Peer::start_with_password() else { return };
    let (_directory, store) = temporary_store();
    let pushed = image(&store, &[10, 20]);
    let name = reference(&format!("{}/app:v1", peer.address));
    let error = push(&store, &pushed, &name, &options(), &NoProgress).await.expect_err("nobody");
    assert!(matches!(error.kind, TransferErrorKind::Unauthorized { .. }), "{}", error.kind);
    assert!(error.kind.hint().is_some());
    let password = |password: &str| Credentials::Password { username: "user".into(), password: password.into() };
    let wrong = Options { credentials: password("wrong"), ..options() };
    let error = push(&store, &pushed, &name, &wrong, &NoProgress).await.expect_err("a wrong password");
    assert!(matches!(error.kind, TransferErrorKind::Unauthorized { .. }), "{}", error.kind);
    let right = Options { credentials: password("pass"), ..options() };
    push(&store, &pushed, &name, &right, &NoProgress).await.expect("pushed");
    let (_other_directory, other) = temporary_store();
    assert_eq!(pull(&other, &name, &right, &NoProgress).await.expect("pulled"), pushed);
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let Some(peer) = Peer::start() else { return };
    let (_directory, store) = temporary_store();
    let name = reference(&format!("{}/nothing:v9", peer.address));
    let error = pull(&store, &name, &options(), &NoProgress).await.expect_err("nothing there");
    assert!(matches!(error.kind, TransferErrorKind::NotFound { .. }), "{}", error.kind);
    assert!(error.kind.to_string().contains("`v9`") && error.kind.to_string().contains("`nothing`"), "{}", error.kind);
}

#[tokio::test]
async fn skopeo_reads_what_we_push() {
    let Some(peer) = Peer::start() else { return };
    let (directory, store) = temporary_store();
    let pushed = image(&store, &[10, 3_000_000]);
    push(&store, &pushed, &reference(&format!("{}/app:v1", peer.address)), &options(), &NoProgress)
        .await
        .expect("pushed");
    let target = format!("oci:{}:v1", directory.path().join("copy").display());
    let source = format!("docker://{}/app:v1", peer.address);
    let arguments = ["--insecure-policy", "copy", "--src-tls-verify=false", &source, &target];
    let Ok(output) = tokio::process::Command::new("skopeo").args(arguments).output().await else {
        println!("skipped: skopeo is not installed");
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (_other_directory, other) = temporary_store();
    let imported = other.import_oci_layout(&directory.path().join("copy"), Some("v1")).expect("imported");
    assert_eq!(imported.digest, pushed.digest);
}
