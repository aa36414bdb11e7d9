//! The options of `cfc build` with `--builder buildkit`: each does there what it does without, on an old daemon in Docker's
//! engine and on a current one.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::engine::Engine;
use crate::flatten::flatten;
use crate::golden::{config_text, difference};
use crate::images::busybox_context;
use crate::registries::{LOGIN, Peer};
use crate::support::{Home, can_sandbox, has_program};

const DOCKERFILE: &str = "FROM scratch AS base
COPY busybox /bin/busybox
RUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]
FROM base AS made
RUN head -c 300000 /bin/busybox >/made
FROM base
COPY --from=made --chown=1:2 /made /srv/made
LABEL a=b
";

/// A home with an empty store and a context.
fn machine(dockerfile: &str) -> Home {
    let home = Home::new();
    busybox_context(&home);
    home.write("context/Dockerfile", dockerfile);
    home.write("context/f", "content\n");
    home
}

/// `cfc build` of that.
fn here(home: &Home, more: &[&str]) -> Command {
    let mut command = home.cfc();
    command.args(["build", "context", "-t", "app", "--network", "none"]).args(more);
    command
}

/// The same on the daemon of `engine`.
fn on(engine: &Engine, home: &Home, more: &[&str]) -> Command {
    let mut command = here(home, more);
    command.args(["--builder", "buildkit", "--buildkit-addr", &engine.buildkit_address()]);
    command
}

/// What is said, and whether it is a success.
fn ran(mut command: Command) -> (bool, String) {
    let output = command.output().expect("cfc runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code().is_some_and(|code| code <= 1), "{:?}: {said}", output.status);
    (output.status.success(), said)
}

fn must(command: Command) -> String {
    let (is_good, said) = ran(command);
    assert!(is_good, "{said}");
    said
}

fn must_fail(command: Command) -> String {
    let (is_good, said) = ran(command);
    assert!(!is_good, "{said}");
    said
}

#[test]
fn options_do_the_same_on_an_engines_buildkit() {
    if !can_sandbox() || !has_program("dockerd") {
        return;
    }
    let home = Home::new();
    let Some(engine) = Engine::start(home.path("engine")) else { return };
    hold(&engine);
    if engine.is_old() {
        what_an_old_daemon_does_not_know_is_named(&engine);
    }
}

#[test]
fn options_do_the_same_on_a_whole_buildkit() {
    if !can_sandbox() {
        return;
    }
    let home = Home::new();
    let Some(engine) = Engine::start_current(home.path("engine")) else { return };
    hold(&engine);
    if has_program("docker-registry") {
        registries_are_told_who_we_are(&engine);
    }
}

fn hold(engine: &Engine) {
    layers_are_encoded_as_they_were_asked_for(engine);
    manifests_and_indexes_are_annotated(engine);
    other_platforms_get_what_needs_no_program(engine);
    fresh_stages_are_built_again(engine);
}

/// The only manifest or index of a layout.
fn top(layout: &Path) -> Value {
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).expect("a layout")).expect("JSON");
    blob(layout, &index["manifests"][0])
}

fn blob(layout: &Path, descriptor: &Value) -> Value {
    let digest = descriptor["digest"].as_str().expect("a digest").replace(':', "/");
    serde_json::from_slice(&fs::read(layout.join("blobs").join(digest)).expect("a blob")).expect("JSON")
}

