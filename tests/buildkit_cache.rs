//! `--cache-to` and `--cache-from` with `--builder buildkit`: the daemon writes and reads them in BuildKit's own format, in
//! directories of ours, in registries, and in images. What a daemon does not offer is an error that says so.

use std::path::Path;

use crate::engine::Engine;
use crate::images::busybox_context;
use crate::support::{Home, has_program};

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

/// What a cache that is in the image can have: the image's own steps.
const ONE_STAGE: &str = "FROM scratch
COPY busybox /bin/busybox
RUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]
COPY --chown=12:34 greeting /srv/
RUN cat /srv/greeting >/both
";

/// A home with an empty store and a context.
fn machine(dockerfile: &str) -> (Home, String) {
    let home = Home::new();
    let context = busybox_context(&home);
    home.write("context/Dockerfile", dockerfile);
    home.write("context/greeting", "hello\n");
    (home, context)
}

/// Builds on the daemon of `engine`: the digest, and what was said.
fn build(home: &Home, engine: &Engine, context: &str, more: &[&str]) -> Result<(String, String), String> {
    let mut command = home.cfc();
    command.args(["build", context, "-t", "app", "--network", "none"]);
    command.args(["--builder", "buildkit", "--buildkit-addr", &engine.buildkit_address()]).args(more);
    let output = command.output().expect("cfc runs");
    let said = String::from_utf8_lossy(&output.stderr).to_string();
    if !output.status.success() {
        return Err(said);
    }
    let out = String::from_utf8_lossy(&output.stdout).trim_end().to_string();
    Ok((out.rsplit(' ').next().unwrap_or_default().to_string(), said))
}

fn must(home: &Home, engine: &Engine, context: &str, more: &[&str]) -> (String, String) {
    build(home, engine, context, more).unwrap_or_else(|said| panic!("{more:?}: {said}"))
}

fn assert_all_cached(said: &str) {
    assert!(said.contains(" CACHED") && !said.contains(" DONE "), "{said}");
}

fn assert_is_built(said: &str) {
    assert!(said.contains(" DONE "), "{said}");
}

/// Has the daemon forget all that it built.
fn prune(engine: &Engine) {
    let output = engine.docker().args(["builder", "prune", "--all", "--force"]).output().expect("docker runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_whole_buildkit_shares_its_cache_in_directories_registries_and_images() {
    let home = Home::new();
    let Some(engine) = Engine::start_current(home.path("engine")) else { return };
    if !has_program("busybox") {
        return;
    }
    in_a_directory(&engine, &home.path("cache"));
    let (_registry, address) = crate::registry::serve(&home);
    in_a_registry(&engine, &address);
    in_an_image(&engine, &address);
    what_is_no_cache_of_buildkits_is_warned_of(&engine);
}

fn in_a_directory(engine: &Engine, directory: &Path) {
    let (first, context) = machine(DOCKERFILE);
    let to = format!("type=local,dest={},mode=max", directory.display());
    let (digest, said) = must(&first, engine, &context, &["--cache-to", &to]);
    assert_is_built(&said);
    let index = std::fs::read_to_string(directory.join("index.json")).expect("it is a layout");
    assert!(index.contains("\"org.opencontainers.image.ref.name\":\"latest\""), "{index}");
    // Once more: what is there already is not written again, and the name stays.
    must(&first, engine, &context, &["--cache-to", &to]);
    prune(engine);
    let (second, context) = machine(DOCKERFILE);
    let from = format!("type=local,src={}", directory.display());
    let (again, said) = must(&second, engine, &context, &["--cache-from", &from]);
    assert_all_cached(&said);
    assert_eq!(again, digest);
    // Without it, the daemon knows nothing any more.
    prune(engine);
    let (third, context) = machine(DOCKERFILE);
    assert_is_built(&must(&third, engine, &context, &[]).1);
    // The cache of another machine's other file is of use as far as it goes.
    prune(engine);
    third.write("context/greeting", "hello, you\n");
    let said = must(&third, engine, &context, &["--cache-from", &from]).1;
    assert!(said.contains(" CACHED") && said.contains(" DONE "), "{said}");
}

fn in_a_registry(engine: &Engine, address: &str) {
    prune(engine);
    let cache = format!("{address}/team/cache:1");
    let (first, context) = machine(DOCKERFILE);
    let to = format!("type=registry,ref={cache},mode=max,compression=zstd");
    let (digest, said) = must(&first, engine, &context, &["--cache-to", &to]);
    assert_is_built(&said);
    prune(engine);
    let (second, context) = machine(DOCKERFILE);
    let (again, said) = must(&second, engine, &context, &["--cache-from", &cache]);
    assert_all_cached(&said);
    assert_eq!(again, digest);
}

fn in_an_image(engine: &Engine, address: &str) {
    prune(engine);
    let image = format!("{address}/team/app:1");
    let (first, context) = machine(ONE_STAGE);
    assert_is_built(&must(&first, engine, &context, &["--cache-to", "type=inline"]).1);
    first.must(&["push", "app", &image]);
    // The same without a cache in it.
    let (digest, _) = must(&first, engine, &context, &[]);
    prune(engine);
    let (second, context) = machine(ONE_STAGE);
    let (again, said) = must(&second, engine, &context, &["--cache-from", &image]);
    assert_all_cached(&said);
    assert_eq!(again, digest);
}

fn what_is_no_cache_of_buildkits_is_warned_of(engine: &Engine) {
    let (home, context) = machine(ONE_STAGE);
    let nowhere = home.path("nowhere").display().to_string();
    let said = must(&home, engine, &context, &["--cache-from", &format!("type=local,src={nowhere}")]).1;
    assert!(said.contains(&format!("warning: cannot use the cache `{nowhere}`: ")), "{said}");
    let image = home.path("image").display().to_string();
    must(&home, engine, &context, &["--oci-layout", &image]);
    let said = must(&home, engine, &context, &["--cache-from", &format!("type=local,src={image}")]).1;
    assert!(said.contains(&format!("cache `{image}`: it is not a build cache of BuildKit's")), "{said}");
}

#[test]
fn an_engine_puts_a_cache_into_images_and_names_the_others() {
    if !has_program("dockerd") || !has_program("busybox") {
        return;
    }
    let home = Home::new();
    let Some(engine) = Engine::start(home.path("engine")) else { return };
    let (machine_, context) = machine(ONE_STAGE);
    for (kind, to) in [("local", "type=local,dest=/nowhere"), ("registry", "type=registry,ref=127.0.0.1:1/cache")] {
        let said = build(&machine_, &engine, &context, &["--cache-to", to]).expect_err("it cannot do so");
        let expected =
            format!("the BuildKit daemon at `{}` exports no build cache of type `{kind}`", engine.buildkit_address());
        assert!(said.contains(&expected) && said.contains("hint: "), "{said}");
    }
    assert!(!Path::new("/nowhere").exists());
    assert!(machine_.must(&["images", "list", "--json"]).trim() == "[]", "there is no image");
    let (_registry, address) = crate::registry::serve(&home);
    in_an_image(&engine, &address);
}
