//! Unpacking layers: what honest ones become, and what hostile ones do not achieve.
#![allow(clippy::print_stdout, reason = "a test says why it is skipped")]

mod archives;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use archives::Archive;
use cfc_oci::{Algorithm, Digest};
use cfc_store::{StoreErrorKind, TempDir, UnpackLimits, unpack_layer};

/// A layer's directory with a neighbour that it should never reach.
struct Place {
    outside: TempDir,
}

impl Place {
    fn new() -> Place {
        let outside = TempDir::new().expect("a temporary directory");
        fs::create_dir(outside.path().join("layer")).expect("a directory");
        fs::write(outside.path().join("secret"), "untouched").expect("a file");
        Place { outside }
    }

    fn layer(&self) -> std::path::PathBuf {
        self.outside.path().join("layer")
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.layer().join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Nothing but the layer and the secret is there, and the secret is as it was.
    fn assert_unharmed(&self) {
        let names = fs::read_dir(self.outside.path()).expect("a directory").count();
        assert_eq!(names, 2, "something appeared beside the layer");
        let secret = self.outside.path().join("secret");
        assert_eq!(fs::read_to_string(&secret).expect("the secret"), "untouched");
        assert_eq!(secret.metadata().expect("the secret").nlink(), 1, "the secret was linked");
    }
}

fn unpack(archive: &[u8], place: &Path) -> Result<Digest, StoreErrorKind> {
    unpack_layer(archive, place, Algorithm::Sha256, &UnpackLimits::default())
}

/// Unpacks an archive that must be accepted.
fn accepted(archive: Archive) -> Place {
    let place = Place::new();
    let bytes = archive.finish();
    let digest = unpack(&bytes, &place.layer()).unwrap_or_else(|error| panic!("refused: {error}"));
    assert_eq!(digest, Digest::of(&bytes));
    place.assert_unharmed();
    place
}

/// Unpacks an archive that must be refused, for a reason that contains `reason`.
fn refused(archive: Archive, reason: &str) {
    let place = Place::new();
    let error = unpack(&archive.finish(), &place.layer()).expect_err("it was accepted").to_string();
    assert!(error.contains(reason), "expected a reason with `{reason}`, found `{error}`");
    place.assert_unharmed();
}

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        println!("skipped: needs root to make devices and give files away");
    }
    is_root
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 1024];
    let length = rustix::fs::lgetxattr(path, name, &mut value).ok()?;
    value.truncate(length);
    Some(value)
}

fn is_whiteout(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|metadata| metadata.file_type().is_char_device() && metadata.rdev() == 0)
}

#[test]
fn files_directories_and_links_appear() {
    let place = accepted(
        Archive::default()
            .directory("./")
            .directory("bin/")
            .file("bin/tool", "#!")
            .hard_link("bin/alias", "bin/tool")
            .symlink("sbin", "bin")
            .file("deep/er/file", "x"),
    );
    assert_eq!(place.text("bin/tool"), "#!");
    assert_eq!(place.path("bin/tool").metadata().expect("a file").nlink(), 2);
    assert_eq!(fs::read_link(place.path("sbin")).expect("a link"), Path::new("bin"));
    assert_eq!(place.path("bin/tool").metadata().expect("a file").mtime(), 1);
    assert_eq!(place.path("bin").metadata().expect("a directory").mtime(), 1);
    assert_eq!(place.path("deep/er").metadata().expect("a directory").mtime(), 0);
}

