//! Registries that lie, leak, loop or forget.
#![allow(clippy::print_stdout, reason = "a test says why it is skipped")]

mod peers;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cfc_oci::{Digest, media_type};
use cfc_transfer::{Credentials, NoProgress, Options, TransferErrorKind, pull, push};
use peers::{image, options, reference, scripted, temporary_store};

fn manifest_header() -> String {
    format!("content-type: {}\r\n", media_type::MANIFEST)
}

/// An image as a scripted registry serves it: manifest, config.
fn small_image() -> (Vec<u8>, Vec<u8>) {
    let config = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#.to_vec();
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","config":{{"mediaType":"{}","digest":"{}","size":{}}},"layers":[]}}"#,
        media_type::MANIFEST,
        media_type::CONFIG,
        Digest::of(&config),
        config.len()
    );
    (manifest.into_bytes(), config)
}

async fn pull_error(address: &str) -> String {
    let (_directory, store) = temporary_store();
    let name = reference(&format!("{address}/app:v1"));
    let error = pull(&store, &name, &options(), &NoProgress).await.expect_err("refused");
    assert!(error.to_string().contains(address), "{error}");
    assert_eq!(store.images().resolve(&name).expect("read"), None);
    error.kind.to_string()
}

#[tokio::test]
async fn a_token_service_is_asked_once_and_with_the_password() {
    let asked = std::sync::Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    let address = scripted(move |own, request| {
        let (manifest, config) = small_image();
        if request.line.contains("/token?") {
            counter.fetch_add(1, Ordering::SeqCst);
            let has_scope =
                request.line.contains("scope=repository%3Aapp%3Apull") && request.line.contains("service=the+service");
            // user:pass
            let has_password = request.headers.contains("authorization: basic dxnlcjpwyxnz");
            return match has_scope && has_password {
                true => (200, String::new(), br#"{"access_token":"good","expires_in":300}"#.to_vec()),
                false => (401, String::new(), Vec::new()),
            };
        }
        if !request.headers.contains("authorization: bearer good") {
            let challenge =
                format!("www-authenticate: Bearer realm=\"http://{own}/token\",service=\"the service\"\r\n");
            return (401, challenge, Vec::new());
        }
        match request.line.contains("/manifests/") {
            true => (200, manifest_header(), manifest),
            false => (200, String::new(), config),
        }
    })
    .await;
    let (_directory, store) = temporary_store();
    let credentials = Credentials::Password { username: "user".into(), password: "pass".into() };
    let name = reference(&format!("{address}/app:v1"));
    pull(&store, &name, &Options { credentials, ..options() }, &NoProgress).await.expect("pulled");
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    let error = pull(&temporary_store().1, &name, &options(), &NoProgress).await.expect_err("nobody");
    assert!(matches!(error.kind, TransferErrorKind::Unauthorized { .. }), "{}", error.kind);
}

#[tokio::test]
async fn other_bytes_than_promised_are_refused() {
    let address = scripted(|_, request| match request.line.contains("/manifests/") {
        true => (200, manifest_header(), small_image().0),
        false => (200, String::new(), vec![b'x'; small_image().1.len()]),
    })
    .await;
    assert!(pull_error(&address).await.contains("cannot store blob"));
    let address = scripted(|_, request| match request.line.contains("/manifests/") {
        true => (200, manifest_header(), small_image().0),
        false => (200, String::new(), vec![b'x'; 1 << 20]),
    })
    .await;
    assert!(pull_error(&address).await.contains("more than"));
    let address = scripted(|_, _| {
        let header = format!("{}docker-content-digest: {}\r\n", manifest_header(), Digest::of(b"other"));
        (200, header, small_image().0)
    })
    .await;
    assert!(pull_error(&address).await.contains("hash to"));
}

#[tokio::test]
async fn a_manifest_that_is_too_large_or_nonsense_is_refused() {
    let address = scripted(|_, _| (200, manifest_header(), vec![b' '; 20 << 20])).await;
    assert!(pull_error(&address).await.contains("larger than"));
    let address = scripted(|_, _| (200, "content-type: text/html\r\n".into(), b"<html>".to_vec())).await;
    assert!(pull_error(&address).await.contains("malformed manifest"));
    let loops = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{}","digest":"{}","size":1,"platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#,
        media_type::INDEX,
        Digest::of(b"x")
    );
    let address =
        scripted(move |_, _| (200, format!("content-type: {}\r\n", media_type::INDEX), loops.clone().into_bytes()))
            .await;
    // The nested one is fetched by its digest, which the same bytes cannot have.
    assert!(!pull_error(&address).await.is_empty());
}

