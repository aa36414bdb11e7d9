//! OCI layouts, as other tools see them.
#![allow(clippy::print_stdout, reason = "a test says why it is skipped")]

mod images;

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Command;

use cfc_oci::Reference;
use cfc_store::{ArchiveKind, Compression, LayerBlob, Metadata, Store};
use images::{file, image, layer, noise, temporary_store};

const NOISE_BYTES: usize = 5_000_000;

/// A layer that spans several compressed blocks, with a name that ustar cannot hold.
fn large_layer(store: &Store, compression: Compression) -> LayerBlob {
    layer(store, compression, |writer| {
        let metadata = Metadata::root(0o755, 1_600_000_000);
        writer.directory(Path::new("bin"), &metadata)?;
        writer.file(Path::new("bin/noise"), &metadata, NOISE_BYTES as u64, &mut noise(NOISE_BYTES))?;
        writer.hard_link(Path::new("bin/twin"), Path::new("bin/noise"), &metadata)?;
        writer.symlink(Path::new("sbin"), Path::new("bin"), &metadata)?;
        let long = format!("{}/ünïcode", "directory/".repeat(15));
        file(writer, &long, "long")?;
        file(writer, "removed", "x")
    })
}

fn second_layer(store: &Store) -> LayerBlob {
    layer(store, Compression::Gzip, |writer| {
        writer.whiteout(Path::new("removed"), 0)?;
        file(writer, "added", "y")
    })
}

/// Whether the program is there; says so when it is not.
fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        println!("skipped: {program} is not installed");
    }
    found
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("it runs");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {stdout}{stderr}");
    stdout.into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn an_archive_for_docker_names_the_image_as_each_of_its_readers_looks_for_it() {
    let (directory, store) = temporary_store();
    let descriptor = image(&store, &[second_layer(&store)]);
    let names = ["app", "team/app:1", "reg.example/app:2"].map(|name| Reference::parse(name).expect("well-formed"));
    let path = directory.path().join("app.tar");
    let file = fs::File::create(&path).expect("writable");
    store.export_archive(&descriptor, &names, ArchiveKind::Docker, file).expect("exported");
    let read = |name: &str| -> serde_json::Value {
        serde_json::from_str(&run("tar", &["-xOf", text(&path), name])).expect("JSON")
    };
    let with_tags = ["app:latest", "team/app:1", "reg.example/app:2"];
    assert_eq!(read("manifest.json")[0]["RepoTags"], serde_json::json!(with_tags));
    let index = read("index.json");
    let annotated = |key: &str| -> Vec<&str> {
        let manifests = index["manifests"].as_array().expect("a list");
        manifests.iter().map(|manifest| manifest["annotations"][key].as_str().expect("text")).collect()
    };
    assert_eq!(annotated("org.opencontainers.image.ref.name"), with_tags);
    let in_full = ["docker.io/library/app:latest", "docker.io/team/app:1", "reg.example/app:2"];
    assert_eq!(annotated("io.containerd.image.name"), in_full);
}

#[test]
fn an_exported_image_imports_into_another_store() {
    let (directory, store) = temporary_store();
    let descriptor = image(&store, &[large_layer(&store, Compression::Zstd), second_layer(&store)]);
    let layout = directory.path().join("layout");
    let reference = Reference::parse("app:v1").expect("well-formed");
    store.export_oci_layout(&descriptor, Some(&reference), &layout).expect("exported");
    store.export_oci_layout(&descriptor, Some(&reference), &layout).expect("exported again");
    let (_other_directory, other) = temporary_store();
    assert_eq!(other.import_oci_layout(&layout, None).expect("imported"), descriptor);
    assert_eq!(other.import_oci_layout(&layout, Some("v1")).expect("imported"), descriptor);
    let error = other.import_oci_layout(&layout, Some("v2")).expect_err("no such image").kind.to_string();
    assert!(error.contains("`v2`") && error.contains("v1"), "{error}");
    let loaded = other.images().load(&descriptor).expect("loaded");
    assert_eq!(other.unpack_image(&loaded).expect("unpacked").len(), 2);
}