fn layers_are_encoded_as_they_were_asked_for(engine: &Engine) {
    let home = machine(DOCKERFILE);
    let native = home.path("native");
    must(here(&home, &["--oci-layout", &native.display().to_string()]));
    let native = flatten(&native);
    let gzip = "application/vnd.oci.image.layer.v1.tar+gzip";
    let cases = [
        ("none", None, "application/vnd.oci.image.layer.v1.tar"),
        ("gzip", Some("1"), gzip),
        ("gzip", Some("9"), gzip),
        ("zstd", Some("3"), "application/vnd.oci.image.layer.v1.tar+zstd"),
        ("estargz", None, gzip),
    ];
    let mut sizes = Vec::new();
    for (compression, level, media_type) in cases {
        let layout = home.path(&format!("{compression}-{}", level.unwrap_or_default()));
        let text = layout.display().to_string();
        let mut arguments = vec!["--oci-layout", &text, "--compression", compression];
        arguments.extend(level.iter().flat_map(|level| ["--compression-level", level]));
        must(on(engine, &home, &arguments));
        let manifest = top(&layout);
        let layers = manifest["layers"].as_array().expect("layers");
        assert_eq!(layers.len(), 3, "{compression}");
        let is_seekable = compression == "estargz";
        for layer in layers {
            assert_eq!(layer["mediaType"], media_type, "{compression}");
            let has_contents = !layer["annotations"]["containerd.io/snapshot/stargz/toc.digest"].is_null();
            assert_eq!(has_contents, is_seekable, "{compression}: {layer}");
        }
        sizes.push(layers.iter().map(|layer| layer["size"].as_u64().expect("a number")).sum::<u64>());
        let image = flatten(&layout);
        // The files of an eStargz have its contents among them.
        let files = image.files.into_iter().filter(|(path, _)| !path.to_string_lossy().contains("stargz.index.json"));
        let files = files.filter(|(path, _)| path != Path::new(".no.prefetch.landmark"));
        // Daemons leave the mount points that a program needed.
        let left = ["dev", "etc", "proc", "sys"].map(Path::new);
        let files = files.filter(|(path, _)| !left.contains(&path.as_path()) || native.files.contains_key(path));
        let text = |files: &mut dyn Iterator<Item = String>| files.collect::<Vec<_>>().join("\n");
        let (there, here) = (text(&mut files.map(|(_, line)| line)), text(&mut native.files.values().cloned()));
        assert_eq!(difference(&here, &there), "", "{compression}: - the native executor's files, + the daemon's");
        let image = flatten(&layout);
        if !is_seekable {
            assert_eq!(config_text(&image), config_text(&native), "{compression}");
        }
    }
    let [none, fast, best, ..] = sizes.as_slice() else { panic!("{sizes:?}") };
    assert!(best < fast && fast < none, "{sizes:?}");
}

fn manifests_and_indexes_are_annotated(engine: &Engine) {
    let home = machine("FROM scratch\nCOPY f /\n");
    let layout = home.path("layout");
    let text = layout.display().to_string();
    must(on(engine, &home, &["--oci-layout", &text, "--annotation", "org.example=1", "--label", "org.label=2"]));
    assert_eq!(top(&layout)["annotations"]["org.example"], "1");
    assert_eq!(flatten(&layout).config.config.labels.unwrap_or_default()["org.label"], "2");
}

fn other_platforms_get_what_needs_no_program(engine: &Engine) {
    let home = machine("FROM scratch\nCOPY f /\n");
    let layout = home.path("arm64");
    must(on(engine, &home, &["--platform", "linux/arm64", "--oci-layout", &layout.display().to_string()]));
    assert_eq!(flatten(&layout).config.architecture, "arm64");
    // One image for several.
    let layout = home.path("both");
    let text = layout.display().to_string();
    let platforms = ["--platform", "linux/amd64,linux/arm64", "--annotation", "index:org.example=1"];
    must(on(engine, &home, &[&platforms[..], &["--oci-layout", &text]].concat()));
    let index = top(&layout);
    assert_eq!(index["annotations"]["org.example"], "1");
    let manifests = index["manifests"].as_array().expect("an index");
    let architectures: Vec<_> = manifests.iter().map(|manifest| &manifest["platform"]["architecture"]).collect();
    assert_eq!(architectures, ["amd64", "arm64"]);
    for (manifest, architecture) in manifests.iter().zip(["amd64", "arm64"]) {
        assert_eq!(blob(&layout, &blob(&layout, manifest)["config"])["architecture"], architecture);
    }
    // A program of another processor, which only an emulator runs.
    if Path::new("/proc/sys/fs/binfmt_misc/qemu-s390x").exists() {
        return;
    }
    home.write("context/Dockerfile", "FROM scratch\nCOPY busybox /busybox\nRUN [\"/busybox\", \"true\"]\n");
    let said = must_fail(on(engine, &home, &["--platform", "linux/s390x"]));
    assert!(said.contains("runs no programs for linux/s390x, only for ") && said.contains("binfmt_misc"), "{said}");
}

