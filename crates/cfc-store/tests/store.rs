//! The store's promises: whole or nothing, verified, shared between processes.

mod images;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use cfc_oci::{Descriptor, Digest, Index, Platform, Reference, media_type};
use cfc_store::{Store, StoreErrorKind};
use images::{file_layer, image, temporary_store};

fn reference(text: &str) -> Reference {
    Reference::parse(text).expect(text)
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory");
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_blob_is_found_by_its_digest() {
    let (_directory, store) = temporary_store();
    let digest = store.blobs().put(b"hello").expect("stored");
    assert_eq!(digest, Digest::of(b"hello"));
    assert_eq!(store.blobs().read(&digest).expect("there"), b"hello");
    assert_eq!(store.blobs().size(&digest).expect("there"), 5);
    assert_eq!(store.blobs().put(b"hello").expect("stored again"), digest);
    let missing = store.blobs().read(&Digest::of(b"other")).expect_err("never stored");
    assert!(missing.is_missing(), "{missing:?}");
}

#[test]
fn a_blob_with_the_wrong_digest_is_not_published() {
    let (_directory, store) = temporary_store();
    let mut writer = store.blobs().writer().expect("a writer");
    writer.write_all(b"evil").expect("written");
    let error = writer.commit(Some(&Digest::of(b"good"))).expect_err("refused");
    assert!(matches!(error.kind, StoreErrorKind::DigestMismatch { .. }), "{error:?}");
    assert!(!store.blobs().contains(&Digest::of(b"good")));
    assert!(!store.blobs().contains(&Digest::of(b"evil")));
}

#[test]
fn a_dropped_writer_leaves_nothing() {
    let (_directory, store) = temporary_store();
    let mut writer = store.blobs().writer().expect("a writer");
    writer.write_all(b"half").expect("written");
    drop(writer);
    let sessions = names(&store.root().join("tmp"));
    assert_eq!(names(&store.root().join("tmp").join(&sessions[0])), Vec::<String>::new());
}

#[test]
fn another_content_stores_file_is_linked_and_verified() {
    let (directory, store) = temporary_store();
    let path = directory.path().join("foreign");
    fs::write(&path, "content").expect("written");
    let digest = Digest::of(b"content");
    store.blobs().link_from(&path, &Digest::of(b"other")).expect_err("another digest");
    store.blobs().link_from(&path, &digest).expect("linked");
    let inode = |path: &Path| path.metadata().expect("there").ino();
    assert_eq!(inode(&path), inode(&store.blobs().path(&digest)));
    store.blobs().link_from(&path, &digest).expect("linked again");
}

#[test]
fn references_lead_to_images() {
    let (_directory, store) = temporary_store();
    let first = image(&store, &[file_layer(&store, "a", "1")]);
    let second = image(&store, &[file_layer(&store, "a", "2")]);
    let images = store.images();
    images.tag(&reference("127.0.0.1:5000/team/app:v1"), &first).expect("tagged");
    images.tag(&reference("app"), &first).expect("tagged");
    images.tag(&reference("app:latest"), &second).expect("tagged");
    assert_eq!(images.resolve(&reference("127.0.0.1:5000/team/app:v1")).expect("read"), Some(first.clone()));
    assert_eq!(images.resolve(&reference("app")).expect("read"), Some(second.clone()));
    assert_eq!(images.resolve(&reference("app:v2")).expect("read"), None);
    let by_digest = reference(&format!("app:whatever@{}", first.digest));
    assert_eq!(images.resolve(&by_digest).expect("read"), Some(first.clone()));
    let listed: Vec<String> = images.list().expect("read").into_iter().map(|(name, _)| name.to_string()).collect();
    assert_eq!(listed, ["app:latest", "127.0.0.1:5000/team/app:v1"]);
    assert!(images.untag(&reference("app")).expect("removed"));
    assert!(!images.untag(&reference("app")).expect("nothing to remove"));
    assert_eq!(images.resolve(&reference("app")).expect("read"), None);
}

#[test]
fn the_longest_reference_has_a_file_name() {
    let (_directory, store) = temporary_store();
    let descriptor = image(&store, &[]);
    let long = reference(&format!("r.example:5000/{}:{}", "a/".repeat(110) + "b", "t".repeat(128)));
    store.images().tag(&long, &descriptor).expect("tagged");
    assert_eq!(store.images().resolve(&long).expect("read"), Some(descriptor));
}

#[test]
fn a_tag_needs_a_manifest() {
    let (_directory, store) = temporary_store();
    let nowhere = Descriptor::new(media_type::MANIFEST, Digest::of(b"nothing"), 7);
    let error = store.images().tag(&reference("app"), &nowhere).expect_err("refused");
    assert!(matches!(error.kind, StoreErrorKind::Malformed(_)), "{error:?}");
}

#[test]
fn an_index_leads_to_the_image_for_the_platform() {
    let (_directory, store) = temporary_store();
    let ours = image(&store, &[file_layer(&store, "a", "ours")]);
    let mut foreign = image(&store, &[file_layer(&store, "a", "foreign")]);
    foreign.platform = Some(Platform::new("plan9", "mips"));
    let named = Descriptor { platform: Some(Platform::host()), ..ours.clone() };
    let put = |index: Index| {
        let bytes = index.to_bytes();
        Descriptor::new(media_type::INDEX, store.blobs().put(&bytes).expect("stored"), bytes.len() as u64)
    };
    let both = put(Index::new(vec![foreign.clone(), named]));
    assert_eq!(store.images().load(&both).expect("loaded").descriptor.digest, ours.digest);
    let error = store.images().load(&put(Index::new(vec![foreign]))).expect_err("no image for us");
    assert!(error.kind.to_string().contains("plan9/mips"), "{error:?}");
    let mut nested = both;
    for _ in 0..5 {
        nested = put(Index::new(vec![Descriptor { platform: Some(Platform::host()), ..nested }]));
    }
    assert!(matches!(store.images().load(&nested).expect_err("too deep").kind, StoreErrorKind::Limit(_)));
}

#[test]
fn layers_are_listed_topmost_first_and_once() {
    let (_directory, store) = temporary_store();
    let (lower, upper) = (file_layer(&store, "a", "1"), file_layer(&store, "a", "2"));
    let descriptor = image(&store, &[lower.clone(), upper.clone(), lower.clone()]);
    let loaded = store.images().load(&descriptor).expect("loaded");
    let directories = store.unpack_image(&loaded).expect("unpacked");
    assert_eq!(directories, [store.layers().path(&lower.diff_id), store.layers().path(&upper.diff_id)]);
    assert_eq!(fs::read_to_string(directories[1].join("a")).expect("a file"), "2");
    assert_eq!(store.unpack_image(&loaded).expect("unpacked already"), directories);
}

#[test]
fn an_image_without_layers_is_one_empty_directory() {
    let (_directory, store) = temporary_store();
    let loaded = store.images().load(&image(&store, &[])).expect("loaded");
    let directories = store.unpack_image(&loaded).expect("unpacked");
    assert_eq!(directories.len(), 1);
    assert_eq!(names(&directories[0]), Vec::<String>::new());
}

#[test]
fn a_layer_with_the_wrong_diff_id_is_not_published() {
    let (_directory, store) = temporary_store();
    let layer = file_layer(&store, "a", "1");
    let wrong = Digest::of(b"something else");
    let error = store.layers().unpack(&wrong, &layer.descriptor).expect_err("refused");
    assert!(matches!(error.kind, StoreErrorKind::DigestMismatch { .. }), "{error:?}");
    assert!(!store.layers().contains(&wrong));
    assert!(!store.layers().contains(&layer.diff_id));
}

#[test]
fn many_may_unpack_the_same_layer_at_once() {
    let (_directory, store) = temporary_store();
    let layer = file_layer(&store, "a", "1");
    let root = store.root().to_path_buf();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let store = Store::open(&root).expect("a store");
                let path = store.layers().unpack(&layer.diff_id, &layer.descriptor).expect("unpacked");
                assert_eq!(fs::read_to_string(path.join("a")).expect("a file"), "1");
            });
        }
    });
    assert_eq!(names(&root.join("layers")).len(), 1);
    assert_eq!(names(&root.join("tmp")).len(), 1, "only our own session is left");
}