#[tokio::test]
async fn a_busy_registry_is_asked_again_and_its_wish_respected() {
    let asked = std::sync::Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    let address = scripted(move |_, request| {
        if counter.fetch_add(1, Ordering::SeqCst) == 0 {
            return (429, "retry-after: 1\r\n".to_string(), Vec::new());
        }
        match request.line.contains("/manifests/") {
            true => (200, manifest_header(), small_image().0),
            false => (200, String::new(), small_image().1),
        }
    })
    .await;
    let (_directory, store) = temporary_store();
    let start = Instant::now();
    pull(&store, &reference(&format!("{address}/app:v1")), &options(), &NoProgress).await.expect("pulled");
    assert!(start.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn a_broken_registry_is_given_up_on() {
    let address =
        scripted(|_, _| (500, String::new(), br#"{"errors":[{"code":"UNKNOWN","message":"disk full"}]}"#.to_vec()))
            .await;
    let text = pull_error(&address).await;
    assert!(text.contains("500") && text.contains("UNKNOWN: disk full"), "{text}");
    let (_directory, store) = temporary_store();
    let pushed = image(&store, &[10]);
    let error = push(&store, &pushed, &reference(&format!("{address}/app:v1")), &options(), &NoProgress)
        .await
        .expect_err("refused");
    assert!(error.kind.to_string().contains("500"), "{}", error.kind);
}

#[tokio::test]
async fn no_registry_at_all_is_said_at_once() {
    let start = Instant::now();
    let (_directory, store) = temporary_store();
    let error =
        pull(&store, &reference("127.0.0.1:1/app:v1"), &Options::default(), &NoProgress).await.expect_err("refused");
    assert!(matches!(error.kind, TransferErrorKind::Unreachable { .. }), "{}", error.kind);
    assert!(error.kind.to_string().contains("127.0.0.1:1"), "{}", error.kind);
    assert!(start.elapsed() < Duration::from_secs(2));
    let error = pull(&store, &reference("app:v1"), &options(), &NoProgress).await.expect_err("refused");
    assert!(matches!(error.kind, TransferErrorKind::NoRegistry), "{}", error.kind);
}

#[tokio::test]
async fn credentials_go_nowhere_else() {
    let leaked = std::sync::Arc::new(AtomicUsize::new(0));
    let counter = leaked.clone();
    let elsewhere = scripted(move |_, request| {
        counter.fetch_add(usize::from(request.headers.contains("authorization:")), Ordering::SeqCst);
        (202, "location: /continue\r\n".to_string(), Vec::new())
    })
    .await;
    let target = elsewhere.clone();
    let address = scripted(move |_, request| {
        let has_proof = request.headers.contains("authorization: basic");
        match request.line.split(' ').next() {
            _ if !has_proof => (401, "www-authenticate: Basic realm=\"x\"\r\n".to_string(), Vec::new()),
            Some("HEAD") => (404, String::new(), Vec::new()),
            _ => (202, format!("location: http://{target}/upload\r\n"), Vec::new()),
        }
    })
    .await;
    let (_directory, store) = temporary_store();
    let credentials = Credentials::Password { username: "user".into(), password: "pass".into() };
    let wanted = Options { credentials, retries: 0, ..options() };
    let pushed = image(&store, &[10]);
    let _ = push(&store, &pushed, &reference(&format!("{address}/app:v1")), &wanted, &NoProgress).await;
    assert_eq!(leaked.load(Ordering::SeqCst), 0);
}
