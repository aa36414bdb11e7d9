//! `--cache-to` and `--cache-from`: what one machine built, another need not build.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::images::busybox_context;
use crate::support::{Ended, Home, can_sandbox, free_port, has_program, wait_for};

const DOCKERFILE: &str = "FROM scratch AS base
COPY busybox /bin/busybox
RUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]
FROM base AS made
RUN head -c 3000000 /dev/zero >/large && echo made >/made
FROM base
WORKDIR /srv
COPY --from=made /made ./
COPY greeting /srv/greeting
RUN cat /srv/made /srv/greeting >/both
";

const ONE_STAGE: &str = "FROM scratch
COPY busybox /bin/busybox
RUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]
WORKDIR /srv
COPY --chown=12:34 greeting ./
RUN cat greeting >/both
";

/// A home with an empty store and the context.
fn machine() -> (Home, String) {
    let home = Home::new();
    let context = busybox_context(&home);
    home.write("context/Dockerfile", DOCKERFILE);
    home.write("context/greeting", "hello\n");
    (home, context)
}

/// Builds; the digest, and what was said.
fn build(home: &Home, context: &str, more: &[&str]) -> (String, String) {
    let output = home.cfc().args(["build", context, "-t", "app"]).args(more).output().expect("cfc runs");
    let said = String::from_utf8_lossy(&output.stderr).to_string();
    assert!(output.status.success(), "{more:?}: {said}");
    let out = String::from_utf8_lossy(&output.stdout).trim_end().to_string();
    (out.rsplit(' ').next().unwrap_or_default().to_string(), said)
}

fn assert_all_cached(said: &str) {
    assert!(said.contains(" CACHED") && !said.contains(" DONE "), "{said}");
}

fn blobs(home: &Home) -> u64 {
    let blobs = std::fs::read_dir(home.data().join("store/blobs/sha256")).expect("lists").flatten();
    blobs.map(|blob| blob.metadata().expect("there").len()).sum()
}

#[test]
fn a_local_cache_spares_another_machine_every_step() {
    if !can_sandbox() {
        return;
    }
    let (first, context) = machine();
    let cache = first.path("cache").display().to_string();
    let (to, from) = (format!("type=local,dest={cache},mode=max"), format!("type=local,src={cache}"));
    let arguments = ["--cache-to", &to, "--compression", "none"];
    let (digest, _) = build(&first, &context, &arguments);

    let (second, context) = machine();
    let (again, said) = build(&second, &context, &["--cache-from", &from]);
    assert_all_cached(&said);
    let (uncached, _) = build(&second, &context, &["--no-cache"]);
    assert_eq!(again, uncached, "a cache changes no image");
    let (third, context) = machine();
    assert_eq!(build(&third, &context, &["--cache-from", &from, "--compression", "none"]).0, digest);
    // The layer of the other stage was not brought, since nobody needed it; then somebody does.
    let before = blobs(&third);
    assert!(before < 5_000_000, "{before} bytes");
    third.write("context/Dockerfile", &format!("{DOCKERFILE}COPY --from=made /large /large\n"));
    let (_, said) = build(&third, &context, &["--cache-from", &from, "--compression", "none"]);
    assert_eq!(said.lines().filter(|line| line.contains(" DONE ")).count(), 1, "{said}");
    assert!(blobs(&third) > before + 3_000_000);
}

#[test]
fn min_has_the_images_steps_only() {
    if !can_sandbox() {
        return;
    }
    for compression in ["gzip", "estargz"] {
        let (first, context) = machine();
        let cache = first.path("cache").display().to_string();
        let (to, from) = (format!("type=local,dest={cache}"), format!("type=local,src={cache}"));
        let (digest, _) = build(&first, &context, &["--compression", compression, "--cache-to", &to]);
        let (second, context) = machine();
        let (again, said) = build(&second, &context, &["--compression", compression, "--cache-from", &from]);
        assert_eq!(again, digest);
        let built: Vec<&str> = said.lines().filter(|line| line.contains("] ")).collect();
        assert!(said.contains(" DONE ") && said.contains(" CACHED"), "{compression}: {built:?}");
        // A stage of its own has nothing of another, so all of it is in the image.
        first.write("context/Dockerfile", ONE_STAGE);
        let own = first.path("context").display().to_string();
        build(&first, &own, &["--compression", compression, "--cache-to", &to]);
        let (third, context) = machine();
        third.write("context/Dockerfile", ONE_STAGE);
        assert_all_cached(&build(&third, &context, &["--cache-from", &from]).1);
    }
    let (home, context) = machine();
    let inline = ["--compression", "estargz", "--cache-to", "type=inline"];
    let said = home.must_fail(&[&["build", &context, "-t", "app"], &inline[..]].concat());
    assert!(said.contains("type=inline does not go with --compression estargz") && said.contains("hint: "), "{said}");
}

const PLATFORMS: [&str; 2] = ["--platform", "linux/amd64,linux/arm64"];

