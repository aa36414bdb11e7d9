//! `COPY` and `WORKDIR` without any `RUN`: what gets into layers.

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use cfc_build_native::NativeOptions;
use common::{Fixture, report};

#[test]
fn a_file_gets_its_directories() {
    let fixture = Fixture::new();
    fixture.file_with_mode("a", "1", 0o640);
    assert_eq!(
        fixture.layers("FROM scratch\nCOPY a /x/y/z\n"),
        [["drwxr-xr-x 0:0 x/", "drwxr-xr-x 0:0 x/y/", "-rw-r----- 0:0 x/y/z"]]
    );
}

#[test]
fn a_trailing_slash_makes_a_directory() {
    let fixture = Fixture::new();
    fixture.file("a", "1").file("b", "2");
    assert_eq!(fixture.layers("FROM scratch\nCOPY a /x/\n"), [["drwxr-xr-x 0:0 x/", "-rw-r--r-- 0:0 x/a"]]);
    assert_eq!(
        fixture.layers("FROM scratch\nWORKDIR /w\nCOPY a b .\n")[1],
        ["drwxr-xr-x 0:0 w/", "-rw-r--r-- 0:0 w/a", "-rw-r--r-- 0:0 w/b"]
    );
}

#[test]
fn a_directory_copies_what_is_in_it() {
    let fixture = Fixture::new();
    fixture.file("d/f", "1").file_with_mode("d/sub/g", "2", 0o755);
    fs::set_permissions(fixture.context().join("d"), fs::Permissions::from_mode(0o700)).expect("chmod");
    fs::set_permissions(fixture.context().join("d/sub"), fs::Permissions::from_mode(0o711)).expect("chmod");
    symlink("sub/g", fixture.context().join("d/link")).expect("symlink");
    // As BuildKit does: the destination is made with 0755, directories below keep their own.
    assert_eq!(
        fixture.layers("FROM scratch\nCOPY d /n\n"),
        [[
            "drwxr-xr-x 0:0 n/",
            "-rw-r--r-- 0:0 n/f",
            "lrwxrwxrwx 0:0 n/link -> sub/g",
            "drwx--x--x 0:0 n/sub/",
            "-rwxr-xr-x 0:0 n/sub/g",
        ]]
    );
}

#[test]
fn owners_and_modes_are_applied_to_what_is_copied() {
    let fixture = Fixture::new();
    fixture.file("d/f", "1");
    assert_eq!(fixture.layers("FROM scratch\nCOPY --chown=root d/f /f\n"), [["-rw-r--r-- 0:0 f"]]);
    fixture.file("etc/passwd", "root:x:0:0::/:/bin/sh\napp:x:7:8::/:/bin/sh\n").file("etc/group", "staff:x:50:\n");
    assert_eq!(
        fixture.layers("FROM scratch\nCOPY --chown=5 --chmod=0751 d /n/m\n"),
        [["drwxr-xr-x 5:5 n/", "drwxr-xr-x 5:5 n/m/", "-rwxr-x--x 5:5 n/m/f"]]
    );
    assert_eq!(
        fixture.layers("FROM scratch\nCOPY etc /etc\nCOPY --chown=app d/f /f\nCOPY --chown=app:staff d/f /g\nUSER app\nWORKDIR /h\n")[1..],
        [["-rw-r--r-- 7:8 f"], ["-rw-r--r-- 7:50 g"], ["drwxr-xr-x 7:8 h/"]]
    );
}

#[test]
fn existing_directories_keep_what_they_were() {
    let fixture = Fixture::new();
    fixture.file("f", "1").file("d/sub/g", "2");
    let layers = fixture.layers("FROM scratch\nUSER 7:8\nWORKDIR /n/sub\nCOPY f /n/\nCOPY d /n\n");
    assert_eq!(layers[1], ["drwxr-xr-x 7:8 n/", "-rw-r--r-- 0:0 n/f"]);
    // The directory named is left alone, one inside it takes over the source's owner.
    assert_eq!(layers[2], ["drwxr-xr-x 7:8 n/", "drwxr-xr-x 0:0 n/sub/", "-rw-r--r-- 0:0 n/sub/g"]);
}

#[test]
fn a_link_in_the_destination_stays_inside_the_image() {
    let fixture = Fixture::new();
    fixture.file("f", "1").file("real/x", "");
    symlink("/../../../../../etc", fixture.context().join("real/out")).expect("symlink");
    symlink("../srv/./data", fixture.context().join("real/data")).expect("symlink");
    let layers = fixture.layers("FROM scratch\nCOPY real /r/\nCOPY f /r/out/f\nCOPY f /r/data/\n");
    assert_eq!(layers[1], ["drwxr-xr-x 0:0 etc/", "-rw-r--r-- 0:0 etc/f"]);
    assert_eq!(layers[2], ["drwxr-xr-x 0:0 srv/", "drwxr-xr-x 0:0 srv/data/", "-rw-r--r-- 0:0 srv/data/f"]);
}