#[test]
fn owners_modes_devices_and_capabilities_are_kept() {
    if !is_root() {
        return;
    }
    // cap_net_bind_service=ep, revision 2.
    let capability = "\u{1}\0\0\u{2}\0\u{4}\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let place = accepted(
        Archive::default()
            .pax(&[
                ("SCHILY.xattr.security.capability", capability),
                ("SCHILY.xattr.user.note", "a\nb"),
                ("uid", "3000000"),
            ])
            .entry_with(b'0', "server", "", b"elf", |header| {
                header[100..107].copy_from_slice(b"0004755");
                header[116..123].copy_from_slice(b"0000052");
            })
            .device("null", 1, 3)
            .entry(b'6', "pipe", "", b""),
    );
    let server = place.path("server").metadata().expect("a file");
    assert_eq!((server.uid(), server.gid(), server.mode() & 0o7777), (3_000_000, 0o52, 0o4755));
    assert_eq!(xattr(&place.path("server"), "security.capability").as_deref(), Some(capability.as_bytes()));
    assert_eq!(xattr(&place.path("server"), "user.note").as_deref(), Some(&b"a\nb"[..]));
    let null = place.path("null").metadata().expect("a device");
    assert!(null.file_type().is_char_device());
    assert_eq!(null.rdev(), rustix::fs::makedev(1, 3));
    assert!(place.path("pipe").metadata().expect("a pipe").file_type().is_fifo());
}

#[test]
fn whiteouts_take_the_form_of_overlayfs() {
    let place = accepted(Archive::default().directory("etc").file("etc/.wh.passwd", "").file("opt/.wh..wh..opq", ""));
    assert!(is_whiteout(&place.path("etc/passwd")));
    assert!(!place.path("etc/.wh.passwd").exists());
    assert_eq!(xattr(&place.path("opt"), "user.overlay.opaque").as_deref(), Some(&b"y"[..]));
}

#[test]
fn a_directory_put_in_place_of_something_removed_hides_it_in_any_order() {
    for archive in [
        Archive::default().file(".wh.data", "").directory("data").file("data/new", "x"),
        Archive::default().file(".wh.data", "").file("data/new", "x"),
        Archive::default().directory("data").file("data/new", "x").file(".wh.data", ""),
    ] {
        let place = accepted(archive);
        assert_eq!(place.text("data/new"), "x");
        assert_eq!(xattr(&place.path("data"), "user.overlay.opaque").as_deref(), Some(&b"y"[..]));
    }
    let place = accepted(Archive::default().file("note", "new").file(".wh.note", ""));
    assert_eq!(place.text("note"), "new");
}

#[test]
fn later_entries_replace_earlier_ones() {
    let place = accepted(
        Archive::default()
            .file("a", "1")
            .file("a", "2")
            .directory("b")
            .file("b/c", "x")
            .file("b", "now a file")
            .symlink("d", "/etc")
            .directory("d")
            .file("d/e", "inside")
            .file("f", "x")
            .symlink("f", "a"),
    );
    assert_eq!(place.text("a"), "2");
    assert_eq!(place.text("b"), "now a file");
    assert_eq!(place.text("d/e"), "inside");
    assert_eq!(place.text("f"), "2");
}

#[test]
fn gzip_members_zstd_frames_and_plain_tars_are_told_apart() {
    let tar = Archive::default().file("hello", "world").finish();
    let (first, second) = tar.split_at(700);
    let gzip = |bytes: &[u8]| {
        use std::io::Write;
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("memory takes everything");
        encoder.finish().expect("memory takes everything")
    };
    let zstd = |bytes: &[u8]| zstd::bulk::compress(bytes, 1).expect("memory takes everything");
    for bytes in [[gzip(first), gzip(second)].concat(), [zstd(first), zstd(second)].concat(), tar.clone()] {
        let place = Place::new();
        assert_eq!(unpack(&bytes, &place.layer()).expect("accepted"), Digest::of(&tar));
        assert_eq!(place.text("hello"), "world");
    }
    let mut cut = gzip(&tar);
    cut.truncate(cut.len() - 9);
    assert!(unpack(&cut, &Place::new().layer()).is_err(), "a gzip without its end was accepted");
}

#[test]
fn names_cannot_climb_out() {
    refused(Archive::default().file("../secret", "x"), "`..`");
    refused(Archive::default().file("a/../../secret", "x"), "`..`");
    refused(Archive::default().pax(&[("path", "../secret")]).file("harmless", "x"), "`..`");
    refused(Archive::default().file("../.wh.secret", ""), "`..`");
}