#[test]
fn a_damaged_layout_is_refused() {
    let (directory, store) = temporary_store();
    let blob = second_layer(&store);
    let descriptor = image(&store, std::slice::from_ref(&blob));
    let layout = directory.path().join("layout");
    store.export_oci_layout(&descriptor, None, &layout).expect("exported");
    let path = layout.join("blobs/sha256").join(blob.descriptor.digest.hex());
    let mut bytes = fs::read(&path).expect("there");
    bytes[20] ^= 1;
    fs::write(&path, &bytes).expect("written");
    let (_other_directory, other) = temporary_store();
    let error = other.import_oci_layout(&layout, None).expect_err("refused");
    assert!(error.kind.to_string().contains("hash to"), "{error:?}");
    bytes.truncate(10);
    fs::write(&path, &bytes).expect("written");
    let error = other.import_oci_layout(&layout, None).expect_err("refused");
    assert!(error.kind.to_string().contains("found 10"), "{error:?}");
}

#[test]
fn skopeo_reads_and_copies_what_we_export() {
    if !has("skopeo") {
        return;
    }
    let (directory, store) = temporary_store();
    let layers = [large_layer(&store, Compression::Gzip), second_layer(&store)];
    let descriptor = image(&store, &layers);
    let layout = directory.path().join("layout");
    let reference = Reference::parse("app:v1").expect("well-formed");
    store.export_oci_layout(&descriptor, Some(&reference), &layout).expect("exported");
    let source = format!("oci:{}:v1", text(&layout));
    let inspected = run("skopeo", &["inspect", &source]);
    assert!(inspected.contains(&layers[0].descriptor.digest.to_string()), "{inspected}");
    // Zstd makes skopeo read our gzip members to their end.
    let copy = directory.path().join("copy");
    let target = format!("oci:{}:v1", text(&copy));
    let policy = ["--insecure-policy", "copy", "--dest-compress-format", "zstd", "--dest-compress", &source, &target];
    run("skopeo", &policy);
    let (_other_directory, other) = temporary_store();
    let copied = other.import_oci_layout(&copy, Some("v1")).expect("imported");
    let loaded = other.images().load(&copied).expect("loaded");
    assert_eq!(loaded.config.rootfs.diff_ids, layers.map(|layer| layer.diff_id));
    other.unpack_image(&loaded).expect("unpacked");
}

#[test]
fn umoci_unpacks_what_we_export() {
    if !has("umoci") {
        return;
    }
    let (directory, store) = temporary_store();
    let layers = [large_layer(&store, Compression::Gzip), second_layer(&store)];
    let descriptor = image(&store, &layers);
    let layout = directory.path().join("layout");
    let reference = Reference::parse("app:v1").expect("well-formed");
    store.export_oci_layout(&descriptor, Some(&reference), &layout).expect("exported");
    let bundle = directory.path().join("bundle");
    let image = format!("{}:v1", text(&layout));
    let rootless: &[&str] = if rustix::process::geteuid().is_root() { &[] } else { &["--rootless"] };
    run("umoci", &[&["unpack"], rootless, &["--image", &image, text(&bundle)]].concat());
    let root = bundle.join("rootfs");
    let mut expected = Vec::new();
    noise(NOISE_BYTES).read_to_end(&mut expected).expect("memory");
    assert_eq!(fs::read(root.join("bin/twin")).expect("there"), expected);
    assert_eq!(fs::read_to_string(root.join(format!("{}/ünïcode", "directory/".repeat(15)))).expect("there"), "long");
    assert!(!root.join("removed").exists());
    assert_eq!(fs::read_to_string(root.join("added")).expect("there"), "y");
}

#[test]
fn gnu_tar_reads_our_layers() {
    if !has("tar") {
        return;
    }
    let (_directory, store) = temporary_store();
    let blob = large_layer(&store, Compression::Gzip);
    let listing = run("tar", &["-tzvf", text(&store.blobs().path(&blob.descriptor.digest))]);
    assert!(listing.contains("hbin/twin") || listing.contains("bin/twin link to bin/noise"), "{listing}");
    assert!(listing.contains("-rwxr-xr-x 0/0"), "{listing}");
}
