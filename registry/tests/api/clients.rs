//! Real clients: what one pushes, the others pull, byte for byte.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use cfc_oci::{Descriptor, Digest, ImageConfig, Manifest, media_type};
use tempfile::TempDir;

use crate::harness::{Server, expect, header};

/// Runs a client without blocking the registry's threads; `None` and a note when the machine does not have it.
pub async fn run(directory: &Path, program: &str, arguments: &[&str]) -> Option<Output> {
    let credentials = directory.join("auth.json");
    std::fs::write(&credentials, "{}").expect("writes");
    let mut command = Command::new(program);
    command.args(arguments).env("HOME", directory).env("XDG_RUNTIME_DIR", directory).env("TMPDIR", directory);
    command.env("REGISTRY_AUTH_FILE", credentials).current_dir(directory);
    match tokio::task::spawn_blocking(move || command.output()).await.expect("runs") {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: `{program}` is not installed");
            None
        }
        Err(error) => panic!("cannot run {program}: {error}"),
    }
}

#[track_caller]
fn succeeded(output: &Output) -> String {
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}{stderr}");
    stdout.into_owned()
}

/// An OCI layout with one small image, tagged `latest`.
pub fn write_layout(directory: &Path) -> (PathBuf, Digest) {
    let layout = directory.join("layout");
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).expect("creates");
    let put = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        std::fs::write(blobs.join(digest.hex()), bytes).expect("writes");
        digest
    };
    let layer = tar_of("hello", b"hello from a layer\n");
    let layer_digest = put(&layer);
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{layer_digest}"]}},"config":{{"Cmd":["/hello"]}}}}"#
    );
    serde_json::from_str::<ImageConfig>(&config).expect("an image config");
    let config_digest = put(config.as_bytes());
    let config = Descriptor::new(media_type::CONFIG, config_digest, config.len() as u64);
    let layer = Descriptor::new(media_type::LAYER, layer_digest, layer.len() as u64);
    let manifest = Manifest::new(config, vec![layer]).to_bytes();
    let digest = put(&manifest);
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{}","digest":"{digest}","size":{},"annotations":{{"org.opencontainers.image.ref.name":"latest"}}}}]}}"#,
        media_type::MANIFEST,
        manifest.len()
    );
    std::fs::write(layout.join("index.json"), index).expect("writes");
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("writes");
    (layout, digest)
}

/// A tar archive of one file.
fn tar_of(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 512];
    let mut field = |start: usize, text: &str| header[start..start + text.len()].copy_from_slice(text.as_bytes());
    field(0, name);
    field(100, "0000755\0");
    field(108, "0000000\0");
    field(116, "0000000\0");
    field(124, &format!("{:011o}\0", content.len()));
    field(136, "00000000000\0");
    field(148, "        ");
    field(156, "0");
    field(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut tar = header.to_vec();
    tar.extend_from_slice(content);
    tar.resize(tar.len().div_ceil(512) * 512 + 1024, 0);
    tar
}

