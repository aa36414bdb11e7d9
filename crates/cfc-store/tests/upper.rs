//! From what a container changed to a layer and back.
#![allow(clippy::print_stdout, reason = "a test says why it is skipped")]

mod images;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use cfc_store::{Compression, LayerBlob, Store, UpperOptions, write_upper_as_layer};
use images::{layer, temporary_store};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev, mknodat, setxattr};

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        println!("skipped: needs root to make devices and give files away");
    }
    is_root
}

/// `cap_net_bind_service=ep`, as the kernel keeps it on a file (`VFS_CAP_REVISION_2`).
const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// One of everything that can be in an upper directory.
fn upper(directory: &Path) -> PathBuf {
    let upper = directory.join("upper");
    for path in ["etc", "opt/new", "bin"] {
        fs::create_dir_all(upper.join(path)).expect("made");
    }
    fs::write(upper.join("etc/motd"), "hello").expect("written");
    fs::write(upper.join("bin/tool"), vec![b'x'; 3 << 20]).expect("written");
    fs::set_permissions(upper.join("bin/tool"), fs::Permissions::from_mode(0o4755)).expect("set");
    fs::hard_link(upper.join("bin/tool"), upper.join("bin/alias")).expect("linked");
    symlink("../bin/tool", upper.join("etc/link")).expect("linked");
    let whiteout = |path: &str| {
        mknodat(CWD, upper.join(path), FileType::CharacterDevice, Mode::empty(), makedev(0, 0)).expect("made")
    };
    whiteout("etc/zz-removed");
    mknodat(CWD, upper.join("null"), FileType::CharacterDevice, Mode::RUSR, makedev(1, 3)).expect("made");
    mknodat(CWD, upper.join("pipe"), FileType::Fifo, Mode::RUSR, 0).expect("made");
    let _socket = std::os::unix::net::UnixListener::bind(upper.join("socket")).expect("bound");
    let set = |path: &str, name: &str, value: &[u8]| {
        setxattr(upper.join(path), name, value, XattrFlags::empty()).expect("set")
    };
    set("opt", "user.overlay.opaque", b"y");
    set("etc", "user.overlay.impure", b"y");
    set("etc/motd", "user.note", b"kept");
    set("bin/tool", "security.capability", CAPABILITY);
    let sparse = fs::File::create(upper.join("opt/sparse")).expect("made");
    sparse.set_len(64 << 20).expect("grown");
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"in the middle", 33 << 20).expect("written");
    let long = format!("opt/new/{}", "ö".repeat(100));
    fs::write(upper.join(long), "long").expect("written");
    std::os::unix::fs::chown(upper.join("etc/motd"), Some(33), Some(3_000_000)).expect("given away");
    upper
}

fn to_layer(store: &Store, upper: &Path, options: &UpperOptions<'_>) -> LayerBlob {
    layer(store, Compression::Gzip, |writer| {
        write_upper_as_layer(upper, writer, options).map(drop).map_err(std::io::Error::other)
    })
}

/// Everything about a tree that a layer keeps, one line a file.
fn describe(root: &Path, directory: &Path, lines: &mut Vec<String>) {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(directory).expect("read").map(|entry| entry.expect("read").path()).collect();
    entries.sort();
    for path in entries {
        let metadata = path.symlink_metadata().expect("read");
        let content = match metadata.is_file() {
            true => cfc_oci::Digest::of(&fs::read(&path).expect("read")).short().to_string(),
            false => fs::read_link(&path).map(|target| target.display().to_string()).unwrap_or_default(),
        };
        let mut note = vec![0; 64];
        let note = match rustix::fs::lgetxattr(&path, "user.note", &mut note) {
            Ok(length) => String::from_utf8_lossy(&note[..length]).into_owned(),
            Err(_) => String::new(),
        };
        lines.push(format!(
            "{} {:o} {}:{} {} {} {} {note} links={}",
            path.strip_prefix(root).expect("below").display(),
            metadata.mode(),
            metadata.uid(),
            metadata.gid(),
            metadata.rdev(),
            metadata.mtime(),
            content,
            if metadata.is_dir() { 0 } else { metadata.nlink() },
        ));
        if metadata.is_dir() {
            describe(root, &path, lines);
        }
    }
}