#[test]
fn absolute_names_stay_inside() {
    let place = accepted(Archive::default().file("/etc/cfc-was-here", "x").symlink("/abs", "/etc/passwd"));
    assert_eq!(place.text("etc/cfc-was-here"), "x");
    assert!(!Path::new("/etc/cfc-was-here").exists());
}

#[test]
fn symbolic_links_lead_nowhere_else() {
    let secret = |place: &Place| place.outside.path().display().to_string();
    let place = Place::new();
    for target in ["..", "../..", &secret(&place), "/proc/self/cwd", "/proc/1/root"] {
        for archive in [
            Archive::default().symlink("out", target).file("out/secret", "x"),
            Archive::default().symlink("out", target).file("out/.wh.secret", ""),
            Archive::default().symlink("out", target).hard_link("copy", "out/secret"),
            Archive::default().symlink("out", target).directory("out/new/directory"),
        ] {
            // Some of these end up at the layer's own root, which is harmless; most are refused.
            let place = Place::new();
            let _ = unpack(&archive.finish(), &place.layer());
            place.assert_unharmed();
        }
    }
    refused(Archive::default().symlink("out", "/etc").file("out/passwd", "x"), "not a directory");
    place.assert_unharmed();
}

#[test]
fn a_file_replaces_a_link_instead_of_following_it() {
    let place = Place::new();
    let secret = place.outside.path().join("secret");
    let archive = Archive::default().symlink("a", secret.to_str().expect("UTF-8")).file("a", "new");
    unpack(&archive.finish(), &place.layer()).expect("accepted");
    assert_eq!(place.text("a"), "new");
    place.assert_unharmed();
}

#[test]
fn links_inside_the_layer_are_followed_inside_it() {
    let place = accepted(
        Archive::default()
            .directory("usr/lib")
            .symlink("lib", "/usr/lib")
            .file("lib/x", "1")
            .symlink("up", "usr/../usr")
            .file("up/y", "2"),
    );
    assert_eq!(place.text("usr/lib/x"), "1");
    assert_eq!(place.text("usr/y"), "2");
}

#[test]
fn hard_links_reach_only_files_of_the_layer() {
    refused(Archive::default().hard_link("a", "../secret"), "`..`");
    refused(Archive::default().hard_link("a", "/etc/passwd"), "not in the layer");
    refused(Archive::default().hard_link("a", "missing"), "not in the layer");
    refused(Archive::default().directory("d").hard_link("a", "d"), "not a file");
    refused(Archive::default().file(".wh.b", "").hard_link("a", "b"), "not a file");
    refused(Archive::default().file("x", "").hard_link("a", ".wh.x"), "no file of a layer");
    let place = accepted(Archive::default().symlink("link", "/etc/passwd").hard_link("a", "link"));
    assert_eq!(fs::read_link(place.path("a")).expect("the link itself"), Path::new("/etc/passwd"));
    accepted(Archive::default().file("self", "x").hard_link("self", "self"));
}

#[test]
fn whiteouts_cannot_be_smuggled() {
    refused(Archive::default().device("etc/passwd", 0, 0), "whiteout");
    refused(Archive::default().file(".wh.a/b", ""), "named like a whiteout");
    refused(Archive::default().file("a/.wh...", ""), "whiteout of no file");
    let attributes =
        ["user.overlay.opaque", "trusted.overlay.opaque", "trusted.overlay.redirect", "user.overlay.metacopy"];
    for name in attributes {
        let key = format!("SCHILY.xattr.{name}");
        let place = accepted(Archive::default().pax(&[(&key, "y")]).directory("etc"));
        assert_eq!(xattr(&place.path("etc"), name), None, "{name} got through");
    }
    let place = accepted(Archive::default().pax(&[("SCHILY.xattr.security.selinux", "x")]).file("a", ""));
    assert_eq!(xattr(&place.path("a"), "security.selinux"), None);
}

