//! Where `cfc build` sends an image, as other tools read it; and how its layers are compressed.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::images::{busybox_context, output_of};
use crate::support::{Home, Platform, can_sandbox, has_program};

fn json(path: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&fs::read(path).expect("readable")).expect("JSON")
}

/// The manifest of the only image of a layout, and its digest.
fn manifest(layout: &Path) -> (String, Value) {
    let digest = json(layout.join("index.json"))["manifests"][0]["digest"].as_str().expect("text").to_owned();
    let manifest = json(layout.join("blobs").join(digest.replace(':', "/")));
    (digest, manifest)
}

#[test]
fn archives_are_read_by_skopeo_as_the_image_that_was_built() {
    if !can_sandbox() || !has_program("skopeo") {
        return;
    }
    let home = Home::new();
    let context = busybox_context(&home);
    let [oci, docker, layout] = ["oci.tar", "docker.tar", "layout"].map(|name| home.path(name));
    let said = home.must(&[
        "build",
        &context,
        "-t",
        "test/app:1",
        "-t",
        "test/other:2",
        "-o",
        &format!("type=oci,dest={}", oci.display()),
        "-o",
        &format!("type=docker,dest={}", docker.display()),
        "-o",
        &format!("type=oci,tar=false,dest={}", layout.display()),
    ]);
    let (digest, expected) = manifest(&layout);
    assert_eq!(said, format!("test/app:1  {digest}\ntest/other:2  {digest}"));
    let raw = |source: String| -> Value {
        serde_json::from_str(&output_of(Command::new("skopeo").args(["inspect", "--raw", &source]))).expect("JSON")
    };
    assert_eq!(raw(format!("oci-archive:{}:1", oci.display())), expected);
    assert_eq!(raw(format!("oci-archive:{}:2", oci.display())), expected);
    let config = |source: String| output_of(Command::new("skopeo").args(["inspect", "--config", &source]));
    let of_docker = config(format!("docker-archive:{}:test/other:2", docker.display()));
    let [of_docker, of_layout]: [Value; 2] = [of_docker, config(format!("oci:{}:1", layout.display()))]
        .map(|text| serde_json::from_str(&text).expect("JSON"));
    assert_eq!(of_docker, of_layout);
    assert!(
        fs::read_dir(home.path(""))
            .expect("lists")
            .all(|entry| { !entry.expect("an entry").file_name().to_string_lossy().contains("partial") })
    );
}