#[test]
fn a_link_in_the_context_stays_inside_the_context() {
    let fixture = Fixture::new();
    fixture.file("inside/f", "1");
    symlink("/etc/passwd", fixture.context().join("outside")).expect("symlink");
    symlink("inside/f", fixture.context().join("link")).expect("symlink");
    assert_eq!(fixture.layers("FROM scratch\nCOPY link /\n"), [["-rw-r--r-- 0:0 link"]]);
    let error = fixture.build("FROM scratch\nCOPY outside /\n").expect_err("it leads out");
    assert!(
        report(&error).contains("`COPY outside /`: there is no `outside` in the build context"),
        "{}",
        report(&error)
    );
}

#[test]
fn wildcards_match_within_one_part() {
    let fixture = Fixture::new();
    fixture.file("a.txt", "1").file("b.txt", "2").file("c.md", "3").file("d1/x", "4").file("d2/y", "5");
    assert_eq!(
        fixture.layers("FROM scratch\nCOPY *.txt /t/\n"),
        [["drwxr-xr-x 0:0 t/", "-rw-r--r-- 0:0 t/a.txt", "-rw-r--r-- 0:0 t/b.txt"]]
    );
    // A directory that matches gives what is in it.
    assert_eq!(
        fixture.layers("FROM scratch\nCOPY d? c.m[d] /t/\n"),
        [["drwxr-xr-x 0:0 t/", "-rw-r--r-- 0:0 t/c.md", "-rw-r--r-- 0:0 t/x", "-rw-r--r-- 0:0 t/y"]]
    );
    // As BuildKit does, for `COPY package.json package-lock.json* ./`.
    assert_eq!(fixture.layers("FROM scratch\nCOPY c.md nothing* /\n"), [["-rw-r--r-- 0:0 c.md"]]);
}

#[test]
fn dockerignore_leaves_files_out_and_takes_some_back_in() {
    let fixture = Fixture::new();
    fixture.file("keep", "1").file("node_modules/x", "2").file("logs/a.log", "3").file("logs/keep.log", "4");
    fixture.file(".dockerignore", "node_modules\nlogs\n!logs/keep.log\n.dockerignore\n");
    let all = [["-rw-r--r-- 0:0 keep", "drwxr-xr-x 0:0 logs/", "-rw-r--r-- 0:0 logs/keep.log"]];
    assert_eq!(fixture.layers("FROM scratch\nCOPY . /\n"), all);

    let error = fixture.build("FROM scratch\nCOPY node_modules /m\n").expect_err("it is left out");
    let report = report(&error);
    assert!(report.contains("Dockerfile:2: `COPY node_modules /m`: there is no `node_modules`"), "{report}");
    assert!(report.contains(".dockerignore` leaves it out"), "{report}");

    // The one beside the Dockerfile wins.
    fs::write(fixture.root.path().join("Dockerfile.dockerignore"), "*\n!keep\n").expect("write");
    assert_eq!(fixture.layers("FROM scratch\nCOPY . /\n"), [["-rw-r--r-- 0:0 keep"]]);
}

#[test]
fn copying_from_a_stage_keeps_owners_and_links() {
    let fixture = Fixture::new();
    fixture.file("f", "1");
    symlink("f", fixture.context().join("l")).expect("symlink");
    let layers = fixture.layers(
        "FROM scratch AS one\nCOPY --chown=5:6 . /d/\nFROM one AS two\nCOPY --chown=7 f /d/f\nFROM scratch\nCOPY --from=two /d /e\n",
    );
    assert_eq!(layers, [["drwxr-xr-x 0:0 e/", "-rw-r--r-- 7:7 e/f", "lrwxrwxrwx 5:6 e/l -> f"]]);
}

#[test]
fn a_file_replaces_a_file_and_nothing_else() {
    let fixture = Fixture::new();
    fixture.file("f", "1").file("d/x", "2");
    assert_eq!(fixture.layers("FROM scratch\nCOPY f /f\nCOPY d/x /f\n")[1], ["-rw-r--r-- 0:0 f"]);
    let message = |dockerfile: &str| report(&fixture.build(dockerfile).expect_err("it is refused"));
    assert!(
        message("FROM scratch\nCOPY f /a/x\nCOPY d /a/x\n")
            .contains("Dockerfile:3: `COPY d /a/x`: cannot copy a directory onto `/a/x`"),
    );
    assert!(
        message("FROM scratch\nWORKDIR /a/x\nCOPY d /a\n").contains("cannot copy a file onto the directory `/a/x`")
    );
    assert!(message("FROM scratch\nCOPY f /a\nCOPY f /a/b\n").contains("`/a` is not a directory in the image"));
    let several = message("FROM scratch\nCOPY f d/x /y\n");
    assert!(several.contains("several sources need a directory") && several.contains("`/y/`"), "{several}");
}