#[test]
fn bombs_stop_at_the_limits() {
    let limits = UnpackLimits { entries: 10, bytes: 1 << 20 };
    let many = (0..20).fold(Archive::default(), |archive, number| archive.file(&format!("f{number}"), ""));
    let error =
        unpack_layer(&many.finish()[..], &Place::new().layer(), Algorithm::Sha256, &limits).expect_err("20 entries");
    assert!(matches!(error, StoreErrorKind::Limit(_)), "{error}");

    let deep = Archive::default().file("a/b/c/d/e/f/g/h/i/j/k/l/m", "").finish();
    let error = unpack_layer(&deep[..], &Place::new().layer(), Algorithm::Sha256, &limits).expect_err("13 entries");
    assert!(error.to_string().contains("too many entries"), "{error}");

    let zeros = zstd::bulk::compress(&Archive::default().entry(b'0', "zeros", "", &vec![0; 4 << 20]).finish(), 3)
        .expect("compresses");
    assert!(zeros.len() < 2000);
    let error = unpack_layer(&zeros[..], &Place::new().layer(), Algorithm::Sha256, &limits).expect_err("4 MiB");
    assert!(error.to_string().contains("more than 1048576 bytes"), "{error}");

    // The same behind the end of the archive, where only the digest looks.
    let mut trailing = Archive::default().file("a", "").finish();
    trailing.resize(4 << 20, 0);
    let error = unpack_layer(&trailing[..], &Place::new().layer(), Algorithm::Sha256, &limits).expect_err("4 MiB");
    assert!(matches!(error, StoreErrorKind::Limit(_)), "{error}");
}

#[test]
fn limits_shrink_for_small_blobs_and_full_disks() {
    let limits = UnpackLimits::default();
    assert_eq!(limits.lowered_for(1000, u64::MAX).bytes, 1 << 30);
    assert_eq!(limits.lowered_for(10 << 20, u64::MAX).bytes, 11000 << 20);
    assert_eq!(limits.lowered_for(10 << 30, 5 << 30).bytes, 5 << 30);
}

#[test]
fn trees_cannot_get_deeper_than_they_can_be_removed() {
    let deep: String = std::iter::repeat_n("d/", 200).collect();
    // The name fits no ustar field, so it comes by pax.
    let step = |archive: Archive, name: &str| archive.pax(&[("path", name)]).directory("x");
    let archive = step(Archive::default(), &deep).pax(&[("linkpath", &deep)]).symlink("s", "x");
    refused(step(archive, &format!("s/{deep}")), "deeper than");
    let too_deep: String = std::iter::repeat_n("d/", 300).collect();
    refused(step(Archive::default(), &too_deep), "deeper than");
}

#[test]
fn damaged_archives_are_refused() {
    refused(
        Archive::default().entry_with(b'0', "a", "", b"", |header| header[124..135].copy_from_slice(b"00000009999")),
        "malformed number",
    );
    refused(Archive::default().entry(b'S', "sparse", "", b""), "sparse");
    refused(Archive::default().entry(b'V', "volume", "", b""), "unknown type");
    refused(Archive::default().pax(&[("GNU.sparse.major", "1")]).file("a", ""), "sparse");
    refused(Archive::default().pax(&[("size", "99999999999999999999999")]).file("a", ""), "not a number");
    refused(Archive::default().pax(&[("size", "18446744073709551615")]).file("a", ""), "ends in the middle");
    refused(Archive::default().file("", "not a directory"), "root of a layer");
    let place = Place::new();
    let mut damaged = Archive::default().file("a", "x").finish();
    damaged[0] ^= 1;
    assert!(unpack(&damaged, &place.layer()).is_err());
    let cut = Archive::default().entry(b'0', "a", "", &[1; 2000]).cut();
    assert!(unpack(&cut[..1024], &place.layer()).is_err());
}