/// Runs a build with `input` on its stdin; the greeting of what it made.
fn build_from_stdin(home: &Home, arguments: &[&str], input: &[u8]) -> Result<String, String> {
    let mut command = home.cfc();
    command.args(["build", "-t", "from/stdin:1"]).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().expect("it runs");
    // It may refuse before it has read everything.
    let _ = process.stdin.take().expect("piped").write_all(input);
    let output = process.wait_with_output().expect("it ends");
    match output.status.success() {
        true => Ok(home.must(&["run", "from/stdin:1", "cat greeting"])),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

#[test]
fn contexts_come_on_stdin_and_from_git_and_dockerfiles_on_stdin() {
    if !can_sandbox() {
        return;
    }
    let home = Home::new();
    let context = busybox_context(&home);
    let tar = |flags: &str| {
        let output = Command::new("tar").args([flags, "-", "-C", &context, "."]).output().expect("tar runs");
        assert!(output.status.success());
        output.stdout
    };
    assert_eq!(build_from_stdin(&home, &["-"], &tar("-cf")).as_deref(), Ok("hello"));
    assert_eq!(
        build_from_stdin(&home, &["-", "--build-arg", "GREETING=zipped"], &tar("-czf")).as_deref(),
        Ok("zipped")
    );
    let dockerfile = fs::read_to_string(home.path("context/Dockerfile")).expect("readable");
    let other = dockerfile.replace("GREETING=hello", "GREETING=other");
    assert_eq!(build_from_stdin(&home, &["-f", "-", &context], other.as_bytes()).as_deref(), Ok("other"));
    let alone = "FROM test/base:1\nWORKDIR /srv\nRUN echo alone >greeting\nENTRYPOINT [\"/bin/sh\", \"-c\"]\n";
    home.must(&["build", &context, "-t", "test/base:1", "--target", "base"]);
    assert_eq!(build_from_stdin(&home, &["-"], alone.as_bytes()).as_deref(), Ok("alone"));

    let refused = build_from_stdin(&home, &["-", "-f", "-"], b"FROM scratch\n").expect_err("twice");
    assert!(refused.contains("cannot both come on stdin"), "{refused}");
    let refused = build_from_stdin(&home, &["-", "-f", "Other"], alone.as_bytes()).expect_err("twice");
    assert!(refused.contains("what came on stdin is a Dockerfile"), "{refused}");
    let refused = home.must_fail(&["build", "ftp://example.org/x", "-t", "a"]);
    assert!(refused.contains("is no build context that cfc can get"), "{refused}");

    if has_program("git") {
        let git = |arguments: &[&str]| {
            let identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main"];
            output_of(Command::new("git").arg("-C").arg(home.path("repository")).args(identity).args(arguments))
        };
        crate::support::copy_tree(&home.path("context"), &home.path("repository/part"));
        git(&["init", "-q"]);
        git(&["add", "."]);
        git(&["commit", "-q", "-m", "one"]);
        git(&["tag", "v1"]);
        git(&["update-server-info"]);
        let server = serve_directory(home.path("repository/.git"));
        home.must(&["build", &format!("http://{server}/repository.git#v1:part"), "-t", "from/git:1"]);
        assert_eq!(home.must(&["run", "from/git:1", "cat greeting"]), "hello");
        let missing = home.must_fail(&["build", &format!("http://{server}/repository.git#v2"), "-t", "a"]);
        assert!(missing.contains("cannot get the build context"), "{missing}");
    }
}

/// The files of `directory` over HTTP, below any first part of the path: git's "dumb" protocol needs no more.
pub fn serve_directory(directory: PathBuf) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let directory = directory.clone();
            std::thread::spawn(move || {
                let mut lines = BufReader::new(&connection).lines();
                let first = lines.next().and_then(Result::ok).unwrap_or_default();
                let path = first.split(' ').nth(1).unwrap_or("/").split('?').next().unwrap_or("/").to_owned();
                while lines.next().and_then(Result::ok).is_some_and(|line| !line.is_empty()) {}
                let inside = path.trim_start_matches('/').split_once('/').map_or("", |(_, rest)| rest);
                let (status, body) = match fs::read(directory.join(inside)) {
                    Ok(body) => ("200 OK", body),
                    Err(_) => ("404 Not Found", Vec::new()),
                };
                let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                let _ = (&connection).write_all(head.as_bytes()).and_then(|()| (&connection).write_all(&body));
            });
        }
    });
    address
}

/// Every path below `directory`, with what it is.
fn files(directory: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![directory.to_path_buf()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(&next).expect("lists") {
            let path = entry.expect("an entry").path();
            let metadata = path.symlink_metadata().expect("is there");
            let what = match metadata.file_type() {
                kind if kind.is_symlink() => format!("-> {}", path.read_link().expect("a link").display()),
                kind if kind.is_dir() => "directory".to_owned(),
                _ => format!("{} bytes, {} names", metadata.len(), metadata.nlink()),
            };
            let name = path.strip_prefix(directory).expect("below").display().to_string();
            found.insert(
                name,
                format!(
                    "{:o} {}:{} {} {what}",
                    metadata.mode() & 0o7777,
                    metadata.uid(),
                    metadata.gid(),
                    metadata.mtime()
                ),
            );
            if metadata.is_dir() {
                open.push(path);
            }
        }
    }
    found
}