#[test]
fn a_directory_that_is_there_needs_an_empty_layer() {
    let fixture = Fixture::new();
    let layers = fixture.layers("FROM scratch\nWORKDIR /a/b\nWORKDIR /a\n");
    assert_eq!(layers, [vec!["drwxr-xr-x 0:0 a/", "drwxr-xr-x 0:0 a/b/"], vec![]]);
}

#[test]
fn nothing_is_unpacked_for_copies_from_the_context() {
    let fixture = Fixture::new();
    fixture.file("f", "1").file("d/x", "2");
    fixture.build("FROM scratch\nCOPY d /d\nWORKDIR /d/e\nCOPY f .\nCOPY f /d/\n").expect("builds");
    let n_unpacked = || fs::read_dir(fixture.store.root().join("layers")).expect("lists").count();
    assert_eq!(n_unpacked(), 0);
    fixture.build("FROM scratch AS one\nCOPY d /d\nFROM scratch\nCOPY --from=one /d /e\n").expect("builds");
    assert_eq!(n_unpacked(), 1);
}

#[test]
fn inputs_that_are_not_there_are_named() {
    let fixture = Fixture::new();
    let mut request = fixture.request("FROM scratch\n");
    request.dockerfile = fixture.root.path().join("Nofile");
    let (built, _) = fixture.build_request(&request);
    assert!(report(&built.expect_err("no file")).contains("there is no Dockerfile `"));

    let mut request = fixture.request("FROM scratch\nRUNN x\n");
    let (built, _) = fixture.build_request(&request);
    assert!(report(&built.expect_err("a typo")).contains("RUNN"));

    request.context = fixture.root.path().join("nowhere");
    let (built, _) = fixture.build_request(&request);
    assert!(report(&built.expect_err("no context")).contains("nowhere"));

    fixture.file(".dockerignore", "ok\n[\n");
    let error = report(&fixture.build("FROM scratch\n").expect_err("a bad pattern"));
    assert!(error.contains(".dockerignore has a problem") && error.contains("line 2"), "{error}");
    fs::remove_file(fixture.context().join(".dockerignore")).expect("removes");

    let error = report(&fixture.build("FROM scratch\nCOPY --chown=nobody . /\n").expect_err("no such user"));
    assert!(error.contains("there is no `nobody` in the image's `/etc/passwd`\nhint: make it in a RUN"), "{error}");
}

/// A directory's time of access tells who listed it.
#[test]
fn what_is_ignored_is_not_walked() {
    let fixture = Fixture::new();
    fixture.file("kept/f", "1").file("left/out/f", "2").file("partly/deep/f", "3").file("partly/other/f", "4");
    fixture.file(".dockerignore", "left\npartly\n!partly/deep/f\n");
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    let directories = ["kept", "left", "left/out", "partly", "partly/deep", "partly/other"];
    for directory in directories {
        let file = fs::File::open(fixture.context().join(directory)).expect("opens");
        file.set_times(fs::FileTimes::new().set_accessed(old)).expect("sets");
    }
    let accessed = |directory: &str| {
        let metadata = fs::metadata(fixture.context().join(directory)).expect("is there");
        metadata.accessed().expect("has one") != old
    };
    let layers = fixture.layers("FROM scratch\nCOPY . /\n");
    assert!(layers[0].iter().any(|line| line.ends_with(" partly/deep/f")), "{layers:?}");
    if !accessed("kept") {
        eprintln!("skipped: this file system keeps no times of access");
        return;
    }
    let walked: Vec<&str> = directories.into_iter().filter(|directory| accessed(directory)).collect();
    assert_eq!(walked, ["kept", "partly", "partly/deep"]);
}

#[test]
fn a_linked_copy_has_the_owner_that_its_own_base_names() {
    let fixture = Fixture::new();
    fixture.file("one", "u:x:11:12::/:\n").file("two", "u:x:21:22::/:\n").file("f", "f");
    for from in ["", "--from=source "] {
        let stage = |name: &str| {
            format!("FROM scratch AS {name}\nCOPY {name} /etc/passwd\nCOPY --link --chown=u {from}f /copied\n")
        };
        let dockerfile = format!(
            "FROM scratch AS source\nCOPY f /f\n{}{}FROM scratch\n\
             COPY --from=one /copied /one\nCOPY --from=two /copied /two\n",
            stage("one"),
            stage("two"),
        );
        // With a key of its own, a copy from the context is looked up before its base.
        let options = NativeOptions { inline_cache: true, ..NativeOptions::default() };
        let (built, _) = fixture.build_with(&fixture.request(&dockerfile), options);
        let layers = fixture.layers_of(&built.unwrap_or_else(|error| panic!("{}", report(&error))));
        assert_eq!(layers, [["-rw-r--r-- 11:12 one"], ["-rw-r--r-- 21:22 two"]], "{from}");
    }
}
