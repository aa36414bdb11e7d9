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
    let (first, context) = machine();
    let cache = first.path("cache").display().to_string();
    let (digest, _) = build(&first, &context, &["--cache-to", &format!("type=local,dest={cache}")]);
    let (second, context) = machine();
    let (again, said) = build(&second, &context, &["--cache-from", &format!("type=local,src={cache}")]);
    assert_eq!(again, digest);
    let built: Vec<&str> = said.lines().filter(|line| line.contains("] ")).collect();
    assert!(said.contains(" DONE ") && said.contains(" CACHED"), "{built:?}");
}

/// cfc's own registry and Debian's, as far as they are there.
fn registries(home: &Home) -> Vec<(String, Ended)> {
    let mut found = vec![serve(|port| {
        let port = port.to_string();
        home.cfc().args(["registry", "serve", "--port", &port]).stdout(Stdio::null()).spawn().expect("cfc runs")
    })];
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
