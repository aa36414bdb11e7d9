//! User lookup in made-up layers.

use std::fs;
use std::os::unix::fs::symlink;

use super::*;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnode:x:1000:1001::/home/node:/bin/sh\n123:x:55:55::/x:/bin/sh\n";
const GROUP: &str = "root:x:0:\nnode:x:1001:\nwheel:x:10:root,node\nempty\n";

fn layers() -> (tempfile::TempDir, Vec<PathBuf>) {
    let directory = tempfile::tempdir().expect("a directory");
    let lowers: Vec<_> = ["top", "bottom"].iter().map(|name| directory.path().join(name)).collect();
    fs::create_dir_all(lowers[0].join("etc")).expect("makes");
    fs::create_dir_all(lowers[1].join("etc")).expect("makes");
    fs::write(lowers[1].join("etc/passwd"), PASSWD).expect("writes");
    fs::write(lowers[1].join("etc/group"), GROUP).expect("writes");
    (directory, lowers)
}

fn check(lowers: &[PathBuf], user: &str, expected: (u32, u32, &[u32], &str)) {
    let resolved = resolve_user(lowers, user).expect(user);
    let actual = (resolved.uid, resolved.gid, resolved.additional_gids.as_slice(), resolved.home.as_str());
    assert_eq!(actual, expected, "{user}");
}

#[test]
fn names_and_numbers_resolve_as_docker_does() {
    let (_directory, lowers) = layers();
    check(&lowers, "", (0, 0, &[0, 10], "/root"));
    check(&lowers, "root", (0, 0, &[0, 10], "/root"));
    check(&lowers, "node", (1000, 1001, &[10, 1001], "/home/node"));
    check(&lowers, "1000", (1000, 1001, &[10, 1001], "/home/node"));
    check(&lowers, "node:wheel", (1000, 10, &[10], "/home/node"));
    check(&lowers, "node:77", (1000, 77, &[77], "/home/node"));
    check(&lowers, "4242", (4242, 0, &[0], "/"));
    check(&lowers, "123", (55, 55, &[55], "/x"));
    assert!(resolve_user(&lowers, "nobody-here").expect_err("refuses").to_string().contains("no user `nobody-here`"));
    assert!(resolve_user(&lowers, "root:nothing").expect_err("refuses").to_string().contains("no group `nothing`"));
}

#[test]
fn a_higher_layer_hides_and_a_link_stays_inside() {
    let (directory, lowers) = layers();
    fs::write(lowers[0].join("etc/passwd"), "node:x:7:8::/:/bin/sh\n").expect("writes");
    check(&lowers, "node", (7, 8, &[8, 10], "/"));
    // A link to the host's file must lead to the image's own root instead.
    fs::remove_file(lowers[0].join("etc/passwd")).expect("removes");
    let secret = directory.path().join("secret");
    fs::write(&secret, "evil:x:0:0::/:/bin/sh\n").expect("writes");
    symlink(&secret, lowers[0].join("etc/passwd")).expect("links");
    assert!(resolve_user(&lowers, "evil").is_err());
}

#[test]
fn root_needs_no_passwd() {
    let directory = tempfile::tempdir().expect("a directory");
    check(&[directory.path().to_path_buf()], "root", (0, 0, &[0], "/"));
}