#[test]
fn a_layer_made_of_changes_unpacks_to_the_same_changes() {
    if !is_root() {
        return;
    }
    let (directory, store) = temporary_store();
    let upper = upper(directory.path());
    let blob = to_layer(&store, &upper, &UpperOptions::default());
    let unpacked = store.layers().unpack(&blob.diff_id, &blob.descriptor).expect("unpacked");
    fs::remove_file(upper.join("socket")).expect("removed");
    let (mut expected, mut found) = (Vec::new(), Vec::new());
    describe(&upper, &upper, &mut expected);
    describe(&unpacked, &unpacked, &mut found);
    assert_eq!(found, expected);
    let mut value = [0; 8];
    let length = rustix::fs::getxattr(unpacked.join("opt"), "user.overlay.opaque", &mut value).expect("opaque");
    assert_eq!(&value[..length], b"y");
    assert!(rustix::fs::getxattr(unpacked.join("etc"), "user.overlay.impure", &mut value).is_err());
    let mut value = [0; 64];
    for name in ["bin/tool", "bin/alias"] {
        let length = rustix::fs::getxattr(unpacked.join(name), "security.capability", &mut value).expect("there");
        assert_eq!(&value[..length], CAPABILITY, "{name}");
    }
    assert!(blob.descriptor.size < 1 << 20, "holes compress to nothing: {} bytes", blob.descriptor.size);
}

#[test]
fn the_same_changes_make_the_same_bytes() {
    if !is_root() {
        return;
    }
    let (directory, store) = temporary_store();
    let options = UpperOptions { clamp_mtime: Some(0), ..UpperOptions::default() };
    let blobs: Vec<LayerBlob> = ["one", "two"]
        .map(|name| {
            let place = directory.path().join(name);
            fs::create_dir(&place).expect("made");
            to_layer(&store, &upper(&place), &options)
        })
        .into();
    assert_eq!(blobs[0], blobs[1]);
}

#[test]
fn skipped_paths_take_what_is_below_them_along() {
    let (directory, store) = temporary_store();
    let upper = directory.path().join("upper");
    fs::create_dir_all(upper.join("run/secrets")).expect("made");
    fs::write(upper.join("run/secrets/key"), "x").expect("written");
    fs::write(upper.join("kept"), "x").expect("written");
    let skip = |path: &Path| path == Path::new("run");
    let blob = to_layer(&store, &upper, &UpperOptions { skip: Some(&skip), ..UpperOptions::default() });
    let unpacked = store.layers().unpack(&blob.diff_id, &blob.descriptor).expect("unpacked");
    assert!(unpacked.join("kept").exists());
    assert!(!unpacked.join("run").exists());
}

#[test]
fn nothing_changed_is_no_entry() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut writer = cfc_store::LayerWriter::new(Vec::new());
    let entries = write_upper_as_layer(directory.path(), &mut writer, &UpperOptions::default()).expect("written");
    assert_eq!(entries, 0);
}

#[test]
fn a_redirected_directory_is_refused_by_name() {
    let (directory, store) = temporary_store();
    let upper = directory.path().join("upper");
    fs::create_dir_all(upper.join("moved")).expect("made");
    if setxattr(upper.join("moved"), "user.overlay.redirect", b"from", XattrFlags::empty()).is_err() {
        println!("skipped: the file system has no user.* extended attributes");
        return;
    }
    let mut writer = cfc_store::LayerWriter::new(store.layer_writer(Compression::None).expect("a writer"));
    let error = write_upper_as_layer(&upper, &mut writer, &UpperOptions::default()).expect_err("refused");
    assert!(error.to_string().contains("upper/moved"), "{error}");
}