#[tokio::test]
async fn skopeo_pushes_and_pulls_the_same_bytes() {
    let server = Server::start().await;
    let directory = TempDir::new().expect("temporary directory");
    let (layout, digest) = write_layout(directory.path());
    let source = format!("oci:{}:latest", layout.display());
    let image = format!("docker://{}/team/app:v1", server.address);
    let push = ["--insecure-policy", "copy", "--preserve-digests", "--dest-tls-verify=false", &source, &image];
    let Some(output) = run(directory.path(), "skopeo", &push).await else { return };
    succeeded(&output);
    let response = server.get("/v2/team/app/manifests/v1").await;
    expect(&response, 200);
    assert_eq!(header(&response, "docker-content-digest"), digest.to_string());

    let destination = format!("oci:{}:latest", directory.path().join("pulled").display());
    let pull = ["--insecure-policy", "copy", "--preserve-digests", "--src-tls-verify=false", &image, &destination];
    succeeded(&run(directory.path(), "skopeo", &pull).await.expect("installed"));
    let pulled = std::fs::read(directory.path().join("pulled/blobs/sha256").join(digest.hex())).expect("pulled");
    assert_eq!(Digest::of(&pulled), digest);

    let inspect = ["inspect", "--tls-verify=false", &image];
    let inspected = succeeded(&run(directory.path(), "skopeo", &inspect).await.expect("installed"));
    assert!(inspected.contains(&digest.to_string()), "{inspected}");
    let list = ["list-tags", "--tls-verify=false", &format!("docker://{}/team/app", server.address)];
    assert!(succeeded(&run(directory.path(), "skopeo", &list).await.expect("installed")).contains("\"v1\""));

    // To another repository of the same registry: the layers are mounted.
    let copy = format!("docker://{}/team/copy:v1", server.address);
    let between = [
        "--insecure-policy",
        "copy",
        "--preserve-digests",
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
        &image,
        &copy,
    ];
    succeeded(&run(directory.path(), "skopeo", &between).await.expect("installed"));
    expect(&server.get(&format!("/v2/team/copy/manifests/{digest}")).await, 200);

    let delete = ["delete", "--tls-verify=false", &copy];
    succeeded(&run(directory.path(), "skopeo", &delete).await.expect("installed"));
    expect(&server.get("/v2/team/copy/manifests/v1").await, 404);
}

/// Pulls what skopeo pushed and pushes it back under another name, with a client of the podman family.
async fn check_round_trip(program: &str) {
    let server = Server::start().await;
    let directory = TempDir::new().expect("temporary directory");
    let (layout, _) = write_layout(directory.path());
    let source = format!("oci:{}:latest", layout.display());
    let image = format!("{}/team/app:v1", server.address);
    let target = format!("docker://{image}");
    let push = ["--insecure-policy", "copy", "--dest-tls-verify=false", &source, &target];
    let Some(output) = run(directory.path(), "skopeo", &push).await else { return };
    succeeded(&output);

    let root = directory.path().join("root").display().to_string();
    let state = directory.path().join("run").display().to_string();
    let policy = directory.path().join("policy.json");
    std::fs::write(&policy, r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).expect("writes");
    let policy = format!("--signature-policy={}", policy.display());
    let storage = ["--root", root.as_str(), "--runroot", state.as_str(), "--storage-driver", "vfs"];
    let client = |arguments: &[&str]| {
        let arguments: Vec<String> = storage.iter().chain(arguments).map(|text| text.to_string()).collect();
        let directory = directory.path().to_path_buf();
        let program = program.to_string();
        async move {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            run(&directory, &program, &arguments).await
        }
    };
    let Some(output) = client(&["pull", "--tls-verify=false", &policy, &image]).await else { return };
    let stderr = String::from_utf8_lossy(&output.stderr);
    if stderr.contains("operation not permitted") || stderr.contains("permission denied") {
        eprintln!("skipped: {program} cannot unpack a layer here: {}", stderr.trim());
        return;
    }
    succeeded(&output);
    let back = format!("{}/team/back:v2", server.address);
    succeeded(&client(&["tag", &image, &back]).await.expect("installed"));
    succeeded(&client(&["push", "--tls-verify=false", &policy, &back]).await.expect("installed"));
    let tags = server.get("/v2/team/back/tags/list").await.text().await.expect("body");
    assert_eq!(tags, r#"{"name":"team/back","tags":["v2"]}"#);
    let again = format!("docker://{back}");
    let copy = format!("dir:{}", directory.path().join("dir").display());
    let pull = ["--insecure-policy", "copy", "--src-tls-verify=false", &again, &copy];
    succeeded(&run(directory.path(), "skopeo", &pull).await.expect("installed"));
}

#[tokio::test]
async fn podman_pulls_and_pushes() {
    check_round_trip("podman").await;
}

#[tokio::test]
async fn buildah_pulls_and_pushes() {
    check_round_trip("buildah").await;
}