#[test]
fn the_root_filesystem_comes_as_a_directory_or_a_tar() {
    if !can_sandbox() {
        return;
    }
    let home = Home::new();
    let context = busybox_context(&home);
    let out = home.path("out").display().to_string();
    home.must(&["build", &context, "-t", "app", "-o", &out]);
    let local = files(&home.path("out"));
    // The files are for whoever builds.
    assert!(
        local["srv/greeting"].contains(" 0:0 ") && local["srv/greeting"].ends_with("6 bytes, 2 names"),
        "{local:?}"
    );
    assert!(local["bin/sh"].contains("-> "), "{local:?}");
    assert!(!local.contains_key("bin/vi") || local["bin/vi"].contains("-> "), "{local:?}");

    let output = home.run(&["build", &context, "-t", "app", "-o", "-"]);
    assert!(output.status.success());
    fs::create_dir(home.path("untarred")).expect("makes");
    home.write("root.tar", "");
    fs::write(home.path("root.tar"), output.stdout).expect("writes");
    output_of(
        Command::new("tar")
            .args(["--numeric-owner", "-p", "-xf"])
            .arg(home.path("root.tar"))
            .arg("-C")
            .arg(home.path("untarred")),
    );
    let tarred = files(&home.path("untarred"));
    assert!(tarred["srv/greeting"].contains(" 12:34 "), "{tarred:?}");
    let without_owners: BTreeMap<_, _> =
        tarred.into_iter().map(|(path, what)| (path, what.replacen(" 12:34 ", " 0:0 ", 1))).collect();
    assert_eq!(without_owners, local);
}

#[test]
fn a_directory_that_is_there_keeps_what_the_image_does_not_have() {
    if !can_sandbox() {
        return;
    }
    let home = Home::new();
    let context = busybox_context(&home);
    let out = home.path("out/");
    home.must(&["build", &context, "-t", "app", "-o", &out.display().to_string()]);
    let fresh = files(&out);
    // Files of another kind, a link out of it, and something that is nobody's.
    home.write("elsewhere/mine", "mine");
    home.write("out/srv/mine", "mine");
    let replace_by_link = |name: &str| {
        fs::remove_dir_all(home.path("out").join(name)).expect("removed");
        std::os::unix::fs::symlink(home.path("elsewhere"), home.path("out").join(name)).expect("made");
    };
    replace_by_link("bin");
    fs::remove_file(home.path("out/srv/greeting")).expect("removed");
    home.write("out/srv/greeting/in/the/way", "x");
    fs::set_permissions(home.path("out/srv"), fs::Permissions::from_mode(0o700)).expect("changed");
    home.must(&["build", &context, "-t", "app", "-o", &out.display().to_string()]);
    let mut merged = files(&out);
    let mine = merged.remove("srv/mine").expect("it stays");
    assert!(mine.contains("4 bytes"), "{mine}");
    assert_eq!(merged, fresh);
    assert_eq!(fs::read_dir(home.path("elsewhere")).expect("lists").count(), 1, "a link was followed");
}