/// A machine whose image is another one on each platform, without a program.
fn machine_of_platforms() -> (Home, String) {
    let (home, context) = machine();
    home.write("context/Dockerfile", "FROM scratch\nARG TARGETARCH\nWORKDIR /srv\nCOPY $TARGETARCH ./\n");
    home.write("context/amd64", "1");
    home.write("context/arm64", "2");
    (home, context)
}

#[test]
fn the_cache_of_several_platforms_is_for_each_of_them() {
    if !can_sandbox() {
        return;
    }
    let servers = Home::new();
    let (host, _registry) = registries(&servers).swap_remove(0);
    let (first, context) = machine_of_platforms();
    let (local, remote) = (first.path("cache").display().to_string(), format!("{host}/team/cache:1"));
    let to = [format!("type=local,dest={local}"), format!("type=registry,ref={remote},mode=max")];
    let arguments = ["--cache-to", &to[0], "--cache-to", &to[1]];
    build(&first, &context, &[&PLATFORMS[..], &arguments].concat());
    // An inline one is in the image of each platform.
    build(&first, &context, &[&PLATFORMS[..], &["--cache-to", "type=inline"]].concat());
    let image = format!("{host}/team/app:1");
    first.must(&["push", "app", &image]);
    for from in [format!("type=local,src={local}"), remote, image] {
        for platform in ["linux/amd64", "linux/arm64"] {
            let (second, context) = machine_of_platforms();
            let (_, said) = build(&second, &context, &["--platform", platform, "--cache-from", &from]);
            assert!(said.contains(" CACHED") && !said.contains(" DONE "), "{from} for {platform}: {said}");
        }
    }
}

#[test]
fn an_image_whose_cache_cannot_be_sent_has_its_names() {
    let (home, context) = machine_of_platforms();
    let to = format!("type=registry,ref=127.0.0.1:{}/a:1", free_port());
    home.must_fail(&["build", &context, "-t", "app", "-t", "app:2", "--cache-to", &to]);
    for name in ["app%3Alatest.json", "app%3A2.json"] {
        assert!(home.data().join("store/refs").join(name).exists(), "{name}");
    }
}

#[test]
fn an_image_goes_where_it_is_to_go_although_its_cache_does_not() {
    if !can_sandbox() {
        return;
    }
    let (home, context) = machine();
    let place = format!("type=registry,ref=127.0.0.1:{}/a:1", free_port());
    let to = home.path("cache").display().to_string();
    let arguments = ["build", &context, "-t", "app", "-o", "files", "--cache-to", &place];
    let local = format!("type=local,dest={to}");
    let said = home.must_fail(&[&arguments[..], &["--cache-to", &local]].concat());
    assert!(said.contains("cannot push"), "{said}");
    assert!(home.path("files").is_dir() && home.path("cache/index.json").exists(), "{said}");
    let ignored = format!("{place},ignore-error=true");
    let output = home.run(&["build", &context, "-t", "app", "--cache-to", &ignored]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("warning: cannot export the build cache: cannot push"), "{said}");
}

#[test]
fn a_cache_is_encoded_as_it_was_asked_for_and_of_use_to_images_of_another_encoding() {
    if !can_sandbox() {
        return;
    }
    let (first, context) = machine();
    let cache = first.path("cache").display().to_string();
    let to = format!("type=local,dest={cache},mode=max,compression=zstd,compression-level=9");
    let (digest, _) = build(&first, &context, &["--cache-to", &to]);
    let starts = |magic: &[u8]| {
        let blobs = std::fs::read_dir(first.path("cache/blobs/sha256")).expect("lists").flatten();
        blobs.filter(|blob| std::fs::read(blob.path()).expect("readable").starts_with(magic)).count()
    };
    assert!(starts(&[0x28, 0xb5, 0x2f, 0xfd]) >= 3 && starts(&[0x1f, 0x8b]) == 0, "zstd alone");
    let (second, context) = machine();
    let (again, said) = build(&second, &context, &["--cache-from", &format!("type=local,src={cache}")]);
    assert_all_cached(&said);
    // The image is the one that gzip makes.
    assert_eq!(again, digest);
}

#[test]
fn the_images_of_a_project_do_not_replace_each_others_cache() {
    let home = Home::new();
    let project = home.project(crate::starter::WORKER);
    let path = project.join("wrangler.jsonc");
    let config = std::fs::read(&path).expect("readable");
    let mut config: serde_json::Value = serde_json::from_slice(&config).expect("JSON without comments");
    let mut second = config["containers"][0].clone();
    second["name"] = "second".into();
    second["class_name"] = "Second".into();
    let binding = serde_json::json!({"name": "SECOND", "class_name": "Second"});
    config["durable_objects"]["bindings"].as_array_mut().expect("a list").push(binding);
    config["migrations"][0]["new_sqlite_classes"].as_array_mut().expect("a list").push("Second".into());
    config["containers"].as_array_mut().expect("a list").push(second);
    std::fs::write(&path, config.to_string()).expect("writable");
    let place = format!("type=local,dest={}", home.path("cache").display());
    let said = home.must_fail(&["build", &project.display().to_string(), "--cache-to", &place]);
    assert!(said.contains("one place for the caches of the project's 2 images") && said.contains("hint: "), "{said}");
}