#[test]
fn what_a_killed_process_left_is_swept() {
    let (_directory, store) = temporary_store();
    let sleeper = store.temp_dir().expect("a directory");
    let left = store.root().join("tmp/left-by-the-dead");
    fs::create_dir(&left).expect("made");
    fs::write(left.join("half"), "x").expect("written");
    let _second = Store::open(store.root()).expect("opened");
    assert!(!left.exists(), "a dead session is still there");
    assert!(sleeper.path().exists(), "a living session was swept");
}

#[test]
fn others_cannot_look_into_the_store() {
    let (_directory, store) = temporary_store();
    assert_eq!(store.root().metadata().expect("there").permissions().mode() & 0o777, 0o700);
}

#[test]
fn records_are_found_by_any_key() {
    let (_directory, store) = temporary_store();
    for key in ["0123abcd", "../../escape", "", "a/b", &"k".repeat(1000)] {
        assert_eq!(store.cache().get(key).expect("read"), None, "{key}");
        store.cache().put(key, key.as_bytes()).expect("written");
        assert_eq!(store.cache().get(key).expect("read"), Some(key.as_bytes().to_vec()));
        store.cache().remove(key).expect("removed");
        store.cache().remove(key).expect("removed again");
        assert_eq!(store.cache().get(key).expect("read"), None, "{key}");
    }
}