#[test]
fn the_encoding_is_the_one_that_was_asked_for_whatever_is_cached() {
    if !can_sandbox() {
        return;
    }
    let build = |home: &Home, more: &[&str]| -> (String, Value) {
        let context = busybox_context(home);
        let layout = home.path("layout");
        let _ = fs::remove_dir_all(&layout);
        home.must(&[&["build", &context, "-t", "app:1", "--oci-layout", &layout.display().to_string()], more].concat());
        manifest(&layout)
    };
    let [cached, fresh] = [(); 2].map(|()| Home::new());
    let types = |manifest: &Value| -> Vec<String> {
        let layers = manifest["layers"].as_array().expect("layers");
        layers.iter().map(|layer| layer["mediaType"].as_str().expect("text").to_owned()).collect()
    };
    let (gzip, of_gzip) = build(&cached, &[]);
    assert!(types(&of_gzip).iter().all(|kind| kind.ends_with("tar+gzip")), "{of_gzip}");
    for (ending, flags) in [
        ("tar+zstd", vec!["--compression", "zstd", "--compression-level", "9"]),
        ("tar", vec!["--compression", "none"]),
        ("tar+gzip", vec!["--compression-level", "9"]),
    ] {
        let (digest, of_cached) = build(&cached, &flags);
        assert_ne!(digest, gzip);
        assert!(types(&of_cached).iter().all(|kind| kind.ends_with(ending)), "{of_cached}");
        assert_eq!(of_cached["config"], of_gzip["config"], "the content is the same");
        let (of_fresh, _) = build(&fresh, &[&flags[..], &["--no-cache"]].concat());
        assert_eq!(of_fresh, digest, "{flags:?}");
    }
    assert_eq!(build(&cached, &[]).0, gzip);
    let (estargz, of_estargz) = build(&cached, &["--compression", "estargz"]);
    for layer in of_estargz["layers"].as_array().expect("layers") {
        let annotations = layer["annotations"].as_object().expect("annotations");
        assert!(annotations.contains_key("containerd.io/snapshot/stargz/toc.digest"), "{of_estargz}");
    }
    assert_eq!(build(&fresh, &["--compression", "estargz", "--no-cache"]).0, estargz);
    if has_program("umoci") {
        let (layout, bundle) = (cached.path("layout"), cached.path("bundle"));
        let image = format!("{}:1", layout.display());
        output_of(Command::new("umoci").args(["unpack", "--image", &image]).arg(&bundle));
        assert!(bundle.join("rootfs/stargz.index.json").is_file() && bundle.join("rootfs/srv/greeting").is_file());
    }
    let refused = cached.must_fail(&["build", ".", "-t", "a", "--compression", "zstd", "--compression-level", "23"]);
    assert!(refused.contains("zstd has the levels 1 to 22, not 23"), "{refused}");
}

#[test]
fn files_for_scripts_say_what_was_built_and_annotations_are_in_the_manifest() {
    if !can_sandbox() {
        return;
    }
    let home = Home::new();
    let context = busybox_context(&home);
    let [id, metadata, layout] = ["id", "metadata.json", "layout"].map(|name| home.path(name));
    home.must(&[
        "build",
        &context,
        "-t",
        "test/app:1",
        "--annotation",
        "org.example.a=b",
        "--annotation",
        "manifest:org.example.c=d=e",
        "--iidfile",
        &id.display().to_string(),
        "--metadata-file",
        &metadata.display().to_string(),
        "--oci-layout",
        &layout.display().to_string(),
    ]);
    let (digest, manifest) = manifest(&layout);
    assert_eq!(manifest["annotations"], serde_json::json!({"org.example.a": "b", "org.example.c": "d=e"}));
    assert_eq!(fs::read_to_string(&id).expect("readable"), manifest["config"]["digest"].as_str().expect("text"));
    let metadata = json(&metadata);
    assert_eq!(metadata["containerimage.digest"], digest.as_str());
    assert_eq!(metadata["containerimage.config.digest"], manifest["config"]["digest"]);
    assert_eq!(metadata["containerimage.descriptor"]["digest"], digest.as_str());
    assert_eq!(metadata["image.name"], "test/app:1");
    let refused = home.must_fail(&["build", &context, "-t", "a", "--annotation", "index:a=b"]);
    assert!(refused.contains("has no index to annotate"), "{refused}");
}

#[test]
fn a_build_pushes_under_all_its_names_or_says_before_that_it_cannot() {
    if !can_sandbox() {
        return;
    }
    let home = Home::new();
    let platform = Platform::start(&home);
    let context = busybox_context(&home);
    let registry = platform.address("registry");
    let names = [format!("{registry}/one/app:1"), format!("{registry}/two/app:2")];
    home.must(&["build", &context, "-t", &names[0], "-t", &names[1], "--push"]);
    let other = Home::new();
    for name in &names {
        assert_eq!(other.must(&["run", name]), "hello\n12");
    }
    let refused = home.must_fail(&["build", &context, "-t", "app:1", "--push"]);
    assert!(refused.contains("names no registry to push to") && !refused.contains("built"), "{refused}");
}