/// cfc's own registry and Debian's, as far as they are there.
fn registries(home: &Home) -> Vec<(String, Ended)> {
    let (ours, address) = crate::registry::serve(home);
    let mut found = vec![(address, ours)];
    if has_program("docker-registry") {
        found.push(serve(|port| {
            let directory = home.path("debian").display().to_string();
            let config = home.write(
                "config.yml",
                &format!("version: 0.1\nstorage: {{filesystem: {{rootdirectory: {directory}}}}}\nhttp: {{addr: 127.0.0.1:{port}}}\nlog: {{level: error, accesslog: {{disabled: true}}}}\n"),
            );
            let mut command = Command::new("docker-registry");
            command.arg("serve").arg(config).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs")
        }));
    }
    found
}

fn serve(start: impl FnOnce(u16) -> Child) -> (String, Ended) {
    let port = free_port();
    let child = Ended(start(port));
    wait_for("the registry", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
    (format!("127.0.0.1:{port}"), child)
}

#[test]
fn registries_keep_caches_of_their_own_and_in_images() {
    if !can_sandbox() {
        return;
    }
    let servers = Home::new();
    for (host, _registry) in registries(&servers) {
        let (first, context) = machine();
        let cache = format!("{host}/team/cache:1");
        let (digest, _) = build(&first, &context, &["--cache-to", &format!("type=registry,ref={cache},mode=max")]);
        for from in [cache.clone(), format!("type=registry,ref={cache}")] {
            let (second, context) = machine();
            let (again, said) = build(&second, &context, &["--cache-from", &from]);
            assert_all_cached(&said);
            assert_eq!(again, digest, "{host}");
        }

        // In the image itself, which is the same image with it again.
        let inline = ["--cache-to", "type=inline"];
        first.write("context/Dockerfile", ONE_STAGE);
        let (digest, _) = build(&first, &context, &inline);
        let image = format!("{host}/team/app:1");
        first.must(&["push", "app", &image]);
        let (second, context) = machine();
        second.write("context/Dockerfile", ONE_STAGE);
        let (again, said) = build(&second, &context, &["--cache-from", &image, inline[0], inline[1]]);
        assert_all_cached(&said);
        assert_eq!(again, digest, "{host}");
    }
}

#[test]
fn caches_that_are_no_good_are_warned_of_and_done_without() {
    if !can_sandbox() {
        return;
    }
    let (first, context) = machine();
    let cache = first.path("cache");
    let to = format!("type=local,dest={},mode=max", cache.display());
    let (digest, _) = build(&first, &context, &["--cache-to", &to]);
    let from = format!("type=local,src={}", cache.display());
    let foreign = first.path("foreign").display().to_string();
    build(&first, &context, &["--oci-layout", &foreign]);
    let garbage = first.path("garbage");
    copy(&cache, &garbage);
    std::fs::write(garbage.join("index.json"), "{").expect("writable");
    let unreachable = format!("127.0.0.1:{}/a:1", free_port());
    let missing = first.path("missing").display().to_string();
    for (from, expected) in [
        (format!("type=local,src={missing}"), "missing"),
        (format!("type=local,src={foreign}"), "neither a build cache of cfc"),
        (format!("type=local,src={}", garbage.display()), "malformed index"),
        (unreachable, "127.0.0.1"),
    ] {
        let (second, context) = machine();
        let (again, said) = build(&second, &context, &["--cache-from", &from]);
        let warning = said.lines().find(|line| line.starts_with("warning: cannot use the cache"));
        assert!(warning.is_some_and(|line| line.contains(expected)), "{from}: {said}");
        assert_eq!(again, digest);
    }

    // Blobs that are not what their names say, and others that are not there.
    for (what, damage) in [("changed", true), ("gone", false)] {
        let broken = first.path(what);
        copy(&cache, &broken);
        for entry in std::fs::read_dir(broken.join("blobs/sha256")).expect("lists").flatten() {
            let content = std::fs::read(entry.path()).expect("readable");
            let is_layer = content.starts_with(&[0x1f, 0x8b]);
            match is_layer && damage {
                true => std::fs::write(entry.path(), [&content[..], b"x"].concat()).expect("writable"),
                false if is_layer => std::fs::remove_file(entry.path()).expect("removed"),
                false => {}
            }
        }
        let (second, context) = machine();
        let (again, said) =
            build(&second, &context, &["--cache-from", &format!("type=local,src={}", broken.display())]);
        assert!(said.contains("does not give the layer") && said.contains("goes on without it"), "{what}: {said}");
        assert_eq!(again, digest, "{what}");
        crate::prune::assert_whole(&second.data().join("store"));
    }
    // The whole one is still good.
    let (second, context) = machine();
    assert_all_cached(&build(&second, &context, &["--cache-from", &from]).1);

    let said = second.must_fail(&["build", &context, "-t", "app", "--cache-to", "type=gha,mode=max"]);
    assert!(said.contains("caches of type `gha` are not supported") && said.contains("hint: "), "{said}");
}

fn copy(from: &Path, to: &Path) {
    crate::support::copy_tree(from, to);
}