#[test]
fn a_store_that_cannot_be_made_says_where() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("file");
    fs::write(&path, "").expect("written");
    let error = Store::open(&path.join("store")).expect_err("below a file");
    assert!(error.to_string().contains("file/store"), "{error}");
}

#[test]
fn what_is_manifest_and_index_in_one_is_refused() {
    let (_directory, store) = temporary_store();
    let ours = image(&store, &[file_layer(&store, "a", "1")]);
    let bytes = store.blobs().read(&ours.digest).expect("there");
    let text = String::from_utf8(bytes).expect("JSON");
    let with_manifests = text.replacen('{', "{\"manifests\":[],", 1);
    let mislabelled = text.replace(media_type::MANIFEST, media_type::INDEX);
    let index =
        format!("{{\"schemaVersion\":2,\"manifests\":[],\"layers\":[],\"mediaType\":\"{}\"}}", media_type::INDEX);
    for (kind, text) in
        [(media_type::MANIFEST, &with_manifests), (media_type::MANIFEST, &mislabelled), (media_type::INDEX, &index)]
    {
        let digest = store.blobs().put(text.as_bytes()).expect("stored");
        let descriptor = Descriptor::new(kind, digest, text.len() as u64);
        let error = store.images().load(&descriptor).expect_err("ambiguous");
        assert!(error.kind.to_string().contains("the other of manifest and index"), "{error}: {}", error.kind);
    }
}

#[test]
fn an_image_of_ten_thousand_layers_is_refused_before_any_is_unpacked() {
    let (_directory, store) = temporary_store();
    let layer = file_layer(&store, "a", "1");
    let many = image(&store, &vec![layer.clone(); 10_000]);
    let image = store.images().load(&many).expect("it can be read");
    let error = store.unpack_image(&image).expect_err("refused");
    assert!(matches!(error.kind, StoreErrorKind::Limit(_)), "{error:?}");
    assert!(!store.layers().contains(&layer.diff_id));
}

#[test]
fn a_layer_that_lies_about_its_content_is_refused_and_never_served_to_others() {
    let (_directory, store) = temporary_store();
    let (good, evil) = (file_layer(&store, "a", "good"), file_layer(&store, "a", "evil"));
    // The manifest names the evil blob, the config the good layer.
    let lying = image(&store, &[cfc_store::LayerBlob { descriptor: evil.descriptor.clone(), ..good.clone() }]);
    let lying = store.images().load(&lying).expect("it can be read");
    let error = store.unpack_image(&lying).expect_err("refused");
    assert!(matches!(error.kind, StoreErrorKind::DigestMismatch { .. }), "{error:?}");
    assert!(!store.layers().contains(&good.diff_id), "nothing of it stays");
    let honest = image(&store, std::slice::from_ref(&good));
    let honest = store.images().load(&honest).expect("it can be read");
    let directories = store.unpack_image(&honest).expect("unpacked");
    assert_eq!(fs::read_to_string(directories[0].join("a")).expect("there"), "good");
    // Now that the good layer is there, the liar gets no more than the config's digest promises: never its own bytes.
    let directories = store.unpack_image(&lying).expect("the layer of that digest is there");
    assert_eq!(fs::read_to_string(directories[0].join("a")).expect("there"), "good");
}