#[test]
fn archives_without_an_end_are_read_to_theirs() {
    let place = Place::new();
    unpack(&Archive::default().file("a", "x").cut(), &place.layer()).expect("accepted");
    assert_eq!(place.text("a"), "x");
}

#[test]
fn names_need_not_be_unicode() {
    let place = Place::new();
    let archive = Archive::default().entry_with(b'0', "a", "", b"x", |header| header[..2].copy_from_slice(b"\xff\xfe"));
    unpack(&archive.finish(), &place.layer()).expect("accepted");
    use std::os::unix::ffi::OsStrExt;
    assert!(place.layer().join(std::ffi::OsStr::from_bytes(b"\xff\xfe")).exists());
}

#[test]
fn an_opaque_mark_on_a_link_marks_nothing_outside() {
    let place = Place::new();
    let neighbour = place.outside.path().join("layer-of-another");
    fs::create_dir(&neighbour).expect("a directory");
    for target in [neighbour.to_str().expect("UTF-8"), "../layer-of-another", "/proc/self/cwd"] {
        let archive = Archive::default().symlink("d", target).file("d/.wh..wh..opq", "");
        let _ = unpack(&archive.finish(), &place.layer());
        assert_eq!(xattr(&neighbour, "user.overlay.opaque"), None, "{target}");
        assert_eq!(xattr(Path::new("."), "user.overlay.opaque"), None, "{target}");
        fs::remove_dir_all(place.layer()).expect("removed");
        fs::create_dir(place.layer()).expect("made again");
    }
}

#[test]
fn a_link_of_an_earlier_layer_is_no_way_out_for_a_later_one() {
    // Each layer is unpacked by itself: what another has at that name is neither followed nor linked to.
    let place = Place::new();
    let secret = place.outside.path().join("secret");
    let lower = place.outside.path().join("layer");
    unpack(&Archive::default().symlink("out", secret.to_str().expect("UTF-8")).finish(), &lower).expect("accepted");
    let upper = Place::new();
    let error = unpack(&Archive::default().hard_link("mine", "out").finish(), &upper.layer()).expect_err("refused");
    assert!(error.to_string().contains("not in the layer"), "{error}");
    unpack(&Archive::default().file("out", "new").finish(), &upper.layer()).expect("accepted");
    assert_eq!(upper.text("out"), "new");
    place.assert_unharmed();
    upper.assert_unharmed();
}

#[test]
fn a_zstd_frame_that_wants_gigabytes_of_window_is_refused() {
    // Magic, a frame header without content size, a window of 2^41 bytes, and an empty last block.
    let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xf8, 0x01, 0x00, 0x00];
    let error = unpack(&frame, &Place::new().layer()).expect_err("refused").to_string();
    assert!(error.contains("memory") || error.contains("window") || error.contains("parameter"), "{error}");
}

#[test]
fn bombs_of_gzip_members_stop_at_the_limits() {
    use std::io::Write;
    let member = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(&vec![0; 1 << 20]).expect("memory takes everything");
        encoder.finish().expect("memory takes everything")
    };
    let bomb = member.repeat(64);
    let limits = UnpackLimits { entries: 10, bytes: 8 << 20 };
    let error = unpack_layer(&bomb[..], &Place::new().layer(), Algorithm::Sha256, &limits).expect_err("64 MiB");
    assert!(matches!(error, StoreErrorKind::Limit(_)), "{error}");
}

#[test]
fn device_nodes_of_a_layer_are_made_without_being_opened() {
    if !is_root() {
        return;
    }
    // A block device that does not exist, and one that blocks when it is opened: unpacking neither fails nor hangs.
    let place =
        accepted(Archive::default().device("dev/mem", 1, 1).device("dev/console", 5, 1).entry(b'6', "fifo", "", b""));
    assert!(place.path("dev/mem").symlink_metadata().expect("there").file_type().is_char_device());
}