fn fresh_stages_are_built_again(engine: &Engine) {
    let home = machine(DOCKERFILE);
    must(on(engine, &home, &[]));
    let said = must(on(engine, &home, &["--no-cache=made", "--progress", "plain"]));
    let outcome = |step: &str| {
        let line = said.lines().find(|line| line.contains(step)).unwrap_or_else(|| panic!("{step}: {said}"));
        let number = line.split(' ').next().expect("a number");
        let ends = [" CACHED", " DONE"].into_iter();
        let is_end = |end: &&str| said.lines().any(|line| line.starts_with(&format!("{number}{end}")));
        ends.filter(is_end).map(str::trim).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(outcome("[base 1/2]"), "CACHED", "{said}");
    assert_eq!(outcome("[base 2/2]"), "CACHED", "{said}");
    assert_eq!(outcome("[made 1/1]"), "DONE", "{said}");
}

fn what_an_old_daemon_does_not_know_is_named(engine: &Engine) {
    let home = machine("FROM scratch\nCOPY f /\nCOPY --exclude=*.md . /\n");
    let said = must_fail(on(engine, &home, &[]));
    let expected = "context/Dockerfile:3: `COPY --exclude=*.md . /`: this BuildKit daemon does not know `COPY --exclude` (it has no `file.copy.includeexcludepatterns`)";
    assert!(said.contains(expected) && said.contains("hint: use a newer BuildKit daemon"), "{said}");
    assert_eq!(home.must(&["images", "list", "--json"]).trim(), "[]");
}

/// The daemon asks us when it reads and writes caches; base images we get ourselves, and show it.
fn registries_are_told_who_we_are(engine: &Engine) {
    let home = machine(DOCKERFILE);
    let peer = Peer::with_password(&home);
    let host = &peer.host;
    home.write("login/config.json", &format!(r#"{{"auths": {{"{host}": {{"auth": "{LOGIN}"}}}}}}"#));
    // `user:wrong`
    home.write("wrong/config.json", &format!(r#"{{"auths": {{"{host}": {{"auth": "dXNlcjp3cm9uZw=="}}}}}}"#));
    home.write("nobody/config.json", "{}");
    let as_whom = |mut command: Command, who: &str| {
        command.env("DOCKER_CONFIG", home.path(who));
        command
    };
    let cache = format!("type=registry,ref={host}/team/cache:1");
    for who in ["nobody", "wrong"] {
        let said = must_fail(as_whom(on(engine, &home, &["--cache-to", &cache]), who));
        assert!(said.contains("401 Unauthorized") && said.contains(host), "{who}: {said}");
        assert_eq!(home.must(&["images", "list", "--json"]).trim(), "[]", "{who}");
    }
    must(as_whom(on(engine, &home, &["--cache-to", &cache]), "login"));
    let prune = engine.docker().args(["builder", "prune", "--all", "--force"]).output().expect("docker runs");
    assert!(prune.status.success());
    let said = must(as_whom(on(engine, &home, &["--cache-from", &cache]), "login"));
    assert!(said.contains(" CACHED") && !said.contains(" DONE"), "{said}");

    let mut push = home.cfc();
    push.args(["push", "app", &format!("{host}/team/base:1")]);
    must(as_whom(push, "login"));
    let other = Home::new();
    other.write("context/Dockerfile", &format!("FROM {host}/team/base:1\nRUN test -s /srv/made && echo more >/more\n"));
    for who in ["nobody", "wrong"] {
        let said = must_fail(as_whom(on(engine, &other, &[]), who));
        assert!(said.contains(&format!("{host}/team/base:1")), "{who}: {said}");
    }
    must(as_whom(on(engine, &other, &[]), "login"));
}
