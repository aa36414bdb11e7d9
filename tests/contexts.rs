//! `--build-context` from where no folder of `testdata` can have one: OCI layouts, Git repositories, addresses; and that the
//! cache knows named contexts.

use crate::add::{Server, git, is_root, repository};
use crate::flatten::flatten;
use crate::support::{Home, has_program, steps_done};

/// Builds the Dockerfile `text` with an empty context. What was said, and the image's files.
fn build(home: &Home, text: &str, arguments: &[&str]) -> (String, Vec<String>) {
    let layout = home.path("layout");
    std::fs::create_dir_all(home.path("context")).expect("writable");
    let _ = std::fs::remove_dir_all(&layout);
    home.write("context/Dockerfile", text);
    let shown = layout.display().to_string();
    let output = home.run(&[&["build", "context", "-t", "test/context", "--oci-layout", &shown], arguments].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    (said, flatten(&layout).files.into_values().collect())
}

fn refusal(home: &Home, text: &str, arguments: &[&str]) -> String {
    home.write("context/Dockerfile", text);
    home.must_fail(&[&["build", "context", "-t", "test/context"], arguments].concat())
}

/// Layouts `one` (a single image) and `two` (called `a` and `b`), each with a file that has the image's name.
fn layouts(home: &Home) {
    for (layout, name) in [("one", "only"), ("two", "a"), ("two", "b")] {
        home.write(&format!("{name}/name"), name);
        home.write(&format!("{name}/Dockerfile"), "FROM scratch\nCOPY name /\nENV NAME=yes\n");
        home.must(&["build", name, "-t", &format!("made:{name}"), "--oci-layout", layout]);
    }
}

#[test]
fn an_oci_layout_stands_for_an_image_by_tag_by_digest_or_alone() {
    if !is_root() {
        return;
    }
    let home = Home::new();
    layouts(&home);
    let text = "FROM base AS made\nCOPY --from=base /name /env-$NAME\nFROM scratch\nCOPY --from=made / /\n";
    let expected = |name: &str| {
        let length = name.len();
        ["env-yes", "name"].map(|file| format!("f 0644 0:0 /{file} {length} {name:?}"))
    };
    // Another store: nothing of the layouts may be there already.
    let other = Home::new();
    let place = |rest: &str| format!("base=oci-layout://{}", home.path(rest).display());
    assert_eq!(build(&other, text, &["--build-context", &place("one")]).1, expected("only"));
    assert_eq!(build(&other, text, &["--build-context", &place("two:b")]).1, expected("b"));
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(home.path("two/index.json")).expect("is there")).expect("JSON");
    let digest = index["manifests"][0]["digest"].as_str().expect("a digest");
    assert_eq!(build(&other, text, &["--build-context", &place(&format!("two@{digest}"))]).1, expected("a"));

    let error = refusal(&other, text, &["--build-context", &place("two:c")]);
    assert!(error.contains("none of its 2 images is named `c` (named: a, b)"), "{error}");
    let error = refusal(&other, text, &["--build-context", &place("nothing")]);
    assert!(error.contains("index.json"), "{error}");
    let damaged = home.path("one/blobs/sha256");
    for blob in std::fs::read_dir(&damaged).expect("listed").flatten() {
        std::fs::write(blob.path(), "other").expect("writable");
    }
    let error = refusal(&Home::new(), text, &["--build-context", &place("one")]);
    assert!(error.contains("/blobs/sha256/"), "{error}");
}

#[test]
fn a_repository_or_a_file_of_the_network_is_a_context_and_is_fetched_when_it_is_needed() {
    if !is_root() || !has_program("git") {
        return;
    }
    let home = Home::new();
    home.write("work/dir/in", "in the repository\n");
    home.write("work/dir/.dockerignore", "in\n");
    repository(&home.path("work"));
    git(home.path("").as_path(), &["clone", "-q", "--bare", "work", "served/repo.git"]);
    git(&home.path("served/repo.git"), &["update-server-info"]);
    home.write("served/archive.tar", "no archive, and not unpacked either");
    let server = Server::start(home.path("served"));
    let code = format!("code={}", server.address("repo.git#:dir"));
    let file = format!("file={}", server.address("archive.tar"));
    let contexts = ["--build-context", &code, "--build-context", &file];
    let text = "FROM scratch\nCOPY --from=code . /code/\nCOPY --from=file /context /\n";
    // In a repository no `.dockerignore` counts, as with BuildKit.
    let expected = [
        "d 0755 0:0 /code",
        "f 0644 0:0 /code/.dockerignore 3 \"in\\n\"",
        "f 0644 0:0 /code/in 18 \"in the repository\\n\"",
        "f 0600 0:0 /context 35 \"no archive, and not unpacked either\"",
    ];
    assert_eq!(build(&home, text, &contexts).1, expected);
    assert_eq!(build(&home, text, &[&contexts[..], &["--verify"]].concat()).1, expected);

    let asked = server.asked();
    let unneeded = "FROM scratch AS other\nCOPY --from=code . /code/\nFROM scratch\nLABEL a=b\nCOPY <<x /\nx\n";
    build(&home, unneeded, &contexts);
    assert_eq!(server.asked(), asked, "what no step needs is not fetched");
}

#[test]
fn the_cache_knows_what_a_named_context_holds() {
    if !is_root() {
        return;
    }
    let home = Home::new();
    home.write("extra/file", "one\n");
    let text = "FROM extra\nCOPY --from=extra file /copied\n";
    let arguments = ["--build-context", "extra=extra"];
    let built = |said: &str| steps_done(said).len();
    let (said, files) = build(&home, text, &arguments);
    assert_eq!(built(&said), 2, "{said}");
    assert_eq!(files.len(), 2, "{files:?}");
    assert_eq!(built(&build(&home, text, &arguments).0), 0);
    home.write("extra/file", "two\n");
    let (said, files) = build(&home, text, &arguments);
    assert_eq!(built(&said), 2, "{said}");
    assert!(files[0].contains("two"), "{files:?}");
    build(&home, text, &[&arguments[..], &["--verify"]].concat());
    // The same name, but other files: whatever the name is.
    home.write("second/file", "three\n");
    let (_, files) = build(&home, text, &["--build-context", "extra=second"]);
    assert!(files[0].contains("three"), "{files:?}");
}
